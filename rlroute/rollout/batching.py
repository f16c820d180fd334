"""From trajectories to arrays and rows of tokens: the only place that pads and masks episodes.

The rows of a failed episode keep their observations and decisions; its reward terms become
undefined (NaN) on every step of a `Batch`, so nothing of it is learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlroute.rollout.plan import EpisodePlan
from rlroute.types import (
    Batch,
    Decision,
    FloatArray,
    Observation,
    TextDecision,
    TextObservation,
    Trajectory,
)


def build_batch(
    trajectories: Sequence[Trajectory[Observation, Decision]],
    plan: EpisodePlan,
    policy_version: int,
) -> Batch:
    """Stack B trajectories, in the order of the plan, into padded arrays [B, T, ...].

    All observations must offer the same candidates.
    """
    episodes = len(trajectories)
    steps = max(len(trajectory.transitions) for trajectory in trajectories)
    first = trajectories[0].transitions[0].observation
    features_BTF = np.zeros((episodes, steps, len(first.features_F)), dtype=np.float32)
    mask_BTK = np.ones((episodes, steps, len(first.mask_K)), dtype=np.bool_)
    action_BT = np.zeros((episodes, steps), dtype=np.int64)
    logp_BT = np.zeros((episodes, steps), dtype=np.float32)
    value_BT = np.zeros((episodes, steps), dtype=np.float32)
    valid_BT = np.zeros((episodes, steps), dtype=np.bool_)
    names = trajectories[0].transitions[0].reward_terms
    terms = {name: np.zeros((episodes, steps), dtype=np.float32) for name in names}
    for b, trajectory in enumerate(trajectories):
        for t, step in enumerate(trajectory.transitions):
            features_BTF[b, t] = step.observation.features_F
            mask_BTK[b, t] = step.decision.mask_K
            action_BT[b, t] = step.decision.action
            logp_BT[b, t] = step.decision.logp
            value_BT[b, t] = step.decision.value
            valid_BT[b, t] = True
        for name, value_BT_of_term in terms.items():
            value_BT_of_term[b, : len(trajectory.transitions)] = read_term(trajectory, name)
    return Batch(
        features_BTF=features_BTF,
        candidate_features_KD=first.candidate_features_KD,
        mask_BTK=mask_BTK,
        cost_weight_B=np.array(
            [trajectory.transitions[0].observation.cost_weight for trajectory in trajectories],
            dtype=np.float32,
        ),
        action_BT=action_BT,
        logp_BT=logp_BT,
        value_BT=value_BT,
        valid_BT=valid_BT,
        terminated_B=np.array([item.transitions[-1].terminated for item in trajectories]),
        reward_terms_BT=terms,
        query_index_B=plan.query_index_B,
        group_B=plan.group_B,
        policy_version=policy_version,
        dropped=sum(trajectory.failure is not None for trajectory in trajectories),
        role_B=plan.role_B,
        latency_weight_B=stack_first(trajectories, "latency_weight"),
        candidate_bias_BK=stack_first(trajectories, "candidate_bias_K"),
    )


def stack_first(
    trajectories: Sequence[Trajectory[Observation, Decision]], name: str
) -> FloatArray | None:
    """Return a field of the episodes' first observations [B, ...]; None where they have none."""
    values = [getattr(one.transitions[0].observation, name) for one in trajectories]
    return None if values[0] is None else np.array(values, dtype=np.float32)


def read_term(trajectory: Trajectory[Observation, Decision], name: str) -> FloatArray:
    """Return a reward term at each step [T]; all undefined where the episode failed."""
    values = [step.reward_terms[name] for step in trajectory.transitions]
    if trajectory.failure is not None:
        values = [None] * len(values)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


@dataclass(frozen=True)
class TokenRow:
    """A text episode as one row of tokens, exactly as they were sampled and read.

    Over `completion_ids`: `policy_mask` is 1 at the policy's tokens and 0 at the environment's,
    `logps` are those of the sampling, 0.0 at the environment's tokens. `policy_version_min` is the
    oldest version of the weights that wrote a part of it.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    policy_mask: tuple[int, ...]
    logps: tuple[float, ...]
    policy_version_min: int


def flatten_tokens(trajectory: Trajectory[TextObservation, TextDecision]) -> TokenRow:
    """Join the turns of an episode; an observation after the last decision is not part of it."""
    decisions = [step.decision for step in trajectory.transitions]
    completion_ids: list[int] = []
    policy_mask: list[int] = []
    logps: list[float] = []
    for turn, decision in enumerate(decisions):
        environment_ids = decision.environment_ids if turn > 0 else ()
        completion_ids += [*environment_ids, *decision.token_ids]
        policy_mask += [0] * len(environment_ids) + [1] * len(decision.token_ids)
        logps += [*[0.0] * len(environment_ids), *decision.logps]
    return TokenRow(
        prompt_ids=decisions[0].environment_ids,
        completion_ids=tuple(completion_ids),
        policy_mask=tuple(policy_mask),
        logps=tuple(logps),
        policy_version_min=min(decision.policy_version for decision in decisions),
    )
