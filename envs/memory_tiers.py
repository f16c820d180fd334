"""The tiers of a memory pipeline, module by module: B episodes in lock-step.

| part        | what                                                                               |
| ----------- | ---------------------------------------------------------------------------------- |
| decision    | one for each of M modules, in the pipeline's order                                 |
| observation | `features` [F] = embedding of the question [E], mean embedding of what the module  |
|             | is going to read [E], extras; `module`, its place; `mask` [K]; the cost weight     |
| extras      | spent so far / reference cost; log(1 + cost weight); share of the modules that are |
|             | decided; the tiers chosen so far, one-hot [M * K]; under a budget what is left of  |
|             | it / reference cost, at most 2                                                     |
| action      | index of a tier of the module; K is the number of tiers of the module with the     |
|             | most, what a module lacks is masked                                                |
| run         | the filter at once; the extractors together, when the last of them is decided (so  |
|             | all are decided from the same state, and what they cost shows after the last);     |
|             | then the summary, and an answer, which is not decided and whose cost is apart      |
| reward      | at the end, by whoever owns the reward (`rlroute.rewards.memory`)                  |
| ends        | after M decisions; score and costs are NaN where a call failed (such a lane goes   |
|             | on, with a state of zeros, and is worth nothing)                                   |
| budget      | optional: a tier is masked unless an upper bound of its cost fits into what is     |
|             | left, with the cheapest tier of every later module; the cheapest tier of a module  |
|             | always may act. So a cap is passed only where it is below the cheapest way         |
|             | through, or a run costs more than its bound                                        |

Beside the paper's state (question, module, what it reads) stand what was spent, the cost weight and
the tiers chosen before: one policy serves all cost weights, and knows what others decided.

It leaves out seeds, rewards and Gymnasium (`rlroute.envs.memory_tiers_gym`), and what is behind the
outcomes: `rlroute.memory.tree` or `rlroute.memory.live`.

Source: BudgetMem (arXiv 2602.06025); budget and extras are ours.

How to use:

    episodes = TierEpisodes(outcomes, reference_usd=0.002)
    episodes.start(question_index_B, cost_weight_B)
    while not episodes.ended:
        inputs = episodes.observe()
        episodes.act(choose(inputs))
    ends = episodes.end()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlroute.envs.budget import PICODOLLARS_PER_USD, count_picodollars
from rlroute.memory.outcomes import TierOutcomes
from rlroute.types import BoolArray, FloatArray, IntArray, RLRouteError, UsdArray

MOST_LEFT = 2.0  # the feature of what is left of a budget, in reference costs, goes up to this


def count_extras(tier_counts: Sequence[int], *, budget: bool = False) -> int:
    """Return how many features follow the embeddings; see the module's text."""
    return 3 + len(tier_counts) * max(tier_counts) + budget


@dataclass(frozen=True)
class TierView:
    """What B lanes see before a decision; the fields of `rlroute.policies.tierwise.TierInputs`.

    After the last decision `module` is M, the state is zero and nothing is masked.
    """

    features_BF: FloatArray
    module: int
    mask_BK: BoolArray
    cost_weight_B: FloatArray


@dataclass(frozen=True)
class TierEnds:
    """How B episodes ended. `cost_usd_B` is that of the modules; NaN where a call failed."""

    score_B: FloatArray
    cost_usd_B: UsdArray
    answer_cost_usd_B: UsdArray
    tier_BM: IntArray


