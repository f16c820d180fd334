"""What `rlroute evaluate` does with a run on sessions: play the policy and the baselines, report.

What it is: the weights that validation chose and all baselines meet the same test sessions under
every budget of the recipe. The baselines are behaviour cloning (trained here, as the run was), the
cheapest sufficient executor (its threshold chosen on val), every executor alone, and in a made
world the exact optimum at each cost weight. In a made world all outcomes are its own; on a log they
are logged, or estimated where the log has none (`rlroute.evaluation.session_replay`).

What it leaves out: means, intervals and words (`rlroute.evaluation.session_results`).

How to use: `evaluate_session_run(Path("runs/mine"))`; it leaves evaluation.json and frontier.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from rlroute.data.session_optimum import SessionOptimum, solve_sessions
from rlroute.evaluation.intervals import Estimate, draw_resamples
from rlroute.evaluation.session_figures import draw_session_frontier
from rlroute.evaluation.session_replay import (
    Chooser,
    PlayedSessions,
    SessionOutcomes,
    Standing,
    always,
    choose_cheapest_sufficient,
    play_sessions,
)
from rlroute.evaluation.session_results import (
    SessionEvaluation,
    SessionPoint,
    SessionPolicyKind,
    SessionPolicyResult,
    describe_session_result,
    estimate_lead,
    measure_session_point,
    name_single,
    render_session_comparison,
)
from rlroute.files import write_atomic
from rlroute.policies.session_scorer import SessionScorer
from rlroute.seeding import derive_seed
from rlroute.trainers.session_problem import SessionProblem, make_chooser
from rlroute.trainers.session_recipe import CloningConfig, SessionRecipe
from rlroute.trainers.session_run import fit_scorer, load_best_scorer, read_session_run
from rlroute.types import IntArray, SplitName

EVALUATION_FILE = "evaluation.json"
FRONTIER_FILE = "frontier.png"
CLONING, HEURISTIC, OPTIMUM = "bc", "cheapest sufficient", "optimum (exact)"
THRESHOLDS_TRIED = 21

# what a policy got, by the cost weight it was played at; None where it has none
PlayedByWeight = dict[float | None, PlayedSessions]


def evaluate_session_run(folder: Path) -> SessionEvaluation:
    """Compare a run's policy with the baselines on the test sessions, print it and write it.

    Raises:
        RLRouteError: no finished run lies there, its log has changed, or matplotlib is missing.
    """
    recipe, problem, _ = read_session_run(folder)
    scorer, best = load_best_scorer(folder, recipe, problem)
    with Console(stderr=True).status("fitting baselines and playing the test sessions"):
        result = evaluate_scorer(recipe, problem, scorer, update=int(best["update"]))
        plain = json.dumps(result.to_dict(), indent=1, allow_nan=False)
        write_atomic(folder / EVALUATION_FILE, plain + "\n")
        write_atomic(folder / FRONTIER_FILE, draw_session_frontier(result))
    console = Console()
    console.print(render_session_comparison(result))
    for sentence in describe_session_result(result):
        console.print(sentence, highlight=False)
    return result


def evaluate_scorer(
    recipe: SessionRecipe, problem: SessionProblem, scorer: SessionScorer, *, update: int = 0
) -> SessionEvaluation:
    """Play a network and the baselines on the test sessions and return what they got."""
    stage = Stage(recipe, problem)
    plays: dict[str, tuple[SessionPolicyKind, PlayedByWeight]] = {}
    plays[recipe.algorithm.kind] = "policy", stage.sweep(scorer)
    if recipe.algorithm.kind != CLONING:
        plays[CLONING] = "cloning", stage.sweep(fit_cloning(recipe, problem))
    plays[HEURISTIC] = "heuristic", {None: stage.play(choose_heuristic(recipe, problem))}
    for k, name in enumerate(problem.log.executor_ids):
        plays[name_single(name)] = "single", {None: stage.play(always(k))}
    optima = solve_optima(recipe, problem)
    if optima:
        plays[OPTIMUM] = (
            "optimal",
            {
                weight: stage.play(choose_optimal(optimum, problem))
                for weight, optimum in optima.items()
            },
        )
    control = plays[name_single(problem.log.executor_ids[0])][1][None]
    best = plays[OPTIMUM][1][0.0] if optima else None
    policies = tuple(
        SessionPolicyResult(name, kind, stage.measure(by_weight, control, best))
        for name, (kind, by_weight) in plays.items()
    )
    expected = [optima[0.0].compute_value(budget) for budget in recipe.budgets] if optima else []
    return SessionEvaluation(
        log=problem.log.name,
        cost_unit=problem.log.cost_unit,
        played=problem.world is not None,
        sessions=len(problem.parts["test"].ids),
        executor_ids=problem.log.executor_ids,
        budgets=recipe.budgets,
        cost_weights=recipe.cost_weights,
        penalty=recipe.penalty,
        discount=recipe.discount,
        policies=policies,
        leads={
            name: stage.compare(plays[recipe.algorithm.kind][1], plays[name][1])
            for name in (CLONING, HEURISTIC)
            if name in plays and name != recipe.algorithm.kind
        },
        expected_optimum_M=tuple(expected),
        update=update,
        bootstrap=recipe.evaluation.bootstrap,
        seed=recipe.seed,
    )


class Stage:
    """The test sessions with their outcomes and resamples, the same for every policy."""

    def __init__(self, recipe: SessionRecipe, problem: SessionProblem) -> None:
        self.recipe, self.problem = recipe, problem
        self.outcomes = find_outcomes(problem, "test")
        self.weight_RS = draw_resamples(
            len(problem.parts["test"].ids),
            recipe.evaluation.bootstrap,
            derive_seed(recipe.seed, "bootstrap"),
        )

    def play(self, choose: Chooser) -> PlayedSessions:
        """Play one policy."""
        return play(self.recipe, self.outcomes, choose)

    def sweep(self, scorer: SessionScorer) -> PlayedByWeight:
        """Play a network at every cost weight."""
        return {
            weight: self.play(make_chooser(scorer, self.problem, self.recipe, "test", weight))
            for weight in self.recipe.cost_weights
        }

    def measure(
        self,
        by_weight: Mapping[float | None, PlayedSessions],
        control: PlayedSessions,
        best: PlayedSessions | None,
    ) -> tuple[SessionPoint, ...]:
        """Return the points of a policy in the order in which it was played."""
        return tuple(
            measure_session_point(played, control, best, self.weight_RS, weight)
            for weight, played in by_weight.items()
        )

    def compare(self, subject: PlayedByWeight, other: PlayedByWeight) -> tuple[Estimate, ...]:
        """Return the subject's return above the other's at each cost weight."""
        return tuple(
            estimate_lead(played, other[weight if weight in other else None], self.weight_RS)
            for weight, played in subject.items()
        )


def play(recipe: SessionRecipe, outcomes: SessionOutcomes, choose: Chooser) -> PlayedSessions:
    """Play a policy under the recipe's budgets."""
    return play_sessions(
        outcomes, recipe.budgets, choose, penalty=recipe.penalty, discount=recipe.discount
    )


