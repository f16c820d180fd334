"""Drives episodes that wait: one coroutine per episode over an environment, an agent and a pool.

No episode waits for another between its turns: what is ready decides while others wait for replies.
An `Agent` is one episode's side of a policy; agents that share a sampler have their texts generated
in batches of whatever is ready (`rlroute.rollout.samplers`), candidate scorers decide at once.

A failed call is typed data and ends its episode. What follows is a choice: "retry" starts the
episode anew with a fresh environment and a fresh agent, and drops it when the retries are used up;
"drop" keeps it as a row whose reward is undefined: it is counted, it leaves its group's mean, and
it is never trained on; "fail" ends the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, cast

import numpy as np

from rlroute.envs.base import Environment, Step
from rlroute.policies.decision import ActingPolicy
from rlroute.pool.base import Pool
from rlroute.rollout.batching import build_batch
from rlroute.rollout.plan import FREE, EpisodePlan, draw_action_uniform, narrow_to_forced
from rlroute.types import (
    Batch,
    Decision,
    DecisionT,
    FloatArray,
    Observation,
    ObservationT,
    Query,
    RLRouteError,
    TextDecision,
    TextObservation,
    Trajectory,
    Transition,
)

ActionT = TypeVar("ActionT")
ActionT_co = TypeVar("ActionT_co", covariant=True)
ObservationT_contra = TypeVar(
    "ObservationT_contra", Observation, TextObservation, contravariant=True
)
DecisionT_co = TypeVar("DecisionT_co", Decision, TextDecision, covariant=True)
ResultT = TypeVar("ResultT")

FailureStrategy = Literal["retry", "drop", "fail"]


class ContextFullError(RLRouteError):
    """An agent has no room for another decision; the harness ends its episode there."""


class Agent(Protocol[ObservationT_contra, ActionT_co, DecisionT_co]):
    """One episode's side of a policy; it may keep a state from turn to turn."""

    async def decide(self, observation: ObservationT_contra) -> tuple[ActionT_co, DecisionT_co]:
        """Return the action for the environment and the decision for the trainer.

        Raises:
            ContextFullError: there is no room for another decision.
        """


class Truncatable(Protocol[ObservationT]):
    """What an environment offers beside the three methods when its agents' context is limited."""

    def truncate(self) -> Step[ObservationT]:
        """End the episode now and return its final reward terms."""


async def run_episode(
    environment: Environment[ObservationT, ActionT],
    agent: Agent[ObservationT, ActionT, DecisionT],
    pool: Pool,
    query: Query,
    *,
    episode_seed: int,
) -> Trajectory[ObservationT, DecisionT]:
    """Run one episode to its end, to the first failed call, or to where the context is full.

    Raises:
        ContextFullError: there was no room for the first decision.
    """
    observation = environment.reset(query, episode_seed)
    transitions: list[Transition[ObservationT, DecisionT]] = []
    while True:
        try:
            action, decision = await agent.decide(observation)
        except ContextFullError as error:
            if not transitions:
                raise ContextFullError(f"query '{query.id}': {error}") from None
            step = cast(Truncatable[ObservationT], environment).truncate()
            transitions[-1] = replace(
                transitions[-1], reward_terms=step.reward_terms, truncated=True
            )
            break
        replies = await pool.ask_many(environment.propose(action))
        step = environment.observe(replies)
        transitions.append(
            Transition(
                observation=observation,
                decision=decision,
                replies=tuple(replies),
                reward_terms=step.reward_terms,
                terminated=step.terminated,
                truncated=step.truncated,
            )
        )
        failed = any(reply.failure is not None for reply in replies)
        if step.terminated or step.truncated or failed:
            break
        observation = step.observation
    return Trajectory(query, episode_seed, tuple(transitions))


