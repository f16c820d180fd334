"""The relations world: seeded draws, charges, typed failures, and an optimum that is exact."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.pool.relations import UNKNOWN, RelationsWorld, write_sub_query
from rlroute.pool.relations_config import (
    GeneralistSpec,
    LatencySpec,
    RelationsConfig,
    SpecialistSpec,
    make_prices,
    make_specialists,
)
from rlroute.pool.relations_optimum import compute_success, compute_worth
from rlroute.types import SPLITS, Call, FailureKind, Query, Reply, RLRouteError

WORLD = RelationsWorld(RelationsConfig())
NEWCOMER = SpecialistSpec(relations=("heir", "guide"), prices=make_prices(1.0, 3e-4))


def ask(world: RelationsWorld, name: str, query: Query, text: str, sample: int = 0) -> Reply:
    """Ask one candidate."""
    return asyncio.run(world.ask_many([Call(name, query, text, sample=sample)]))[0]


def play_plan(world: RelationsWorld, query: Query, plan: tuple[str, ...]) -> tuple[bool, float]:
    """Follow a plan; return whether the answer is right and what was charged (USD)."""
    entity, charge = query.metadata["entity"], 0.0
    if plan:
        for name, relation in zip(plan, query.metadata["relations"].split(","), strict=True):
            reply = world.answer(Call(name, query, write_sub_query(relation, entity)))
            entity, charge = reply.text, charge + reply.cost_usd
    return entity == query.references[0], charge


def test_equal_configs_give_equal_questions_and_replies_and_another_seed_gives_others() -> None:
    again = RelationsWorld(RelationsConfig())
    other = RelationsWorld(RelationsConfig(seed=1))
    queries = WORLD.make_queries("train", 60)
    assert queries == again.make_queries("train", 60)
    assert queries[:20] == WORLD.make_queries("train", 20)
    assert sum(a == b for a, b in zip(queries, other.make_queries("train", 60), strict=True)) < 5
    texts = [ask(WORLD, "small", query, "boss of Ada").text for query in queries]
    assert texts == [ask(again, "small", query, "The BOSS of ada").text for query in queries]
    second = [ask(WORLD, "small", query, "boss of Ada", sample=1).text for query in queries]
    assert 0 < sum(a != b for a, b in zip(texts, second, strict=True)) < 60


def test_the_splits_share_no_query_and_hops_are_equally_frequent() -> None:
    ids = [query.id for split in SPLITS for query in WORLD.make_queries(split, 90)]
    assert len(set(ids)) == 270
    hops = Counter(query.metadata["hops"] for query in WORLD.make_queries("val", 90))
    assert hops == {"1": 30, "2": 30, "3": 30}
    for query in WORLD.make_queries("test", 90):
        relations = query.metadata["relations"].split(",")
        assert len(set(relations)) == len(relations) == int(query.metadata["hops"])
    with pytest.raises(RLRouteError, match="must be one of train, val, test"):
        WORLD.make_queries("dev", 1)  # type: ignore[arg-type]


def test_a_question_names_the_innermost_relation_last_and_its_answer_follows_from_facts() -> None:
    query = WORLD.make_queries("train", 3)[2]
    first, second, third = query.metadata["relations"].split(",")
    entity = query.metadata["entity"]
    assert query.text == f"Who is the {third} of the {second} of the {first} of {entity}?"
    for relation in (first, second, third):
        entity = WORLD.find_fact(query.id, relation, entity)
    assert query.references == (entity,)


def test_facts_are_uniform_and_differ_from_query_to_query() -> None:
    facts = [WORLD.find_fact(f"q{number}", "boss", "Ada") for number in range(4800)]
    counts = np.array(list(Counter(facts).values()))
    assert len(counts) == 24
    chi_square = float(((counts - 200) ** 2 / 200).sum())
    assert chi_square < 23 + 5 * math.sqrt(46)  # five standard deviations


@pytest.mark.parametrize(
    "text",
    [
        "coach of Ada",
        "coach of the boss of Ada",
        "Who is the boss of Ada?",
        "boss of Nobody",
        "sister of Ada",
        "boss",
        "",
    ],
)
def test_what_a_specialist_does_not_know_or_understand_is_unknown_and_charged(text: str) -> None:
    query = WORLD.make_queries("train", 1)[0]
    reply = ask(WORLD, "alpha", query, text)
    assert (reply.text, reply.failure) == (UNKNOWN, None)
    assert reply.cost_usd > 3e-4


def test_a_charge_is_computed_from_words_and_prices() -> None:
    query = WORLD.make_queries("train", 1)[0]
    reply = ask(WORLD, "large", query, "the boss of Ada")
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (4, 1)
    assert reply.cost_usd == pytest.approx(1e-3 + (4 * 5 + 15) / 1e6)
    short = ask(WORLD, "large", query, "boss of Ada")
    assert short.cost_usd == pytest.approx(WORLD.charge_usd["large"])


def test_an_unknown_candidate_is_named() -> None:
    with pytest.raises(RLRouteError, match=r"unknown candidate 'medium' \(known: alpha, beta"):
        ask(WORLD, "medium", WORLD.make_queries("train", 1)[0], "boss of Ada")


def test_candidates_err_as_often_as_stated_and_wrong_names_are_other_names() -> None:
    queries = WORLD.make_queries("val", 3000)
    for name, accuracy in (("alpha", 1.0), ("large", 0.9), ("small", 0.6)):
        calls = [Call(name, query, "boss of Ada") for query in queries]
        replies = asyncio.run(WORLD.ask_many(calls))
        right = [
            reply.text == WORLD.find_fact(reply.call.query.id, "boss", "Ada") for reply in replies
        ]
        error = math.sqrt(accuracy * (1 - accuracy) / len(right))
        assert np.mean(right) == pytest.approx(accuracy, abs=4 * error)
        assert {reply.text for reply in replies} == set(WORLD.entities)


def test_profiles_hold_the_accuracy_per_relation_and_the_mean_charge() -> None:
    assert [candidate.id for candidate in WORLD.candidates] == [
        *("alpha", "beta", "large", "small")
    ]
    specialist = WORLD.candidates[0]
    assert specialist.description == "knows boss, friend"
    assert specialist.profile is not None
    assert specialist.profile.score_C.tolist() == [1, 1, 0, 0, 0, 0]
    assert specialist.profile.mean_score == pytest.approx(1 / 3)
    assert specialist.profile.mean_cost_usd == WORLD.charge_usd["alpha"]
    assert specialist.profile.latency_seconds is None
    assert WORLD.candidates[2].description == "knows all"


def test_a_dead_candidate_gives_typed_failures_and_is_no_part_of_the_optimum() -> None:
    specialists = make_specialists()
    dead = specialists["alpha"].model_copy(update={"failures": {FailureKind.SERVER: 1.0}})
    world = RelationsWorld(RelationsConfig(specialists=specialists | {"alpha": dead}))
    for query in world.make_queries("train", 20):
        reply = ask(world, "alpha", query, "boss of Ada")
        assert reply.failure is FailureKind.SERVER
        assert (reply.score, reply.cost_usd, reply.text) == (None, 0.0, "")
    optimum = world.find_optimum(0.0)
    assert not any("alpha" in plan for plan in optimum.plans.values())
    assert optimum.success < WORLD.find_optimum(0.0).success


def test_failures_come_at_their_rates() -> None:
    small = GeneralistSpec(
        accuracy=0.8,
        prices=make_prices(0.1, 4e-5),
        failures={FailureKind.TIMEOUT: 0.2, FailureKind.RATE_LIMITED: 0.1},
    )
    world = RelationsWorld(RelationsConfig(generalists={"small": small}))
    kinds = Counter(
        world.answer(Call("small", query, "boss of Ada")).failure
        for query in world.make_queries("train", 2000)
    )
    assert kinds[FailureKind.TIMEOUT] / 2000 == pytest.approx(0.2, abs=0.04)
    assert kinds[FailureKind.RATE_LIMITED] / 2000 == pytest.approx(0.1, abs=0.03)


def test_latencies_are_log_normal_with_stragglers_and_are_reported() -> None:
    world = RelationsWorld(RelationsConfig(latency=LatencySpec()))
    calls = [Call("small", query, "boss of Ada") for query in world.make_queries("train", 2000)]
    seconds = np.array([reply.latency_seconds for reply in asyncio.run(world.ask_many(calls))])
    usual = seconds[seconds != 5.0]
    assert 1 - len(usual) / 2000 == pytest.approx(0.1, abs=0.03)
    assert np.median(usual) == pytest.approx(0.8, rel=0.07)
    assert world.candidates[0].profile is not None
    assert world.candidates[0].profile.latency_seconds == pytest.approx(seconds.mean(), rel=0.07)
    assert ask(WORLD, "small", calls[0].query, "boss of Ada").latency_seconds is None


def test_calls_wait_when_the_latency_is_scaled() -> None:
    slow = LatencySpec(median_seconds=0.02, sigma=0, straggler_rate=0, sleep_scale=1.0)
    world = RelationsWorld(RelationsConfig(latency=slow))
    query = world.make_queries("train", 1)[0]
    order: list[str] = []

    async def call() -> None:
        await world.ask_many([Call("small", query, "boss of Ada")])
        order.append("reply")

    async def run() -> None:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        order.append("others go on")
        await task

    asyncio.run(run())
    assert order == ["others go on", "reply"]


# --- The optimum ----------------------------------------------------------------------------------


def test_the_chain_of_success_is_right_at_its_ends() -> None:
    assert compute_success((), 24) == 1 / 24
    assert compute_success((1.0, 1.0, 1.0), 24) == 1.0
    assert compute_success((0.0,), 24) == 0.0
    assert compute_success((0.5, 0.8), 10) == pytest.approx(0.5 * 0.8 + 0.5 / 10)


@pytest.mark.parametrize("plan", [("small",), ("large", "small"), ("small", "small", "small")])
def test_the_success_of_a_plan_in_closed_form_is_that_of_simulation(plan: tuple[str, ...]) -> None:
    few = RelationsWorld(RelationsConfig(entities=4, min_hops=len(plan), max_hops=len(plan)))
    played = [play_plan(few, query, plan) for query in few.make_queries("test", 4000)]
    success = compute_success([few.accuracy[name]["boss"] for name in plan], 4)
    error = math.sqrt(success * (1 - success) / len(played))
    assert np.mean([right for right, _ in played]) == pytest.approx(success, abs=4 * error)
    charge = sum(few.charge_usd[name] for name in plan)
    assert [usd for _, usd in played] == pytest.approx([charge] * len(played))


@pytest.mark.parametrize("combination", ["gated", "additive"])
@pytest.mark.parametrize("cost_weight", [0.0, 0.45, 0.8, 1.0])
def test_the_optimum_is_that_of_simulation(cost_weight: float, combination: str) -> None:
    optimum = WORLD.find_optimum(cost_weight, combination)
    worth, success, charges, calls = [], [], [], []
    for query in WORLD.make_queries("test", 3000):
        plan = optimum.plans[tuple(query.metadata["relations"].split(","))]
        right, charge = play_plan(WORLD, query, plan)
        reference = WORLD.reference_usd
        worth.append(compute_worth(float(right), charge, reference, cost_weight, combination))
        success.append(right)
        charges.append(charge)
        calls.append(len(plan))
    for played, exact in (
        (worth, optimum.utility),
        (success, optimum.success),
        (charges, optimum.charge_usd),
        (calls, optimum.calls),
    ):
        error = float(np.std(played)) / math.sqrt(len(played))
        assert np.mean(played) == pytest.approx(exact, abs=4 * error + 1e-12)


@pytest.mark.parametrize("combination", ["gated", "additive"])
def test_success_and_charge_never_rise_with_the_cost_weight(combination: str) -> None:
    optima = [WORLD.find_optimum(weight, combination) for weight in np.linspace(0, 1, 41)]
    for cheap, dear in pairwise(reversed(optima)):
        assert cheap.success <= dear.success + 1e-12
        assert cheap.charge_usd <= dear.charge_usd + 1e-12


def test_the_default_candidates_make_a_frontier_of_several_policies() -> None:
    optima = [WORLD.find_optimum(weight) for weight in (0.0, 0.6, 0.7, 0.8)]
    assert [len({tuple(o.plans.items()) for o in optima[:n]}) for n in (1, 2, 3, 4)] == [1, 2, 3, 4]
    used = [Counter(name for plan in o.plans.values() for name in plan) for o in optima]
    assert used[0]["large"] > 0
    assert used[0]["small"] == 0
    assert used[0]["large"] > used[1]["large"] > used[3]["large"] == 0
    assert used[1]["alpha"] == used[0]["alpha"]
    assert used[3]["small"] > used[2]["small"] > used[1]["small"]
    dearest = max(sum(WORLD.charge_usd[name] for name in plan) for plan in optima[0].plans.values())
    assert WORLD.reference_usd == dearest


@settings(max_examples=15, deadline=None)
@given(
    accuracies=st.lists(st.floats(0.05, 0.99), min_size=2, max_size=2),
    charges=st.lists(st.floats(0, 1e-3), min_size=2, max_size=2),
    cost_weight=st.floats(0, 1),
    combination=st.sampled_from(["gated", "additive"]),
)
def test_no_plan_of_a_small_world_beats_the_optimum(
    accuracies: list[float], charges: list[float], cost_weight: float, combination: str
) -> None:
    generalists = {
        f"g{number}": GeneralistSpec(accuracy=accuracy, prices=make_prices(1.0, charge))
        for number, (accuracy, charge) in enumerate(zip(accuracies, charges, strict=True))
    }
    known = SpecialistSpec(relations=("boss",), accuracy=0.9, prices=make_prices(1.0, 1e-4))
    world = RelationsWorld(
        RelationsConfig(
            entities=5,
            relations=("boss", "heir"),
            max_hops=2,
            specialists={"spec": known},
            generalists=generalists,
            reference_usd=1e-3,
        )
    )
    optimum = world.find_optimum(cost_weight, combination)
    total = 0.0
    for hops in (1, 2):
        sequences = [("boss",), ("heir",)] if hops == 1 else [("boss", "heir"), ("heir", "boss")]
        for sequence in sequences:
            best = -1.0
            for plan in [(), *product(world.accuracy, repeat=hops)]:
                rates = [world.accuracy[n][r] for n, r in zip(plan, sequence, strict=False)]
                charge = sum(world.charge_usd[name] for name in plan)
                success = compute_success(rates, 5)
                worth = compute_worth(success, charge, 1e-3, cost_weight, combination)
                best = max(best, worth)
            total += best / 4
    assert optimum.utility == pytest.approx(total, abs=1e-12)


def search_adaptive(
    world: RelationsWorld, relations: tuple[str, ...], cost_weight: float, combination: str
) -> float:
    """Return the worth of the best policy that may compare two replies about each hop.

    It believes what is likelier true, knows how likely (`trust`), and chooses the next candidates,
    or stops, by how sure it is of the chain and by what is spent.
    """
    others = len(world.entities) - 1

    def go_on(hop: int, right: float, charge: float) -> float:
        stopped = right if hop == len(relations) else 1 / len(world.entities)
        best = compute_worth(stopped, charge, world.reference_usd, cost_weight, combination)
        if hop == len(relations):
            return best
        rates = {name: known[relations[hop]] for name, known in world.accuracy.items()}
        knowing = [name for name, rate in rates.items() if rate > 0]

        def believe(trust: float, spent: float) -> float:
            return go_on(hop + 1, right * trust + (1 - right) / len(world.entities), spent)

        for name in knowing:
            best = max(best, believe(rates[name], charge + world.charge_usd[name]))
        for one, two in combinations(knowing, 2):
            spent = charge + world.charge_usd[one] + world.charge_usd[two]
            agree = rates[one] * rates[two] + (1 - rates[one]) * (1 - rates[two]) / others
            single = max(rates[one] * (1 - rates[two]), rates[two] * (1 - rates[one]))
            worth = agree * believe(rates[one] * rates[two] / agree, spent)
            worth += (1 - agree) * believe(single / (1 - agree), spent)
            best = max(best, worth)
        return best

    return go_on(0, 1.0, 0.0)


@pytest.mark.parametrize("combination", ["gated", "additive"])
@pytest.mark.parametrize("cost_weight", [0.0, 0.01, 0.35, 0.4, 0.65, 0.75, 0.9, 1.0])
def test_comparing_replies_does_not_pay_with_the_default_candidates(
    cost_weight: float, combination: str
) -> None:
    optimum = WORLD.find_optimum(cost_weight, combination)
    patterns = {
        tuple(sum(known[r] > 0 for known in WORLD.accuracy.values()) for r in sequence): sequence
        for sequence in optimum.plans
    }
    assert len(patterns) == 13  # who knows what; three hops of generalists only do not exist
    for sequence in patterns.values():
        plan = optimum.plans[sequence]
        rates = [WORLD.accuracy[n][r] for n, r in zip(plan, sequence, strict=False)]
        charge = sum(WORLD.charge_usd[name] for name in plan)
        success = compute_success(rates, len(WORLD.entities))
        worth = compute_worth(success, charge, WORLD.reference_usd, cost_weight, combination)
        adaptive = search_adaptive(WORLD, sequence, cost_weight, combination)
        assert adaptive == pytest.approx(worth, abs=1e-12)


def test_a_new_specialist_joins_the_candidates_and_the_optimum_and_changes_no_fact() -> None:
    world = WORLD.add_specialist("spec-c", NEWCOMER.model_copy(update={"measured": False}))
    assert [c.id for c in world.candidates] == ["alpha", "beta", "spec-c", "large", "small"]
    newcomer = world.candidates[2]
    assert (newcomer.description, newcomer.profile) == ("knows heir, guide", None)
    assert world.make_queries("test", 30) == WORLD.make_queries("test", 30)
    assert world.reference_usd == WORLD.reference_usd
    before, after = WORLD.find_optimum(0.3), world.find_optimum(0.3)
    assert after.plans["heir",] == ("spec-c",)
    assert before.plans["heir",] == ("large",)
    assert after.utility > before.utility
    assert WORLD.find_optimum(0.3) == before
    query = world.make_queries("test", 1)[0]
    assert ask(world, "spec-c", query, "heir of Bo").text == world.find_fact(query.id, "heir", "Bo")
    with pytest.raises(RLRouteError, match="has a candidate of this name"):
        world.add_specialist("spec-c", NEWCOMER)
    with pytest.raises(RLRouteError, match="unknown relation 'king'"):
        WORLD.add_specialist(
            "spec-d", SpecialistSpec(relations=("king",), prices=make_prices(1.0, 0.0))
        )


# --- The config -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"entities": 1}, "entities: "),
        ({"relations": ["boss", "Boss"], "max_hops": 1}, "distinct words"),
        ({"relations": ["boss of"], "max_hops": 1}, "distinct words"),
        ({"max_hops": 7}, "max_hops: must lie between"),
        ({"min_hops": 3, "max_hops": 2}, "max_hops: must lie between"),
        ({"specialists": {}, "generalists": {}}, "has no candidate"),
        ({"seeds": 1}, "did you mean 'seed'"),
        ({"generalists": {"g": {"accuracy": 0.5}}}, "generalists.g.prices: Field required"),
        (
            {"generalists": {"g": {"accuracy": 1.0, "prices": {"input": 1, "output": 1}}}},
            "generalists.g.accuracy: ",
        ),
        (
            {"generalists": {"alpha": {"accuracy": 0.5, "prices": {"input": 1, "output": 1}}}},
            "'alpha' is a specialist already",
        ),
    ],
)
def test_a_world_that_cannot_be_is_refused_in_one_line(stated: Any, fault: str) -> None:
    with pytest.raises(RLRouteError, match=fault) as caught:
        parse_config(RelationsConfig, stated, "world.yaml")
    assert "\n" not in str(caught.value)


def test_a_world_where_nothing_costs_needs_a_reference() -> None:
    free = GeneralistSpec(accuracy=0.5, prices=make_prices(0.0, 0.0))
    config = RelationsConfig(specialists={}, generalists={"free": free})
    with pytest.raises(RLRouteError, match="reference_usd: must be stated"):
        RelationsWorld(config)
    assert RelationsWorld(config.model_copy(update={"reference_usd": 1.0})).find_optimum(0.5)


def test_weights_and_combinations_out_of_range_are_refused() -> None:
    with pytest.raises(RLRouteError, match=r"must lie in \[0, 1\]"):
        WORLD.find_optimum(1.5)
    with pytest.raises(RLRouteError, match="must be gated or additive"):
        WORLD.find_optimum(0.5, "product")
