"""What an evaluation found, as frozen dataclasses that become JSON.

What it is: the nouns of a report. Costs are mean USD per query; qualities are mean scores in
[0, 1]; every `Estimate` carries a paired bootstrap interval (95 %).

What it leaves out: how the numbers come about (`evaluate`) and how they look (`report`, `figures`,
`comparison`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rlroute.evaluation.intervals import Estimate

FORMAT_VERSION = 2  # 2: latencies of the subject count the router's own time


@dataclass(frozen=True)
class Point:
    """One setting of a policy on the evaluated split.

    `cost_weight` is None where the policy has no knob. `quality_gain` is the quality minus the best
    single candidate's on the same queries. `share_K` is the share of queries per candidate.
    """

    cost_weight: float | None
    quality: Estimate
    cost_usd: Estimate
    quality_gain: Estimate
    share_K: tuple[float, ...]
    entropy: float


@dataclass(frozen=True)
class Latency:
    """Percentiles in seconds of what a query waits, over the share of picks with a known latency.

    Each is the picked candidate's latency plus `router_seconds`, the router's own time to encode
    and decide one query, which is None where it was not measured and then not counted. The
    percentiles are None where no picked candidate's latency is known.
    """

    known_share: float
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    router_seconds: float | None = None


@dataclass(frozen=True)
class Efficiency:
    """What one setting of a policy costs in money, tokens and time (`efficiency`).

    `cost_per_solved_usd` is the mean cost over the mean score, infinite (None in JSON) where
    nothing is solved; `cost_per_solved_ratio` is the same relative to the best single candidate's.
    `tokens` per query are prompt and completion, `token_efficiency` is TEP with the cheapest single
    candidate as the base; both None where the table does not know the tokens.
    `effective_candidates` is 1 over the sum of squared shares. The last four are RouterArena's
    (`router_arena`), None where not defined.
    """

    cost_per_solved_usd: Estimate
    cost_per_solved_ratio: Estimate
    tokens: float | None
    token_efficiency: float | None
    latency: Latency
    effective_candidates: float
    arena_score: float
    optimal_selection: float | None
    optimal_accuracy: float | None
    optimal_cost: float | None


@dataclass(frozen=True)
class OperatingPoint:
    """The setting one would deploy: its cost weight chosen on validation, measured on test.

    `budget_usd` is the cap on the mean cost per query on the validation split, None for the
    smallest cost weight, which needs no choice. `cost_ratio` is the cost relative to the best
    single candidate's.
    """

    label: str
    budget_usd: float | None
    cost_weight: float
    quality: Estimate
    cost_usd: Estimate
    quality_gain: Estimate
    cost_ratio: Estimate
    share_K: tuple[float, ...]
    entropy: float
    share_by_task: Mapping[str, tuple[float, ...]]
    efficiency: Efficiency


@dataclass(frozen=True)
class TwoModelMetrics:
    """RouteLLM's metrics, for pools of two: None where not defined or never reached."""

    average_gap_recovered: float | None
    call_threshold_50: float | None
    call_threshold_80: float | None


@dataclass(frozen=True)
class FrontierResult:
    """A non-decreasing upper convex hull and what follows from it.

    `aiq_gain` is AIQ minus that of the hull of the single candidates.
    `quality_at_best_single_cost` is the height at the best single candidate's cost,
    `quality_neutral_cost` the least cost with the best single's quality relative to the dearest
    candidate's cost, and `cost_saved` one minus the same relative to the best single's own cost.
    Where that quality is never reached both are infinite (None in JSON).
    """

    cost_usd: tuple[float, ...]
    quality: tuple[float, ...]
    aiq: Estimate
    aiq_gain: Estimate
    quality_at_best_single_cost: Estimate
    quality_neutral_cost: Estimate
    cost_saved: Estimate
    peak_quality: float


@dataclass(frozen=True)
class PolicyResult:
    """A policy's sweep of the cost weight and its frontier.

    The frontier includes the cheapest single candidate's point. `subject_lead` is the subject's AIQ
    minus this policy's (None for the subject itself), `gap_closed` the part of the way from best
    single candidate to quality oracle at the first point (None where there is no way to go).
    `regrets` has one entry per cost weight of the evaluation, in units of quality.
    """

    name: str
    points: tuple[Point, ...]
    frontier: FrontierResult
    subject_lead: Estimate | None
    gap_closed: float | None
    regrets: tuple[Estimate, ...]
    operating_points: tuple[OperatingPoint, ...]
    two_model: TwoModelMetrics | None = None


@dataclass(frozen=True)
class SingleResult:
    """One candidate asked for every query."""

    candidate_id: str
    quality: Estimate
    cost_usd: Estimate
    train_quality: float
    train_cost_usd: float
    on_hull: bool


@dataclass(frozen=True)
class ReferencePoint:
    """A point that needs no router to be named: an oracle or random picks."""

    name: str
    quality: float
    cost_usd: float


@dataclass(frozen=True)
class EvaluationResult:
    """A comparison of policies on one split of one table.

    `policies[0]` is the subject: the policy the report is about. `zero_router` is the hull of the
    single candidates, picked with hindsight on the evaluated split.
    """

    table: str
    queries: int
    task_queries: Mapping[str, int]
    candidate_ids: tuple[str, ...]
    cost_weights: tuple[float, ...]
    cost_reference_usd: float
    cost_min_usd: float
    cost_max_usd: float
    best_single: str
    cheapest: str
    singles: tuple[SingleResult, ...]
    references: tuple[ReferencePoint, ...]
    zero_router: FrontierResult
    policies: tuple[PolicyResult, ...]
    bootstrap: int
    seed: int
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def subject(self) -> PolicyResult:
        """The policy that the report is about."""
        return self.policies[0]

    def find_single(self, candidate_id: str) -> SingleResult:
        """Return the result of one candidate."""
        return next(one for one in self.singles if one.candidate_id == candidate_id)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; what is not finite becomes None."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def make_plain(value: Any) -> Any:
    """Replace tuples by lists and numbers that are not finite by None, at any depth."""
    if isinstance(value, dict):
        return {key: make_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
