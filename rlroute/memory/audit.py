"""Which tiers of a pipeline really differ, in what they make and in what they cost.

Every tier of a module works on the same inputs: those that arise for some questions when the
modules before it run in one tier after the other, question by question. Two neighbouring tiers are
compared where both did not fail. Notes are compared without regard to their order, chunks and
summaries with it. `check` refuses a pipeline in which

- a tier makes the same as its cheaper neighbour on all inputs: a router cannot tell them apart;
- a tier costs less than its cheaper neighbour: tiers are to be listed from the cheapest;
- every run of a tier failed; the failure is named, and the address of the model's server.

Tiers that cost the same and differ in what they make are allowed, and reported. In the original's
strategy of rules, small model and language model the notes of Low and Mid are merged and kept
before training, and both return the same from then on; that strategy is refused here.

What it leaves out: whether dearer tiers answer better, which is for the policy to find out. Source:
BudgetMem (arXiv 2602.06025 and its authors' code).

How to use: `audit = audit_tiers(pipeline, questions)`, `audit.check()`, `render_audit(audit)`.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlroute.memory.base import MemoryQuestion, ModuleInput, ModuleRun, Tier
from rlroute.memory.llm_tiers import LlmTier
from rlroute.memory.pipeline import Pipeline, read_chunks, read_notes
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from rich.table import Table

EQUAL_COST = 1e-9  # relative difference of costs that are the same
QUESTIONS_PER_PRICE = 1_000
UNKNOWN = "-"


@dataclass(frozen=True)
class TierRow:
    """What was found of one tier of one module.

    `mean_cost_usd` is over the runs that did not fail, None where all did. What compares the tier
    with its cheaper neighbour is None for the first tier and where there was nothing to compare:
    `differs`, the share of inputs with another output, and `cost_below_usd` and `cost_above_usd`,
    the mean costs of the neighbour and of the tier itself, all on the inputs where both did well.
    `failed_by` says why runs failed, and where the model is that was asked; empty where none did.
    """

    module: str
    tier: str
    inputs: int
    failures: int
    malformed: int
    mean_cost_usd: float | None
    differs: float | None = None
    cost_below_usd: float | None = None
    cost_above_usd: float | None = None
    failed_by: str = ""


@dataclass(frozen=True)
class TierAudit:
    """The rows of all modules, in the pipeline's order, tiers from the cheapest."""

    rows: tuple[TierRow, ...]

    def list_faults(self) -> list[str]:
        """Return what is wrong with the tiers, a sentence each."""
        faults = []
        for below, row in zip((None, *self.rows), self.rows, strict=False):
            where = f"module '{row.module}', tier '{row.tier}'"
            if row.mean_cost_usd is None:
                faults.append(f"{where}: all {row.inputs} runs failed{_quote_reason(row)}")
            if row.differs is None or below is None:
                continue
            if row.differs == 0:
                faults.append(
                    f"{where}: makes the same as tier '{below.tier}' on every input, so a router "
                    "cannot tell them apart; take one of them away"
                )
            if _order_costs(row) < 0:
                faults.append(
                    f"{where}: costs {row.cost_above_usd:.3g} USD, tier '{below.tier}' before it "
                    f"{row.cost_below_usd:.3g}; list tiers from the cheapest"
                )
        return faults

    def list_equal_costs(self) -> list[str]:
        """Return which neighbouring tiers cost the same, a sentence each."""
        return [
            f"module '{row.module}': tiers '{below.tier}' and '{row.tier}' both cost "
            f"{row.cost_above_usd:.3g} USD; only what they make tells them apart"
            for below, row in zip(self.rows, self.rows[1:], strict=False)
            if row.differs is not None and _order_costs(row) == 0
        ]

    def check(self) -> None:
        """Refuse tiers that are the same, out of order or of no use.

        Raises:
            RLRouteError: the first fault.
        """
        faults = self.list_faults()
        if faults:
            raise RLRouteError(faults[0])

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the rows as plain data, ready for JSON."""
        return [asdict(row) for row in self.rows]


def audit_tiers(pipeline: Pipeline, questions: Sequence[MemoryQuestion]) -> TierAudit:
    """Run every tier of every module on the inputs that arise for the questions.

    Raises:
        RLRouteError: there are no questions, or a failure left a module without any input.
    """
    if not questions:
        raise RLRouteError("an audit of tiers needs at least one question")
    return asyncio.run(_audit(pipeline, questions))


AUDIT_COLUMNS = (
    *("module", "tier", f"USD per {QUESTIONS_PER_PRICE:,}", "differs", "failed", "malformed"),
    "inputs",
)


def list_audit_cells(audit: TierAudit) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the audit as text: the names of the columns, and a row for each tier."""
    rows: list[tuple[str, ...]] = []
    for row in audit.rows:
        cost = row.mean_cost_usd
        rows.append(
            (
                row.module,
                row.tier,
                UNKNOWN if cost is None else f"{cost * QUESTIONS_PER_PRICE:.4f}",
                UNKNOWN if row.differs is None else f"{row.differs:.0%}",
                str(row.failures),
                str(row.malformed),
                str(row.inputs),
            )
        )
    return AUDIT_COLUMNS, rows


