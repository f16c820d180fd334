"""Drivers of many-step episodes: lanes, lockstep and side by side play the very same episodes."""

from __future__ import annotations

import numpy as np
import pytest
from step_episodes import CHAIN, SETTINGS, assert_equal_batches, make_config, make_plan, make_policy
from step_worlds import MeteredWorld, WaitingPool, make_chain

from rlroute.envs.step_budget import StepBudget
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.step_baselines import BernoulliPolicy, RandomPolicy, StaticPolicy
from rlroute.rewards.boundary import BoundaryReward, BoundaryRewardConfig, Yardstick
from rlroute.rollout.plan import FREE
from rlroute.rollout.stage import Stage, compute_rewards
from rlroute.rollout.step_plan import plan_static
from rlroute.rollout.steps import collect_lanes, collect_worlds, narrow_mask
from rlroute.types import FORCED, REFERENCE, Conversations
from rlroute.worlds.chain import ChainLanes, ChainWorld

# --- The same episodes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("greedy", [False, True])
def test_lanes_and_single_environments_make_the_same_batch(name, greedy):
    config, plan = make_config(*SETTINGS[name]), make_plan()
    tasks = ChainWorld(CHAIN).list_tasks("train")
    yardsticks = {task.id: Yardstick(1.0, 8.0, n % 2 == 0) for n, task in enumerate(tasks[::3])}
    vector = StepBudgetVector(ChainLanes(CHAIN), config, len(plan.role_B), yardsticks=yardsticks)
    single = StepBudget(ChainWorld(CHAIN), config, yardsticks)
    policy = make_policy(single, greedy=greedy)
    together = collect_lanes(policy, vector, plan)
    apart = collect_worlds(policy, single, tasks, plan, lanes=17)
    assert_equal_batches(together, apart)
    if name != "free":
        assert together.ends.exhausted_B.any() == (name == "usd")
    assert_equal_batches(together, collect_lanes(policy, vector, plan))  # nothing was left behind


@pytest.mark.parametrize("lanes", [1, 5, 1000])
def test_the_size_of_the_waves_changes_nothing(lanes):
    environment = StepBudget(MeteredWorld(barred=True), make_config("usd", [0.02, 0.2, None]))
    tasks, plan = environment.world.list_tasks("train"), make_plan(tasks=12)
    policy = make_policy(environment)
    whole = collect_worlds(policy, environment, tasks, plan, lanes=64)
    assert len(set(whole.valid_BT.sum(axis=1))) > 3  # episodes of many lengths
    assert_equal_batches(whole, collect_worlds(policy, environment, tasks, plan, lanes=lanes))


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_of_a_plan_make_the_rows_of_the_whole(parts):
    environment = StepBudget(MeteredWorld(), make_config())
    tasks, plan = environment.world.list_tasks("train"), make_plan(tasks=12)
    policy = make_policy(environment)
    whole = collect_worlds(policy, environment, tasks, plan)
    pieces = [
        collect_worlds(policy, environment, tasks, plan.select_part(part, parts))
        for part in range(parts)
    ]
    size = len(plan.role_B) // parts
    for part, piece in enumerate(pieces):
        rows, steps = slice(part * size, (part + 1) * size), piece.valid_BT.shape[1]
        inside_BT = piece.valid_BT
        np.testing.assert_array_equal(inside_BT, whole.valid_BT[rows, :steps])
        np.testing.assert_array_equal(
            piece.action_BT[inside_BT], whole.action_BT[rows, :steps][inside_BT]
        )
        np.testing.assert_array_equal(piece.ends.score_B, whole.ends.score_B[rows])
        np.testing.assert_array_equal(piece.group_B, whole.group_B[rows])


