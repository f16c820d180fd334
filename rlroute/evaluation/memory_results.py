"""What an evaluation of memory-tier routing found, as frozen dataclasses that become JSON.

What it is: every contender has a point for each cost weight, and a frontier. Costs are mean USD per
question, of the memory's modules alone; what the answer costs stands apart. Utility is score minus
cost weight times cost over the reference. A question with a failed call is counted in `failed` and
enters no mean. An `Estimate` carries a paired bootstrap interval (95 %).

Live runs know what was played and nothing else: whatever needs an oracle or static assignments is
None there.

What it leaves out: how the numbers come about (`memory_measures`), words (`memory_comparison`),
looks (`memory_report`, `memory_figures`).

How to use: `result.find("oracle").points[0].quality`; `merge_seeds([first, second, third])`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.results import make_plain
from rlroute.types import RLRouteError

FORMAT_VERSION = 1
# fmt: off
MemoryKind = Literal[
    "policy", "run", "static", "best_static", "kind_static", "random", "classifier", "oracle",
]
# fmt: on
BASELINES: tuple[MemoryKind, ...] = ("static", "best_static", "random", "classifier")
Shares = tuple[tuple[float, ...], ...]  # of the tiers of each module


@dataclass(frozen=True)
class MemoryModule:
    """A module of the pipeline: filter, extract or summary; its tiers from the cheapest."""

    name: str
    role: str
    tiers: tuple[str, ...]


@dataclass(frozen=True)
class MemoryKindPoint:
    """A contender on the questions of one kind; means are None where every question failed."""

    questions: int
    quality: float | None
    cost_usd: float | None
    shares: Shares


@dataclass(frozen=True)
class MemoryPoint:
    """A contender at one cost weight; None where it has no value for any question.

    `regret` is the oracle's utility minus this one's, `oracle_share` the ratio of the two means
    (None where the oracle's is not above 0). `lead` and `quality_lead` are the subject's utility
    and quality minus this contender's (None for the subject). `above_static` is quality minus the
    height, at this cost, of the frontier of static assignments. `cost_change_usd` is the cost minus
    that at the next lower weight. `shares` are those of the tiers of each module, `information` is
    what a question's kind tells about the chosen tier, bits per module (0: it chooses alike for all
    kinds; chance alone gives about (kinds - 1) * (tiers - 1) / (1.39 * questions)).
    """

    cost_weight: float
    questions: int
    failed: float
    quality: Estimate | None
    cost_usd: Estimate | None
    answer_cost_usd: float | None
    utility: Estimate | None
    regret: Estimate | None
    oracle_share: Estimate | None
    lead: Estimate | None
    quality_lead: Estimate | None
    above_static: Estimate | None
    cost_change_usd: Estimate | None
    shares: Shares
    information: tuple[float, ...]
    by_kind: Mapping[str, MemoryKindPoint]


@dataclass(frozen=True)
class MemoryContender:
    """A contender with one point per cost weight, and the upper hull of all it can do.

    `aiq` is the hull's mean height over the common range of cost, `aiq_lead` the subject's minus
    this one's. A contender without a value for any question has an empty hull.
    """

    name: str
    kind: MemoryKind
    points: tuple[MemoryPoint, ...]
    hull_cost_usd: tuple[float, ...]
    hull_quality: tuple[float, ...]
    aiq: Estimate | None
    aiq_lead: Estimate | None


@dataclass(frozen=True)
class CostLevel:
    """The subject's frontier against the static one's at the same cost.

    `headroom` is the height of the oracle's frontier over the static one's: what there is to win.
    """

    cost_usd: float
    quality: float
    static_quality: float
    gain: Estimate
    headroom: float | None


@dataclass(frozen=True)
class MemoryEvaluation:
    """A comparison on the test questions; `contenders[0]` is the subject.

    `kinds` counts the questions of each kind. `resampled` says what the intervals resample:
    histories, whose questions depend on each other, or single questions where there are too few
    histories for that. `static_points` are cost and quality of every static assignment, where they
    are known. `update` is the number of updates behind the subject's weights.
    """

    data: str
    modules: tuple[MemoryModule, ...]
    questions: int
    histories: int
    kinds: Mapping[str, int]
    cost_weights: tuple[float, ...]
    reference_usd: float
    cost_min_usd: float
    cost_max_usd: float
    contenders: tuple[MemoryContender, ...]
    levels: tuple[CostLevel, ...]
    static_points: tuple[tuple[float, float], ...]
    resampled: Literal["histories", "questions"]
    bootstrap: int
    seed: int
    update: int
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def subject(self) -> MemoryContender:
        """The contender that the evaluation is about."""
        return self.contenders[0]

    def find(self, name: str) -> MemoryContender:
        """Return a contender by its name."""
        return next(one for one in self.contenders if one.name == name)

    def find_kind(self, kind: MemoryKind) -> MemoryContender | None:
        """Return the first contender of a kind, None where it did not take part."""
        return next((one for one in self.contenders if one.kind == kind), None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


# --- Several seeds --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A number over training seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedPoint:
    """A contender at one cost weight over the seeds; None where a seed has no value."""

    cost_weight: float
    quality: Spread | None
    cost_usd: Spread | None
    utility: Spread | None
    regret: Spread | None
    oracle_share: Spread | None
    above_static: Spread | None


@dataclass(frozen=True)
class SeedContender:
    """A contender over the seeds."""

    name: str
    kind: MemoryKind
    points: tuple[SeedPoint, ...]
    aiq: Spread | None


@dataclass(frozen=True)
class SeedLevel:
    """The subject's gain over the static frontier at a cost; the cost may differ between seeds."""

    cost_usd: Spread
    gain: Spread


