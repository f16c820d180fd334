"""`rlroute collect --queries`: asks the candidates of a pool, grades, and writes an outcome table.

What it is: calls (queries x candidates x samples, or a sampled design) go through the pool
(`rlroute.collection.ask`), every finished one into the journal `OUT.journal.jsonl`, and from
there, graded, into the table `OUT`. The same command continues what was interrupted and pays for
no finished call again. Grades and prices are applied last, so they may change without asking
anything again. Failed calls become holes, which are counted; `retry_failed` asks them again.

Several samples of a pair become one outcome: the mean over those that were answered and graded.
What each call gave stands in `calls.csv.gz`. The cost of an outcome is that of an answer that is
asked for once: its tokens at the prices of the pool file, whatever a cache saved.

What it leaves out: recipes of reasoning-gym tasks for local models (`rlroute.collection.collect`).

How to use: `run_query_collection(Collection(Path("q.jsonl"), Path("pool.yaml"), "exact", out))`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rlroute.collection.ask import Asking, Stop, catch_signals, make_key
from rlroute.collection.build import Cell, build_table, check_output
from rlroute.collection.design import Design, draw_design
from rlroute.collection.forecast import Forecast, forecast_calls
from rlroute.collection.grading import Grader, make_grader, make_judge_call, read_verdict
from rlroute.collection.journal import Journal
from rlroute.collection.progress import print_forecasts, show_progress
from rlroute.collection.queries import QuerySet, parse_fractions, read_queries
from rlroute.data.table import check_table, write_table_files
from rlroute.files import atomic_folder
from rlroute.pool.open import OpenPool, list_candidates, open_pool
from rlroute.pool.pool_file import PoolFile, load_pool
from rlroute.types import Call, Candidate, Prices, Reply, RLRouteError

Pair = tuple[str, str]  # (query id, candidate id)


@dataclass(frozen=True)
class Collection:
    """What `rlroute collect --queries` is asked for.

    `split` holds the fractions of train, val and test as text; `temperature` None means 0 for one
    sample and 1 for several; `per_query` None means all candidates; `overrides` change the pool.
    """

    queries: Path
    pool: Path
    grade: str
    out: Path
    judge: str | None = None
    samples: int = 1
    temperature: float | None = None
    max_usd: float | None = None
    per_query: int | None = None
    split: str = "0.7,0.1,0.2"
    seed: int = 0
    retry_failed: bool = False
    dry_run: bool = False
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """A collection that passed all checks which need nobody to be asked."""

    stated: Collection
    pool_file: PoolFile
    candidates: Mapping[str, Candidate]  # without the judge
    judge: Candidate | None
    grader: Grader
    query_set: QuerySet
    design: Design
    calls: Sequence[Call]

    @property
    def journal_path(self) -> Path:
        """Where finished calls are written, beside the table."""
        return self.stated.out.parent / f"{self.stated.out.name}.journal.jsonl"


@dataclass(frozen=True)
class Graded:
    """A finished call with its score, None where it failed or could not be graded."""

    reply: Reply
    score: float | None


def run_query_collection(stated: Collection) -> None:
    """Collect a table, or with `dry_run` print what it would use and cost.

    Raises:
        RLRouteError: a fault of what was asked for, or the collection stopped early: by a signal, a
            cap, a refused key, a full disk. What was finished is in the journal.
    """
    run_plan(make_plan(stated))


def run_plan(plan: Plan) -> None:
    """Ask, grade and write what a plan says; see `run_query_collection`."""
    stated = plan.stated
    if stated.dry_run:
        print_forecasts(make_forecasts(plan), plan.journal_path)
        return
    check_output(stated.out)
    journal = Journal(plan.journal_path)
    try:
        if stated.retry_failed:
            journal.forget_failures()
        pool = open_pool(
            plan.pool_file,
            max_usd=stated.max_usd,
            already_spent_usd=journal.paid_usd + journal.unknown_usd,
            only=[*plan.candidates, *([plan.judge.id] if plan.judge else [])],
        )
        graded = asyncio.run(ask_and_grade(plan, journal, pool))
        write_collection(plan, journal, graded)
    finally:
        journal.close()


def make_plan(stated: Collection) -> Plan:
    """Check everything that can be checked before anybody is asked.

    Raises:
        RLRouteError: the first fault.
    """
    grader = make_grader(stated.grade)
    if (stated.grade == "judge") != (stated.judge is not None):
        raise RLRouteError("--grade judge and --judge CANDIDATE go together")
    if stated.samples < 1:
        raise RLRouteError(f"--samples {stated.samples}: must be at least 1")
    temperature = stated.temperature
    if temperature is None:
        temperature = 0.0 if stated.samples == 1 else 1.0
    if temperature < 0 or (stated.samples > 1 and temperature == 0):
        raise RLRouteError(f"--temperature {temperature:g}: several samples need one above 0")
    pool_file = load_pool(stated.pool, stated.overrides)
    everybody = list_candidates(pool_file)
    if stated.judge is not None and stated.judge not in everybody:
        known = ", ".join(everybody)
        raise RLRouteError(f"--judge {stated.judge}: {stated.pool} has no such candidate ({known})")
    judge = None if stated.judge is None else everybody[stated.judge]
    candidates = {name: item for name, item in everybody.items() if item is not judge}
    if not candidates:
        raise RLRouteError(f"{stated.pool}: nobody is left to ask besides the judge")
    query_set = read_queries(stated.queries, parse_fractions(stated.split), stated.seed)
    grader.check(query_set)
    design = draw_design(query_set.queries, list(candidates), stated.per_query, stated.seed)
    calls = [
        Call(name, query, query.text, temperature=temperature, sample=sample)
        for k, name in enumerate(candidates)
        for row, query in enumerate(query_set.queries)
        if design.asked_QK[row, k]
        for sample in range(stated.samples)
    ]
    return Plan(stated, pool_file, candidates, judge, grader, query_set, design, calls)


def make_forecasts(plan: Plan) -> list[Forecast]:
    """Return what each candidate's calls will use, the judge's last."""
    forecasts = []
    for name, candidate in plan.candidates.items():
        calls = [call for call in plan.calls if call.candidate_id == name]
        forecasts.append(forecast_calls(plan.pool_file, candidate, calls))
    if plan.judge is not None:
        longest = max(item.limits.output_tokens or 0 for item in plan.candidates.values())
        replies = [Reply(call, text="x " * longest) for call in plan.calls]
        calls = [make_judge_call(plan.judge.id, reply) for reply in replies]
        forecasts.append(forecast_calls(plan.pool_file, plan.judge, calls))
    return forecasts


# --- asking and grading -------------------------------------------------------------------------


async def ask_and_grade(plan: Plan, journal: Journal, pool: OpenPool) -> list[Graded | None]:
    """Return what each call of the plan gave; None where it is not finished.

    Raises:
        RLRouteError: the collection stopped before all calls were tried.
    """
    stop = Stop()
    judged = len(plan.calls) if plan.judge is not None else 0
    total = len(plan.calls) + judged
    with show_progress(total, pool.max_usd, pool.ledger) as advance, catch_signals(stop):
        asking = Asking(plan.pool_file, pool, journal, stop, advance)
        try:
            replies = await asking.ask_all(plan.calls)
            graded = await grade_replies(plan, asking, replies)
        finally:
            await pool.close()
    if stop:
        done = sum(make_key(plan.pool_file, call) in journal.replies for call in plan.calls)
        raise RLRouteError(
            f"stopped: {stop.reason}. {done} of {len(plan.calls)} calls are kept in "
            f"{journal.path} ({journal.paid_usd:.6f} USD paid); the same command goes on from there"
        )
    return graded


async def grade_replies(
    plan: Plan, asking: Asking, replies: Sequence[Reply | None]
) -> list[Graded | None]:
    """Grade what can be graded: by the pool's own score, the grader, or the judge."""
    verdicts: dict[int, float | None] = {}
    if plan.judge is not None and not asking.stop:
        places = [i for i, r in enumerate(replies) if r and not r.failure and r.text.strip()]
        asked = [make_judge_call(plan.judge.id, reply) for i in places if (reply := replies[i])]
        asking.advance(sum(1 for reply in replies if reply) - len(places))
        for place, reply in zip(places, await asking.ask_all(asked), strict=True):
            answered = reply is not None and reply.failure is None
            verdicts[place] = read_verdict(reply.text) if reply and answered else None
    graded: list[Graded | None] = []
    for place, reply in enumerate(replies):
        if reply is None:
            graded.append(None)
        elif reply.failure is not None:
            graded.append(Graded(reply, None))
        elif plan.judge is not None:
            graded.append(Graded(reply, verdicts.get(place) if reply.text.strip() else 0.0))
        elif reply.score is not None:  # the candidate's recording knows it
            graded.append(Graded(reply, reply.score))
        else:
            graded.append(Graded(reply, plan.grader.grade(reply.call.query, reply.text)))
    return graded


