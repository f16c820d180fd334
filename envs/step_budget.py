"""`rlroute/StepBudget-v0`: who takes each step of an agent's task, under a hard budget.

| part        | what                                                                               |
| ----------- | ---------------------------------------------------------------------------------- |
| observation | `features` [F]: the world's, then those of the budget (`envs.budget`); features of |
|             | the executors (`candidates` [K, D]), `mask` [K], `cost_weight` [1]; the text of    |
|             | what is new, with what is left of the budget, for language models                  |
| action      | index of an executor; one that may not act here, or that the budget cannot surely  |
|             | pay for, is masked and refused                                                     |
| calls       | one where the executor lives behind a pool, none where the world plays it          |
| reward      | at the end: success * outcome + hard_bonus * hard_bonus - cost weight * cost       |
|             | (`rewards.boundary`); the terms are 0 before, but where a world earns by step      |
|             | (`EarningWorld`): each step's outcome is what it added to the score                |
| ends        | terminated: the world says so, the horizon, or nothing is affordable any more      |
|             | (`exhausted`: score 0, or what was earned); undefined terms where a call failed    |
| arguments   | a world, budget, reward, cost weights, the tasks' yardsticks                       |

The cap of the budget and the cost weight are drawn from the episode's seed. If not even the first
step is affordable, the cheapest executor is allowed in name: choosing it ends the episode unpaid.

`StepBudgetVector` is the same for array worlds, thousands of lanes at once. A state is the list of
executors and replies so far; it is restored by replaying them.

Source: Zhang et al., 2026, "Budget-Aware Agentic Routing"; worlds: `rlroute.worlds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.config import StrictModel
from rlroute.envs.base import Step
from rlroute.envs.budget import BUDGET_FEATURES, BudgetConfig, BudgetLedger
from rlroute.envs.single_turn import CostWeightConfig
from rlroute.pool.cassette import dump_reply, restore_reply
from rlroute.rewards.boundary import (
    BoundaryOutcomes,
    BoundaryReward,
    BoundaryRewardConfig,
    Yardstick,
)
from rlroute.types import BoolArray, Call, Observation, Query, Reply, UsdArray
from rlroute.worlds.base import EarningWorld, World, WorldState, WorldStep

TERMS = ("outcome", "hard_bonus", "cost")
LANE = np.array([0])


class StepBudgetConfig(StrictModel):
    """Everything about an episode but its world and its task.

    With `state_cost_weight` the first text of an episode says its cost weight, for policies that
    read texts and were trained at several.
    """

    budget: BudgetConfig = BudgetConfig()
    reward: BoundaryRewardConfig = BoundaryRewardConfig()
    cost_weight: CostWeightConfig = CostWeightConfig(min=0.3, max=0.3)
    state_cost_weight: bool = False


@dataclass(frozen=True)
class EpisodeRecord:
    """How an episode stands: score, money, counted calls, steps; `exhausted`: the budget was."""

    score: float
    cost_usd: float
    calls: int
    steps: int
    exhausted: bool
    cap: float


def make_nominal_yardstick(unit: str, horizon: int, bound_usd_K: UsdArray) -> Yardstick:
    """Return the yardstick of a task without boundary rollouts.

    Its scale goes from nothing to the dearest executor at every step of the horizon, at what the
    first step costs at most.
    """
    dearest = 1.0 if unit == "calls" else float(bound_usd_K.max())
    return Yardstick(0.0, horizon * dearest, hard=False)


def write_step_text(text: str, ledger: BudgetLedger, cost_weight: float | None) -> str:
    """Return a text with what is left of the budget, and the cost weight where it is stated."""
    parts = [text, ledger.describe(0)]
    if cost_weight is not None:
        parts.append(f"Cost weight: {cost_weight:.2f}.")
    return " ".join(part for part in parts if part)


class StepBudget:
    """The pure state machine; see the module's table."""

    def __init__(
        self,
        world: World,
        config: StepBudgetConfig,
        yardsticks: Mapping[str, Yardstick] | None = None,
    ) -> None:
        self.world = world
        self.config = config
        self.yardsticks = yardsticks or {}
        self.rewards = BoundaryReward(config.reward)
        self.ledger = BudgetLedger(config.budget, world.executors, lanes=1)
        self.feature_names = (*world.feature_names, *BUDGET_FEATURES)
        self.earning = isinstance(world, EarningWorld)
        self.ended = True

    def reset(self, query: Query, seed: int, *, world_seed: int | None = None) -> Observation:
        """Start a task; the seed draws the cap, the cost weight and the world's chance.

        With `world_seed` the world's chance comes from that, to play a stored rollout again.
        """
        self.task, self.seed = query, seed
        self.world_seed = seed if world_seed is None else world_seed
        self.state: WorldState = self.world.reset(query, self.world_seed)
        seed_1 = np.array([seed])
        self.cap = float(self.config.budget.draw_caps(seed_1)[0])
        self.cost_weight = float(self.config.cost_weight.draw(seed_1)[0])
        self.ledger.open_lanes(LANE, np.array([self.cap]))
        self.turn, self.score, self.paid_score, self.last_note = 0, 0.0, 0.0, ""
        self.ended = self.exhausted = False
        self.history: list[tuple[int, dict[str, Any] | None]] = []
        self.measure()
        self.yardstick = self.yardsticks.get(query.id) or make_nominal_yardstick(
            self.config.reward.unit, self.world.horizon, self.bound_1K[0]
        )
        return self.build_observation()

    def measure(self) -> None:
        """Work out what each executor can cost now, and which may act."""
        bounds = [self.world.bound_cost_usd(k) for k in range(len(self.world.executors))]
        self.bound_1K = np.array([bounds], dtype=np.float64)
        self.find_allowed()

    def find_allowed(self) -> None:
        """Work out which executors may act, at the bounds that were measured last."""
        self.allowed_K: BoolArray = (
            self.state.legal_K & self.ledger.find_affordable(self.bound_1K)[0]
        )
        self.affordable = bool(self.allowed_K.any())
        if not self.affordable:  # in name only, see the module's text
            self.allowed_K = np.zeros_like(self.state.legal_K)
            self.allowed_K[int(self.state.legal_K.argmax())] = True

    def propose(self, action: int) -> tuple[Call, ...]:
        """Return the call of an executor behind a pool; none where it acts by itself.

        Raises:
            ValueError: the episode is over, or the action is masked or out of range.
        """
        if self.ended:
            raise ValueError("the episode is over: reset before the next action")
        if not 0 <= action < len(self.allowed_K) or not self.allowed_K[action]:
            allowed = ", ".join(str(k) for k in np.flatnonzero(self.allowed_K))
            raise ValueError(f"action {action} is not allowed here (allowed: {allowed})")
        self.action = action
        call = self.world.request(action) if self.affordable else None
        return () if call is None else (call,)

    def observe(self, replies: Sequence[Reply]) -> Step[Observation]:
        """Take the executor's step; a failed reply ends the episode with undefined terms."""
        reply = replies[0] if replies else None
        self.history.append((self.action, None if reply is None else dump_reply(reply)))
        if reply is not None and reply.failure is not None:
            self.ended, self.last_note = True, f"failed: {reply.failure}"
            return Step(self.build_observation(), dict.fromkeys(TERMS), terminated=True)
        if self.affordable:
            self.take_step(self.world.step(self.action, reply))
        else:
            self.ended = self.exhausted = True
        terms: dict[str, float | None] = dict.fromkeys(TERMS, 0.0)
        if self.ended:
            found = self.rewards.score(self.describe_end())
            terms = {name: float(value_N[0]) for name, value_N in found.items()}
        if self.earning:
            terms |= self.pay_gain()
        return Step(self.build_observation(), terms, terminated=self.ended)

    def pay_gain(self) -> dict[str, float]:
        """Return the terms of what the last step added to the score."""
        gain = self.score - self.paid_score
        self.paid_score = self.score
        return {"outcome": gain, "hard_bonus": gain if self.yardstick.hard else 0.0}

    def take_step(self, step: WorldStep) -> None:
        """Settle the ledger and see whether the episode goes on."""
        bound_1 = self.bound_1K[:, self.action]
        played_1 = np.array([True])
        self.ledger.settle(np.array([self.action]), bound_1, np.array([step.cost_usd]), played_1)
        self.state, self.score, self.last_note = step.state, step.score, step.note
        self.turn += 1
        self.ended = step.done or self.turn >= self.world.horizon
        if self.ended:  # a world that is done has no next step to measure
            self.find_allowed()
            return
        self.measure()
        if not self.affordable:
            self.ended = self.exhausted = True
            self.score = self.score if self.earning else 0.0

    def describe_end(self) -> BoundaryOutcomes:
        """Return the end of this one episode as the reward reads it."""
        unit = self.config.reward.unit
        cost = self.ledger.calls_B if unit == "calls" else self.ledger.cost_usd_B
        return BoundaryOutcomes(
            score_N=np.array([self.score], dtype=np.float32),
            cost_N=cost.astype(np.float32),
            cost_low_N=np.array([self.yardstick.cost_low], dtype=np.float32),
            cost_high_N=np.array([self.yardstick.cost_high], dtype=np.float32),
            hard_N=np.array([self.yardstick.hard]),
            failed_N=np.array([False]),
        )

    def read_record(self) -> EpisodeRecord:
        """Return how the episode stands."""
        return EpisodeRecord(
            score=self.score,
            cost_usd=float(self.ledger.cost_usd_B[0]),
            calls=int(self.ledger.calls_B[0]),
            steps=self.turn,
            exhausted=self.exhausted,
            cap=self.cap,
        )

    def get_state(self) -> dict[str, Any]:
        """Return the state as plain JSON values: the task and what was done so far."""
        task = self.task
        return {
            "task": {
                "id": task.id,
                "text": task.text,
                "task": task.task,
                "dataset": task.dataset,
                "references": list(task.references),
                "metadata": dict(task.metadata),
            },
            "seed": self.seed,
            "world_seed": self.world_seed,
            "history": [list(entry) for entry in self.history],
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Restore a state of `get_state` by replaying it."""
        values = dict(state["task"])
        task = Query(**{**values, "references": tuple(values["references"])})
        observation = self.reset(task, state["seed"], world_seed=state["world_seed"])
        for action, reply in state["history"]:
            calls = self.propose(action)
            replies = [restore_reply(call, reply) for call in calls if reply is not None]
            observation = self.observe(replies).observation
        return observation

    def build_observation(self) -> Observation:
        """Return what the policy sees now."""
        budget_F = self.ledger.read_features(
            np.array([self.turn]), self.world.horizon, self.bound_1K
        )[0]
        return Observation(
            text=self.write_text(),
            features_F=np.concatenate([self.state.features_W, budget_F]).astype(np.float32),
            candidate_features_KD=self.world.executor_features_KD,
            mask_K=self.allowed_K,
            cost_weight=self.cost_weight,
        )

    def write_text(self) -> str:
        """Return what a language model reads now."""
        stated = self.config.state_cost_weight and self.turn == 0
        weight = self.cost_weight if stated else None
        return write_step_text(self.state.text, self.ledger, weight)
