"""Outcomes by running the pipeline now: the tree's, bit by bit, each run once, failures again."""

from __future__ import annotations

import numpy as np
import pytest
from tier_worlds import ArithmeticPipeline, HashEncoder, grade, make_questions, make_tree

from rlroute.memory.live import LiveOutcomes
from rlroute.memory.outcomes import TierOutcomes
from rlroute.seeding import draw_uniform
from rlroute.types import RLRouteError

RAGGED = (2, 3, 2, 4)
FAILING = [(0, 1, "q0"), (1, 2, "q1"), (2, 0, "q2"), (3, 3, "q3")]


def make_live(counts=(3, 3, 3, 3, 3), questions=6, grade=grade) -> LiveOutcomes:
    pipeline = ArithmeticPipeline(counts)
    return LiveOutcomes(pipeline, make_questions(questions), HashEncoder(), grade)


def draw_lanes(outcomes: TierOutcomes, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    index_B = (draw_uniform("q", np.arange(lanes)) * len(outcomes.questions)).astype(np.int64)
    counts = np.array(outcomes.facts.tier_counts)
    uniform_BM = draw_uniform("k", np.arange(lanes)[:, None], np.arange(len(counts)))
    return index_B, (uniform_BM * counts).astype(np.int64)


def play(outcomes: TierOutcomes, index_B: np.ndarray, tier_BM: np.ndarray) -> list[np.ndarray]:
    """Return all that is seen along the way; tiers that are not chosen yet are 0."""
    seen = []
    for step in range(tier_BM.shape[1]):
        seen.append(
            outcomes.look(index_B, step, np.where(np.arange(tier_BM.shape[1]) < step, tier_BM, 0))
        )
        seen.append(
            outcomes.run(index_B, step, np.where(np.arange(tier_BM.shape[1]) <= step, tier_BM, 0))
        )
    answers = outcomes.answer(index_B, tier_BM)
    return [*seen, answers.score_B, answers.cost_usd_B]


@pytest.mark.parametrize("counts", [(3, 3, 3, 3, 3), RAGGED])
@pytest.mark.parametrize("failing", [(), FAILING])
def test_live_outcomes_and_the_tree_agree_in_every_bit(counts, failing):
    live, tree = make_live(counts), make_tree(6, counts, failing)
    assert isinstance(live.pipeline, ArithmeticPipeline)
    live.pipeline.failing = set(failing)
    index_B, tier_BM = draw_lanes(tree, 300)
    for of_live, of_tree in zip(
        play(live, index_B, tier_BM), play(tree, index_B, tier_BM), strict=True
    ):
        assert of_live.dtype == of_tree.dtype
        np.testing.assert_array_equal(of_live, of_tree)
    assert np.array_equal(live.query_QE, tree.query_QE)
    assert np.isnan(tree.answer(index_B, tier_BM).score_B).any() == bool(failing)


def test_lanes_that_come_along_the_same_way_run_once():
    live = make_live()
    index_B, tier_BM = np.array([2, 2, 2, 2]), np.array([[1, 0, 0, 0, 0]] * 3 + [[1, 0, 0, 2, 0]])
    play(live, index_B, tier_BM)
    runs = {step: live.pipeline.module_runs[step, "q2"] for step in range(5)}
    assert runs == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert live.pipeline.answers["q2"] == 2
    play(live, index_B, tier_BM)
    assert live.pipeline.module_runs.total() == 7
    assert live.pipeline.answers["q2"] == 2


def test_the_extractors_of_a_stage_run_at_once():
    live = make_live()
    play(live, np.arange(6), np.zeros((6, 5), dtype=np.int64))
    assert live.pipeline.most_at_once == 3


def test_a_failure_is_tried_again_by_the_next_episode():
    live = make_live()
    live.pipeline.failing = {(0, 1, "q0"), (3, 0, "q1")}
    live.pipeline.failing_answers = {"q2"}
    index_B, tier_BM = np.arange(3), np.array([[1, 0, 0, 0, 0]] * 3)
    first = play(live, index_B, tier_BM)
    assert np.isnan(first[-2]).tolist() == [True] * 3
    assert live.pipeline.module_runs[1, "q0"] == 0  # what depends on a failure is not run
    assert live.pipeline.module_runs[4, "q1"] == 0
    assert live.pipeline.answers["q0"] == live.pipeline.answers["q1"] == 0
    live.pipeline.failing, live.pipeline.failing_answers = set(), set()
    tree = make_tree(6)
    for of_live, of_tree in zip(
        play(live, index_B, tier_BM), play(tree, index_B, tier_BM), strict=True
    ):
        np.testing.assert_array_equal(of_live, of_tree)


def test_a_failed_call_is_never_cheap():
    live = make_live()
    live.pipeline.failing = {(4, 0, "q0")}
    index_1, tier_1M = np.array([0]), np.zeros((1, 5), dtype=np.int64)
    seen = play(live, index_1, tier_1M)
    assert np.isnan(seen[-3]).all()
    assert np.isnan(seen[-1]).all()


def test_a_stage_before_its_time_is_refused():
    live = make_live()
    with pytest.raises(ValueError, match="'filter' was not run for question 0"):
        live.look(np.array([0]), 1, np.zeros((1, 5), dtype=np.int64))
    live.run(np.array([0]), 0, np.zeros((1, 5), dtype=np.int64))
    with pytest.raises(ValueError, match="'notes0' was not run"):
        live.answer(np.array([0]), np.zeros((1, 5), dtype=np.int64))


@pytest.mark.parametrize("score", [7.0, -1.0, float("nan")])
def test_a_grade_outside_its_range_is_refused(score):
    live = make_live(grade=lambda question, answer: score)
    with pytest.raises(RLRouteError, match=r"question 'q0': its grade is .* \(allowed: 0 to 1\)"):
        play(live, np.array([0]), np.zeros((1, 5), dtype=np.int64))
