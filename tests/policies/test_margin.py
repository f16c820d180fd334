"""The margin: worked losses, tables that need one or none, holes, refusals; in the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from table_examples import build

from rlroute.data.routing_data import RoutingData, count_candidate_features
from rlroute.policies.kernel_start import KernelConfig
from rlroute.policies.margin import (
    MAXIMUM_FOLDS,
    TOLERATED_LOSS,
    LeftOut,
    assign_folds,
    choose_margin,
    compare_with_best,
    measure_margin,
)
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.types import RLRouteError

NAN = np.nan
LETTERS = "tuvwxyz"
KERNEL = KernelConfig(anchors=60, penalty=1.0)


def build_tasks(tasks: int, *, agree: bool, queries: int = 40) -> tuple[RoutingData, np.ndarray]:
    """Return queries of two looks in several tasks, and one query cluster per look.

    Candidate a solves 40% of everything. Candidate b solves the second look; all tasks agree on
    that, or only every other one does and in the rest b solves nothing.
    """
    generator = np.random.default_rng(0)
    look_Q = np.arange(tasks * queries) % 2
    task_Q = np.repeat(np.arange(tasks), queries)
    a_Q = (np.arange(tasks * queries) // 2 % 5 < 2).astype(float)
    b_Q = ((look_Q == 1) & (agree | (task_Q % 2 == 0))).astype(float)
    features_QF = np.eye(2)[look_Q] + 0.02 * generator.standard_normal((len(look_Q), 2))
    letters = "".join(LETTERS[task] for task in task_Q)
    score_QK = np.stack([a_Q, b_Q], axis=1)
    data = build(score_QK, np.ones(score_QK.shape), features_QF, letters)
    return data, np.eye(2, dtype=np.float32)


def test_the_loss_of_a_margin_is_counted_where_the_gap_is_wider():
    # one task: gaps .05 and .15; leaving the best single loses 1 on the first, wins 1 on the second
    part = LeftOut(np.array([0.05, 0.15]), np.array([1.0, -1.0]))
    # at 0 both are left: mean loss 0; at .05 to .14 only the second: a gain; from .15 on nothing
    assert choose_margin([part] * 3) == 0.0
    # the other way round: harm lasts until the second gap is not passed any more
    other = LeftOut(np.array([0.05, 0.155]), np.array([-1.0, 1.0]))
    assert choose_margin([other] * 3) == pytest.approx(0.16)


def test_tasks_that_differ_much_need_a_wider_margin_than_their_mean_says():
    gain = LeftOut(np.array([0.1]), np.array([-0.2]))
    harm = LeftOut(np.array([0.1]), np.array([0.2]))
    assert choose_margin([gain, gain, gain]) == 0.0
    assert choose_margin([gain, harm, gain, harm]) == pytest.approx(0.1)


def test_the_margin_covers_one_more_task_and_not_the_mean_alone():
    # harms 0, 0, 0 and x at a gap of .1: mean x / 4, deviation x / 2, t(.95, 3) = 2.353, so one
    # more task loses up to x * (1/4 + 2.353 * sqrt(1 + 1/4) / 2) = 1.566 x
    for factor, expected in ((0.99, 0.0), (1.01, 0.1)):
        harm = LeftOut(np.array([0.1]), np.array([factor * TOLERATED_LOSS / 1.5656]))
        calm = LeftOut(np.array([0.1]), np.array([0.0]))
        gain = LeftOut(np.array([0.1]), np.array([-0.4]))
        # what others gain makes it no better, and how much they gain no worse
        for others in ([calm, calm, calm], [gain, calm, gain]):
            assert choose_margin([harm, *others]) == pytest.approx(expected)


def test_a_harm_within_the_tolerance_needs_no_margin():
    for loss, expected in ((0.9 * TOLERATED_LOSS, 0.0), (1.1 * TOLERATED_LOSS, 0.3)):
        part = LeftOut(np.array([0.3]), np.array([loss]))
        assert choose_margin([part] * 4) == pytest.approx(expected)


@pytest.mark.parametrize("kernel", [None, KERNEL])
def test_no_margin_is_needed_where_all_tasks_agree(kernel):
    data, centroids_CF = build_tasks(6, agree=True)
    assert measure_margin(data, centroids_CF, kernel, seed=0) == 0.0


@pytest.mark.parametrize("kernel", [None, KERNEL])
def test_a_margin_is_needed_where_tasks_do_not_agree(kernel):
    data, centroids_CF = build_tasks(6, agree=False)
    assert measure_margin(data, centroids_CF, kernel, seed=0) > 0.0


def test_a_pick_that_was_never_tried_is_not_compared_and_a_hole_of_the_best_drops_the_query():
    data = build([[1, NAN, 0], [NAN, 1, 0], [0, 1, 0]], np.ones((3, 3)), np.eye(3))
    quality_QK = np.array([[0.5, 0.9, 0.6], [0.5, 0.9, 0.6], [0.5, 0.9, 0.6]])
    part = compare_with_best(data, quality_QK, best=0)
    assert part.gap_Q == pytest.approx([0.1, 0.4])  # query 0: c; query 2: b; query 1 is dropped
    assert part.loss_Q == pytest.approx([1.0, -1.0])


def test_too_few_tasks_are_refused_with_what_to_write_instead():
    data, centroids_CF = build_tasks(2, agree=True)
    with pytest.raises(
        RLRouteError, match=r"policy\.margin.* 3 train tasks.* has 2; give a number"
    ):
        measure_margin(data, centroids_CF, None, seed=0)


def test_many_tasks_are_left_out_several_at_a_time():
    letters = "abcdefghijklmnopqrstuvwxyz"
    data = build(np.ones((26, 2)), np.ones((26, 2)), np.eye(26), letters)
    fold_Q = assign_folds(data)
    assert sorted(set(fold_Q.tolist())) == list(range(MAXIMUM_FOLDS))
    assert fold_Q[0] == fold_Q[MAXIMUM_FOLDS]


# --- In the network -------------------------------------------------------------------------------

COLUMNS = count_candidate_features(1)


def score_three(margin: float, weight: float = 0.0, mask=(True, True, True), served=True):
    """Return the scores of one query; candidates a, b, c of quality .6, .65, .3, b the best mean.

    Mean scores are .5, .4, .3: a is the best single candidate, b looks better on the query.
    """
    features_KD = torch.zeros(3, COLUMNS)
    features_KD[:, 0] = torch.tensor([0.5, 0.4, 0.3])
    features_KD[:, -2] = torch.tensor([0.6, 0.65, 0.3])
    features_KD[:, -1] = torch.tensor([1.0, 0.5, 0.1])
    scorer = CandidateScorer(ScorerConfig(features=2, clusters=1, hidden=4, margin=True))
    scorer.margin.fill_(margin)
    with torch.no_grad():
        return scorer(
            torch.ones(1, 2),
            features_KD,
            torch.tensor([mask]),
            torch.tensor([weight]),
            served=served,
        )


def test_the_best_single_candidate_is_left_only_for_more_than_the_margin():
    for margin, pick in ((0.0, 1), (0.04, 1), (0.06, 0)):
        assert score_three(margin).logits_BK.argmax().item() == pick
    # at weight .2 b also saves .1: the margin has to outweigh both
    for margin, pick in ((0.14, 1), (0.16, 0)):
        assert score_three(margin, weight=0.2).logits_BK.argmax().item() == pick


def test_a_margin_moves_decisions_and_no_estimate():
    plain, moved = score_three(0.0), score_three(0.06)
    torch.testing.assert_close(moved.quality_BK, plain.quality_BK)
    torch.testing.assert_close(moved.cost_BK, plain.cost_BK)
    difference_BK = (moved.logits_BK - plain.logits_BK).tolist()
    assert difference_BK[0] == pytest.approx([0.6, 0, 0], abs=1e-5)  # sharpness 10 x .06


def test_a_policy_learns_without_its_margin():
    learning, plain = score_three(0.06, served=False), score_three(0.0)
    torch.testing.assert_close(learning.logits_BK, plain.logits_BK)


def test_the_margin_goes_to_the_best_of_those_allowed():
    moved = score_three(0.06, mask=(False, True, True))
    plain = score_three(0.0, mask=(False, True, True))
    assert moved.logits_BK[0, 0] == -torch.inf
    difference_K = (moved.logits_BK - plain.logits_BK)[0, 1:].tolist()
    assert difference_K == pytest.approx([0.6, 0], abs=1e-5)
