"""What an evaluation of a policy of sessions under budgets found, in numbers, words and a table.

What it is: every policy plays each test session under every budget; a session's value is the mean
over its budgets, and intervals (95 %) are a paired bootstrap over sessions, since all policies meet
the same resamples. The cheapest executor asked for everything is the control: a cost weight that is
high enough turns any policy into it, and a sentence says so where it has.

What it leaves out: playing (`session_replay`) and the picture (`session_figures`).

How to use: `point = measure_session_point(...)`, `render_session_comparison(result)`,
`describe_session_result(result)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlroute.evaluation.comparison import (
    format_estimate,
    format_interval,
    format_number,
    judge,
)
from rlroute.evaluation.frontier import Float64Array
from rlroute.evaluation.intervals import Estimate, make_estimate
from rlroute.evaluation.results import make_plain
from rlroute.evaluation.session_replay import PlayedSessions

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
NEARLY_ALWAYS = 0.95  # share of turns from which a policy is one executor in disguise
SessionPolicyKind = Literal["policy", "cloning", "heuristic", "single", "optimal"]
VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "not clearly different from",
}
STYLES = {"policy": "bold", "optimal": "dim"}


@dataclass(frozen=True)
class SessionPoint:
    """A policy at one cost weight (None: it has none); means over sessions and budgets.

    `mean_return` is discounted and holds the penalty, `cost` is per session in the log's unit,
    `bankruptcy` the share of sessions that ran out, `share_K` who took the turns. Tuples with `_M`
    hold the means by budget. `over_cheapest` is the return above that of always asking the cheapest
    executor, `regret` the optimum's return (cost weight 0) above this one, None where unknown.
    """

    cost_weight: float | None
    mean_return: Estimate
    cost: Estimate
    bankruptcy: Estimate
    share_K: tuple[float, ...]
    return_M: tuple[float, ...]
    cost_M: tuple[float, ...]
    bankruptcy_M: tuple[float, ...]
    over_cheapest: Estimate
    regret: Estimate | None


@dataclass(frozen=True)
class SessionPolicyResult:
    """A policy with a point per cost weight, or one where it is not swept."""

    name: str
    kind: SessionPolicyKind
    points: tuple[SessionPoint, ...]


@dataclass(frozen=True)
class SessionEvaluation:
    """A comparison on the test sessions; `policies[0]` is the subject.

    `played` says whether outcomes are a made world's own, rather than logged and estimated ones.
    `leads[name]` has for each cost weight the subject's return above that of another policy (at the
    same cost weight, where that is swept). `expected_optimum_M` is the exact expectation of the
    best policy by budget, empty where unknown. `update` is the number of updates behind the
    subject.
    """

    log: str
    cost_unit: str
    played: bool
    sessions: int
    executor_ids: tuple[str, ...]
    budgets: tuple[float, ...]
    cost_weights: tuple[float, ...]
    penalty: float
    discount: float
    policies: tuple[SessionPolicyResult, ...]
    leads: Mapping[str, tuple[Estimate, ...]]
    expected_optimum_M: tuple[float, ...]
    update: int
    bootstrap: int
    seed: int
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def subject(self) -> SessionPolicyResult:
        """The policy that the evaluation is about."""
        return self.policies[0]

    def find(self, name: str) -> SessionPolicyResult:
        """Return the result of a policy by its name."""
        return next(one for one in self.policies if one.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold."""
        plain: dict[str, Any] = make_plain(asdict(self))
        return plain


def measure_session_point(
    played: PlayedSessions,
    cheapest: PlayedSessions,
    optimum: PlayedSessions | None,
    weight_RS: Float64Array,
    cost_weight: float | None = None,
) -> SessionPoint:
    """Return the means of a policy; `weight_RS` holds the resamples of the sessions."""
    calls_K = played.calls_SMK.sum(axis=(0, 1))
    return SessionPoint(
        cost_weight=cost_weight,
        mean_return=estimate_mean(played.return_SM, weight_RS),
        cost=estimate_mean(played.cost_SM, weight_RS),
        bankruptcy=estimate_mean(played.bankrupt_SM.astype(float), weight_RS),
        share_K=tuple((calls_K / calls_K.sum()).tolist()),
        return_M=tuple(played.return_SM.mean(axis=0).tolist()),
        cost_M=tuple(played.cost_SM.mean(axis=0).tolist()),
        bankruptcy_M=tuple(played.bankrupt_SM.mean(axis=0).tolist()),
        over_cheapest=estimate_lead(played, cheapest, weight_RS),
        regret=None if optimum is None else estimate_lead(optimum, played, weight_RS),
    )


def estimate_mean(value_SM: Float64Array, weight_RS: Float64Array) -> Estimate:
    """Return the mean over sessions and budgets with its interval over sessions."""
    value_S = value_SM.mean(axis=1)
    return make_estimate(float(value_S.mean()), weight_RS @ value_S)


def estimate_lead(
    first: PlayedSessions, second: PlayedSessions, weight_RS: Float64Array
) -> Estimate:
    """Return the mean return of the first above the second, with its paired interval."""
    return estimate_mean(first.return_SM - second.return_SM, weight_RS)


