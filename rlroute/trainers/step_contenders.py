"""The baselines that a step-by-step policy is compared with (`rlroute.policies.step_baselines`).

What it is: each executor alone, random, Bernoulli and first-large with a sweep of their knobs, a
cascade where the world has the feature "confidence", ACAR's sigma rule, LinUCB, and the world's own
best policy where it knows one, which sees what no policy does. Cascades over a table have their own
(`rlroute.trainers.cascade_contenders`).

The sigma rule reads stored probes: the first three rollouts of the cheapest executor on each task.
Their cost is added to its bill; the budget's mask does not see it. LinUCB learns online from the
train tasks, under the recipe's own budgets and reward, and does not explore any more on test.

What it leaves out: policies of runs (`rlroute.step_runs`), playing (`rlroute.trainers.step_arena`).

How to use: `contenders, left_out = list_baselines(arena)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from rlroute.policies.step_baselines import (
    AdvisedPolicy,
    BernoulliPolicy,
    CascadePolicy,
    FirstDearPolicy,
    LinUCBPolicy,
    RandomPolicy,
    SigmaPolicy,
    StaticPolicy,
    compute_sigma,
)
from rlroute.policies.stepwise import StepPolicy
from rlroute.rollout.stage import compute_rewards
from rlroute.rollout.step_plan import GroupShape, plan_steps
from rlroute.seeding import derive_seed
from rlroute.trainers.cascade_contenders import list_cascade_baselines, list_left_out
from rlroute.trainers.query_session_contenders import list_session_contenders
from rlroute.trainers.step_arena import Arena, Contender, ProbeBill
from rlroute.types import SplitName
from rlroute.worlds.cascade import CascadeWorld
from rlroute.worlds.query_session import QuerySessionWorld

PROBES = 3
CONFIDENCE = "confidence"
SWEEP, SWEEP_WITH_POOL = 9, 3  # settings of a knob; calls of a pool take time and money
BANDIT_ROUNDS, BANDIT_ROUNDS_WITH_POOL = 32, 8
BANDIT_EPISODES = 64  # of a round


def list_baselines(arena: Arena) -> tuple[list[Contender], list[str]]:
    """Return the baselines of a world, and what is left out of the usual ones, with the reason."""
    stage, left_out = arena.stage, []
    found = [
        Contender(f"always {name}", "static", keep(StaticPolicy(arm)))
        for arm, name in enumerate(arena.executor_ids)
    ]
    found.append(Contender("random", "random", keep(RandomPolicy())))
    if isinstance(stage.world, CascadeWorld):
        cascades = list_cascade_baselines(arena, stage.world)
        return [*found, *cascades], list_left_out(stage.world)
    found += list_sweeps(arena)
    if CONFIDENCE not in stage.world.feature_names:
        left_out.append(f"cascade: world '{stage.world.name}' has no feature '{CONFIDENCE}'")
    if isinstance(stage.world, QuerySessionWorld):
        found += list_session_contenders(arena, stage.world)
        left_out.append("sigma of probes: the answers of a table never differ")
    else:
        found.append(make_sigma(arena))
    train = functools.cache(lambda: train_bandit(arena))
    found.append(Contender("LinUCB", "bandit", lambda split: train()))
    if knows_advice(arena):
        found.append(Contender("world's best", "optimal", keep(AdvisedPolicy())))
    else:
        left_out.append(f"world's best: world '{stage.world.name}' does not know it")
    return found, left_out


def keep(policy: StepPolicy) -> Callable[[SplitName], StepPolicy]:
    """Return a loader of a policy that costs nothing to keep."""
    return lambda split: policy


def list_sweeps(arena: Arena) -> list[Contender]:
    """Return the baselines with a knob: Bernoulli, first-large, cascade on confidence."""
    stage = arena.stage
    count = SWEEP if stage.pool is None else SWEEP_WITH_POOL
    share_N = np.linspace(0, 1, count + 2)[1:-1].tolist()
    found = [
        Contender(f"Bernoulli {rate:.2g}", "sweep", keep(BernoulliPolicy(rate)), "Bernoulli")
        for rate in share_N
    ]
    last = stage.world.horizon - 1
    for steps in (
        np.unique(np.linspace(1, last, count).round().astype(int)).tolist() if last else ()
    ):
        name = f"first-large {steps}"
        first = functools.partial(make_first_dear, steps)
        found.append(Contender(name, "sweep", first, "first-large", uncapped=True))
    names = stage.world.feature_names
    if CONFIDENCE in names:
        column = names.index(CONFIDENCE)
        found += [
            Contender(f"cascade {one:.2g}", "sweep", keep(CascadePolicy(column, one)), "cascade")
            for one in share_N
        ]
    return found


def make_first_dear(steps: int, split: SplitName) -> StepPolicy:
    """Return the policy that takes the dearest executor first."""
    return FirstDearPolicy(steps)


def make_sigma(arena: Arena) -> Contender:
    """Return ACAR's rule on stored probes.

    The answer of a probe is its rounded score and its number of steps.
    """
    policies: dict[SplitName, StepPolicy] = {}
    bills: dict[SplitName, ProbeBill] = {}
    for split, tasks in arena.tasks.items():
        sigma_Q, cost_usd, calls = {}, [], []
        for index, task in enumerate(arena.stage.tasks[split][:tasks]):
            probes = arena.file.list_of(split, task.id, "small")[:PROBES]
            sigma_Q[index] = compute_sigma(
                tuple(f"{one.score:.1f} after {len(one.actions)}" for one in probes)
            )
            cost_usd.append(sum(one.cost_usd for one in probes))
            calls.append(sum(one.calls for one in probes))
        policies[split] = SigmaPolicy(sigma_Q)
        bills[split] = ProbeBill(
            np.array(cost_usd, dtype=np.float32), np.array(calls, dtype=np.float32)
        )
    return Contender("sigma of probes", "probe", policies.__getitem__, bills=bills)


def train_bandit(arena: Arena) -> LinUCBPolicy:
    """Let LinUCB learn online from the train tasks, by the recipe's own episodes and reward."""
    stage, recipe = arena.stage, arena.recipe
    policy = LinUCBPolicy(len(stage.feature_names), len(arena.executor_ids))
    rounds = BANDIT_ROUNDS if stage.pool is None else BANDIT_ROUNDS_WITH_POOL
    for number in range(rounds):
        plan = plan_steps(
            derive_seed(recipe.seed, "bandit"),
            number,
            tasks=len(stage.tasks["train"]),
            groups=BANDIT_EPISODES,
            shape=GroupShape(1),
        )
        batch = stage.play(policy, plan, "train", recipe.episode, arena.facts["train"].yardsticks)
        policy.learn(batch, compute_rewards(batch, arena.reward))
    policy.alpha = 0.0  # what it learnt is what is compared
    return policy


def knows_advice(arena: Arena) -> bool:
    """Tell whether the world knows its best policy."""
    lane = arena.stage.world.fork()
    lane.reset(arena.stage.tasks["test"][0], arena.recipe.seed)
    return lane.advise() is not None