def test_a_stage_plays_arrays_and_single_environments_alike():
    config, plan = make_config("calls", [2, None]), make_plan(tasks=40)
    arrays, single = Stage(CHAIN, lanes=8), Stage(CHAIN, lanes=8, reading=True)
    assert (arrays.arrays, single.arrays) == (True, False)
    policy = make_policy(arrays)
    one = arrays.play(policy, plan, "train", config, {})
    two = single.play(policy, plan, "train", config, {})
    assert_equal_batches(one, two)
    moments: dict = {}
    assert_equal_batches(one, arrays.play(policy, plan, "train", config, {}, moments=moments))
    assert sorted(moments) == list(range(len(plan.role_B)))


def test_a_plan_of_another_size_is_refused():
    vector = StepBudgetVector(ChainLanes(CHAIN), make_config(), 5)
    with pytest.raises(ValueError, match="5 lanes for 84 episodes"):
        collect_lanes(StaticPolicy(0), vector, make_plan())


# --- Roles ----------------------------------------------------------------------------------------


def test_forced_executors_are_taken_for_sure_and_give_way_where_they_may_not_act():
    config, plan = make_config("calls", [2]), make_plan()
    vector = StepBudgetVector(ChainLanes(CHAIN), config, len(plan.role_B))
    batch = collect_lanes(make_policy(vector), vector, plan)
    for arm in range(3):
        rows = (plan.role_B == FORCED) & (plan.forced_arm_B == arm)
        assert (batch.logp_BT[rows] == 0).all()
        expected = [arm] * 2 + [0] * 8 if arm else [0] * 10
        assert (batch.action_BT[rows] == expected).all()
    assert (batch.mask_BTK[:, :1] == True).all()  # noqa: E712 - the mask is that of the world


def test_choices_are_free_where_there_was_one_and_nobody_forced_it():
    config, plan = make_config("calls", [1]), make_plan()
    vector = StepBudgetVector(ChainLanes(CHAIN), config, len(plan.role_B))
    batch = collect_lanes(make_policy(vector), vector, plan)
    free_BT, choice_BT = batch.ends.free_BT, batch.mask_BTK.sum(axis=2) > 1
    forced_B = plan.role_B == FORCED
    assert not free_BT[forced_B].any()
    assert (free_BT[~forced_B] == choice_BT[~forced_B]).all()
    spent_BT = np.cumsum(batch.action_BT > 0, axis=1)
    assert (choice_BT[:, 1:] == (spent_BT[:, :-1] < 1)).all()


def test_a_reference_is_the_dearest_executor_under_the_groups_own_cap_and_weight():
    config, plan = make_config("calls", [1, 5, None]), make_plan()
    vector = StepBudgetVector(ChainLanes(CHAIN), config, len(plan.role_B))
    batch = collect_lanes(make_policy(vector), vector, plan)
    rows = np.flatnonzero(plan.role_B == REFERENCE)
    for row in rows:
        assert batch.ends.cap_B[row] == batch.ends.cap_B[row - 1]
        assert batch.cost_weight_B[row] == batch.cost_weight_B[row - 1]
        calls = min(batch.ends.cap_B[row], 10)
        assert batch.ends.calls_B[row] == calls
        assert batch.ends.free_BT[row].sum() == calls  # it may be learnt from
    alone = plan_static(plan.episodes.query_index_B[rows], plan.world_seed_B[rows])
    free = StepBudgetVector(ChainLanes(CHAIN), make_config(), len(rows))
    stored = collect_lanes(StaticPolicy(2), free, alone)
    uncapped = np.isinf(batch.ends.cap_B[rows])
    assert 0 < uncapped.sum() < len(rows)
    assert (batch.ends.score_B[rows][uncapped] == stored.ends.score_B[uncapped]).all()


def test_a_mask_is_narrowed_in_forced_lanes_only():
    mask_BK = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=np.bool_)
    narrow_BK = narrow_mask(np.array([FREE, 1, 2]), mask_BK)
    assert narrow_BK.tolist() == [[True, True, True], [True, False, False], [False, True, False]]
    assert narrow_mask(np.full(3, FREE), mask_BK) is mask_BK