# --- Words ----------------------------------------------------------------------------------------


def describe_session_result(result: SessionEvaluation) -> list[str]:
    """Return sentences for a reader who was not there, the most important first.

    Two cost weights are described: the least, and the greatest at which the subject still clearly
    beats the control.
    """
    ahead = [
        place
        for place, point in enumerate(result.subject.points)
        if judge(point.over_cheapest) == "better"
    ]
    places = dict.fromkeys([0, *ahead[-1:]])
    sentences = [describe_subject(result, place) for place in places]
    sentences += [
        describe_disguise(result, policy, point)
        for policy in result.policies
        if policy.kind in ("policy", "cloning")
        for point in policy.points
        if point.share_K[0] >= NEARLY_ALWAYS
    ]
    dearest = result.find(name_single(result.executor_ids[-1])).points[0]
    if dearest.bankruptcy.value == 0:
        sentences.append("No budget binds: even the dearest executor never goes bankrupt.")
    return [*sentences, describe_method(result)]


def describe_subject(result: SessionEvaluation, place: int) -> str:
    """Compare the subject at one cost weight with everything that is not the optimum."""
    point, name = result.subject.points[place], result.subject.name
    cheapest = name_single(result.executor_ids[0])
    leads = {cheapest: point.over_cheapest}
    leads |= {other: estimates[place] for other, estimates in result.leads.items()}
    compared = "; ".join(
        f"{VERDICTS[judge(lead)]} {other} by {format_estimate(lead, sign=True)}"
        for other, lead in leads.items()
    )
    text = (
        f"At cost weight {result.cost_weights[place]:g}, {name} has a return of "
        f"{format_number(point.mean_return.value)} for a cost of {format_cost(point.cost.value)} "
        f"and goes bankrupt in {format_percent(point.bankruptcy.value)} of sessions: {compared}."
    )
    if place == 0 and point.regret is not None:
        text += f" Its regret against the optimum is {format_estimate(point.regret)}."
    return text


def describe_disguise(
    result: SessionEvaluation, policy: SessionPolicyResult, point: SessionPoint
) -> str:
    """Say that a policy hardly differs from the control."""
    cheapest = result.executor_ids[0]
    control = result.find(name_single(cheapest)).points[0]
    return (
        f"At cost weight {point.cost_weight:g}, {policy.name} asks {cheapest} on "
        f"{format_percent(point.share_K[0])} of the turns: it is nearly {name_single(cheapest)} "
        f"(return {format_number(point.mean_return.value)} against "
        f"{format_number(control.mean_return.value)})."
    )


def describe_method(result: SessionEvaluation) -> str:
    """Say what the numbers rest on."""
    count = f"{result.sessions:,} test sessions under {len(result.budgets)} budgets each"
    if result.played:
        return f"{count}, played in the made world: all outcomes are its own."
    return (
        f"{count}, replayed on the log: outcomes of executors that the log did not ask are "
        "estimates, and the user's turns are taken not to depend on who answered."
    )


def name_single(executor_id: str) -> str:
    """Return the name of the policy that asks one executor for everything."""
    return f"always {executor_id}"


def format_cost(cost: float) -> str:
    """Return an amount in the log's unit with four significant digits, no exponent."""
    digits = len(f"{abs(cost):.4g}".partition(".")[2])
    return format_number(cost, digits if abs(cost) >= 1e-4 else 6)


def format_percent(share: float) -> str:
    """Return a share in per cent with one digit."""
    return f"{format_number(100 * share, 1)}%"


def render_session_comparison(result: SessionEvaluation) -> Table:
    """Return the comparison as a rich table of 80 columns, one row per policy and cost weight."""
    from rich import box
    from rich.table import Table

    control = name_single(result.executor_ids[0])
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{result.log}, test: {result.sessions:,} sessions x {len(result.budgets)} budgets",
        caption=f"weight: cost weight; cost: {result.cost_unit} per session; bankrupt: share of "
        f"sessions; dearest: share of turns that {result.executor_ids[-1]} takes; lead: return "
        f"above {control}; 95% intervals",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    headers = ["return", "95%", "cost", "bankrupt", "dearest", "lead"]
    for header in [*headers, *(["regret"] if result.expected_optimum_M else [])]:
        table.add_column(header, justify="right", no_wrap=True)
    for policy in result.policies:
        swept = policy.points[0].cost_weight is not None
        if swept:
            table.add_row(policy.name, style=STYLES.get(policy.kind))
        for point in policy.points:
            label = f"  weight {point.cost_weight:g}" if swept else policy.name
            table.add_row(label, *list_cells(point), style=STYLES.get(policy.kind))
    return table


def list_cells(point: SessionPoint) -> list[str]:
    """Return a row of the table without its label."""
    cells = [
        format_number(point.mean_return.value),
        format_interval(point.mean_return, 2),
        format_cost(point.cost.value),
        format_percent(point.bankruptcy.value),
        format_percent(point.share_K[-1]),
        format_number(point.over_cheapest.value, sign=True),
    ]
    return cells if point.regret is None else [*cells, format_number(point.regret.value)]