async def run_episodes(
    make_environment: Callable[[], Environment[ObservationT, ActionT]],
    start_agent: Callable[[int, int], Agent[ObservationT, ActionT, DecisionT]],
    pool: Pool,
    queries: Sequence[Query],
    plan: EpisodePlan,
    *,
    on_failure: FailureStrategy,
    retries: int = 1,
    concurrency: int | None = None,
    note_retry: Callable[[Trajectory[ObservationT, DecisionT]], None] | None = None,
) -> list[Trajectory[ObservationT, DecisionT]]:
    """Run all episodes of a plan side by side and return them in the plan's order.

    Args:
        make_environment: a fresh environment, for every attempt.
        start_agent: (row of the plan, attempt from 0) -> a fresh agent.
        pool: what answers the calls.
        queries: what `plan.query_index_B` points into.
        plan: which episodes.
        on_failure: what follows a failed call, see above.
        retries: attempts after the first; read under "retry" only.
        concurrency: episodes under way at once; None for all.
        note_retry: is handed each failed attempt that is followed by another one.

    Raises:
        RLRouteError: a call failed under "fail", or a prompt does not fit the context. The other
            episodes are cancelled.
    """
    attempts = retries + 1 if on_failure == "retry" else 1
    gate = asyncio.Semaphore(concurrency or max(1, len(plan.group_B)))

    async def run_row(row: int) -> Trajectory[ObservationT, DecisionT]:
        async with gate:
            for attempt in range(attempts):
                trajectory = await run_episode(
                    make_environment(),
                    start_agent(row, attempt),
                    pool,
                    queries[plan.query_index_B[row]],
                    episode_seed=int(plan.episode_seed_B[row]),
                )
                if trajectory.failure is None:
                    break
                if note_retry is not None and attempt + 1 < attempts:
                    note_retry(trajectory)
        if on_failure == "fail":
            raise_failure(trajectory)
        return trajectory

    return await gather_or_cancel([run_row(row) for row in range(len(plan.group_B))])


def raise_failure(trajectory: Trajectory[ObservationT, DecisionT]) -> None:
    """Raise an error that names the first failed call of a trajectory, if one failed."""
    for reply in (reply for step in trajectory.transitions for reply in step.replies):
        if reply.failure is not None:
            raise RLRouteError(
                f"query '{trajectory.query.id}': candidate '{reply.call.candidate_id}' failed "
                f"({reply.failure.value}), and failed calls are to end the run"
            )


async def gather_or_cancel(works: Sequence[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Return the results in order; at the first error cancel the rest, wait for it, and raise."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read_weights(observation: Observation) -> dict[str, FloatArray]:
    """Return what an observation weighs beside cost, as a policy takes it for one lane."""
    found: dict[str, FloatArray] = {}
    if observation.latency_weight is not None:
        found["latency_weight_B"] = np.array([observation.latency_weight], dtype=np.float32)
    if observation.candidate_bias_K is not None:
        found["candidate_bias_BK"] = observation.candidate_bias_K[None]
    return found


@dataclass
class FeatureAgent:
    """One episode of a policy that chooses a candidate from features, unless one is forced."""

    policy: ActingPolicy
    action_seed: int
    turn: int = 0
    forced_arm: int = FREE

    async def decide(self, observation: Observation) -> tuple[int, Decision]:
        """Ask the policy for one decision."""
        uniform = float(draw_action_uniform(self.action_seed, self.turn))
        self.turn += 1
        decisions = self.policy.decide(
            observation.features_F[None],
            observation.candidate_features_KD,
            narrow_to_forced(observation.mask_K[None], np.array([self.forced_arm])),
            np.array([observation.cost_weight], dtype=np.float32),
            np.array([uniform]),
            **read_weights(observation),
        )
        action = int(decisions.action_B[0])
        return action, Decision(
            action=action,
            logp=float(decisions.logp_B[0]),
            value=float(decisions.value_B[0]),
            mask_K=observation.mask_K,
            policy_version=self.policy.version,
        )


async def run_plan(
    make_environment: Callable[[], Environment[Observation, int]],
    policy: ActingPolicy,
    pool: Pool,
    queries: Sequence[Query],
    plan: EpisodePlan,
    *,
    retries: int = 1,
) -> Batch:
    """Run a feature policy over a plan and return the batch, in the plan's order."""

    def start_agent(row: int, attempt: int) -> FeatureAgent:
        forced = FREE if plan.forced_arm_B is None else int(plan.forced_arm_B[row])
        return FeatureAgent(policy, int(plan.action_seed_B[row]), forced_arm=forced)

    trajectories = await run_episodes(
        make_environment, start_agent, pool, queries, plan, on_failure="retry", retries=retries
    )
    return build_batch(trajectories, plan, policy.version)
