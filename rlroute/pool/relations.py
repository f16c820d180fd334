"""A world of relations: questions of one to three hops, candidates that know some of the relations.

What it is: entities (Ada, Bo, ...), relations (boss, friend, ...) and facts relation(entity) =
entity. A question chains different relations, the innermost last: "Who is the coach of the boss of
Ada?". Facts are drawn anew for each query, uniformly, by hashing (seed, query id, relation,
entity): there is nothing to memorise, and a guess is right with probability 1 / E.

Candidates answer one hop at a time, "boss of Ada" ("the" may stand before it, case does not
matter). Anything else, and a relation that a specialist does not know, is answered by "unknown",
and charged. Specialists know some relations; generalists know all, err and are priced otherwise. A
wrong answer is a uniformly drawn other entity. Usage is counted in words of the call's text and of
the reply. Answers, failures and latencies are pure functions of (seed, candidate, query, what is
asked, sample): asking again gives the same, also when a failed episode is tried again.

With the default candidates the best plan changes as the cost weight grows: first the accurate ones
everywhere, then the small generalist, first in place of the large one, then of the specialists
(`find_optimum`).

What it leaves out: language. Nothing is phrased in two ways; the system text of a call is ignored
and not charged.

How to use:
    world = RelationsWorld(RelationsConfig())
    queries = world.make_queries("train", 300)
    world.find_optimum(0.5).utility
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from rlroute.config import parse_config
from rlroute.pool.relations_config import (
    NAMES,
    LatencySpec,
    MemberSpec,
    RelationsConfig,
    SpecialistSpec,
)
from rlroute.pool.relations_optimum import Optimum, enumerate_optimum
from rlroute.seeding import draw_permutation, draw_uniform
from rlroute.types import (
    SPLITS,
    Call,
    Candidate,
    FailureKind,
    Limits,
    Profile,
    Query,
    Reply,
    RLRouteError,
    SplitName,
    Usage,
)

UNKNOWN = "unknown"
SUB_QUERY = re.compile(r"\s*(?:the\s+)?([a-z]+)\s+of\s+([a-z]+)\s*", re.IGNORECASE)


class RelationsWorld:
    """The questions, the candidates, and the pool that answers for them.

    `candidates` come in the order of the config, specialists first. `reference_usd` is what a fixed
    cost normaliser divides by.
    """

    def __init__(self, config: RelationsConfig) -> None:
        self.config = config
        self.entities = NAMES[: config.entities]
        self.relations = config.relations
        self.members: dict[str, MemberSpec] = {**config.specialists, **config.generalists}
        self.accuracy = {name: self._list_accuracy(spec) for name, spec in self.members.items()}
        self.charge_usd = {name: compute_charge(spec) for name, spec in self.members.items()}
        self.reference_usd = config.reference_usd or self._find_dearest_charge()
        self.candidates = tuple(self._make_candidate(name) for name in self.members)
        self._entity_numbers = {name.casefold(): i for i, name in enumerate(self.entities)}
        self._relation_names = {relation.casefold(): relation for relation in self.relations}

    def _list_accuracy(self, spec: MemberSpec) -> dict[str, float]:
        """Return the share of right answers per relation, 0 where it is not known."""
        known = spec.relations if isinstance(spec, SpecialistSpec) else self.relations
        return {relation: spec.accuracy * (relation in known) for relation in self.relations}

    def _find_dearest_charge(self) -> float:
        """Return the charge in USD of the dearest plan that is best at cost weight 0."""
        plans = self._enumerate(0.0, "gated", reference_usd=1.0).plans.values()
        dearest = max(sum(self.charge_usd[name] for name in plan) for plan in plans)
        if dearest == 0:
            raise RLRouteError("reference_usd: must be stated where no plan costs anything")
        return dearest

    def _make_candidate(self, name: str) -> Candidate:
        """Return what a policy is told; the clusters of the profile are the relations."""
        spec, score_C = self.members[name], list(self.accuracy[name].values())
        charge = self.charge_usd[name]
        known = ", ".join(spec.relations) if isinstance(spec, SpecialistSpec) else "all"
        profile = Profile(
            float(np.mean(score_C)),
            charge,
            np.array(score_C, dtype=np.float32),
            np.full(len(score_C), charge, dtype=np.float32),
            self.config.latency.mean_seconds if self.config.latency else None,
        )
        return Candidate(
            name,
            spec.prices.to_prices(),
            description=f"knows {known}",
            limits=Limits(output_tokens=1),  # every reply is one word
            profile=profile if spec.measured else None,
        )

    def add_specialist(self, name: str, spec: SpecialistSpec) -> RelationsWorld:
        """Return a world with one more specialist, and the same facts and `reference_usd`.

        Raises:
            RLRouteError: the name is taken, or a relation is unknown.
        """
        if name in self.members:
            raise RLRouteError(f"specialists.{name}: the world has a candidate of this name")
        stated = self.config.model_dump()
        stated["specialists"][name] = spec.model_dump()
        stated["reference_usd"] = self.reference_usd
        return RelationsWorld(parse_config(RelationsConfig, stated, "relations world"))

    def find_fact(self, query_id: str, relation: str, entity: str) -> str:
        """Return the entity that stands in `relation` to `entity`, in the world of this query."""
        draw = draw_uniform(self.config.seed, "fact", query_id, relation, entity)
        return self.entities[int(draw * len(self.entities))]

    def make_queries(self, split: SplitName, count: int) -> list[Query]:
        """Return the first `count` queries of a split; the splits share none.

        The numbers of hops take turns, so all are equally frequent; the sequence of relations and
        the first entity are uniform. Metadata: `split`, `hops`, `relations` (in the order of the
        hops, with commas) and `entity`.

        Raises:
            RLRouteError: no such split.
        """
        if split not in SPLITS:
            raise RLRouteError(f"split '{split}': must be one of {', '.join(SPLITS)}")
        return [self._make_query(split, number) for number in range(count)]

    def _make_query(self, split: SplitName, number: int) -> Query:
        """Return one query; its answer follows from the facts."""
        config, query_id = self.config, f"relations-{split}-{number:06d}"
        hops = config.min_hops + number % (config.max_hops - config.min_hops + 1)
        order = draw_permutation(len(self.relations), config.seed, "relations", query_id)
        sequence = [self.relations[i] for i in order[:hops]]
        draw = draw_uniform(config.seed, "entity", query_id)
        first = answer = self.entities[int(draw * len(self.entities))]
        for relation in sequence:
            answer = self.find_fact(query_id, relation, answer)
        chain = " of ".join(f"the {relation}" for relation in reversed(sequence))
        return Query(
            query_id,
            f"Who is {chain} of {first}?",
            task="relations",
            dataset="relations",
            references=(answer,),
            metadata={
                "split": split,
                "hops": str(hops),
                "relations": ",".join(sequence),
                "entity": first,
            },
        )

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order.

        Raises:
            RLRouteError: a candidate is unknown.
        """
        replies = [self.answer(call) for call in calls]
        scale = self.config.latency.sleep_scale if self.config.latency else 0.0
        if scale > 0:
            await asyncio.sleep(scale * max((r.latency_seconds or 0.0 for r in replies), default=0))
        return replies

    def answer(self, call: Call) -> Reply:
        """Answer one call at once; see `ask_many`."""
        spec = self.members.get(call.candidate_id)
        if spec is None:
            known = ", ".join(self.members)
            raise RLRouteError(f"unknown candidate '{call.candidate_id}' (known: {known})")
        where = (self.config.seed, call.candidate_id, call.query.id, call.text, call.sample)
        seconds = draw_latency(self.config.latency, where)
        failure = draw_failure(spec.failures, where)
        if failure is not None:
            return Reply(call, latency_seconds=seconds, failure=failure)
        text = self._find_reply(call)
        usage = Usage(count_words(call.text), count_words(text))
        cost = spec.prices.to_prices().compute_cost(usage.prompt_tokens, usage.completion_tokens)
        return Reply(call, text=text, usage=usage, cost_usd=cost, latency_seconds=seconds)

    def _find_reply(self, call: Call) -> str:
        """Return the text of the reply: an entity, right or wrong, or "unknown"."""
        match = SUB_QUERY.fullmatch(call.text)
        if match is None:
            return UNKNOWN
        relation = self._relation_names.get(match[1].casefold())
        number = self._entity_numbers.get(match[2].casefold())
        if relation is None or number is None:
            return UNKNOWN
        accuracy = self.accuracy[call.candidate_id][relation]
        if accuracy == 0:
            return UNKNOWN
        entity = self.entities[number]
        truth = self.find_fact(call.query.id, relation, entity)
        where = (self.config.seed, call.candidate_id, call.query.id, relation, entity, call.sample)
        if draw_uniform("accuracy", *where) < accuracy:
            return truth
        others = [name for name in self.entities if name != truth]
        return others[int(draw_uniform("error", *where) * len(others))]

    def find_optimum(self, cost_weight: float, combination: str = "gated") -> Optimum:
        """Return the best plans at a cost weight in [0, 1], and their means over all questions.

        Utilities are means of the reward with format 0 and the cost term
        1 - clip(charge / reference_usd, 0, 1). Candidates that always fail take no part; see
        `rlroute.pool.relations_optimum` for the formulas and for what is assumed.

        Raises:
            RLRouteError: the weight is outside [0, 1], or no such combination.
        """
        if not 0 <= cost_weight <= 1:
            raise RLRouteError(f"cost weight {cost_weight}: must lie in [0, 1]")
        return self._enumerate(cost_weight, combination, self.reference_usd)

    def _enumerate(self, cost_weight: float, combination: str, reference_usd: float) -> Optimum:
        """Return the optimum over the candidates that do not always fail."""
        alive = {
            name: self.accuracy[name]
            for name, spec in self.members.items()
            if sum(spec.failures.values()) < 1
        }
        return enumerate_optimum(
            self.relations,
            range(self.config.min_hops, self.config.max_hops + 1),
            alive,
            self.charge_usd,
            len(self.entities),
            reference_usd,
            cost_weight,
            combination,
        )


