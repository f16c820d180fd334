"""The numbers of an evaluation of memory-tier routing: means, frontiers, intervals.

What it is: `measure_memory` makes a `MemoryEvaluation` of what contenders played at each cost
weight. All intervals come from one paired bootstrap. Questions of one history depend on each other
(they share its chunks), so histories are resampled; with fewer than five histories that says
nothing, and questions are resampled in their place.

The frontier of a contender is the upper hull of all its points and of the cheapest static
assignment, which anybody may mix in; the static frontier is that of the assignments on the hull of
the train split. Heights are compared over the range of cost that all contenders span (AIQ), and at
seven levels within it.

What it leaves out: playing (`memory_table`, `rlroute.policies.tier_baselines`), the nouns
(`memory_results`).

How to use: `measure_memory([MemoryPlays("rl", "policy", plays), ...], frame)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlroute.evaluation.frontier import (
    Float64Array,
    Hull,
    average_hull,
    compute_hull,
    compute_quality_at,
)
from rlroute.evaluation.intervals import Estimate, draw_resamples
from rlroute.evaluation.memory_results import (
    CostLevel,
    MemoryContender,
    MemoryEvaluation,
    MemoryKind,
    MemoryKindPoint,
    MemoryModule,
    MemoryPoint,
)
from rlroute.evaluation.memory_table import (
    TierPlayed,
    TierTable,
    average_shares,
    compute_information,
    list_static_points,
)
from rlroute.evaluation.step_measures import (
    average_resamples,
    estimate_mean,
    estimate_ratio,
    estimate_sample,
)
from rlroute.types import RLRouteError

FEWEST_HISTORIES = 5
LEVELS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # of the range of cost


@dataclass(frozen=True)
class MemoryPlays:
    """A contender: what it played at each cost weight (the same object where it has no knob).

    `more` are further points of its frontier, which belong to no weight.
    """

    name: str
    kind: MemoryKind
    plays: tuple[TierPlayed, ...]
    more: tuple[TierPlayed, ...] = ()


@dataclass(frozen=True)
class MemoryFrame:
    """The questions and the settings that all contenders of a comparison share."""

    data: str
    modules: tuple[MemoryModule, ...]
    kind_Q: tuple[str, ...]
    history_Q: tuple[str, ...]
    cost_weights: tuple[float, ...]
    reference_usd: float
    bootstrap: int = 1000
    seed: int = 0
    update: int = 0
    weight_SQ: Float64Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if list(self.cost_weights) != sorted(set(self.cost_weights)) or not self.cost_weights:
            raise RLRouteError(
                f"memory evaluation: cost weights must rise, each once, got {self.cost_weights}"
            )
        if not self.reference_usd > 0:
            raise RLRouteError(
                f"memory evaluation: the reference must be above 0 USD, got {self.reference_usd}"
            )
        # Row 0 is the sample itself.
        object.__setattr__(self, "weight_SQ", self.draw_weights())

    @property
    def by_histories(self) -> bool:
        """Whether there are enough histories to resample them."""
        return len(set(self.history_Q)) >= FEWEST_HISTORIES

    def draw_weights(self) -> Float64Array:
        """Return the weights of the questions [S, Q]: of the sample and of its resamples."""
        groups = self.history_Q if self.by_histories else tuple(range(len(self.kind_Q)))
        names = list(dict.fromkeys(groups))
        place_Q = np.array([names.index(name) for name in groups])
        weight_SG = np.ones((1 + self.bootstrap, len(names)))
        weight_SG[1:] = draw_resamples(len(names), self.bootstrap, self.seed)
        weight_SQ = weight_SG[:, place_Q]
        normalised_SQ: Float64Array = weight_SQ / weight_SQ.sum(axis=1, keepdims=True)
        return normalised_SQ


def measure_memory(
    contenders: Sequence[MemoryPlays], frame: MemoryFrame, table: TierTable | None = None
) -> MemoryEvaluation:
    """Return the comparison of contenders, of which the first is the subject.

    `table` is that of the test split, where there is one: its static assignments are listed.

    Raises:
        RLRouteError: a contender has not one play for each cost weight, names stand twice, or no
            contender has a value for any question.
    """
    check_contenders(contenders, frame)
    frontiers = [measure_frontier(one, contenders, frame) for one in contenders]
    low_S, high_S = find_range(contenders, frame)
    static, oracle = find_place(contenders, "best_static"), find_place(contenders, "oracle")
    levels: tuple[CostLevel, ...] = ()
    if static is not None:
        top = None if oracle is None else frontiers[oracle]
        low, high = float(low_S[0]), float(high_S[0])
        levels = measure_levels(frontiers[0], frontiers[static], top, low, high)
    areas = [measure_areas(hulls, low_S, high_S) for hulls in frontiers]
    return MemoryEvaluation(
        data=frame.data,
        modules=frame.modules,
        questions=len(frame.kind_Q),
        histories=len(set(frame.history_Q)),
        kinds=dict(sorted(Counter(frame.kind_Q).items())),
        cost_weights=frame.cost_weights,
        reference_usd=frame.reference_usd,
        cost_min_usd=float(low_S[0]),
        cost_max_usd=float(high_S[0]),
        contenders=measure_contenders(contenders, frame, frontiers, areas),
        levels=levels,
        static_points=() if table is None else list_static_points(table),
        resampled="histories" if frame.by_histories else "questions",
        bootstrap=frame.bootstrap,
        seed=frame.seed,
        update=frame.update,
    )


def measure_contenders(
    contenders: Sequence[MemoryPlays],
    frame: MemoryFrame,
    frontiers: Sequence[Sequence[Hull | None]],
    areas: Sequence[Float64Array],
) -> tuple[MemoryContender, ...]:
    """Return the numbers of all contenders; hulls and areas are those of each resample."""
    static, oracle = find_place(contenders, "best_static"), find_place(contenders, "oracle")
    best = None if oracle is None else contenders[oracle]
    static_hulls = None if static is None else frontiers[static]
    found = []
    for place, one in enumerate(contenders):
        subject = contenders[0] if place else None
        cost_H, quality_H = frontiers[place][0] or (np.array([]), np.array([]))
        found.append(
            MemoryContender(
                name=one.name,
                kind=one.kind,
                points=tuple(
                    measure_point(one, n, frame, best, subject, static_hulls)
                    for n in range(len(frame.cost_weights))
                ),
                hull_cost_usd=tuple(cost_H.tolist()),
                hull_quality=tuple(quality_H.tolist()),
                aiq=estimate_sample(areas[place]),
                aiq_lead=estimate_sample(areas[0] - areas[place]) if place else None,
            )
        )
    return tuple(found)


def check_contenders(contenders: Sequence[MemoryPlays], frame: MemoryFrame) -> None:
    """Refuse contenders that cannot be compared."""
    names = [one.name for one in contenders]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RLRouteError(f"memory evaluation: contender '{twice[0]}' stands twice")
    for one in contenders:
        if len(one.plays) != len(frame.cost_weights):
            raise RLRouteError(
                f"memory evaluation: '{one.name}' has {len(one.plays)} plays, needs one for each "
                f"of {len(frame.cost_weights)} cost weights"
            )
    if not any(play.known for one in contenders for play in one.plays):
        raise RLRouteError("memory evaluation: every question of every contender failed")


def find_place(contenders: Sequence[MemoryPlays], kind: MemoryKind) -> int | None:
    """Return the place of the first contender of a kind that has a value; None without one."""
    places = (
        n
        for n, one in enumerate(contenders)
        if one.kind == kind and any(play.known for play in (*one.plays, *one.more))
    )
    return next(places, None)


# --- Points ---------------------------------------------------------------------------------------


def measure_point(
    contender: MemoryPlays,
    place: int,
    frame: MemoryFrame,
    oracle: MemoryPlays | None,
    subject: MemoryPlays | None,
    static_hulls: Sequence[Hull | None] | None,
) -> MemoryPoint:
    """Return a contender's numbers at a cost weight; `subject` is None where it is the subject."""
    play, weight_SQ = contender.plays[place], frame.weight_SQ
    setting = frame.cost_weights[place], frame.reference_usd
    utility_Q = play.compute_utility(*setting)
    best_Q = None if oracle is None else oracle.plays[place].compute_utility(*setting)
    rival = None if subject is None else subject.plays[place]
    answer = estimate_mean(play.answer_cost_usd_Q, weight_SQ[:1])
    before = contender.plays[place - 1] if place else None
    return MemoryPoint(
        cost_weight=frame.cost_weights[place],
        questions=len(utility_Q),
        failed=float(play.failed_Q.sum()),
        quality=estimate_mean(play.score_Q, weight_SQ),
        cost_usd=estimate_mean(play.cost_usd_Q, weight_SQ),
        answer_cost_usd=None if answer is None else answer.value,
        utility=estimate_mean(utility_Q, weight_SQ),
        regret=None if best_Q is None else estimate_mean(best_Q - utility_Q, weight_SQ),
        oracle_share=None if best_Q is None else estimate_ratio(utility_Q, best_Q, weight_SQ),
        lead=None
        if rival is None
        else estimate_mean(rival.compute_utility(*setting) - utility_Q, weight_SQ),
        quality_lead=None
        if rival is None
        else estimate_mean(rival.score_Q - play.score_Q, weight_SQ),
        above_static=None if static_hulls is None else measure_above(play, static_hulls, weight_SQ),
        cost_change_usd=None
        if before is None
        else estimate_mean(play.cost_usd_Q - before.cost_usd_Q, weight_SQ),
        shares=average_shares(play.share_QMK, frame.modules),
        information=tuple(
            compute_information(play.share_QMK[:, m], frame.kind_Q)
            for m in range(len(frame.modules))
        ),
        by_kind=measure_kinds(play, frame),
    )


