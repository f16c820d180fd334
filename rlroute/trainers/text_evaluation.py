"""Compares a text policy with scripted baselines on the test questions.

What it is: the policy plays every test question greedily, once per cost weight, and so do its warm
start and the baselines: each candidate asked for everything, random ones, and in the relations
world the optimal plan. All meet the same questions with the same seeds. A baseline that does not
read the cost weight is played once and scored at each. A question whose call failed, after the
recipe's retries, is counted and never scored.

What it leaves out: the numbers (`rlroute.evaluation.text_results`), files (`rlroute.text_runs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.evaluation.intervals import draw_resamples
from rlroute.evaluation.text_results import (
    BASELINES,
    Played,
    PolicyKind,
    TextEvaluation,
    TextOptimum,
    TextPolicyResult,
    choose_best,
    measure_point,
)
from rlroute.policies.scripted import ALWAYS, DelegatingPlanner, Planner, ScriptedPlanner
from rlroute.pool.relations import RelationsWorld
from rlroute.rewards.charge import FixedReferenceConfig
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.rollout.engine import Agent, run_episodes
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.trainers.text_metrics import list_replies
from rlroute.trainers.text_problem import (
    TextProblem,
    TextRollouts,
    make_environment,
    plan_evaluation,
)
from rlroute.trainers.text_recipe import TextRecipe
from rlroute.trainers.text_validation import stack_terms
from rlroute.types import (
    Candidate,
    Query,
    RLRouteError,
    TextDecision,
    TextObservation,
    TextTrajectory,
)

RESAMPLES = 1000
OPTIMUM_STEPS = 50  # cost weights on the line of the optimum
WARM_START, OPTIMAL_PLAN = "warm start", "optimal plan"


@dataclass(frozen=True)
class Contender:
    """A policy or baseline: either a `model` that writes, or a `planner` that follows a script."""

    name: str
    kind: PolicyKind
    model: Any = None
    planner: Planner | None = None

    @property
    def reads_weight(self) -> bool:
        """Whether what it does depends on the cost weight."""
        return self.planner is None or self.kind == "optimal"


class Stage:
    """Where contenders meet the same questions with the same seeds and the same reward."""

    def __init__(
        self,
        recipe: TextRecipe,
        problem: TextProblem,
        rollouts: TextRollouts,
        reward: MultiRoundReward,
    ) -> None:
        self.recipe, self.problem, self.reward = recipe, problem, reward
        self.rollouts, self.sampler = rollouts, rollouts.sampler

    def play(
        self, contender: Contender, queries: Sequence[Query], weight: float
    ) -> list[TextTrajectory]:
        """Play one episode per query."""
        if contender.planner is not None:
            return self.play_scripted(contender.planner, queries, weight)
        return self.play_model(contender.model, queries, weight)

    def play_model(
        self, model: Any, queries: Sequence[Query], weight: float
    ) -> list[TextTrajectory]:
        """Play the queries greedily with a model."""
        assert isinstance(self.sampler, TransformersSampler)
        self.sampler.set_model(model)
        plan = plan_evaluation(len(queries), self.recipe.seed)
        return self.rollouts.play(queries, plan, temperature=0.0, cost_weight=weight)

    def play_scripted(
        self, planner: Planner, queries: Sequence[Query], weight: float
    ) -> list[TextTrajectory]:
        """Play the queries with a script; another attempt at a query draws anew."""
        rollout = self.rollouts.recipe.rollout
        plan = plan_evaluation(len(queries), self.recipe.seed)

        def start_agent(row: int, attempt: int) -> Agent[TextObservation, str, TextDecision]:
            return planner.start(queries[row], attempt)

        return self.rollouts.loop.run_until_complete(
            run_episodes(
                lambda: make_environment(self.recipe, self.problem, weight),
                start_agent,
                self.problem.pool,
                queries,
                plan,
                on_failure=rollout.on_failure,
                retries=rollout.retries,
                concurrency=rollout.concurrency,
            )
        )

    def measure(
        self, contender: Contender, queries: Sequence[Query], weights: Sequence[float]
    ) -> list[Played]:
        """Play a contender at each cost weight, or once where it does not read it."""
        played: list[Played] = []
        for weight in weights:
            if contender.reads_weight or not played:
                trajectories = self.play(contender, queries, weight)
            played.append(self.score(trajectories, weight))
        return played

    def score(self, trajectories: Sequence[TextTrajectory], weight: float) -> Played:
        """Return what episodes earned, spent and asked."""
        terms = stack_terms(trajectories)
        weight_Q = np.full(len(trajectories), weight, dtype=np.float32)
        reward_Q = self.reward.score(terms, weight_Q, frozen=True)["reward"].astype(np.float64)
        ids = [candidate.id for candidate in self.problem.candidates]
        calls_QK = np.zeros((len(trajectories), len(ids)))
        for row, trajectory in enumerate(trajectories):
            for reply in list_replies(trajectory):
                calls_QK[row, ids.index(reply.call.candidate_id)] += 1
        lost_Q = np.isnan(reward_Q)
        return Played(
            reward_Q=reward_Q,
            success_Q=np.where(lost_Q, np.nan, terms["outcome"].astype(np.float64)),
            charge_usd_Q=np.where(lost_Q, np.nan, terms["charge_usd"].astype(np.float64)),
            valid_Q=np.where(lost_Q, np.nan, terms["format"] == 0),
            calls_QK=np.where(lost_Q[:, None], np.nan, calls_QK),
        )


def compare(
    stage: Stage,
    model: Any,
    start: Any | None,
    *,
    update: int,
    tell: Callable[[str], None],
) -> TextEvaluation:
    """Let a policy (`model`, after so many updates) meet its warm start and all baselines.

    `tell` hears who plays now.

    Raises:
        RLRouteError: every test episode of the policy had a failed call.
    """
    recipe, problem = stage.recipe, stage.problem
    weights = recipe.validation.cost_weights or recipe.episode.cost_weights
    val = list(problem.val[: recipe.validation.questions])
    test = list(problem.test)
    optima = find_optima(recipe, problem.world, weights)
    contenders = list_contenders(recipe, problem, model, start, knows_optimum=bool(optima))
    played: dict[str, list[Played]] = {}
    val_played: dict[str, list[Played]] = {}
    for contender in contenders:
        tell(f"playing {len(test):,} test questions: {contender.name}")
        played[contender.name] = stage.measure(contender, test, weights)
        if contender.kind in BASELINES:
            val_played[contender.name] = stage.measure(contender, val, weights)
    return TextEvaluation(
        questions=recipe.questions.kind,
        test_questions=len(test),
        val_questions=len(val),
        candidate_ids=tuple(candidate.id for candidate in problem.candidates),
        cost_weights=weights,
        policies=measure_all(stage, contenders, played, weights),
        best_baselines=tuple(
            choose_best({name: points[place].reward_Q for name, points in val_played.items()})
            for place in range(len(weights))
        ),
        optima=optima,
        optimum_line=find_optima(recipe, problem.world, np.linspace(0, 1, OPTIMUM_STEPS).tolist()),
        update=update,
        bootstrap=RESAMPLES,
        seed=recipe.seed,
    )


def measure_all(
    stage: Stage,
    contenders: Sequence[Contender],
    played: Mapping[str, Sequence[Played]],
    weights: Sequence[float],
) -> tuple[TextPolicyResult, ...]:
    """Return the results of what was played on test; the first contender is the subject.

    Raises:
        RLRouteError: every episode of the subject had a failed call.
    """
    subject, test = played[contenders[0].name], stage.problem.test
    if any(np.isnan(one.reward_Q).all() for one in subject):
        raise RLRouteError("all test episodes of the policy had a failed call")
    resamples = draw_resamples(len(test), RESAMPLES, stage.recipe.seed)
    weight_SQ = np.concatenate([np.full((1, len(test)), 1 / len(test)), resamples])
    ids = [candidate.id for candidate in stage.problem.candidates]
    datasets = [query.dataset for query in test]
    results = []
    for contender in contenders:
        points = [
            measure_point(own, None if own is first else first, weight, ids, datasets, weight_SQ)
            for own, first, weight in zip(played[contender.name], subject, weights, strict=True)
        ]
        results.append(TextPolicyResult(contender.name, contender.kind, tuple(points)))
    return tuple(results)


def list_contenders(
    recipe: TextRecipe,
    problem: TextProblem,
    model: Any,
    start: Any | None,
    *,
    knows_optimum: bool,
) -> list[Contender]:
    """Return the policy, its warm start, the baselines and, where it is known, the optimal plan."""
    found = [Contender(recipe.algorithm.kind, "policy", model=model)]
    if start is not None:
        found.append(Contender(WARM_START, "start", model=start))
    for candidate in problem.candidates:
        planner = make_planner(recipe, problem, candidate)
        found.append(Contender(ALWAYS + candidate.id, "single", planner=planner))
    found.append(Contender("random", "random", planner=make_planner(recipe, problem, None)))
    if knows_optimum:
        planner = make_optimal_planner(recipe, problem)
        found.append(Contender(OPTIMAL_PLAN, "optimal", planner=planner))
    return found


def make_planner(recipe: TextRecipe, problem: TextProblem, candidate: Candidate | None) -> Planner:
    """Return the script that asks one candidate for everything, a random one each time if None."""
    if problem.world is None:
        candidates = problem.candidates if candidate is None else (candidate,)
        return DelegatingPlanner(candidates, seed=recipe.seed)
    mode = "random" if candidate is None else ALWAYS + candidate.id
    return ScriptedPlanner(
        problem.world, mode, seed=recipe.seed, max_calls=recipe.episode.max_calls
    )


def make_optimal_planner(recipe: TextRecipe, problem: TextProblem) -> Planner:
    """Return the script that follows the best plan of the relations world."""
    assert problem.world is not None
    return ScriptedPlanner(
        problem.world,
        "optimal",
        seed=recipe.seed,
        max_calls=recipe.episode.max_calls,
        combination=recipe.reward.combination,
    )


def find_optima(
    recipe: TextRecipe, world: RelationsWorld | None, cost_weights: Sequence[float]
) -> tuple[TextOptimum, ...]:
    """Return the exact optimum at each cost weight; nothing where enumeration does not hold.

    It holds in the relations world under a linear fixed normaliser and exact answers, where no
    limit cuts a plan short.
    """
    normaliser, episode = recipe.reward.normaliser, recipe.episode
    if (
        world is None
        or recipe.reward.combination not in ("gated", "additive")
        or not isinstance(normaliser, FixedReferenceConfig)
        or normaliser.transform != "linear"
        or episode.grade != "exact"
        or episode.max_calls < world.config.max_hops
        or episode.max_usd is not None
        or episode.max_reply_tokens_total is not None
    ):
        return ()
    found = [world.find_optimum(weight, recipe.reward.combination) for weight in cost_weights]
    return tuple(
        TextOptimum(weight, one.utility, one.success, one.charge_usd, one.calls)
        for weight, one in zip(cost_weights, found, strict=True)
    )