class TierEpisodes:
    """B episodes in lock-step; see the module's text.

    `reference_usd` scales what was spent: the mean cost of the dearest static choice, say.
    `bound_usd_MK` are upper bounds of what a tier of a module costs (anything where a module has no
    such tier); with them there is a budget.

    Raises:
        RLRouteError: the reference is not a number above 0, or a bound is below 0 or no number.
    """

    def __init__(
        self,
        outcomes: TierOutcomes,
        *,
        reference_usd: float,
        bound_usd_MK: UsdArray | None = None,
    ) -> None:
        if not 0 < reference_usd < np.inf:
            raise RLRouteError(
                f"reference_usd: {reference_usd} is no scale of costs (allowed: above 0 USD)"
            )
        self.outcomes, self.reference_usd = outcomes, reference_usd
        counts = np.array(outcomes.facts.tier_counts)
        self.modules, self.tiers = len(counts), int(counts.max())
        self.exists_MK: BoolArray = np.arange(self.tiers) < counts[:, None]
        self.budget = None if bound_usd_MK is None else TierBounds(bound_usd_MK, self.exists_MK)
        extras = count_extras(outcomes.facts.tier_counts, budget=self.budget is not None)
        self.features = 2 * outcomes.query_QE.shape[1] + extras
        self.start(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))

    @property
    def ended(self) -> bool:
        """Whether all modules are decided."""
        return self.step == self.modules

    def start(
        self,
        question_index_B: IntArray,
        cost_weight_B: FloatArray,
        cap_usd_B: UsdArray | None = None,
    ) -> None:
        """Begin B episodes; `cap_usd_B` are their budgets (infinite: none).

        Raises:
            ValueError: caps without bounds.
        """
        if cap_usd_B is not None and self.budget is None:
            raise ValueError("a cap needs bound_usd_MK, upper bounds of what the tiers cost")
        lanes = len(question_index_B)
        self.question_index_B = question_index_B
        self.cost_weight_B = np.asarray(cost_weight_B, dtype=np.float32)
        self.cap_usd_B = np.full(lanes, np.inf) if cap_usd_B is None else cap_usd_B
        self.step = 0
        self.tier_BM = np.zeros((lanes, self.modules), dtype=np.int64)
        self.spent_usd_B = np.zeros(lanes)
        self.mask_BK = self.find_allowed()

    def find_allowed(self) -> BoolArray:
        """Return which tiers the lanes may choose for the module at hand [B, K]."""
        lanes = len(self.question_index_B)
        if self.ended:
            return np.ones((lanes, self.tiers), dtype=np.bool_)
        exists_BK = np.broadcast_to(self.exists_MK[self.step], (lanes, self.tiers)).copy()
        if self.budget is None:
            return exists_BK
        return self.budget.find_allowed(self.step, self.find_left())

    def find_left(self) -> UsdArray:
        """Return what is left of the budgets [B], with the bounds of what is not yet run taken."""
        assert self.budget is not None
        pending_B = np.zeros(len(self.tier_BM))
        if not self.ended:
            for step in range(self.outcomes.facts.find_stage(self.step).start, self.step):
                pending_B += self.budget.bound_usd_MK[step, self.tier_BM[:, step]]
        return self.cap_usd_B - np.nan_to_num(self.spent_usd_B) - pending_B

    def observe(self) -> TierView:
        """Return what the lanes see now."""
        query_BE = self.outcomes.query_QE[self.question_index_B]
        if self.ended:
            state_BE = np.zeros_like(query_BE)
        else:
            state_BE = self.outcomes.look(self.question_index_B, self.step, self.tier_BM)
        features_BF = np.empty((len(query_BE), self.features), dtype=np.float32)
        width = query_BE.shape[1]
        features_BF[:, :width] = query_BE
        features_BF[:, width : 2 * width] = state_BE
        self.write_extras(features_BF[:, 2 * width :])
        return TierView(features_BF, self.step, self.mask_BK.copy(), self.cost_weight_B.copy())

    def write_extras(self, extras_BX: FloatArray) -> None:
        """Fill in the features that follow the embeddings; see the module's text."""
        extras_BX[:, 0] = np.nan_to_num(self.spent_usd_B) / self.reference_usd
        extras_BX[:, 1] = np.log1p(self.cost_weight_B)
        extras_BX[:, 2] = self.step / self.modules
        extras_BX[:, 3:] = 0
        lane_B = np.arange(len(extras_BX))
        for module in range(self.step):
            extras_BX[lane_B, 3 + module * self.tiers + self.tier_BM[:, module]] = 1
        if self.budget is not None:
            left_B = self.find_left() / self.reference_usd
            extras_BX[:, -1] = np.clip(left_B, 0, MOST_LEFT)

    def act(self, action_B: IntArray) -> None:
        """Choose the tiers of the module at hand, and run what can be run.

        Raises:
            ValueError: the episodes are over, or an action is masked or out of range; nothing was
                done then.
        """
        if self.ended:
            raise ValueError("the episode is over: reset before the next action")
        inside_B = (action_B >= 0) & (action_B < self.tiers)
        lane_B = np.arange(len(action_B))
        allowed_B = inside_B & self.mask_BK[lane_B, np.where(inside_B, action_B, 0)]
        for lane in np.flatnonzero(~allowed_B)[:1]:
            allowed = ", ".join(str(tier) for tier in np.flatnonzero(self.mask_BK[lane]))
            raise ValueError(
                f"action {int(action_B[lane])} of lane {lane} is not allowed here "
                f"(allowed: {allowed})"
            )
        self.tier_BM[:, self.step] = action_B
        cost_B = self.outcomes.run(self.question_index_B, self.step, self.tier_BM)
        self.spent_usd_B = self.spent_usd_B + cost_B
        self.step += 1
        self.mask_BK = self.find_allowed()

    def end(self) -> TierEnds:
        """Return how the episodes ended; the answers are asked for now.

        Raises:
            ValueError: they have not ended.
        """
        if not self.ended:
            raise ValueError(f"{self.modules - self.step} modules are not decided yet")
        answers = self.outcomes.answer(self.question_index_B, self.tier_BM)
        return TierEnds(
            score_B=answers.score_B,
            cost_usd_B=self.spent_usd_B.copy(),
            answer_cost_usd_B=answers.cost_usd_B,
            tier_BM=self.tier_BM.copy(),
        )


