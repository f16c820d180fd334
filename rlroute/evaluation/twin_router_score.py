"""The scores of TwinRouterBench's static track, from a tier for each row of its bank.

What it is: with `pred` and `gold` from 0 to 3, N rows, and a row without a prediction (an error)
counted as a miss,

    RowPass    100 * share of rows with pred >= gold
    RowExact   100 * share of rows with pred == gold
    TrajPass   100 * share of rows in trajectories that pass: no error, pred >= gold throughout
    CostSave   sum over workloads b of (rows of b / N) * 100 * N_b / D_b, where D_b is the cost of
               always `high` (without error rows), and N_b adds the savings of the trajectories that
               pass and subtracts the cost of those that fail
    Combined   the mean of the four

Two older scores of the release stand beside them. *Accounting v1* has D = cost of always `high`
less that of the labels, over all workloads, counts passed and exact trajectories, and takes the
mean of the three. *Section 11* is the saved share of what could be saved among the rows that pass
and whose label is not `high`, by output prices alone.

A workload all of whose rows are errors has no D and is left out; what cannot be computed at all is
None. Costs are those of `rlroute.data.twin_router_cost`.

What it leaves out: the dynamic track, which runs live agents and is never averaged with this one.

How to use: `score_file(Path("bank.jsonl"), Path("predictions.jsonl"), ApproximateTokens())`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlroute.data.text_files import read_utf8
from rlroute.data.twin_router_bank import (
    TIERS,
    WORKLOADS,
    LoggedTrajectory,
    parse_line,
    read_bank,
    read_text,
)
from rlroute.data.twin_router_cost import (
    HIGH,
    PRICES,
    ApproximateTokens,
    PricedTrajectory,
    TokenizerFiles,
    WordTokens,
    compute_path_costs,
    price_bank,
)
from rlroute.types import TOKENS_PER_PRICE, RLRouteError


@dataclass(frozen=True)
class WorkloadScore:
    """The scores of one workload, in percent; `cost_save` is None if all its rows are errors."""

    rows: int
    row_pass: float
    row_exact: float
    traj_pass: float
    cost_save: float | None


@dataclass(frozen=True)
class AccountingScore:
    """Accounting v1, in percent, over all workloads; None where the labels save nothing."""

    traj_pass: float
    traj_exact: float
    saving: float | None
    overall: float | None


@dataclass(frozen=True)
class TwinRouterScore:
    """All scores, in percent; see the module's text.

    `errors` counts the rows without a prediction, `passed_trajectories` those of `trajectories`
    that pass. `workloads` holds those that the bank has, in the order of WORKLOADS.
    """

    rows: int
    errors: int
    trajectories: int
    passed_trajectories: int
    row_pass: float
    row_exact: float
    traj_pass: float
    cost_save: float | None
    combined: float | None
    workloads: Mapping[str, WorkloadScore]
    accounting: AccountingScore
    section_11: float | None


@dataclass(frozen=True)
class JudgedTrajectory:
    """A trajectory with predictions: pairs of label and prediction, and costs in USD.

    Costs are sums over the rows that are no errors.
    """

    workload: str
    pairs: tuple[tuple[int, int | None], ...]
    high_usd: float
    gold_usd: float
    spent_usd: float

    @property
    def passed(self) -> bool:
        """Whether no row is an error and none is below its label."""
        return count_passed(self.pairs) == len(self.pairs)

    @property
    def exact(self) -> bool:
        """Whether all predictions are the labels."""
        return count_exact(self.pairs) == len(self.pairs)

    @property
    def saved_usd(self) -> float:
        """The saving if it passes, else the cost with a minus."""
        return self.high_usd - self.spent_usd if self.passed else -self.spent_usd


def count_passed(pairs: Sequence[tuple[int, int | None]]) -> int:
    """Return how many predictions reach their label."""
    return sum(pred is not None and pred >= gold for gold, pred in pairs)


def count_exact(pairs: Sequence[tuple[int, int | None]]) -> int:
    """Return how many predictions are their label."""
    return sum(pred == gold for gold, pred in pairs)


def score_predictions(
    bank: Sequence[PricedTrajectory], predictions: Mapping[str, int | None]
) -> TwinRouterScore:
    """Score a tier (0 to 3) for each row id; None, or no entry at all, is an error.

    Raises:
        RLRouteError: the bank is empty, a row id is not in the bank, or a prediction is no tier.
    """
    check_predictions([one.logged for one in bank], predictions)
    judged = [judge_trajectory(one, predictions) for one in bank]
    pairs = [pair for one in judged for pair in one.pairs]
    workloads = {
        name: score_workload(members)
        for name in WORKLOADS
        if (members := [one for one in judged if one.workload == name])
    }
    row_pass = 100 * count_passed(pairs) / len(pairs)
    row_exact = 100 * count_exact(pairs) / len(pairs)
    traj_pass = 100 * sum(len(one.pairs) for one in judged if one.passed) / len(pairs)
    cost_save = average_cost_saves(tuple(workloads.values()))
    return TwinRouterScore(
        rows=len(pairs),
        errors=sum(pred is None for _, pred in pairs),
        trajectories=len(judged),
        passed_trajectories=sum(one.passed for one in judged),
        row_pass=row_pass,
        row_exact=row_exact,
        traj_pass=traj_pass,
        cost_save=cost_save,
        combined=average_scores(row_pass, row_exact, traj_pass, cost_save),
        workloads=workloads,
        accounting=score_accounting(judged),
        section_11=score_section_11(pairs),
    )


def check_predictions(
    bank: Sequence[LoggedTrajectory], predictions: Mapping[str, int | None]
) -> None:
    """Raise RLRouteError unless every prediction is a tier of a row of the bank."""
    ids = {row.id for one in bank for row in one.rows}
    if not ids:
        raise RLRouteError("the bank holds no row")
    for row_id, pred in predictions.items():
        if row_id not in ids:
            raise RLRouteError(f"prediction for '{row_id}': the bank has no row of this id")
        if pred is not None and pred not in range(len(TIERS)):
            raise RLRouteError(f"prediction for '{row_id}': tier {pred} must be from 0 to {HIGH}")


def judge_trajectory(
    priced: PricedTrajectory, predictions: Mapping[str, int | None]
) -> JudgedTrajectory:
    """Compare predictions with the labels and add up the costs of the three paths."""
    gold = priced.gold_T.tolist()
    preds = [predictions.get(row.id) for row in priced.logged.rows]
    billed = [pred is not None for pred in preds]
    return JudgedTrajectory(
        workload=priced.logged.workload,
        pairs=tuple(zip(gold, preds, strict=True)),
        high_usd=sum(compute_path_costs(priced, [HIGH] * len(gold), billed)),
        gold_usd=sum(compute_path_costs(priced, gold, billed)),
        spent_usd=sum(compute_path_costs(priced, preds, billed)),
    )


def score_workload(judged: Sequence[JudgedTrajectory]) -> WorkloadScore:
    """Return the scores of the trajectories of one workload."""
    pairs = [pair for one in judged for pair in one.pairs]
    high_usd = sum(one.high_usd for one in judged)
    saved_usd = sum(one.saved_usd for one in judged)
    return WorkloadScore(
        rows=len(pairs),
        row_pass=100 * count_passed(pairs) / len(pairs),
        row_exact=100 * count_exact(pairs) / len(pairs),
        traj_pass=100 * sum(len(one.pairs) for one in judged if one.passed) / len(pairs),
        cost_save=100 * saved_usd / high_usd if high_usd > 0 else None,
    )


def average_cost_saves(scores: Sequence[WorkloadScore]) -> float | None:
    """Return CostSave over all workloads, weighted by their rows; None where none has it.

    The rows of a workload without it still count in the denominator, as in the published scorer.
    """
    rows = sum(one.rows for one in scores)
    shares = [one.rows / rows * one.cost_save for one in scores if one.cost_save is not None]
    return sum(shares) if shares else None


def average_scores(
    row_pass: float, row_exact: float, traj_pass: float, cost_save: float | None
) -> float | None:
    """Return the combined score; None where CostSave is None."""
    return None if cost_save is None else (row_pass + row_exact + traj_pass + cost_save) / 4


def score_accounting(judged: Sequence[JudgedTrajectory]) -> AccountingScore:
    """Return accounting v1."""
    traj_pass = 100 * sum(one.passed for one in judged) / len(judged)
    traj_exact = 100 * sum(one.exact for one in judged) / len(judged)
    possible_usd = sum(one.high_usd - one.gold_usd for one in judged)
    if possible_usd <= 0:
        return AccountingScore(traj_pass, traj_exact, None, None)
    saving = 100 * sum(one.saved_usd for one in judged) / possible_usd
    return AccountingScore(traj_pass, traj_exact, saving, (traj_pass + traj_exact + saving) / 3)


def score_section_11(pairs: Sequence[tuple[int, int | None]]) -> float | None:
    """Return the section 11 ratio, None where no row passes whose label is not `high`.

    Each row has a million output tokens, so that its cost is the output price.
    """
    saving = [
        PRICES[HIGH].compute_cost(0, TOKENS_PER_PRICE) - prices.compute_cost(0, TOKENS_PER_PRICE)
        for prices in PRICES
    ]
    passed = [
        (gold, pred) for gold, pred in pairs if pred is not None and pred >= gold and gold < HIGH
    ]
    if not passed:
        return None
    return 100 * sum(saving[pred] for _, pred in passed) / sum(saving[gold] for gold, _ in passed)


def read_predictions(path: Path) -> dict[str, int | None]:
    """Read predictions: a JSON object a line, with `id` and either `tier` or `error`.

    `tier` is a name or a number from 0 to 3; `error` is a text that says why there is none (None in
    the result).

    Raises:
        RLRouteError: the file cannot be read, a line holds something else, or an id stands twice.
    """
    predictions: dict[str, int | None] = {}
    for number, line in enumerate(read_utf8(path).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_line(where, line)
        row_id = read_text(where, record, "id")
        if row_id in predictions:
            raise RLRouteError(f"{where}: id '{row_id}' stands in an earlier line too")
        if set(record) not in ({"id", "tier"}, {"id", "error"}):
            raise RLRouteError(
                f"{where}: must have 'id' and either 'tier' or 'error', nothing else"
            )
        if "error" in record:
            read_text(where, record, "error")
            predictions[row_id] = None
            continue
        tier = record["tier"]
        if tier in TIERS:
            predictions[row_id] = TIERS.index(tier)
        elif type(tier) is int and 0 <= tier <= HIGH:
            predictions[row_id] = tier
        else:
            raise RLRouteError(f"{where}: 'tier' must be one of {', '.join(TIERS)}, or 0 to {HIGH}")
    return predictions


def score_file(
    bank: Path, predictions: Path, tokens: ApproximateTokens | WordTokens | TokenizerFiles
) -> TwinRouterScore:
    """Score a file of predictions (see `read_predictions`) against a bank.

    Raises:
        RLRouteError: a file is at fault, or a prediction belongs to no row of the bank.
    """
    return score_predictions(price_bank(read_bank(bank), tokens), read_predictions(predictions))