# --- the table ----------------------------------------------------------------------------------


def write_collection(plan: Plan, journal: Journal, graded: Sequence[Graded | None]) -> None:
    """Write the table with its README, provenance and side files, at once or not at all."""
    from rlroute.collection.query_report import write_report, write_side_files

    held: dict[Pair, list[Graded]] = {}
    for item in graded:
        if item is not None and item.score is not None:
            call = item.reply.call
            held.setdefault((call.query.id, call.candidate_id), []).append(item)
    cells = {pair: make_cell(plan, pair[1], items) for pair, items in held.items()}
    query_set = plan.query_set
    table = build_table(
        plan.stated.out.name,
        query_set.queries,
        query_set.splits,
        list(plan.candidates.values()),
        cells,
    )
    if not table.queries:
        raise RLRouteError(f"no call was answered and graded: {describe_holes(graded)}")
    check_table(table, set(query_set.splits))
    try:
        with atomic_folder(plan.stated.out) as temporary:
            write_table_files(table, temporary)
            write_side_files(plan, graded, temporary)
            write_report(plan, journal, table, graded, temporary)
    except OSError as error:
        raise RLRouteError(
            f"{plan.stated.out}: cannot write ({error.strerror}); the calls are kept in "
            f"{journal.path}, the same command goes on from there"
        ) from None


