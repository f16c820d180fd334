"""Examples and calibration: the kinds by hand, expectations against what came, the pictures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from evaluation_examples import build_data, build_topics
from hypothesis import given
from hypothesis import strategies as st

from rlroute.evaluation.decisions import (
    CHEAPER,
    DEARER,
    GAINED,
    LOST,
    calibrate,
    inspect_decisions,
    shorten,
)
from rlroute.evaluation.figures_decisions import draw_calibration, draw_shares_over_training

PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Stated:
    """A policy whose picks and expectations are stated."""

    pick: tuple[int, ...]
    quality: float = 0.5
    cost: float = 0.4
    name: str = "stated"

    def estimate_picks(self, data, cost_weight):
        ones_Q = np.ones(len(self.pick), np.float32)
        return np.array(self.pick), self.quality * ones_Q, self.cost * ones_Q


def test_every_query_that_parts_from_the_best_single_is_of_one_kind() -> None:
    data = build_data(
        [[1, 0], [0, 1], [1, 1], [1, 1], [0, 1], [1, np.nan]],
        [[1, 4], [1, 4], [1, 4], [6, 4], [1, 4], [1, 4]],
    )
    found = inspect_decisions(Stated((0, 0, 0, 0, 1, 0)), data, best=1, cost_weight=0.1, seed=0)
    assert dict(found.counts) == {GAINED: 1, CHEAPER: 1, DEARER: 1, LOST: 1}
    kinds = {one.query_id: one.kind for one in found.examples}
    assert kinds == {"q0": GAINED, "q1": LOST, "q2": CHEAPER, "q3": DEARER}
    lost = next(one for one in found.examples if one.kind == LOST)
    assert (lost.candidate_id, lost.score, lost.cost_usd) == ("model-0", 0.0, 1.0)
    assert (lost.best_score, lost.best_cost_usd) == (1.0, 4.0)


def test_examples_are_few_drawn_by_the_seed_and_the_same_again() -> None:
    data = build_topics(300, 0)
    policy = Stated(tuple([0] * 300))
    one, other, third = (
        inspect_decisions(policy, data, best=2, cost_weight=0.1, seed=seed) for seed in (0, 0, 1)
    )
    assert one == other
    assert {e.query_id for e in one.examples} != {e.query_id for e in third.examples}
    assert len(one.examples) <= 16
    assert sum(one.counts.values()) == 300


def test_calibration_is_exact_where_expectations_are_right() -> None:
    expected_Q = np.repeat([0.2, 0.8], 500)
    realised_Q = np.concatenate(
        [np.repeat([1.0, 0.0], [100, 400]), np.repeat([1.0, 0.0], [400, 100])]
    )
    found = calibrate(expected_Q, realised_Q)
    assert [one.count for one in found.bins] == [500, 500]
    assert found.error == pytest.approx(0.0, abs=1e-12)
    assert found.bins[0].low == pytest.approx(0.2 - 1.959964 * 0.4 / np.sqrt(500))


def test_a_policy_that_expects_too_much_is_found_out() -> None:
    data = build_data([[1.0, 0.0]] * 40, [[1.0, 4.0]] * 40)
    found = inspect_decisions(Stated((1,) * 40, 0.9, 0.2), data, best=0, cost_weight=0.0, seed=0)
    assert found.quality.error == pytest.approx(0.9)
    assert found.cost.bins[0].expected == pytest.approx(2.0)  # 0.2 of the reference, 10 USD
    assert found.cost.error == pytest.approx(2.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=200))
def test_bins_hold_every_query_once_and_keep_the_means(pairs) -> None:
    expected_Q, realised_Q = np.array(pairs).T
    found = calibrate(expected_Q, realised_Q)
    assert sum(one.count for one in found.bins) == len(pairs)
    mean = sum(one.count * one.realised for one in found.bins) / len(pairs)
    assert mean == pytest.approx(realised_Q.mean(), abs=1e-9)
    assert 0 <= found.error <= 1 + 1e-9
    expectations = [one.expected for one in found.bins]
    assert expectations == sorted(expectations)


def test_long_texts_are_cut_on_one_line() -> None:
    assert shorten("a\n  b") == "a b"
    assert len(shorten("word " * 100)) <= 220


def test_the_pictures_are_drawn_and_a_run_without_shares_has_none() -> None:
    data = build_topics(100, 0)
    found = inspect_decisions(Stated((0,) * 100), data, best=2, cost_weight=0.1, seed=0)
    assert draw_calibration(found).startswith(PNG)
    history = [
        {"step": step, **{f"selection/share/c{k:02}": 1 / 20 for k in range(20)}}
        for step in range(1, 300)
    ]
    picture = draw_shares_over_training(history)
    assert picture is not None
    assert picture.startswith(PNG)
    assert draw_shares_over_training([{"step": 1, "policy/entropy": 1.0}] * 3) is None
