"""Batches of memory-tier episodes: the tree's outcomes, terms at the end, failures never learnt."""

from __future__ import annotations

import numpy as np
import pytest
from tier_worlds import ArithmeticPipeline, HashEncoder, grade, make_questions, make_tree

from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.memory.live import LiveOutcomes
from rlroute.policies.decision import Decisions, sample_actions
from rlroute.policies.tierwise import TierInputs
from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig
from rlroute.rollout.plan import EpisodePlan, plan_episodes
from rlroute.rollout.tiers import collect_tier_batch, place_terms
from rlroute.types import Batch, RLRouteError

RAGGED = (2, 3, 2, 4)
FAILING = [(0, 1, "q2"), (2, 0, "q5")]
TREE = make_tree(8, RAGGED)
DESCRIPTIONS = np.arange(8, dtype=np.float32).reshape(4, 2)
LANES = 64


class TintedPolicy:
    """Prefers tiers by what it sees, so that another feature, module or mask tells."""

    version = 7

    def __init__(self) -> None:
        self.modules: list[int] = []

    def decide(self, inputs: TierInputs, uniform_B: np.ndarray) -> Decisions:
        self.modules.append(inputs.module)
        tiers = np.arange(inputs.mask_BK.shape[1])
        logit_BK = np.sin(inputs.features_BF.sum(axis=1)[:, None] * 5 + tiers + inputs.module)
        weight_BK = np.where(inputs.mask_BK, np.exp(logit_BK), 0.0)
        logp_BK = np.log(weight_BK / weight_BK.sum(axis=1, keepdims=True) + 1e-30)
        action_B = sample_actions(logp_BK.astype(np.float32), uniform_B)
        return Decisions(
            action_B=action_B,
            logp_B=logp_BK[np.arange(len(action_B)), action_B].astype(np.float32),
            value_B=np.full(len(action_B), inputs.module, dtype=np.float32),
        )