class TierBounds:
    """Upper bounds of what tiers cost [M, K] in USD, and what a budget allows by them.

    Money is compared in whole picodollars, so that float noise costs nobody a tier.
    """

    def __init__(self, bound_usd_MK: UsdArray, exists_MK: BoolArray) -> None:
        bound_usd_MK = np.asarray(bound_usd_MK, dtype=np.float64)
        if bound_usd_MK.shape != exists_MK.shape:
            raise RLRouteError(
                f"bound_usd: the shape is {bound_usd_MK.shape}, and there are (modules, tiers) "
                f"{exists_MK.shape}"
            )
        wrong_MK = exists_MK & ~((bound_usd_MK >= 0) & (bound_usd_MK < np.inf))
        for module, tier in np.argwhere(wrong_MK)[:1]:
            raise RLRouteError(
                f"bound_usd: {bound_usd_MK[module, tier]} for tier {tier} of module {module} is no "
                "bound (allowed: a finite number of USD from 0)"
            )
        self.bound_usd_MK = np.where(exists_MK, bound_usd_MK, 0.0)
        self.exists_MK = exists_MK
        self.cheapest_M = np.where(exists_MK, bound_usd_MK, np.inf).argmin(axis=1)
        cheapest_usd_M = np.take_along_axis(self.bound_usd_MK, self.cheapest_M[:, None], axis=1)
        self.later_usd_M = cheapest_usd_M[::-1, 0].cumsum()[::-1] - cheapest_usd_M[:, 0]

    def find_allowed(self, module: int, left_usd_B: UsdArray) -> BoolArray:
        """Return which tiers of a module fit into what is left [B, K]; the cheapest always does."""
        needed_K = count_picodollars(self.bound_usd_MK[module] + self.later_usd_M[module])
        most = float(needed_K.max()) + 1  # in picodollars; whatever is more counts as this
        left_B = np.rint(np.minimum(left_usd_B * PICODOLLARS_PER_USD, most)).astype(np.int64)
        allowed_BK: BoolArray = needed_K <= left_B[:, None]
        allowed_BK[:, self.cheapest_M[module]] = True
        allowed_BK &= self.exists_MK[module]
        return allowed_BK
