"""What tells two routers apart, as frozen dataclasses that become JSON.

What it is: the nouns of `rlroute compare`. A lead is always the first router's number minus the
second's; costs are mean USD per query, qualities mean scores in [0, 1], and every `Estimate`
carries a paired bootstrap interval (95 %).

What it leaves out: how the numbers come about (`run_difference`) and how they look
(`run_difference_report`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.tests_of_difference import Equivalence, McNemar

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """A number of the first and of the second router, and the first's lead, paired."""

    first: Estimate
    second: Estimate
    lead: Estimate


@dataclass(frozen=True)
class WeightDifference:
    """The two routers at one cost weight; utility is quality - weight * normalised cost."""

    cost_weight: float
    quality: Pair
    cost_usd: Pair
    utility: Pair


@dataclass(frozen=True)
class TaskDifference:
    """The two routers on one task at the setting."""

    task: str
    queries: int
    differing: int
    quality: Pair


@dataclass(frozen=True)
class Move:
    """How many queries the first gives to one candidate and the second to another."""

    first_pick: str
    second_pick: str
    queries: int
    score_lead: float
    cost_lead_usd: float


@dataclass(frozen=True)
class QueryDifference:
    """A query on which the picks differ."""

    query_id: str
    task: str
    first_pick: str
    second_pick: str
    first_score: float
    second_score: float
    first_cost_usd: float
    second_cost_usd: float


@dataclass(frozen=True)
class SettingDifference:
    """The two routers query by query.

    `utility` and its weight are None under a budget, where each has its own. `mcnemar` is None
    where a picked score is graded. `queries_needed` is how many queries like these make this
    difference in quality two standard errors large, None where there is no difference or a picked
    score is graded. `queries` stand with the largest difference in score first.
    """

    budget_usd: float | None
    first_weight: float
    second_weight: float
    quality: Pair
    cost_usd: Pair
    utility: Pair | None
    mcnemar: McNemar | None
    queries_needed: int | None
    permutation_p: float
    equivalence: Equivalence
    tasks: tuple[TaskDifference, ...]
    moves: tuple[Move, ...]
    queries: tuple[QueryDifference, ...]


@dataclass(frozen=True)
class Frontier:
    """The settings of a router, and the cheapest single candidate as the last point."""

    cost_usd: tuple[float, ...]
    quality: tuple[float, ...]


@dataclass(frozen=True)
class RunDifference:
    """All that tells two routers apart on one split of one table.

    `notes` are sentences on how they were asked, and in what terms they are compared.
    """

    table: str
    test_queries: int
    first: str
    second: str
    cost_min_usd: float
    cost_max_usd: float
    aiq: Pair
    first_frontier: Frontier
    second_frontier: Frontier
    weights: tuple[WeightDifference, ...]
    setting: SettingDifference
    bootstrap: int
    seed: int
    notes: tuple[str, ...] = ()
    format_version: int = field(default=FORMAT_VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; what is not finite becomes None."""
        plain: dict[str, Any] = make_plain(asdict(self))
        plain["setting"]["equivalence"]["equivalent"] = self.setting.equivalence.equivalent
        return plain
