"""Drives episodes that wait: one coroutine per episode over an environment and a pool.

A failed call is typed data. Its episode is retried from the start with a fresh environment, and
when the retries are used up it stays in the batch as a row whose reward is undefined: it is
counted, it leaves its group's mean, and it is never trained on.

It leaves out batching of decisions over episodes (candidate scorers decide in microseconds).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from rlroute.envs.base import Environment
from rlroute.policies.decision import ActingPolicy
from rlroute.pool.base import Pool
from rlroute.rollout.batching import build_batch
from rlroute.rollout.plan import EpisodePlan, draw_action_uniform
from rlroute.types import Batch, Decision, Observation, Query, Trajectory, Transition


async def run_episode(
    environment: Environment[Observation, int],
    policy: ActingPolicy,
    pool: Pool,
    query: Query,
    *,
    episode_seed: int,
    action_seed: int,
) -> Trajectory[Observation, Decision]:
    """Run one episode to its end, or to the first failed call."""
    observation = environment.reset(query, episode_seed)
    transitions: list[Transition[Observation, Decision]] = []
    while True:
        uniform = float(draw_action_uniform(action_seed, len(transitions)))
        decision = decide_one(policy, observation, uniform)
        replies = await pool.ask_many(environment.propose(decision.action))
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
            return Trajectory(query, episode_seed, tuple(transitions))
        observation = step.observation


def decide_one(policy: ActingPolicy, observation: Observation, uniform: float) -> Decision:
    """Ask the policy for one decision."""
    decisions = policy.decide(
        observation.features_F[None],
        observation.candidate_features_KD,
        observation.mask_K[None],
        np.array([observation.cost_weight], dtype=np.float32),
        np.array([uniform]),
    )
    return Decision(
        action=int(decisions.action_B[0]),
        logp=float(decisions.logp_B[0]),
        value=float(decisions.value_B[0]),
        mask_K=observation.mask_K,
        policy_version=policy.version,
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
    """Run all episodes of a plan side by side and return them as a batch, in the plan's order."""

    async def run_with_retries(row: int) -> Trajectory[Observation, Decision]:
        for attempt in range(retries + 1):
            trajectory = await run_episode(
                make_environment(),
                policy,
                pool,
                queries[plan.query_index_B[row]],
                episode_seed=int(plan.episode_seed_B[row]),
                action_seed=int(plan.action_seed_B[row]),
            )
            if trajectory.failure is None or attempt == retries:
                break
        return trajectory

    tasks = [run_with_retries(row) for row in range(len(plan.group_B))]
    return build_batch(await asyncio.gather(*tasks), plan, policy.version)
