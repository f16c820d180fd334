"""The supervised warm start: which experts teach, how labels weigh, and that it is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from step_worlds import THREE_EXECUTORS, make_chain

from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.policies.step_baselines import AdvisedPolicy, StaticPolicy
from rlroute.policies.step_scorer import ScorerPolicy
from rlroute.rewards.boundary import BoundaryReward, TaskClass
from rlroute.rollout.boundary import BoundaryRollout, make_script
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.trainers.imitation import choose_experts, imitate, weigh_labels
from rlroute.trainers.learner import Learner
from rlroute.trainers.step_policy import build_model, score_steps
from rlroute.trainers.step_recipe import ImitationConfig, StepRecipe
from rlroute.types import Batch, RLRouteError
from rlroute.worlds.chain import ChainConfig, ChainKind

EASY, HARD, INTRACTABLE = TaskClass.EASY, TaskClass.HARD, TaskClass.INTRACTABLE
CHAIN = make_chain(2, train=40, val=5, test=5)


def make_settings(*caps) -> StepBudgetConfig:
    data = {"budget": {"unit": "calls", "caps": list(caps) or [None]}, "reward": {"unit": "calls"}}
    return parse_config(StepBudgetConfig, data, "test")


def play(policy, *caps, chain=CHAIN, tasks: int = 40) -> Batch:
    plan = plan_static(np.arange(tasks), np.arange(tasks))
    return Stage(chain, lanes=64).play(policy, plan, "train", make_settings(*caps), {})


def make_rollout(task: str, calls: int = 0) -> BoundaryRollout:
    actions = (1,) * calls + (0,) * (10 - calls)
    return BoundaryRollout("train", task, "sweep", 0, 0.5, 0, 1.0, 0.0, calls, actions)


# --- Experts --------------------------------------------------------------------------------------


def test_easy_and_intractable_tasks_teach_the_cheapest_and_hard_ones_their_expert():
    classes = [EASY, HARD, INTRACTABLE, HARD, EASY]
    cheap = [make_rollout(f"cheap-{n}") for n in range(5)]
    hard = [None, make_rollout("expert-1", 2), None, None, None]
    indices, experts = choose_experts(classes, cheap, hard)
    assert indices == [0, 1, 2, 4]  # the hard task that nobody solved teaches nothing
    assert [one.task for one in experts] == ["cheap-0", "expert-1", "cheap-2", "cheap-4"]


# --- Labels ---------------------------------------------------------------------------------------


def teach(dear_steps: int, *caps, tasks: int = 40) -> Batch:
    """Return demonstrations in which every tenth task takes so many dear steps."""
    script = [(1,) * (dear_steps if n % 10 == 0 else 0) + (0,) * 10 for n in range(tasks)]
    return play(make_script([one[:10] for one in script], 10), *caps, tasks=tasks)


CLASSES = [HARD if n % 10 == 0 else EASY for n in range(40)]


def test_labels_are_counted_by_class_and_executor():
    _, balance = weigh_labels(teach(3), CLASSES, ["small", "large"], 0.25)
    assert balance.counts == {
        "easy": {"small": 360, "large": 0},
        "hard": {"small": 28, "large": 12},
        "intractable": {"small": 0, "large": 0},
    }
    assert balance.dear_share == pytest.approx(12 / 400)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_dear_labels_are_weighed_up_to_their_share_of_the_loss(share):
    batch = teach(3)
    weight_BT, balance = weigh_labels(batch, CLASSES, ["small", "large"], share)
    dear_BT = batch.action_BT == 1
    assert weight_BT[dear_BT].sum() / weight_BT.sum() == pytest.approx(share, abs=1e-6)
    assert (weight_BT[~dear_BT] == 1).all()
    assert balance.dear_weight == pytest.approx(share / (1 - share) * 388 / 12)


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_dear_labels_that_have_their_share_weigh_what_others_weigh(share):
    weight_BT, balance = weigh_labels(teach(3), CLASSES, ["small", "large"], share)
    assert (weight_BT == 1).all()
    assert balance.dear_weight == 1


@pytest.mark.parametrize("dear_steps", [0, 10])
def test_labels_of_one_kind_weigh_one(dear_steps):
    batch = teach(dear_steps, tasks=1)
    weight_BT, balance = weigh_labels(batch, [HARD], ["small", "large"], 0.25)
    assert (weight_BT == 1).all()
    assert balance.dear_share == (dear_steps == 10)


def test_steps_without_a_choice_teach_nothing():
    batch = teach(3, 1)  # under a cap of one call the other dear steps become cheap, and forced
    weight_BT, balance = weigh_labels(batch, CLASSES, ["small", "large"], 0.25)
    assert (weight_BT[::10, 1:] == 0).all()
    assert (weight_BT[::10, 0] > 1).all()
    assert balance.counts["hard"] == {"small": 0, "large": 4}
    nothing, balance = weigh_labels(teach(3, 0), CLASSES, ["small", "large"], 0.25)
    assert (nothing == 0).all()
    assert (balance.dear_share, balance.dear_weight) == (0, 1)


def test_dear_is_whatever_is_not_the_cheapest_that_may_act():
    kind = ChainKind(name="one", share=1.0, critical_steps=0, success=(1.0, 1.0, 1.0), hint=0.0)
    chain = ChainConfig(kinds=(kind,), executors=THREE_EXECUTORS, train=3, val=1, test=1)
    batch = play(make_script([(1,) * 10, (2,) * 10, (0,) * 10], 10), chain=chain, tasks=3)
    names = ["small", "middle", "large"]
    _, balance = weigh_labels(batch, [EASY] * 3, names, 0.9)
    assert balance.dear_share == pytest.approx(2 / 3)
    barred_BTK = batch.mask_BTK.copy()
    barred_BTK[..., 0] = False
    _, balance = weigh_labels(replace(batch, mask_BTK=barred_BTK), [EASY] * 3, names, 0.9)
    assert balance.dear_share == pytest.approx(2 / 3)  # of middle, large and (barred) small


# --- Learning -------------------------------------------------------------------------------------


def make_learner(**policy) -> Learner:
    data = {
        "environment": "step_budget",
        "world": CHAIN.model_dump(),
        "policy": {"kind": "mlp"} | policy,
        "algorithm": {"kind": "grpo", "group_size": 2, "episodes": 4},
    }
    recipe = parse_config(StepRecipe, data, "test")
    stage = Stage(CHAIN, lanes=1)
    model = build_model(recipe, stage.world, len(stage.feature_names))
    return Learner(
        Accelerator(cpu=True),
        model.network,
        torch.optim.SGD(model.network.parameters(), lr=0.0),
        score_steps,
        BoundaryReward(recipe.reward),
        recipe,
    )


@pytest.mark.parametrize("hidden", [0, 32])
def test_the_choices_of_an_expert_are_learnt(hidden):
    learner = make_learner(hidden=hidden)
    batch = play(AdvisedPolicy())
    assert batch.ends.calls_B.tolist() == [2] * 40
    weight_BT, _ = weigh_labels(batch, [HARD] * 40, ["small", "large"], 0.25)
    settings = ImitationConfig(epochs=60, batch=16, learning_rate=0.03)
    loss = imitate(learner, batch, weight_BT, settings)
    assert loss < 0.05
    taken = play(ScorerPolicy(learner.scorer.eval(), greedy=True))
    assert (taken.action_BT == batch.action_BT).all()


def test_the_loss_is_the_weighted_cross_entropy_and_steps_of_weight_zero_are_not_learnt():
    learner = make_learner(hidden=0)
    batch = teach(3, 1)
    weight_BT, _ = weigh_labels(batch, CLASSES, ["small", "large"], 0.25)
    settings = ImitationConfig(epochs=1, batch=1000, learning_rate=1e-12)
    assert imitate(learner, batch, weight_BT, settings) == pytest.approx(np.log(2), abs=1e-6)
    changed_BTF = batch.features_BTF.copy()
    changed_BTF[weight_BT == 0] = 1e3
    runs = []
    for features_BTF in (batch.features_BTF, changed_BTF):
        learner = make_learner(hidden=0)
        many = ImitationConfig(epochs=3, batch=7, learning_rate=0.1)
        imitate(learner, replace(batch, features_BTF=features_BTF), weight_BT, many)
        runs.append(learner.scorer.executor_tower.weight.detach().numpy())
    np.testing.assert_array_equal(runs[0], runs[1])


@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_passes_of_a_few_episodes_change_nothing(micro_batch):
    batch = play(AdvisedPolicy())
    weight_BT, _ = weigh_labels(batch, [HARD] * 40, ["small", "large"], 0.25)
    settings = ImitationConfig(epochs=2, batch=16, learning_rate=0.03)
    found = []
    for size in (None, micro_batch):
        learner = make_learner(hidden=8)
        learner.micro_batch = size
        loss = imitate(learner, batch, weight_BT, settings)
        found.append((loss, learner.scorer.executor_tower.weight.detach()[:, 1:]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-5)


def test_demonstrations_without_a_choice_leave_the_policy_as_it_is():
    learner = make_learner(hidden=0)
    batch = play(StaticPolicy(0), 0)
    weight_BT, _ = weigh_labels(batch, [EASY] * 40, ["small", "large"], 0.25)
    assert imitate(learner, batch, weight_BT, ImitationConfig(epochs=2)) == 0
    assert (learner.scorer.executor_tower.weight == 0).all()


def test_equal_seeds_learn_alike_and_the_order_of_episodes_is_drawn():
    batch = play(AdvisedPolicy())
    weight_BT, _ = weigh_labels(batch, [HARD] * 40, ["small", "large"], 0.25)
    weights = []
    for seed in (0, 0, 1):
        learner = make_learner(hidden=0)
        learner.recipe = learner.recipe.model_copy(update={"seed": seed})
        imitate(learner, batch, weight_BT, ImitationConfig(epochs=2, batch=8))
        weights.append(learner.scorer.executor_tower.weight.detach().numpy().tolist())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("fields", [{"dear_share": 1.0}, {"epochs": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused_in_one_line(fields):
    with pytest.raises(RLRouteError, match=f"warm_start: {next(iter(fields))}"):
        parse_config(ImitationConfig, fields, "warm_start")