def make_cell(plan: Plan, name: str, items: Sequence[Graded]) -> Cell:
    """Return the mean outcome of the graded samples of one pair."""
    replies = [item.reply for item in items]
    used = [reply.usage for reply in replies if reply.usage is not None]
    known = len(used) == len(replies)
    seconds = [r.latency_seconds for r in replies if r.latency_seconds is not None]
    prices = plan.candidates[name].prices
    return Cell(
        score=fmean(item.score for item in items if item.score is not None),
        cost_usd=fmean(price_reply(prices, reply) for reply in replies),
        prompt_tokens=fmean(u.prompt_tokens for u in used) if known else float("nan"),
        completion_tokens=fmean(u.completion_tokens for u in used) if known else float("nan"),
        seconds=fmean(seconds) if len(seconds) == len(replies) else float("nan"),
    )


def price_reply(prices: Prices, reply: Reply) -> float:
    """Return what an answer costs in USD when it is asked for once and not found in our cache."""
    usage = reply.usage
    if usage is None:
        return reply.cost_usd
    return prices.compute_cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def count_holes(graded: Sequence[Graded | None]) -> Counter[tuple[str, str]]:
    """Count calls without a grade by (candidate, why)."""
    holes: Counter[tuple[str, str]] = Counter()
    for item in graded:
        if item is not None and item.score is None:
            why = "ungraded" if item.reply.failure is None else str(item.reply.failure)
            holes[item.reply.call.candidate_id, why] += 1
    return holes


def describe_holes(graded: Sequence[Graded | None]) -> str:
    """Say in one line how many calls have no grade, and why."""
    counts = [f"{name}: {n} {why}" for (name, why), n in sorted(count_holes(graded).items())]
    unsent = sum(item is None for item in graded)
    counts += [f"{unsent} refused unsent"] if unsent else []
    return "; ".join(counts) or "none"
