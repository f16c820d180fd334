"""`rlroute robustness`: how often an exported router picks the same after a small rewording.

What it is: RouterArena's robustness, the share of queries whose candidate stays the same when the
query is put in other words, with an exact 95 % interval (Clopper and Pearson). A router that picks
one candidate for everything has 1, so two numbers stand beside it: the largest share that one
candidate gets, and how often two picks would agree that are drawn blindly with the same shares.

What it leaves out: quality (`rlroute evaluate`), and making rewordings; RouterArena's own 420 are
for evaluation only.

How to use: `measure_robustness(Router.load("my-router"), read_rewordings(path), cost_weight=0.1)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlroute.data.rewordings import Rewording, read_rewordings
from rlroute.evaluation.comparison import format_estimate, format_number, format_share
from rlroute.evaluation.intervals import CONFIDENCE, Estimate
from rlroute.evaluation.router_arena import compute_robustness

if TYPE_CHECKING:
    from rlroute.router import Router

CHANGES_SHOWN = 5
SHARES_SHOWN = 5


@dataclass(frozen=True)
class Robustness:
    """How stable a router's picks are over `queries` rewordings at one cost weight.

    `same` is the share of equal picks; `by_chance` the share on which two picks would agree that
    are drawn independently with the shares of the queries and of the rewordings. `shares` are those
    of the queries per candidate, and `changes` count (pick, pick after rewording), both with the
    largest first.
    """

    queries: int
    cost_weight: float
    same: Estimate
    by_chance: float
    shares: tuple[tuple[str, float], ...]
    changes: tuple[tuple[str, str, int], ...]


def run_robustness(
    folder: Path,
    reworded: Path,
    *,
    cost_weight: float,
    endpoint: str | None,
    model_folder: Path | None,
) -> Robustness:
    """Measure an exported router on a file of rewordings, print the result and return it.

    Raises:
        RLRouteError: the file or the router is at fault, or the cost weight is out of its range.
    """
    from rich.console import Console

    from rlroute.router import Router

    rewordings = read_rewordings(reworded)  # first, for its faults are quick to find
    router = Router.load(folder, model_folder=model_folder, endpoint=endpoint)
    found = measure_robustness(router, rewordings, cost_weight=cost_weight)
    console = Console()
    for sentence in describe_robustness(found):
        console.print(sentence, highlight=False)
    return found


def measure_robustness(
    router: Router, rewordings: Sequence[Rewording], *, cost_weight: float = 0.0
) -> Robustness:
    """Route every query and its rewording at a cost weight, and compare the picks.

    Raises:
        RLRouteError: no rewordings, or as `Router.route`.
    """
    texts = [one.query for one in rewordings], [one.reworded for one in rewordings]
    picks, reworded_picks = (
        [route.candidate_id for route in router.route_many(side, cost_weight=cost_weight)]
        for side in texts
    )
    same = compute_robustness(picks, reworded_picks)
    count, reworded_count = Counter(picks), Counter(reworded_picks)
    pairs = zip(picks, reworded_picks, strict=True)
    changes = Counter(pair for pair in pairs if pair[0] != pair[1])
    queries = len(picks)
    return Robustness(
        queries=queries,
        cost_weight=cost_weight,
        same=estimate_share(same, queries),
        by_chance=sum(count[one] * reworded_count[one] for one in count) / queries**2,
        shares=tuple((name, number / queries) for name, number in count.most_common()),
        changes=tuple((*pair, number) for pair, number in changes.most_common()),
    )


def estimate_share(share: float, queries: int) -> Estimate:
    """Return a share of Q queries with its exact 95 % interval, which is no point at 0 or 1."""
    from scipy.stats import binomtest

    found = binomtest(round(share * queries), queries).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(share, float(found.low), float(found.high))


def describe_robustness(found: Robustness) -> list[str]:
    """Return what there is to say, most important first."""
    same = round(found.same.value * found.queries)
    shares = [f"{name} {format_share(share)}" for name, share in found.shares[:SHARES_SHOWN]]
    sentences = [
        f"The pick stays the same on {same:,} of {found.queries:,} reworded queries: robustness "
        f"{format_estimate(found.same)} (95%) at cost weight {found.cost_weight:g}.",
        f"A router that always picks one candidate has {format_number(1)}, one that draws blindly "
        f"with the same shares {format_number(found.by_chance)}: read it beside quality and cost.",
        f"Picks of the queries: {', '.join(shares)}.",
    ]
    if found.changes:
        changes = [
            f"{one} to {other} {number:,}" for one, other, number in found.changes[:CHANGES_SHOWN]
        ]
        sentences.append(f"Most frequent changes: {', '.join(changes)}.")
    return sentences