def make_plan(lanes: int = LANES) -> EpisodePlan:
    return plan_episodes(3, 0, queries=8, groups=lanes // 4, group_size=4)


def collect(outcomes=TREE, reward=None, plan=None, *, bounds=None, **fields) -> Batch:
    plan = plan or make_plan()
    reward = reward or MemoryReward(MemoryRewardConfig())
    weight_B = np.linspace(0, 1, len(plan.group_B), dtype=np.float32)
    episodes = TierEpisodes(outcomes, reference_usd=0.1, bound_usd_MK=bounds)
    return collect_tier_batch(
        TintedPolicy(),
        episodes,
        plan,
        weight_B,
        reward,
        candidate_features_KD=DESCRIPTIONS,
        **fields,
    )


def find_leaves(tree, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    return batch.query_index_B, tree.facts.number_leaves(batch.action_BT)


def test_a_batch_holds_the_plan_and_the_leaves_that_were_chosen():
    plan = make_plan()
    batch = collect(plan=plan)
    assert batch.features_BTF.shape == (LANES, 4, 2 * HashEncoder.dimension + 3 + 16)
    assert batch.mask_BTK.sum(axis=2).tolist() == [list(RAGGED)] * LANES
    assert np.take_along_axis(batch.mask_BTK, batch.action_BT[:, :, None], axis=2).all()
    assert np.array_equal(batch.query_index_B, plan.query_index_B)
    assert np.array_equal(batch.group_B, plan.group_B)
    assert batch.candidate_features_KD is DESCRIPTIONS
    assert batch.policy_version == 7
    assert batch.value_BT.tolist() == [[0, 1, 2, 3]] * LANES
    assert batch.valid_BT.all()
    assert batch.terminated_B.all()
    assert batch.dropped == 0
    where = find_leaves(TREE, batch)
    assert len(set(where[1].tolist())) > 10
    assert np.array_equal(batch.ends.score_B, TREE.leaf_score_QL[where])
    np.testing.assert_array_equal(
        batch.ends.cost_usd_B, TREE.leaf_cost_QL[where].astype(np.float32)
    )
    assert batch.ends.free_BT.all()


def test_terms_come_at_the_last_step_by_a_window_that_the_batch_has_joined():
    reward = MemoryReward(MemoryRewardConfig())
    batch = collect(reward=reward)
    where = find_leaves(TREE, batch)
    known = MemoryReward(MemoryRewardConfig())
    known.push(TREE.leaf_score_QL[where], TREE.leaf_cost_QL[where])
    assert known.get_state() == reward.get_state()
    terms = known.score(TREE.leaf_score_QL[where], TREE.leaf_cost_QL[where])
    assert set(batch.reward_terms_BT) == {"outcome", "cost"}
    for name, value_BT in batch.reward_terms_BT.items():
        assert not value_BT[:, :-1].any()
        assert np.array_equal(value_BT[:, -1], terms[name])
    total_BT = reward.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    assert np.array_equal(total_BT.sum(axis=1), known.combine(terms, batch.cost_weight_B))


def test_a_failed_episode_is_dropped_undefined_and_out_of_the_window():
    tree = make_tree(8, RAGGED, FAILING)
    reward = MemoryReward(MemoryRewardConfig())
    batch = collect(tree, reward)
    failed_B = np.isnan(tree.leaf_score_QL[find_leaves(tree, batch)])
    assert 0 < failed_B.sum() < LANES
    assert batch.dropped == failed_B.sum()
    assert np.array_equal(batch.terminated_B, ~failed_B)
    for value_BT in batch.reward_terms_BT.values():
        assert np.array_equal(np.isnan(value_BT[:, -1]), failed_B)
        assert not value_BT[:, :-1].any()
    total_BT = reward.combine(batch.reward_terms_BT, batch.cost_weight_B[:, None])
    assert np.array_equal(np.isnan(total_BT.sum(axis=1)), failed_B)
    assert np.isnan(batch.ends.cost_usd_B[failed_B]).all()
    assert len(reward.get_state()["alignment"]["costs"]) == LANES - failed_B.sum()
    assert np.isfinite(batch.features_BTF).all()


def test_a_failed_answer_alone_drops_the_episode():
    pipeline = ArithmeticPipeline(RAGGED)
    pipeline.failing_answers = {"q3"}
    live = LiveOutcomes(pipeline, make_questions(8), HashEncoder(), grade)
    batch = collect(live)
    lost_B = batch.query_index_B == 3
    assert batch.dropped == lost_B.sum() > 0
    assert np.array_equal(np.isnan(batch.reward_terms_BT["cost"][:, -1]), lost_B)


def test_live_outcomes_give_the_batch_of_the_tree():
    live = LiveOutcomes(ArithmeticPipeline(RAGGED), make_questions(8), HashEncoder(), grade)
    of_tree, of_live = collect(), collect(live)
    for name in ("features_BTF", "mask_BTK", "action_BT", "logp_BT"):
        assert np.array_equal(getattr(of_tree, name), getattr(of_live, name)), name
    for name, value_BT in of_tree.reward_terms_BT.items():
        assert np.array_equal(value_BT, of_live.reward_terms_BT[name])


def test_a_part_of_a_plan_makes_that_part_of_the_episodes():
    frozen = MemoryReward(MemoryRewardConfig()).freeze()
    plan, weight_B = make_plan(), np.full(LANES, 0.5, dtype=np.float32)
    batches = [
        collect_tier_batch(
            TintedPolicy(),
            TierEpisodes(TREE, reference_usd=0.1),
            part,
            weight_B[: len(part.group_B)],
            frozen,
            candidate_features_KD=DESCRIPTIONS,
            push=False,
        )
        for part in (plan, plan.select_part(0, 2), plan.select_part(1, 2))
    ]
    for name in ("features_BTF", "action_BT", "logp_BT"):
        whole, *parts = (getattr(batch, name) for batch in batches)
        assert np.array_equal(whole, np.concatenate(parts)), name


def test_a_frozen_reward_takes_no_batch_and_terms_can_be_placed_later():
    reward = MemoryReward(MemoryRewardConfig())
    with pytest.raises(RLRouteError, match="frozen"):
        collect(reward=reward.freeze())
    batch = collect(reward=reward, push=False)
    assert reward.get_state() == MemoryReward(MemoryRewardConfig()).get_state()
    cost_usd_B = TREE.leaf_cost_QL[find_leaves(TREE, batch)]
    reward.push(batch.ends.score_B, cost_usd_B)
    placed = place_terms(reward, batch.ends.score_B, cost_usd_B, 4)
    pushed = collect()
    for name, value_BT in pushed.reward_terms_BT.items():
        assert np.array_equal(placed[name], value_BT)


def test_a_budget_is_kept_and_told():
    bounds = TREE.find_largest_costs()
    cap_usd_B = np.where(np.arange(LANES) % 2, np.inf, bounds.min(axis=1).sum())
    batch = collect(bounds=bounds, cap_usd_B=cap_usd_B)
    assert (batch.ends.cost_usd_B <= cap_usd_B + 1e-7).all()
    assert np.array_equal(batch.ends.cap_B, cap_usd_B.astype(np.float32))
    assert batch.ends.free_BT[1::2].all()
    assert not batch.ends.free_BT[::2, 0].any()  # nothing but the cheapest fits
