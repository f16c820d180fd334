"""What `evaluate` and `export` do with runs on outcome tables and logs.

What it leaves out: training (`rlroute.trainers.decision`), runs of other shapes
(`rlroute.step_runs`, `rlroute.memory_runs`, `rlroute.text_runs`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rlroute.config import dump_config
from rlroute.data.newcomer_profiles import DEFAULT_SWITCHES, profile_from_results
from rlroute.data.prepare import encode_texts
from rlroute.data.probes import read_probes
from rlroute.data.table import find_folder, read_results
from rlroute.data.users import Preference
from rlroute.evaluation.comparison import describe_result, render_comparison
from rlroute.evaluation.decisions import DecisionReport, inspect_decisions
from rlroute.evaluation.evaluate import evaluate_policies
from rlroute.evaluation.log_estimates import (
    estimate_policies,
    render_estimates,
    warn_of_few_rows,
)
from rlroute.evaluation.preference_report import render_preference_tables
from rlroute.evaluation.report import ReportContext, RouterSeconds, write_report
from rlroute.evaluation.results import EvaluationResult
from rlroute.evaluation.unseen import dump_unseen, render_unseen, render_unseen_users
from rlroute.export.bundle import BundleContents, write_bundle
from rlroute.export.summary import summarise_test
from rlroute.files import write_atomic
from rlroute.policies.baselines import AlwaysCandidate, RidgeRegression, fit_baselines
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.mlp import CandidateScorer
from rlroute.preference_runs import evaluate_preferences, state_preferences
from rlroute.tracking import read_metrics
from rlroute.trainers.checkpoint import list_checkpoints, read_state
from rlroute.trainers.decision import make_cost_weights
from rlroute.trainers.run_folder import (
    CHECKPOINTS_FOLDER,
    Run,
    load_best,
    make_scorer_config,
    read_run,
)
from rlroute.types import Candidate, FloatArray, RLRouteError
from rlroute.unseen_candidates import evaluate_unseen, lend_for_run

EVALUATION_FILE = "evaluation.json"
ESTIMATES_FILE = "log_estimates.json"
UNSEEN_FILE = "unseen_candidates.json"
UNSEEN_USERS_FILE = "unseen_candidates_users.json"
PREFERENCES_FILE = "preferences.json"
TIMED_QUERIES = 64


def evaluate_table_run(folder: Path, beside: Sequence[Path] = ()) -> None:
    """Compare a candidate scorer with the baselines; see `evaluate_run`.

    Raises:
        RLRouteError: as there; `beside` takes one run, and only where candidates were held out.
    """
    console = Console()
    run = read_run(folder)
    if beside and (not run.recipe.hold_out_candidates or len(beside) > 1):
        raise RLRouteError(
            "evaluate: --beside takes one run, trained with the candidates that this one held out "
            "(hold_out_candidates); rlroute compare shows other runs side by side"
        )
    scorer, best = load_best(run)
    splits = run.prepared.splits
    logged_QK = None if run.propensities is None else run.propensities["test"]
    if logged_QK is not None and np.isfinite(logged_QK).any():
        estimate_log_run(run, scorer, logged_QK)  # nobody knows the other outcomes
        return
    with Console(stderr=True).status("fitting baselines and resampling"):
        probes = read_probes(find_folder(run.recipe.table), splits["train"].table)
        weights = run.recipe.cost_weight
        baselines = fit_baselines(
            splits["train"], splits["val"], probes, (weights.min, weights.max)
        )
        least = Preference(run.recipe.latency_weight.min)
        policy = GreedyPolicy(scorer, name=run.recipe.algorithm.kind, preference=least)
        router = time_router(run, policy)
        result = evaluate_policies(
            [policy, *baselines],
            splits["train"],
            splits["test"],
            make_cost_weights(run.recipe.cost_weight, run.recipe.evaluation.cost_weights),
            val=splits["val"],
            bootstrap=run.recipe.evaluation.bootstrap,
            seed=run.recipe.seed,
            router_seconds=None if router is None else router.total_p50,
        )
        unseen = None
        if run.recipe.hold_out_candidates:
            unseen = evaluate_unseen(run, read_run(beside[0]) if beside else None)
        context = make_report_context(run, best)
        wishes = evaluate_preferences(run, scorer)
        context = replace(
            context,
            decisions=inspect_at_deployment(run, policy, result),
            router_seconds=router,
            encoding_is_paid=has_paid_encoder(run),
            unseen=unseen,
            preferences=wishes,
        )
        write_report(folder, result, context)
    console.print(render_comparison(result))
    for sentence in describe_result(result):
        console.print(sentence, highlight=False)
    if wishes is not None:
        write_atomic(folder / PREFERENCES_FILE, json.dumps(wishes.to_dict(), indent=1))
        for table in render_preference_tables(wishes):
            console.print(table)
    if unseen is not None:
        write_atomic(folder / UNSEEN_FILE, json.dumps(dump_unseen(unseen.results), indent=1))
        console.print(render_unseen(unseen))
        if unseen.users:
            users = dump_unseen(unseen.users)
            write_atomic(folder / UNSEEN_USERS_FILE, json.dumps(users, indent=1))
            console.print(render_unseen_users(unseen))
    console.print(f"report: {folder / 'report.html'}", highlight=False)


def inspect_at_deployment(
    run: Run, policy: GreedyPolicy, result: EvaluationResult
) -> DecisionReport:
    """Look at single decisions at the last setting that one would deploy: the tightest cap."""
    test = run.prepared.splits["test"]
    ids = [candidate.id for candidate in test.table.candidates]
    return inspect_decisions(
        policy,
        test,
        best=ids.index(result.best_single),
        cost_weight=result.subject.operating_points[-1].cost_weight,
        seed=run.recipe.seed,
    )


def time_router(run: Run, policy: GreedyPolicy) -> RouterSeconds | None:
    """Time encoder and decision on some test queries; None where encoding would cost money."""
    encoder, test = run.prepared.encoder, run.prepared.splits["test"]
    if has_paid_encoder(run):
        return None
    rows = np.arange(min(TIMED_QUERIES, len(test.features_QF)))
    encode, decide = [], []
    for row in rows.tolist():
        one = test.select_queries([row])
        started = time.perf_counter()
        encoder.encode([test.table.queries[row].text])
        encoded = time.perf_counter()
        policy.compute_probabilities(one, run.recipe.cost_weight.min)
        encode.append(encoded - started)
        decide.append(time.perf_counter() - encoded)
    quantiles = [*np.quantile(encode, (0.5, 0.95)), *np.quantile(decide, (0.5, 0.95))]
    total = np.median(np.add(encode, decide))
    return RouterSeconds(len(rows), *(float(value) for value in (*quantiles, total)))


def has_paid_encoder(run: Run) -> bool:
    """Say whether every encoding of a query is a paid call."""
    return "openai" in run.prepared.encoder.kind


def estimate_log_run(run: Run, scorer: CandidateScorer, propensity_QK: FloatArray) -> None:
    """Estimate a run's policy and the single candidates from the test split of its log."""
    recipe, splits = run.recipe, run.prepared.splits
    weights = make_cost_weights(recipe.cost_weight, recipe.evaluation.cost_weights)
    ids = [candidate.id for candidate in splits["train"].table.candidates]
    estimates = estimate_policies(
        [GreedyPolicy(scorer, name=recipe.algorithm.kind), *map(AlwaysCandidate, ids)],
        splits["test"],
        propensity_QK,
        weights[:: max(len(weights) // 4, 1)],
        RidgeRegression(splits["train"], splits["val"]).predict,
        bootstrap=recipe.evaluation.bootstrap,
        seed=recipe.seed,
    )
    rows = [asdict(one) for one in estimates]
    write_atomic(run.folder / ESTIMATES_FILE, json.dumps(rows, indent=1))
    console = Console()
    console.print(render_estimates(estimates))
    warning = warn_of_few_rows(estimates)
    if warning is not None:
        console.print(warning, highlight=False)
    console.print(f"estimates: {run.folder / ESTIMATES_FILE}", highlight=False)


def make_report_context(run: Run, best: dict[str, Any]) -> ReportContext:
    """Gather what the report tells besides numbers."""
    recipe, encoder = run.recipe, run.prepared.encoder
    checkpoints = list_checkpoints(run.folder / CHECKPOINTS_FOLDER)
    seconds = read_state(checkpoints[-1]).seconds if checkpoints else float("nan")
    return ReportContext(
        run_name=run.folder.name,
        split_queries={name: len(data.features_QF) for name, data in run.prepared.splits.items()},
        candidates=run.prepared.candidates,
        encoder=f"{encoder.kind}, {encoder.dimension} dimensions",
        algorithm=f"{recipe.algorithm.kind} (weights of update {best['update']}, "
        f"best {best['metric']} on validation)",
        seed=recipe.seed,
        recipe_yaml=dump_config(recipe),
        history=read_history(run),
        command=run.facts["command"],
        versions={name: run.facts[name] for name in ("rlroute", "torch", "python")},
        wall_seconds=seconds,
    )


def read_history(run: Run) -> list[dict[str, Any]]:
    """Return the rows of metrics; what a log picked says nothing of the policy that learns."""
    rows = read_metrics(run.folder)
    if run.propensities is None:
        return rows
    return [
        {name: value for name, value in row.items() if not name.startswith("selection/")}
        for row in rows
    ]


def export_table_run(folder: Path, to: Path, add: Sequence[Path] = ()) -> None:
    """Write a candidate scorer as a folder that `Router.load` reads; see `runs.export_run`."""
    run = read_run(folder)
    scorer, best = load_best(run)
    recipe, prepared = run.recipe, run.prepared
    contents = BundleContents(
        scorer=make_scorer_config(recipe, prepared),
        weights=scorer.state_dict(),
        encoder=prepared.encoder,
        candidates=add_results(run, add),
        scale=lend_for_run(run, GreedyPolicy(scorer)),
        cost_weight_min=recipe.cost_weight.min,
        cost_weight_max=recipe.cost_weight.max,
        summary=summarise_run(run, best),
        recipe_yaml=dump_config(recipe),
        preferences=state_preferences(recipe),
    )
    write_bundle(contents, to)
    Console(stderr=True).print(f"router written to {to}", highlight=False)


def add_results(run: Run, folders: Sequence[Path]) -> tuple[Candidate, ...]:
    """Return the run's candidates and those that tables in some folders hold results of.

    Raises:
        RLRouteError: a table is none, or holds a candidate that is known.
    """
    known, prepared = run.prepared.candidates, run.prepared
    train, seed = prepared.splits["train"].table, run.recipe.seed
    switches = run.recipe.profile.unseen or DEFAULT_SWITCHES
    encode = partial(encode_texts, prepared.encoder)
    added: list[Candidate] = []
    for folder in folders:
        results = read_results(folder)
        for candidate in results.candidates:
            if candidate.id in {one.id for one in (*known, *added)}:
                raise RLRouteError(f"export: --add {folder}: '{candidate.id}' is known already")
            added.append(
                profile_from_results(
                    *(candidate, known, prepared.centroids_CF, results, encode),
                    switches=switches,
                    seed=seed,
                    train=train,
                )
            )
    return (*known, *added)


def summarise_run(run: Run, best: dict[str, Any]) -> dict[str, Any]:
    """Return what the bundle says of its training; test numbers only after an evaluation."""
    recipe = run.recipe
    summary: dict[str, Any] = {
        "table": run.facts["table"],
        "queries": {name: len(data.features_QF) for name, data in run.prepared.splits.items()},
        "algorithm": recipe.algorithm.kind,
        "seed": recipe.seed,
        "updates": recipe.updates,
        "validation": best,
    }
    path = run.folder / EVALUATION_FILE
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        summary["test"] = summarise_test(result)
    return summary