@dataclass(frozen=True)
class MergedEvaluation:
    """Evaluations of the same comparison with several training seeds."""

    data: str
    seeds: int
    cost_weights: tuple[float, ...]
    contenders: tuple[SeedContender, ...]
    levels: tuple[SeedLevel, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def merge_seeds(evaluations: Sequence[MemoryEvaluation]) -> MergedEvaluation:
    """Return mean, least and most over evaluations that differ in their training seed alone.

    Contenders that not all of them hold are left out, so are levels where their number differs.

    Raises:
        RLRouteError: no evaluation, or evaluations of other data, cost weights or subjects.
    """
    if not evaluations:
        raise RLRouteError("merging seeds: needs at least one evaluation, got none")
    first = evaluations[0]
    for place, other in enumerate(evaluations):
        for name in ("data", "cost_weights", "kinds"):
            if getattr(other, name) != getattr(first, name):
                raise RLRouteError(
                    f"merging seeds: evaluation {place} has {name} {getattr(other, name)}, "
                    f"the first has {getattr(first, name)}: they must be equal"
                )
        if other.subject.name != first.subject.name:
            raise RLRouteError(
                f"merging seeds: evaluation {place} is about '{other.subject.name}', "
                f"the first about '{first.subject.name}': they must be about the same"
            )
    shared = [
        one
        for one in first.contenders
        if all(any(one.name == peer.name for peer in other.contenders) for other in evaluations)
    ]
    levels = zip(*(one.levels for one in evaluations), strict=True)
    alike = len({len(one.levels) for one in evaluations}) == 1
    return MergedEvaluation(
        data=first.data,
        seeds=len(evaluations),
        cost_weights=first.cost_weights,
        contenders=tuple(
            merge_contender([other.find(one.name) for other in evaluations]) for one in shared
        ),
        levels=tuple(map(merge_level, levels)) if alike else (),
    )


def merge_contender(peers: Sequence[MemoryContender]) -> SeedContender:
    """Return one contender over the seeds."""
    return SeedContender(
        name=peers[0].name,
        kind=peers[0].kind,
        points=tuple(
            merge_points([one.points[place] for one in peers])
            for place in range(len(peers[0].points))
        ),
        aiq=spread(peers, lambda one: one.aiq),
    )


def merge_points(points: Sequence[MemoryPoint]) -> SeedPoint:
    """Return one point over the seeds."""
    return SeedPoint(
        cost_weight=points[0].cost_weight,
        quality=spread(points, lambda one: one.quality),
        cost_usd=spread(points, lambda one: one.cost_usd),
        utility=spread(points, lambda one: one.utility),
        regret=spread(points, lambda one: one.regret),
        oracle_share=spread(points, lambda one: one.oracle_share),
        above_static=spread(points, lambda one: one.above_static),
    )


def merge_level(levels: Sequence[CostLevel]) -> SeedLevel:
    """Return one level of cost over the seeds."""
    return SeedLevel(
        cost_usd=spread_values([one.cost_usd for one in levels]),
        gain=spread_values([one.gain.value for one in levels]),
    )


def spread(items: Sequence[Any], read: Callable[[Any], Estimate | None]) -> Spread | None:
    """Return the spread of what `read` finds in each item; None where one of them has nothing."""
    values = [estimate.value for one in items if (estimate := read(one)) is not None]
    return spread_values(values) if len(values) == len(items) else None


def spread_values(values: Sequence[float]) -> Spread:
    """Return mean, least and most of at least one value."""
    return Spread(float(np.mean(values)), min(values), max(values))
