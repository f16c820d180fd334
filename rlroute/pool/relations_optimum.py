"""The best plans of the relations world, by enumeration.

What it is: a question names a sequence of different relations, r1 first. A plan gives each hop a
candidate; the empty plan answers without calling. Facts are uniform and independent, so a chain is
in one of two states. With p the probability that it is right before a hop, E entities, and a the
accuracy of the candidate that is asked, after the hop

    p' = p a + (1 - p) / E

for the reply about a wrong entity is uniform, whoever gives it. The charge of a plan is known in
advance. With x = clip(charge / reference, 0, 1), r = 1 - x and cost weight w, a plan is worth

    gated      p ((1 - w) + w r)
    additive   (1 - w) p + w r

which is the mean of the reward, as the outcome is 0 or 1 and the charge does not depend on it.
(`gated` pays for cheapness only where the answer is right; `additive` is the published formula of
Router-R1.)

Why no policy that looks at the replies does better, where at most two of the candidates that know
a relation err: one reply says nothing about its own truth (right or wrong, it is a uniform entity),
so the next choice cannot depend on it. Two replies that agree confirm the answer that one of them
gave alone; two that disagree leave the more accurate one the better bet, which a plan asks anyway.
The second call changes no answer. What it can buy is to choose later candidates by how sure one is,
and that has to be worth a call: with the default candidates it never is (the tests search all
policies that compare two replies per hop), with other prices it is an assumption. With three
candidates that err, a majority can beat the best plan.

What it leaves out: failures (a failed call has no outcome), and candidates that always fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

from rlroute.types import RLRouteError

Combination = Literal["gated", "additive"]


@dataclass(frozen=True)
class Optimum:
    """The best plan for each sequence of relations, and means over the distribution of questions.

    `plans[relations]` are candidate ids, one per hop; () answers without calling. `success` is the
    probability of a right answer, `charge_usd` what a question costs, `calls` how many it takes.
    """

    plans: Mapping[tuple[str, ...], tuple[str, ...]]
    utility: float
    success: float
    charge_usd: float
    calls: float


@dataclass(frozen=True)
class Plan:
    """Candidates for the hops of one sequence, with what they achieve and cost (USD)."""

    candidates: tuple[str, ...]
    success: float
    charge_usd: float


def compute_success(accuracies: Sequence[float], entities: int) -> float:
    """Return the probability of a right answer after these hops; a mere guess for none."""
    if not accuracies:
        return 1 / entities
    right = 1.0
    for accuracy in accuracies:
        right = right * accuracy + (1 - right) / entities
    return right


def compute_worth(
    success: float, charge_usd: float, reference_usd: float, cost_weight: float, combination: str
) -> float:
    """Return the mean reward of a plan; see the formulas of the module."""
    cheapness = 1 - min(charge_usd / reference_usd, 1.0)
    if combination == "gated":
        return success * ((1 - cost_weight) + cost_weight * cheapness)
    if combination == "additive":
        return (1 - cost_weight) * success + cost_weight * cheapness
    raise RLRouteError(f"combination '{combination}': must be gated or additive")


def list_plans(
    relations: Sequence[str],
    accuracy: Mapping[str, Mapping[str, float]],
    charge_usd: Mapping[str, float],
    entities: int,
) -> list[Plan]:
    """Return all plans for one sequence of relations that ask only who knows the relation.

    `accuracy[candidate][relation]` is 0, or absent, where it is not known: such a call is worse
    than none.
    """
    knowing = [
        [name for name in accuracy if accuracy[name].get(relation, 0.0) > 0]
        for relation in relations
    ]
    plans = [Plan((), compute_success((), entities), 0.0)]
    for chosen in product(*knowing):
        rates = [accuracy[name][relation] for name, relation in zip(chosen, relations, strict=True)]
        charge = sum(charge_usd[name] for name in chosen)
        plans.append(Plan(chosen, compute_success(rates, entities), charge))
    return plans


def average_plans(
    relations: Sequence[str],
    hops: Sequence[int],
    choose: Callable[[tuple[str, ...]], Plan],
    compute_worth_of: Callable[[Plan], float],
) -> Optimum:
    """Average chosen plans over questions: hop numbers equally often, sequences uniformly."""
    plans: dict[tuple[str, ...], tuple[str, ...]] = {}
    utility = success = charge = calls = 0.0
    for count in hops:
        sequences = list(permutations(relations, count))
        share = 1 / (len(hops) * len(sequences))
        for sequence in sequences:
            plan = choose(sequence)
            plans[sequence] = plan.candidates
            utility += share * compute_worth_of(plan)
            success += share * plan.success
            charge += share * plan.charge_usd
            calls += share * len(plan.candidates)
    return Optimum(plans, utility, success, charge, calls)


def enumerate_optimum(
    relations: Sequence[str],
    hops: Sequence[int],
    accuracy: Mapping[str, Mapping[str, float]],
    charge_usd: Mapping[str, float],
    entities: int,
    reference_usd: float,
    cost_weight: float,
    combination: str,
) -> Optimum:
    """Return the best plan for every sequence, the cheaper one where two are worth the same."""

    def judge(plan: Plan) -> float:
        return compute_worth(plan.success, plan.charge_usd, reference_usd, cost_weight, combination)

    def choose(sequence: tuple[str, ...]) -> Plan:
        plans = list_plans(sequence, accuracy, charge_usd, entities)
        return max(plans, key=lambda plan: (judge(plan), -plan.charge_usd))

    return average_plans(relations, hops, choose, judge)
