"""Two runs of online learners on one stream: differences, intervals by blocks, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from rlroute.bandits.config import DiesConfig
from rlroute.bandits.contexts import prepare_stream
from rlroute.bandits.play import Picks
from rlroute.bandits.stream import Stream, make_stream
from rlroute.data.irt_table import IrtTableConfig, make_irt_table
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.evaluation.bandit_difference import (
    compare_learners,
    describe_stream_difference,
    render_stream_difference,
    write_stream_difference,
)
from rlroute.evaluation.bandit_results import LearnerRun
from rlroute.types import RLRouteError

LENGTH, WINDOW = 400, 10
EVENTS = [DiesConfig(kind="dies", candidate="candidate-b", at=200)]


def make_streams(seeds=(0, 1), events=EVENTS) -> list[Stream]:
    made = make_irt_table(IrtTableConfig(queries=150, topics=2, words=4), 0)
    data = prepare_stream(made.table, made.features_QF, dimension=4, clusters=2, seed=0)
    weights = CostWeightConfig(min=0.1, max=0.1)
    return [
        make_stream(data, length=LENGTH, seed=seed, events=events, weights=weights)
        for seed in seeds
    ]


def play(name: str, stream: Stream, action_T) -> LearnerRun:
    picks = Picks(np.asarray(action_T), np.ones(LENGTH), np.zeros(LENGTH))
    return LearnerRun(name, stream, picks, 1.0)


def pick_best(stream: Stream):
    return np.nanargmax(stream.utility_TK, axis=1)


def compare(first, second, **options):
    return compare_learners(first, second, names=("a", "b"), window=WINDOW, **options)


def test_a_difference_is_that_of_the_regrets_whole_by_seed_and_by_phase():
    streams = make_streams()
    first = [play("one", stream, pick_best(stream)) for stream in streams]
    second = [play("one", stream, np.zeros(LENGTH, dtype=int)) for stream in streams]
    (found,) = compare(first, second).learners
    lost_ST = np.array([s.best_T - s.compute_utility(np.zeros(LENGTH, int)) for s in streams])
    assert found.first_regret == pytest.approx(0)
    assert found.second_regret == pytest.approx(lost_ST.sum(axis=1).mean())
    assert found.difference.value == pytest.approx(-lost_ST.sum(axis=1).mean())
    assert found.by_seed == pytest.approx(-lost_ST.sum(axis=1))
    halves = [-lost_ST[:, part].sum(axis=1).mean() for part in (slice(200), slice(200, None))]
    assert found.by_phase == pytest.approx(halves)
    assert found.curve.mean[-1] == pytest.approx(found.difference.value)
    assert found.difference.high < 0
    assert found.permutation_p < 0.01
    turned = compare(second, first).learners[0]
    assert turned.difference.value == pytest.approx(-found.difference.value)
    assert (
        "a has clearly less regret than b" in describe_stream_difference(compare(first, second))[0]
    )


def test_the_interval_is_that_of_blocks_not_of_single_queries():
    (stream,) = make_streams(seeds=(0,), events=[])
    worst_T = np.nanargmin(stream.utility_TK, axis=1)
    best_T = pick_best(stream)
    # halves of the stream that differ both ways: single queries would give a far narrower interval
    early_T = np.where(np.arange(LENGTH) < 200, best_T, worst_T)
    late_T = np.where(np.arange(LENGTH) < 200, worst_T, best_T)
    first, second = [play("x", stream, early_T)], [play("x", stream, late_T)]
    (found,) = compare(first, second).learners
    assert found.difference.low < 0 < found.difference.high
    assert compare(first, second).block == WINDOW
    coarse = compare_learners(first, second, names=("a", "b"), window=10_000)
    assert coarse.block == LENGTH // 20  # a short stream is cut into shorter blocks
    wide = coarse.learners[0].difference
    assert wide.high - wide.low > 1.2 * (found.difference.high - found.difference.low)


def test_equal_runs_do_not_differ():
    streams = make_streams()
    runs = [play("x", stream, pick_best(stream)) for stream in streams]
    (found,) = compare(runs, runs).learners
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)
    assert found.permutation_p == 1
    assert "no clear difference" in describe_stream_difference(compare(runs, runs))[0]


def test_learners_pair_by_name_and_the_best_of_each_run_meet():
    (stream,) = make_streams(seeds=(0,))
    zeros_T = np.zeros(LENGTH, dtype=int)
    first = [play("same", stream, zeros_T), play("good", stream, pick_best(stream))]
    second = [play("same", stream, zeros_T), play("other", stream, zeros_T + 2)]
    found = compare(first, second)
    names = [(one.first, one.second) for one in found.learners]
    assert ("same", "same") in names
    assert names[0][0] == "good"
    assert len(names) == 2


def test_a_comparison_is_written_with_a_picture_and_a_table(tmp_path):
    streams = make_streams()
    found = compare(
        [play("x", stream, pick_best(stream)) for stream in streams],
        [play("x", stream, np.zeros(LENGTH, dtype=int)) for stream in streams],
    )
    write_stream_difference(tmp_path, found)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert '"by_phase"' in (tmp_path / "compare.json").read_text(encoding="utf-8")
    assert render_stream_difference(found).row_count == 1


def test_other_streams_are_refused():
    streams = make_streams()
    first = [play("x", stream, pick_best(stream)) for stream in streams]
    other = [play("x", stream, pick_best(stream)) for stream in make_streams(events=[])]
    with pytest.raises(RLRouteError, match="streams of seed 0 differ"):
        compare(first, other)
    with pytest.raises(RLRouteError, match="other seeds"):
        compare(first, first[:1])
