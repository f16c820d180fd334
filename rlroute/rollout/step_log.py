"""What is written down of episodes of many steps while they are played, and the batch it becomes.

`rlroute.rollout.steps` fills it, step by step, for all episodes of a plan. It leaves out playing,
and what the static policies earn on the tasks: whoever knows that adds it to the batch.
"""

from __future__ import annotations

import numpy as np

from rlroute.envs.step_budget import TERMS, StepBudget
from rlroute.envs.step_budget_vector import StepBudgetVector
from rlroute.policies.decision import Decisions
from rlroute.policies.stepwise import StepInputs, StepPolicy
from rlroute.rollout.plan import FREE
from rlroute.rollout.step_plan import StepPlan
from rlroute.types import REFERENCE, Batch, BoolArray, Conversations, EpisodeEnds, IntArray


class EpisodeLog:
    """Arrays of B episodes that fill up step by step."""

    def __init__(self, plan: StepPlan, environment: StepBudget | StepBudgetVector) -> None:
        world = environment.world
        episodes, steps = len(plan.role_B), world.horizon
        executors = len(world.executors)
        self.plan = plan
        self.candidate_features_KD = world.executor_features_KD
        self.features_BTF = np.zeros(
            (episodes, steps, len(environment.feature_names)), dtype=np.float32
        )
        self.mask_BTK = np.ones((episodes, steps, executors), dtype=np.bool_)
        self.action_BT = np.zeros((episodes, steps), dtype=np.int64)
        self.logp_BT = np.zeros((episodes, steps), dtype=np.float32)
        self.value_BT = np.zeros((episodes, steps), dtype=np.float32)
        self.valid_BT = np.zeros((episodes, steps), dtype=np.bool_)
        self.terms = {name: np.zeros((episodes, steps), dtype=np.float32) for name in TERMS}
        self.cost_weight_B = np.zeros(episodes, dtype=np.float32)
        self.score_B = np.full(episodes, np.nan, dtype=np.float32)
        self.cost_usd_B = np.full(episodes, np.nan, dtype=np.float32)
        self.calls_B = np.zeros(episodes, dtype=np.int64)
        self.cap_B = np.full(episodes, np.inf, dtype=np.float32)
        self.exhausted_B = np.zeros(episodes, dtype=np.bool_)

    def note(
        self,
        row_N: IntArray,
        turn: int,
        inputs: StepInputs,
        mask_NK: BoolArray,
        taken: Decisions,
    ) -> None:
        """Write down what N episodes saw, were allowed and did at a turn."""
        self.features_BTF[row_N, turn] = inputs.features_BF
        self.mask_BTK[row_N, turn] = mask_NK
        self.action_BT[row_N, turn] = taken.action_B
        self.logp_BT[row_N, turn] = taken.logp_B
        self.value_BT[row_N, turn] = taken.value_B
        self.valid_BT[row_N, turn] = True
        self.cost_weight_B[row_N] = inputs.cost_weight_B

    def note_end(self, row: int, environment: StepBudget) -> None:
        """Write down how a single environment's episode ended."""
        record = environment.read_record()
        self.cap_B[row] = record.cap
        self.calls_B[row], self.exhausted_B[row] = record.calls, record.exhausted
        self.score_B[row], self.cost_usd_B[row] = record.score, record.cost_usd

    def erase(self, row: int) -> None:
        """Forget an episode that is played again."""
        self.valid_BT[row] = False
        for value_BT in self.terms.values():
            value_BT[row] = 0.0

    def build(
        self, policy: StepPolicy, failed_B: BoolArray, conversations: Conversations | None = None
    ) -> Batch:
        """Return the batch, cut to the longest episode; failed episodes have no reward."""
        steps = int(self.valid_BT.sum(axis=1).max())
        plan = self.plan
        for value_BT in self.terms.values():
            value_BT[failed_B] = np.nan
        self.score_B[failed_B] = self.cost_usd_B[failed_B] = np.nan
        choice_BT = self.valid_BT & (self.mask_BTK.sum(axis=2) > 1)
        free_BT = choice_BT & (plan.forced_arm_B == FREE)[:, None]
        learnt_BT = np.where((plan.role_B == REFERENCE)[:, None], choice_BT, free_BT)
        episodes = len(plan.role_B)
        return Batch(
            features_BTF=self.features_BTF[:, :steps],
            candidate_features_KD=self.candidate_features_KD,
            mask_BTK=self.mask_BTK[:, :steps],
            cost_weight_B=self.cost_weight_B,
            action_BT=self.action_BT[:, :steps],
            logp_BT=self.logp_BT[:, :steps],
            value_BT=self.value_BT[:, :steps],
            valid_BT=self.valid_BT[:, :steps],
            terminated_B=~failed_B,
            reward_terms_BT={name: value[:, :steps] for name, value in self.terms.items()},
            query_index_B=plan.episodes.query_index_B,
            group_B=plan.episodes.group_B,
            policy_version=policy.version,
            dropped=int(failed_B.sum()),
            conversations=conversations,
            ends=EpisodeEnds(
                score_B=self.score_B,
                cost_usd_B=self.cost_usd_B,
                calls_B=self.calls_B,
                cap_B=self.cap_B,
                exhausted_B=self.exhausted_B,
                free_BT=learnt_BT[:, :steps],
                role_B=plan.role_B,
                reference_BR=np.full((episodes, 0), np.nan, dtype=np.float32),
                solvable_B=np.zeros(episodes, dtype=np.bool_),
                hard_B=np.zeros(episodes, dtype=np.bool_),
            ),
        )