def measure_kinds(play: TierPlayed, frame: MemoryFrame) -> dict[str, MemoryKindPoint]:
    """Return a contender's means on the questions of each kind."""
    kind_Q, found = np.array(frame.kind_Q), {}
    for kind in sorted(set(frame.kind_Q)):
        of_Q = kind_Q == kind
        known_Q = of_Q & ~np.isnan(play.score_Q)
        found[kind] = MemoryKindPoint(
            questions=int(of_Q.sum()),
            quality=float(play.score_Q[known_Q].mean()) if known_Q.any() else None,
            cost_usd=float(play.cost_usd_Q[known_Q].mean()) if known_Q.any() else None,
            shares=average_shares(play.share_QMK[of_Q], frame.modules),
        )
    return found


# --- Frontiers ------------------------------------------------------------------------------------


def sample_places(
    plays: Sequence[TierPlayed], weight_SQ: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return mean cost in USD and quality of different plays in each resample [S, N].

    Plays without a value for any question are left out.
    """
    known = [one for one in {id(play): play for play in plays}.values() if one.known]
    cost_NS = [average_resamples(one.cost_usd_Q, weight_SQ) for one in known]
    quality_NS = [average_resamples(one.score_Q, weight_SQ) for one in known]
    empty = np.empty((len(weight_SQ), 0))
    return (np.array(cost_NS).T, np.array(quality_NS).T) if known else (empty, empty)


def measure_frontier(
    contender: MemoryPlays, contenders: Sequence[MemoryPlays], frame: MemoryFrame
) -> list[Hull | None]:
    """Return the hull of a contender and the cheapest static assignment in each resample."""
    floor = find_place(contenders, "static")
    plays = [*contender.plays, *contender.more]
    if not any(play.known for play in plays):
        return [None] * len(frame.weight_SQ)
    if floor is not None:
        plays.append(contenders[floor].plays[0])
    cost_SN, quality_SN = sample_places(plays, frame.weight_SQ)
    hulls: list[Hull | None] = []
    for cost_N, quality_N in zip(cost_SN, quality_SN, strict=True):
        known_N = ~np.isnan(cost_N)
        hulls.append(compute_hull(cost_N[known_N], quality_N[known_N]) if known_N.any() else None)
    return hulls


def find_range(
    contenders: Sequence[MemoryPlays], frame: MemoryFrame
) -> tuple[Float64Array, Float64Array]:
    """Return the least and the largest mean cost of any contender in each resample [S]."""
    plays = [play for one in contenders for play in one.plays]
    cost_SN, _ = sample_places(plays, frame.weight_SQ)
    return (
        np.where(np.isnan(cost_SN), np.inf, cost_SN).min(axis=1),
        np.where(np.isnan(cost_SN), -np.inf, cost_SN).max(axis=1),
    )


def measure_areas(
    hulls: Sequence[Hull | None], low_S: Float64Array, high_S: Float64Array
) -> Float64Array:
    """Return the mean height of the hull in each resample [S], NaN where there is none."""
    return np.array(
        [
            np.nan if hull is None or low > high else average_hull(hull, low, high)
            for hull, low, high in zip(hulls, low_S.tolist(), high_S.tolist(), strict=True)
        ]
    )


def measure_heights(hulls: Sequence[Hull | None], cost_S: Float64Array) -> Float64Array:
    """Return the height of each resample's hull at its cost [S], NaN left of its first point."""
    heights = [
        None if hull is None or np.isnan(cost) else compute_quality_at(hull, cost)
        for hull, cost in zip(hulls, cost_S.tolist(), strict=True)
    ]
    return np.array(heights, dtype=np.float64)  # None becomes NaN


def measure_above(
    play: TierPlayed, static_hulls: Sequence[Hull | None], weight_SQ: Float64Array
) -> Estimate | None:
    """Return quality minus the height of the static frontier at the same cost."""
    if not play.known:
        return None
    cost_S = average_resamples(play.cost_usd_Q, weight_SQ)
    quality_S = average_resamples(play.score_Q, weight_SQ)
    return estimate_sample(quality_S - measure_heights(static_hulls, cost_S))


def measure_levels(
    own: Sequence[Hull | None],
    static: Sequence[Hull | None],
    oracle: Sequence[Hull | None] | None,
    low: float,
    high: float,
) -> tuple[CostLevel, ...]:
    """Return the subject's frontier against the static one at levels of cost within a range.

    Levels at which one of the two has no height are left out.
    """
    found = []
    for part in dict.fromkeys(LEVELS if high > low else (1.0,)):
        cost_S = np.full(len(own), low + part * (high - low))
        own_S, static_S = measure_heights(own, cost_S), measure_heights(static, cost_S)
        gain = estimate_sample(own_S - static_S)
        if gain is None:
            continue
        top = np.nan if oracle is None else measure_heights(oracle[:1], cost_S[:1])[0] - static_S[0]
        found.append(
            CostLevel(
                cost_usd=float(cost_S[0]),
                quality=float(own_S[0]),
                static_quality=float(static_S[0]),
                gain=gain,
                headroom=None if np.isnan(top) else float(top),
            )
        )
    return tuple(found)
