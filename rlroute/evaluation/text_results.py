"""What an evaluation of a text policy found: means over questions, with paired intervals.

What it is: every policy plays each question once at each cost weight (`Played`); a point holds the
means over the questions that it has a reward for, an `Estimate` where they carry a paired bootstrap
interval (95 %) over questions. An episode with a failed call has no reward: it is counted in
`failed` and enters no mean. `lead` is the mean reward of the policy that the evaluation is about
minus that of another, over the questions that both have a reward for.

What it leaves out: playing (`rlroute.text_runs`), words (`text_comparison`), looks (`text_report`,
`text_figures`). Rewards mean the same at one cost weight only and are never averaged over weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate, make_estimate
from rlroute.evaluation.results import make_plain

FORMAT_VERSION = 1
PolicyKind = Literal["policy", "start", "single", "random", "optimal"]
BASELINES: tuple[PolicyKind, ...] = ("single", "random")


@dataclass(frozen=True)
class Played:
    """One policy on Q questions at one cost weight; every row is NaN where a call failed.

    `reward_Q`, `success_Q` in [0, 1], `charge_usd_Q`, `valid_Q` (1 for a valid format) and
    `calls_QK`, how often each candidate was asked.
    """

    reward_Q: Float64Array
    success_Q: Float64Array
    charge_usd_Q: Float64Array
    valid_Q: Float64Array
    calls_QK: Float64Array


@dataclass(frozen=True)
class TextPoint:
    """A policy at one cost weight; None where it has no reward for any question.

    `scored` and `failed` count questions, `cost_usd` is USD per question. `calls_by_candidate` adds
    up to `calls`, which are per question. `lead` is None for the subject itself.
    """

    cost_weight: float
    scored: int
    failed: int
    reward: Estimate | None
    success: Estimate | None
    cost_usd: Estimate | None
    calls: float | None
    valid_format: float | None
    calls_by_candidate: Mapping[str, float]
    success_by_dataset: Mapping[str, float]
    lead: Estimate | None


@dataclass(frozen=True)
class TextPolicyResult:
    """A policy with one point per cost weight, in the order of the evaluation."""

    name: str
    kind: PolicyKind
    points: tuple[TextPoint, ...]


@dataclass(frozen=True)
class TextOptimum:
    """The best that any policy can expect at a cost weight, over the distribution of questions."""

    cost_weight: float
    reward: float
    success: float
    cost_usd: float
    calls: float


@dataclass(frozen=True)
class TextEvaluation:
    """A comparison on the test questions; `policies[0]` is the subject.

    `best_baselines` names, for each cost weight, the baseline with the best mean reward on the val
    questions. `optima` has one entry per cost weight and `optimum_line` the frontier that they lie
    on, the cheapest point first; both are empty where no optimum is known. `update` is the number
    of updates behind the subject's weights.
    """

    questions: str
    test_questions: int
    val_questions: int
    candidate_ids: tuple[str, ...]
    cost_weights: tuple[float, ...]
    policies: tuple[TextPolicyResult, ...]
    best_baselines: tuple[str, ...]
    optima: tuple[TextOptimum, ...]
    optimum_line: tuple[TextOptimum, ...]
    update: int
    bootstrap: int
    seed: int
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def subject(self) -> TextPolicyResult:
        """The policy that the evaluation is about."""
        return self.policies[0]

    def find(self, name: str) -> TextPolicyResult:
        """Return the result of a policy by its name."""
        return next(one for one in self.policies if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def measure_point(
    played: Played,
    subject: Played | None,
    cost_weight: float,
    candidate_ids: Sequence[str],
    datasets: Sequence[str],
    weight_SQ: Float64Array,
) -> TextPoint:
    """Return the means of a policy; `datasets` names the set of each question.

    `weight_SQ` holds the questions' weights in the sample (row 0: all alike) and its resamples.
    """
    scored_Q = ~np.isnan(played.reward_Q)
    calls_K = average_scored(played.calls_QK, scored_Q)
    valid = average_scored(played.valid_Q, scored_Q)
    dataset_Q = np.array(datasets)
    return TextPoint(
        cost_weight=cost_weight,
        scored=int(scored_Q.sum()),
        failed=int((~scored_Q).sum()),
        reward=estimate_mean(played.reward_Q, weight_SQ),
        success=estimate_mean(played.success_Q, weight_SQ),
        cost_usd=estimate_mean(played.charge_usd_Q, weight_SQ),
        calls=None if calls_K is None else float(calls_K.sum()),
        valid_format=None if valid is None else float(valid),
        calls_by_candidate={}
        if calls_K is None
        else dict(zip(candidate_ids, calls_K.tolist(), strict=True)),
        success_by_dataset={
            str(name): float(played.success_Q[scored_Q & (dataset_Q == name)].mean())
            for name in np.unique(dataset_Q[scored_Q])
        },
        lead=None
        if subject is None
        else estimate_mean(subject.reward_Q - played.reward_Q, weight_SQ),
    )


def average_scored(value_Q: Float64Array, scored_Q: npt.NDArray[np.bool_]) -> Any:
    """Return the mean over the questions with a reward (per column), None where there is none."""
    return value_Q[scored_Q].mean(axis=0) if scored_Q.any() else None


def estimate_mean(value_Q: Float64Array, weight_SQ: Float64Array) -> Estimate | None:
    """Return the mean over the questions with a value and its interval; None without a value."""
    known_Q = ~np.isnan(value_Q)
    if not known_Q.any():
        return None
    total_S = weight_SQ[:, known_Q].sum(axis=1)
    drawn_S = total_S > 0  # a resample may hold no question with a value
    mean_S = (weight_SQ[drawn_S][:, known_Q] @ value_Q[known_Q]) / total_S[drawn_S]
    return make_estimate(float(mean_S[0]), mean_S[1:] if len(mean_S) > 1 else mean_S)


def choose_best(reward_by_name: Mapping[str, Float64Array]) -> str:
    """Return the name with the best mean reward over questions; one without a reward never wins."""

    def judge(name: str) -> float:
        reward_Q = reward_by_name[name]
        known_Q = ~np.isnan(reward_Q)
        return float(reward_Q[known_Q].mean()) if known_Q.any() else -np.inf

    return max(reward_by_name, key=judge)
