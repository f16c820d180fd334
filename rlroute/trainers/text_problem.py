"""What a text recipe is about: questions, candidates, the pool that answers, episodes and rewards.

It leaves out the policy. How to use: `problem = build_problem(recipe)`, then play episodes with
`TextRollouts(problem, recipe, tokenizer, sampler)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlroute.data.questions import read_questions
from rlroute.envs.multi_round import MultiRound
from rlroute.policies.scripted import DelegatingPlanner, Planner, ScriptedPlanner
from rlroute.pool.base import Pool
from rlroute.pool.open import open_pool
from rlroute.pool.pool_file import load_pool
from rlroute.pool.relations import RelationsWorld
from rlroute.rollout.demonstrations import write_demonstrations
from rlroute.rollout.engine import Agent, run_episodes
from rlroute.rollout.plan import EpisodePlan, shorten
from rlroute.rollout.samplers.base import Sampler
from rlroute.rollout.text_agent import TextAgent
from rlroute.seeding import mix
from rlroute.trainers.text_recipe import RelationsQuestions, TextRecipe
from rlroute.types import (
    Candidate,
    Query,
    RLRouteError,
    TextDecision,
    TextObservation,
    TextTrajectory,
)


@dataclass(frozen=True)
class TextProblem:
    """The questions of each split, and who may be asked; `world` where they were generated."""

    train: Sequence[Query]
    val: Sequence[Query]
    test: Sequence[Query]
    candidates: Sequence[Candidate]
    pool: Pool
    world: RelationsWorld | None = None


def build_problem(recipe: TextRecipe) -> TextProblem:
    """Generate or read the questions and open the pool.

    Raises:
        RLRouteError: questions or pool cannot be had.
    """
    if isinstance(recipe.questions, RelationsQuestions):
        stated = recipe.questions
        world = RelationsWorld(stated.world)
        return TextProblem(
            train=world.make_queries("train", stated.train),
            val=world.make_queries("val", stated.val),
            test=world.make_queries("test", stated.test),
            candidates=world.candidates,
            pool=world,
            world=world,
        )
    questions = read_questions(recipe.questions.sets)
    assert recipe.pool is not None  # the recipe's own check
    pool = open_pool(load_pool(recipe.pool))
    candidates = tuple(pool.candidates.values())
    return TextProblem(questions.train, questions.val, questions.test, candidates, pool)


def make_environment(
    recipe: TextRecipe, problem: TextProblem, cost_weight: float | None = None
) -> MultiRound:
    """Return the recipe's environment."""
    return MultiRound(
        problem.candidates, recipe.episode, recipe.reward.format, cost_weight=cost_weight
    )


def write_episodes(recipe: TextRecipe, problem: TextProblem) -> list[TextTrajectory]:
    """Play the scripted episodes of the warm start.

    Raises:
        RLRouteError: every episode had a failed call.
    """
    settings = recipe.warm_start
    assert settings is not None
    planner: Planner
    if settings.planner == "delegating":
        planner = DelegatingPlanner(problem.candidates, seed=recipe.seed)
    else:
        assert problem.world is not None  # the recipe's own check
        planner = ScriptedPlanner(
            problem.world,
            settings.planner,
            seed=recipe.seed,
            max_calls=recipe.episode.max_calls,
        )
    passes = -(-settings.episodes // len(problem.train))
    queries = [query for _ in range(passes) for query in problem.train][: settings.episodes]
    found = write_demonstrations(
        lambda: make_environment(recipe, problem), planner, problem.pool, queries, seed=recipe.seed
    )
    if not found:
        raise RLRouteError("warm_start: every scripted episode had a failed call")
    return found


class TextRollouts:
    """Plays episodes of a problem with a sampler; one event loop serves all of them."""

    def __init__(
        self, problem: TextProblem, recipe: TextRecipe, tokenizer: Any, sampler: Sampler
    ) -> None:
        self.problem, self.recipe = problem, recipe
        self.tokenizer, self.sampler = tokenizer, sampler
        self.loop = asyncio.new_event_loop()
        self.retried: list[TextTrajectory] = []  # failed attempts of the last `play`

    def play(
        self,
        queries: Sequence[Query],
        plan: EpisodePlan,
        *,
        temperature: float,
        cost_weight: float | None = None,
    ) -> list[TextTrajectory]:
        """Play the plan's episodes, in its order, at a fixed cost weight or at drawn ones.

        Raises:
            RLRouteError: a call failed and the recipe says `fail`, or the sampler cannot go on.
        """
        rollout = self.recipe.rollout
        self.retried = []

        def start_agent(row: int, attempt: int) -> Agent[TextObservation, str, TextDecision]:
            return TextAgent(
                self.sampler,
                self.tokenizer,
                action_seed=int(shorten(mix("try", int(plan.action_seed_B[row]), attempt))),
                max_new_tokens=rollout.max_new_tokens,
                context_tokens=rollout.context_tokens,
                temperature=temperature,
            )

        return self.loop.run_until_complete(
            run_episodes(
                lambda: make_environment(self.recipe, self.problem, cost_weight),
                start_agent,
                self.problem.pool,
                queries,
                plan,
                on_failure=rollout.on_failure,
                retries=rollout.retries,
                concurrency=rollout.concurrency,
                note_retry=self.retried.append,
            )
        )

    def close(self) -> None:
        """Release the sampler, the pool and the loop."""
        self.loop.run_until_complete(self.sampler.close())
        close_pool = getattr(self.problem.pool, "close", None)
        if close_pool is not None:
            self.loop.run_until_complete(close_pool())
        self.loop.close()


def plan_evaluation(queries: int, seed: int) -> EpisodePlan:
    """Return one episode for each of the queries; equal seeds give equal episodes."""
    index_B = np.arange(queries)
    seed_B = shorten(mix(seed, "evaluation", index_B))
    return EpisodePlan(index_B, seed_B, seed_B, index_B)