def render_audit(audit: TierAudit) -> Table:
    """Return the audit as a table for the terminal."""
    from rich.table import Table

    table = Table(title="Tiers: what they cost and whether they differ")
    columns, rows = list_audit_cells(audit)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < 2 else "right")
    for cells in rows:
        table.add_row(*cells)
    return table


async def _audit(pipeline: Pipeline, questions: Sequence[MemoryQuestion]) -> TierAudit:
    """Go through the modules; what is made in one tier, in turn, is what later modules read."""
    rows: list[TierRow] = []
    works = [ModuleInput(question, pipeline.retrieve(question)) for question in questions]
    places = list(range(len(works)))  # the questions that nothing failed for so far
    notes: list[dict[str, tuple[str, ...]]] = [{} for _ in questions]
    for step, module in enumerate(pipeline.modules):
        if not places:
            raise RLRouteError(_explain_no_input(module.name, rows))
        inputs = [works[place] for place in places]
        if module.role == "summary":
            inputs = [
                ModuleInput(work.question, work.chunks, notes[place])
                for work, place in zip(inputs, places, strict=True)
            ]
        runs_KN = await _run_all_tiers(pipeline, step, inputs)
        rows += _compare_tiers(pipeline, step, runs_KN)
        taken = {
            place: runs_KN[place % len(runs_KN)][number] for number, place in enumerate(places)
        }
        places = [place for place in places if taken[place].failure is None]
        for place in places:
            if module.role == "filter":
                works[place] = ModuleInput(questions[place], read_chunks(taken[place]))
            elif module.role == "extract":
                notes[place][module.name] = read_notes(taken[place])
    return TierAudit(tuple(rows))


async def _run_all_tiers(
    pipeline: Pipeline, step: int, inputs: Sequence[ModuleInput]
) -> list[list[ModuleRun]]:
    """Return the runs of all K tiers of a module on N inputs."""
    tiers = len(pipeline.modules[step].tiers)
    tier_B = [tier for tier in range(tiers) for _ in inputs]
    runs = await pipeline.run_module_many(step, tier_B, list(inputs) * tiers)
    return [runs[tier * len(inputs) : (tier + 1) * len(inputs)] for tier in range(tiers)]


def _compare_tiers(
    pipeline: Pipeline, step: int, runs_KN: Sequence[Sequence[ModuleRun]]
) -> list[TierRow]:
    """Return the rows of one module."""
    facts = pipeline.facts.modules[step]
    rows = []
    for place, (tier, runs) in enumerate(zip(facts.tiers, runs_KN, strict=True)):
        good = [run.cost_usd for run in runs if run.failure is None]
        found: dict[str, float] = {}
        if place > 0:
            pairs = zip(runs_KN[place - 1], runs, strict=True)
            found = _compare([pair for pair in pairs if not any(run.failure for run in pair)])
        rows.append(
            TierRow(
                facts.name,
                tier,
                len(runs),
                len(runs) - len(good),
                sum(run.malformed for run in runs),
                math.fsum(good) / len(good) if good else None,
                **found,
                failed_by=_list_reasons(pipeline.modules[step].tiers[place], runs),
            )
        )
    return rows


def _list_reasons(tier: Tier, runs: Sequence[ModuleRun]) -> str:
    """Return why runs failed, the commonest first, and the address of the tier's model."""
    kinds = Counter(run.failure.value for run in runs if run.failure is not None)
    if not kinds:
        return ""
    address = tier.address if isinstance(tier, LlmTier) else ""
    return ", ".join(kind for kind, _ in kinds.most_common()) + (
        f" at {address}" if address else ""
    )


def _quote_reason(row: TierRow) -> str:
    """Return a row's reason of failure in brackets, nothing where it has none."""
    return f" ({row.failed_by})" if row.failed_by else ""


def _explain_no_input(module: str, rows: Sequence[TierRow]) -> str:
    """Return a sentence: what failed first, so that nothing was left for a module to read."""
    first = next(row for row in rows if row.failures)
    return (
        f"module '{first.module}', tier '{first.tier}': {first.failures} of {first.inputs} runs "
        f"failed{_quote_reason(first)}; module '{module}' has nothing left to read"
    )


def _compare(pairs: Sequence[tuple[ModuleRun, ModuleRun]]) -> dict[str, float]:
    """Return what tells a tier from its neighbour on the inputs where both did well."""
    if not pairs:
        return {}
    return {
        "differs": sum(_strip_order(a) != _strip_order(b) for a, b in pairs) / len(pairs),
        "cost_below_usd": math.fsum(below.cost_usd for below, _ in pairs) / len(pairs),
        "cost_above_usd": math.fsum(above.cost_usd for _, above in pairs) / len(pairs),
    }


def _strip_order(run: ModuleRun) -> object:
    """Return what is compared of a run's output: notes in the order of the alphabet."""
    notes = read_notes(run) if isinstance(run.output, tuple) else ()
    return sorted(notes) if notes else run.output


def _order_costs(row: TierRow) -> int:
    """Return -1, 0 or 1: the tier costs less than its neighbour, the same, or more."""
    assert row.cost_below_usd is not None  # there was something to compare
    assert row.cost_above_usd is not None
    if math.isclose(row.cost_above_usd, row.cost_below_usd, rel_tol=EQUAL_COST):
        return 0
    return 1 if row.cost_above_usd > row.cost_below_usd else -1