def find_outcomes(problem: SessionProblem, split: SplitName) -> SessionOutcomes:
    """Return a split's outcomes: the world's own, or logged and estimated ones."""
    if problem.drawn is None:
        return problem.parts[split].imputed
    drawn, place_S = problem.drawn, find_places(problem, split)
    return SessionOutcomes(
        drawn.valid_ST[place_S], drawn.cost_STK[place_S], drawn.quality_STK[place_S]
    )


def find_places(problem: SessionProblem, split: SplitName) -> IntArray:
    """Return where the sessions of a split stand among those that the world drew."""
    assert problem.drawn is not None
    place_of = {name: place for place, name in enumerate(problem.drawn.ids)}
    return np.array([place_of[name] for name in problem.parts[split].ids])


# --- Baselines ------------------------------------------------------------------------------------


def fit_cloning(recipe: SessionRecipe, problem: SessionProblem) -> SessionScorer:
    """Train behaviour cloning with the settings of the run."""
    algorithm = CloningConfig(kind="bc")
    return fit_scorer(recipe.model_copy(update={"algorithm": algorithm}), problem)


def choose_heuristic(recipe: SessionRecipe, problem: SessionProblem) -> Chooser:
    """Return the cheapest sufficient executor; the threshold with the best return on val."""
    quality = {
        split: problem.model.estimate(problem.parts[split].features_STF)[1]
        for split in ("val", "test")
    }
    val = problem.parts["val"]
    tried = np.quantile(quality["val"][val.logged.valid_ST], np.linspace(0, 1, THRESHOLDS_TRIED))
    found = [
        play(
            recipe, val.imputed, choose_cheapest_sufficient(quality["val"], problem.cost_K, one)
        ).return_SM.mean()
        for one in tried.tolist()
    ]
    threshold = float(tried[int(np.argmax(found))])
    return choose_cheapest_sufficient(quality["test"], problem.cost_K, threshold)


def solve_optima(recipe: SessionRecipe, problem: SessionProblem) -> dict[float, SessionOptimum]:
    """Return the optimum at cost weight 0 and each of the recipe's, none where it is not known."""
    if problem.world is None:
        return {}
    return {
        weight: solve_sessions(
            problem.world,
            penalty=recipe.penalty,
            discount=recipe.discount,
            cost_weight=weight,
        )
        for weight in sorted({0.0, *recipe.cost_weights})
    }


def choose_optimal(optimum: SessionOptimum, problem: SessionProblem) -> Chooser:
    """Return the optimum as a policy for the test sessions of its world."""
    assert problem.drawn is not None
    place_S = find_places(problem, "test")
    difficulty_ST = problem.drawn.difficulty_ST[place_S]
    length_ST = problem.drawn.length_ST[place_S]

    def choose(standing: Standing) -> IntArray:
        cell = standing.session_N, standing.turn
        return optimum.choose(
            standing.turn, difficulty_ST[cell], length_ST[cell], standing.balance_N
        )

    return choose
