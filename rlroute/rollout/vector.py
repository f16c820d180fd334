"""Drives the hand-batched environment: all lanes at once, one array operation per step.

Serves shapes whose replies come from arrays; what waits is driven by `rlroute.rollout.engine`. Both
make the same trajectories from the same plan.
"""

from __future__ import annotations

import numpy as np

from rlroute.envs.single_turn_vector import SingleTurnVector
from rlroute.policies.decision import ActingPolicy
from rlroute.rollout.plan import EpisodePlan, narrow_to_forced
from rlroute.types import Batch


def collect_batch(policy: ActingPolicy, environment: SingleTurnVector, plan: EpisodePlan) -> Batch:
    """Run the plan's episodes, one lane each, and return them as a batch with T = 1.

    Raises:
        ValueError: the environment has another number of lanes than the plan has episodes.
    """
    if environment.num_envs != len(plan.group_B):
        raise ValueError(f"{environment.num_envs} lanes for {len(plan.group_B)} episodes")
    observation, _ = environment.reset(
        options={"query_index": plan.query_index_B, "episode_seed": plan.episode_seed_B}
    )
    features_BF = observation["features"]
    mask_BK = observation["mask"].astype(np.bool_)
    cost_weight_B = observation["cost_weight"][:, 0]
    weights = environment.weights
    extra = {
        "latency_weight_B": weights.latency_weight_B,
        "candidate_bias_BK": weights.candidate_bias_BK,
    }
    decisions = policy.decide(
        features_BF,
        environment.data.candidate_features_KD,
        narrow_to_forced(mask_BK, plan.forced_arm_B),
        cost_weight_B,
        plan.draw_action_uniforms(turn=0),
        **{name: value for name, value in extra.items() if value is not None},
    )
    info = environment.end_episodes(decisions.action_B)
    return Batch(
        features_BTF=features_BF[:, None],
        candidate_features_KD=environment.data.candidate_features_KD,
        mask_BTK=mask_BK[:, None],
        cost_weight_B=cost_weight_B,
        action_BT=decisions.action_B[:, None],
        logp_BT=decisions.logp_B[:, None],
        value_BT=decisions.value_B[:, None],
        valid_BT=np.ones((len(mask_BK), 1), dtype=np.bool_),
        terminated_B=np.ones(len(mask_BK), dtype=np.bool_),
        reward_terms_BT={name: value_B[:, None] for name, value_B in info["reward_terms"].items()},
        query_index_B=plan.query_index_B,
        group_B=plan.group_B,
        policy_version=policy.version,
        outcome_terms_BK=info.get("outcome_terms"),
        role_B=plan.role_B,
        latency_weight_B=weights.latency_weight_B,
        candidate_bias_BK=weights.candidate_bias_BK,
    )
