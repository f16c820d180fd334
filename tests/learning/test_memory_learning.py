"""What memory-tier training learns where the right tiers are planted and every outcome is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planted_tiers import FACTS, PRICES, Trained, compute_leaf_utility, make_tree, train

LEAF_LM = FACTS.list_leaves()
PART_K = np.array([0.0, 0.5, 1.0])  # of what a module adds at High
# What each module adds for questions of each kind: filter, entity, temporal, topic, summary.
GAIN_CM = np.array(
    [
        [0.05, 0.40, 0.05, 0.05, 0.10],
        [0.05, 0.05, 0.40, 0.05, 0.10],
        [0.05, 0.05, 0.05, 0.30, 0.10],
        [0.02, 0.02, 0.02, 0.02, 0.02],
    ]
)
TOY_CL = 0.3 + (GAIN_CM[:, None, :] * PART_K[LEAF_LM]).sum(axis=2)
LARGE = 8.0  # a cost weight at which nothing but the cheapest pays
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, LARGE)
RANGE = {"min": 0, "max": LARGE, "power": 2.5}
JOINT = {  # as in the source: one ratio, one pass over the whole batch in an epoch, clipped values
    "kind": "ppo", "credit": "joint", "episodes": 256, "minibatches": 1, "target_kl": None,
    "value_clip": 0.2, "value_weight": 1.0,
}  # fmt: skip
TEST = make_tree(TOY_CL, seed=1)  # other questions of the same kinds


@pytest.fixture(scope="module")
def routed() -> Trained:
    """Credit by decision, one policy for all cost weights."""
    return train(make_tree(TOY_CL), cost_weight=RANGE)


def compute_ratios(run: Trained) -> list[float]:
    """Return the policy's share of the oracle's utility on test questions, by cost weight."""
    found = []
    for weight in WEIGHTS:
        utility_QL = compute_leaf_utility(TEST, weight, run.problem.reference_usd)
        found.append(run.compute_utility(weight, TEST) / utility_QL.max(axis=1).mean())
    return found


def find_low_share(run: Trained, weight: float) -> float:
    return float((run.play(weight).tier_QM == 0).mean())


# --- The enumerable toy (11.10) -------------------------------------------------------------------


@pytest.mark.slow
def test_one_policy_reaches_95_percent_of_the_oracle_at_every_cost_weight(routed):
    assert min(compute_ratios(routed)) > 0.95


@pytest.mark.slow
def test_dear_tiers_and_costs_fall_as_the_cost_weight_rises(routed):
    plays = [routed.play(weight, TEST) for weight in WEIGHTS]
    high = np.array([(play.tier_QM == 2).mean() for play in plays])
    cost = np.array([play.cost_usd_Q.mean() for play in plays])
    assert (np.diff(high) <= 0.02).all()
    assert (np.diff(cost) <= 0.02 * cost[0]).all()
    assert high[0] > 0.6
    assert cost[-1] < 0.05 * cost[0]


@pytest.mark.slow
def test_quality_alone_takes_the_best_tiers_and_a_large_weight_the_cheapest(routed):
    quality = routed.play(0.0, TEST)
    assert quality.score_Q.mean() > 0.97 * TEST.leaf_score_QL.max(axis=1).mean()
    for kind, module in ((0, 1), (1, 2), (2, 3)):  # what matters is taken at High every time
        assert (quality.tier_QM[kind::4, module] == 2).all()
    assert (routed.play(LARGE, TEST).tier_QM == 0).mean() > 0.97


@pytest.mark.slow
def test_it_beats_the_best_static_choice_where_kinds_need_different_tiers(routed):
    for weight in (0.3, 1.0):
        utility_QL = compute_leaf_utility(TEST, weight, routed.problem.reference_usd)
        static = utility_QL.mean(axis=0).max()
        assert routed.compute_utility(weight, TEST) > static + 0.04


@pytest.mark.slow
def test_joint_credit_learns_too():
    assert min(compute_ratios(train(make_tree(TOY_CL), cost_weight=RANGE, algorithm=JOINT))) > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_group_algorithms_learn_too(kind):
    algorithm = {"kind": kind, "episodes": 256, "group_size": 8, "target_kl": None}
    run = train(make_tree(TOY_CL), cost_weight=RANGE, algorithm=algorithm)
    assert min(compute_ratios(run)) > 0.85


# --- Awareness of the question (11.11) ------------------------------------------------------------


def test_two_kinds_of_questions_get_what_each_needs(record_property):
    # Kind 0 is answered with temporal at High and no other way; kind 1 with Low everywhere.
    needs_CL = np.stack([(LEAF_LM[:, 2] == 2).astype(float), np.ones(len(LEAF_LM))])
    tree, weight = make_tree(needs_CL), 1.5
    fixed = {"min": weight, "max": weight}
    run = train(tree, updates=40, cost_weight=fixed)
    utility_QL = compute_leaf_utility(tree, weight, run.problem.reference_usd)
    static, oracle = utility_QL.mean(axis=0).max(), utility_QL.max(axis=1).mean()
    gap = run.compute_utility(weight, tree) - static
    record_property("ahead of the best static choice", round(float(gap), 3))
    assert oracle - static == pytest.approx(0.15)
    assert gap > 0.12
    tier_QM = run.play(weight).tier_QM
    assert (tier_QM[::2, 2] == 2).mean() > 0.9
    assert (tier_QM[1::2] == 0).mean() > 0.9


# --- Alignment (11.12) ----------------------------------------------------------------------------


def test_without_alignment_a_small_spread_of_scores_collapses_to_the_cheapest():
    narrow_CL = 0.5 + 0.15 * (TOY_CL - 0.3)  # the best tiers everywhere add a tenth at most
    low = {}
    for name, alignment in (("none", None), ("k", {"floor": 0.005, "cap": 100})):
        reward = {"form": "paper", "cost": {"kind": "window"}, "alignment": alignment}
        fixed = {"min": 0.3, "max": 0.3}
        run = train(make_tree(narrow_CL), updates=40, cost_weight=fixed, reward=reward)
        low[name] = find_low_share(run, 0.3)
    assert low["none"] > 0.98
    assert low["k"] < 0.7


# --- Failures (11.13) -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_failing_earns_nothing_where_every_answer_is_worth_less_than_nothing(seed):
    # Taken as 0, a failure would be the best that could happen; it must not be sought.
    prices_MK = PRICES.copy() + 0.004
    prices_MK[2, 1] = np.nan  # temporal
    tree = make_tree(np.zeros_like(TOY_CL), prices_MK)
    run = train(tree, updates=30, seed=seed, cost_weight={"min": 2, "max": 2})
    share = [row["selection/share/temporal/Mid"] for row in run.rows]
    dropped = [row["group/dropped"] / 256 for row in run.rows]
    assert all(value == 0 for value in share)  # of what did not fail
    assert dropped[0] == pytest.approx(1 / 3, abs=0.1)
    assert np.mean(dropped[-5:]) < dropped[0] + 0.1
    assert find_low_share(run, 2.0) > 0.8