# --- What is told ---------------------------------------------------------------------------------


def test_moments_tell_what_was_seen_chosen_paid_and_advised():
    config = make_config("calls", [1])
    environment = StepBudget(ChainWorld(make_chain(2)), config)
    tasks, plan = environment.world.list_tasks("train"), plan_static(np.arange(6), np.arange(6))
    moments: dict = {}
    batch = collect_worlds(BernoulliPolicy(0.5), environment, tasks, plan, lanes=4, moments=moments)
    for row in range(6):
        told = moments[row]
        assert len(told) == 10
        assert [one.executor for one in told] == [
            ["small", "large"][k] for k in batch.action_BT[row]
        ]
        assert sum(one.cost_usd for one in told) == pytest.approx(batch.ends.cost_usd_B[row])
        for turn, one in enumerate(told):
            critical = "is critical" in one.text
            assert one.advised == ("large" if critical else "small")
            assert one.allowed == (
                ("small", "large") if batch.mask_BTK[row, turn, 1] else ("small",)
            )
            assert one.probability == 1.0
            assert one.note in ("done", "failed")
    assert moments[0][0].text.startswith("A chain of steps")


def test_the_reward_of_an_episode_is_the_sum_of_its_terms():
    config, plan = make_config("calls"), make_plan()
    vector = StepBudgetVector(ChainLanes(CHAIN), config, len(plan.role_B))
    batch = collect_lanes(RandomPolicy(), vector, plan)
    reward = BoundaryReward(BoundaryRewardConfig(unit="calls"))
    expected_B = batch.ends.score_B - batch.cost_weight_B * batch.ends.calls_B / 10
    np.testing.assert_allclose(compute_rewards(batch, reward), expected_B, atol=1e-6)


class NotingPolicy:
    """Notes how many words it read at each step of each lane, as a reader keeps a conversation."""

    version = 0

    def start(self, lanes):
        self.words: list[list[int]] = [[] for _ in range(lanes)]

    def decide(self, inputs):
        for lane, text in zip(inputs.lane_B, inputs.texts, strict=True):
            self.words[lane].append(len(text.split()))
        return StaticPolicy(1).decide(inputs)

    def read_episodes(self):
        widest = max(len(words) for words in self.words)
        padded = [words + [0] * (widest - len(words)) for words in self.words]
        position_BT = np.where(np.array(padded) > 0, np.arange(widest), -1)
        lengths = np.array([len(words) for words in self.words])
        return Conversations(np.array(padded), lengths, position_BT)


@pytest.mark.parametrize("behind_pool", [False, True])
@pytest.mark.parametrize("lanes", [1, 7, 64])
def test_conversations_stand_in_the_order_of_the_plan_padded_to_the_longest(behind_pool, lanes):
    environment = StepBudget(MeteredWorld(behind_pool=behind_pool), make_config("calls", [3, None]))
    tasks, plan = environment.world.list_tasks("train"), plan_static(np.arange(12), np.arange(12))
    pool = WaitingPool() if behind_pool else None
    policy = NotingPolicy()
    batch = collect_worlds(policy, environment, tasks, plan, lanes=lanes, pool=pool)
    read, steps = batch.conversations, batch.valid_BT.shape[1]
    assert read.ids_BL.shape == read.position_BT.shape == (12, steps)
    assert (read.length_B == batch.valid_BT.sum(axis=1)).all()
    assert (read.position_BT == np.where(batch.valid_BT, np.arange(steps), -1)).all()
    capped_B = np.isfinite(batch.ends.cap_B)
    assert 0 < capped_B.sum() < 12
    # "Task 0." or "Step 1.", and under a cap "Budget left: 3 dear calls."
    words_B1 = np.where(capped_B, 7, 2)[:, None]
    assert (read.ids_BL == np.where(batch.valid_BT, words_B1, 0)).all()
