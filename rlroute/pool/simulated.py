"""Simulated candidates: a skill against a difficulty, so that the best policy is known exactly.

What it is: the two-parameter logistic model of item response theory (Birnbaum, 1968). A candidate
of skill s answers a query of difficulty b correctly with probability

    P(correct) = 1 / (1 + exp(-a (s - b)))

where a is the discrimination of the world. Difficulties are uniform on [easiest, hardest], drawn
from the query's id, or stated in its metadata as `difficulty`. At cost weight w, candidate k is
worth P_k(b) - w c_k, c_k being its normalised cost. Two candidates are worth the same where a
quadratic in exp(a b) has a root, so the best choice changes at finitely many difficulties, and the
mean of P over an interval is a difference of softplus: the optimum needs no search.

Answers, failures, tokens and latencies (log-normal) are pure functions of (seed, candidate, query,
sample): asking again, in another order or another process, gives the same.

What it leaves out: waiting. The latency is reported, nobody sleeps.

How to use: `find_optimum(World(), [Skill(0.0), Skill(2.0)], cost_K=[0.1, 1.0], cost_weight=0.3)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlroute.seeding import draw_uniform
from rlroute.types import Call, Candidate, FailureKind, Reply, RLRouteError, Usage

Float64Array = npt.NDArray[np.float64]

BYTES_PER_TOKEN = 4
WRONG = "a wrong answer"
RIGHT = "the right answer"  # where a query states no reference


@dataclass(frozen=True)
class World:
    """What all simulated candidates share: `discrimination` a, and the range of difficulties."""

    discrimination: float = 1.7
    easiest: float = -3.0
    hardest: float = 3.0
    seed: int = 0

    def draw_difficulty(self, query_id: str) -> float:
        """Return the difficulty of a query, uniform over the range."""
        share = float(draw_uniform(self.seed, "difficulty", query_id))
        return self.easiest + share * (self.hardest - self.easiest)

    def compute_success(self, skill: float, difficulty: npt.ArrayLike) -> Float64Array:
        """Return the probability of a correct answer, in the shape of `difficulty`."""
        gap = self.discrimination * (skill - np.asarray(difficulty, dtype=np.float64))
        return np.exp(-np.logaddexp(0.0, -gap))

    def compute_mean_success(self, skill: float, low: float, high: float) -> float:
        """Return the mean success over difficulties uniform on [low, high]."""
        a = self.discrimination
        ends = np.logaddexp(0.0, [a * (skill - low), a * (skill - high)])
        return float((ends[0] - ends[1]) / (a * (high - low)))


@dataclass(frozen=True)
class Skill:
    """How a candidate behaves: tokens and seconds are medians, `failures` rates by kind."""

    skill: float
    completion_tokens: float = 64.0
    latency_seconds: float = 0.5
    latency_sigma: float = 0.5
    failures: Mapping[FailureKind, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Optimum:
    """The best policy: candidate `choices[i]` between `bounds[i]` and `bounds[i + 1]`.

    `value`, `success` and `cost` are its means over all difficulties.
    """

    bounds: tuple[float, ...]
    choices: tuple[int, ...]
    value: float
    success: float
    cost: float


def find_optimum(
    world: World, skills: Sequence[Skill], cost_K: Sequence[float], cost_weight: float
) -> Optimum:
    """Return the best choice at each difficulty and what it is worth, in closed form.

    `cost_K` are the normalised costs of the candidates. Failures are not part of it: a failed call
    has no outcome.
    """
    inner = {
        b
        for i in range(len(skills))
        for j in range(i)
        for b in find_crossings(
            world, skills[i].skill, skills[j].skill, cost_weight * (cost_K[i] - cost_K[j])
        )
        if world.easiest < b < world.hardest
    }
    ends = [world.easiest, *sorted(inner), world.hardest]
    bounds = [ends[0]]
    choices: list[int] = []
    for low, high in pairwise(ends):
        middle = (low + high) / 2
        worth = [
            float(world.compute_success(skill.skill, middle)) - cost_weight * cost
            for skill, cost in zip(skills, cost_K, strict=True)
        ]
        best = int(np.argmax(worth))
        if choices and choices[-1] == best:
            bounds[-1] = high
        else:
            choices.append(best)
            bounds.append(high)
    width = world.hardest - world.easiest
    success = cost = 0.0
    for low, high, k in zip(bounds, bounds[1:], choices, strict=False):
        share = (high - low) / width
        success += share * world.compute_mean_success(skills[k].skill, low, high)
        cost += share * cost_K[k]
    return Optimum(tuple(bounds), tuple(choices), success - cost_weight * cost, success, cost)


def find_crossings(world: World, skill_i: float, skill_j: float, gap: float) -> list[float]:
    """Return the difficulties b at which P_i(b) - P_j(b) = gap; at most two.

    With p = exp(a s_i), q = exp(a s_j) and x = exp(a b), P_i = p / (p + x), and the equation reads
    gap x^2 + (gap (p + q) - (p - q)) x + gap p q = 0. Skills are shifted so that p q = 1, which
    keeps the numbers small.
    """
    a, centre = world.discrimination, (skill_i + skill_j) / 2
    p, q = math.exp(a * (skill_i - centre)), math.exp(a * (skill_j - centre))
    linear = gap * (p + q) - (p - q)
    if gap == 0:
        return []  # equal costs: the more skilled one everywhere
    discriminant = linear * linear - 4 * gap * gap
    if discriminant < 0:
        return []
    half = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2
    roots = [half / gap] + ([gap / half] if half != 0 else [])
    return [centre + math.log(x) / a for x in roots if x > 0]


class SimulatedPool:
    """Candidates with a skill, behind `ask_many`."""

    def __init__(
        self, world: World, candidates: Mapping[str, Candidate], skills: Mapping[str, Skill]
    ) -> None:
        self.world, self.candidates, self.skills = world, dict(candidates), dict(skills)

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order.

        Raises:
            RLRouteError: a candidate is unknown, or a stated difficulty is no number.
        """
        return [self.answer(call) for call in calls]

    def answer(self, call: Call) -> Reply:
        """Answer one call; see `ask_many`."""
        skill = self.skills.get(call.candidate_id)
        if skill is None:
            known = ", ".join(sorted(self.skills))
            raise RLRouteError(f"unknown candidate '{call.candidate_id}' (known: {known})")
        where = (self.world.seed, call.candidate_id, call.query.id, call.text, call.sample)
        normal = NormalDist().inv_cdf(max(float(draw_uniform("latency", *where)), 1e-12))
        seconds = skill.latency_seconds * math.exp(skill.latency_sigma * normal)
        failure = self._draw_failure(skill, float(draw_uniform("failure", *where)))
        if failure is not None:
            return Reply(call, latency_seconds=seconds, failure=failure)
        chance = float(self.world.compute_success(skill.skill, self.get_difficulty(call)))
        correct = float(draw_uniform("answer", *where)) < chance
        right = call.query.references[0] if call.query.references else RIGHT
        usage = self._draw_usage(call, skill, float(draw_uniform("tokens", *where)))
        prices = self.candidates[call.candidate_id].prices
        return Reply(
            call,
            text=right if correct else WRONG,
            usage=usage,
            cost_usd=prices.compute_cost(usage.prompt_tokens, usage.completion_tokens),
            latency_seconds=seconds,
            score=float(correct),
        )

    def get_difficulty(self, call: Call) -> float:
        """Return the difficulty of a call's query, stated or drawn."""
        stated = call.query.metadata.get("difficulty")
        if stated is None:
            return self.world.draw_difficulty(call.query.id)
        try:
            return float(stated)
        except ValueError:
            raise RLRouteError(
                f"query '{call.query.id}': difficulty '{stated}' must be a number"
            ) from None

    def _draw_failure(self, skill: Skill, draw: float) -> FailureKind | None:
        """Return the failure that a draw from [0, 1) falls on, or None."""
        reached = 0.0
        for kind, rate in skill.failures.items():
            reached += rate
            if draw < reached:
                return kind
        return None

    def _draw_usage(self, call: Call, skill: Skill, draw: float) -> Usage:
        """Return tokens: the prompt's by its bytes, the answer's exponential around its median."""
        limit = call.max_output_tokens
        limit = limit or self.candidates[call.candidate_id].limits.output_tokens
        prompt = len(f"{call.system}{call.text}".encode()) // BYTES_PER_TOKEN + 1
        answer = 1 + int(skill.completion_tokens * -math.log2(1.0 - draw))
        return Usage(prompt, answer if limit is None else min(answer, limit))