def write_sub_query(relation: str, entity: str) -> str:
    """Return the text of one hop, as candidates understand it."""
    return f"{relation} of {entity}"


def count_words(text: str) -> int:
    """Return the number of words, which are the tokens of this world."""
    return len(text.split())


def compute_charge(spec: MemberSpec) -> float:
    """Return the charge of one hop in USD: names are single words, so it is always the same."""
    words = count_words(write_sub_query("relation", "entity"))
    return spec.prices.to_prices().compute_cost(words, 1)


def draw_failure(
    failures: Mapping[FailureKind, float], where: tuple[int | str, ...]
) -> FailureKind | None:
    """Return the failure that befalls a call, or None."""
    if not failures:
        return None
    draw, reached = float(draw_uniform("failure", *where)), 0.0
    for kind, rate in failures.items():
        reached += rate
        if draw < reached:
            return kind
    return None


def draw_latency(latency: LatencySpec | None, where: tuple[int | str, ...]) -> float | None:
    """Return the seconds that a reply takes, None where latency is not simulated."""
    if latency is None:
        return None
    if draw_uniform("straggler", *where) < latency.straggler_rate:
        return latency.straggler_seconds
    normal = NormalDist().inv_cdf(max(float(draw_uniform("latency", *where)), 1e-12))
    return latency.median_seconds * math.exp(latency.sigma * normal)
