"""Scripted text policies, played through the multi-round environment against the world."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlroute.envs.multi_round import MultiRound, MultiRoundConfig
from rlroute.parsing import AnswerAction, CallAction, index_names, parse_chunk
from rlroute.policies.scripted import DelegatingPlanner, Planner, ScriptedPlanner, extract_reply
from rlroute.pool.relations import RelationsWorld
from rlroute.pool.relations_config import RelationsConfig, SpecialistSpec, make_prices
from rlroute.pool.relations_optimum import compute_worth
from rlroute.rollout.demonstrations import write_demonstrations
from rlroute.types import (
    FailureKind,
    Query,
    RLRouteError,
    TextDecision,
    TextObservation,
    Trajectory,
)

WORLD = RelationsWorld(RelationsConfig())
TextTrajectory = Trajectory[TextObservation, TextDecision]


def play(
    planner: Planner,
    queries: list[Query],
    *,
    world: RelationsWorld = WORLD,
    cost_weights: tuple[float, ...] = (0.0,),
) -> list[TextTrajectory]:
    """Play one episode per query in the environment with the short prompt."""
    config = MultiRoundConfig(prompt="short", cost_weights=cost_weights)
    return write_demonstrations(
        lambda: MultiRound(world.candidates, config), planner, world, queries, seed=0
    )


def get_terms(trajectories: list[TextTrajectory], name: str) -> list[float]:
    """Return a final reward term of every trajectory."""
    values = [trajectory.transitions[-1].reward_terms[name] for trajectory in trajectories]
    assert None not in values
    return [float(value) for value in values if value is not None]


def list_chunks(trajectory: TextTrajectory) -> list[str]:
    """Return what the policy wrote."""
    return [step.decision.text for step in trajectory.transitions]


def list_asked(trajectory: TextTrajectory) -> list[str]:
    """Return the candidates that were asked."""
    return [reply.call.candidate_id for step in trajectory.transitions for reply in step.replies]


def test_chunks_have_the_format_of_the_environment() -> None:
    query = WORLD.make_queries("train", 3)[2]
    (trajectory,) = play(ScriptedPlanner(WORLD, "always large"), [query])
    first, *_, last = list_chunks(trajectory)
    relation, entity = query.metadata["relations"].split(",")[0], query.metadata["entity"]
    assert first == f"<think>{relation}</think><search>large:{relation} of {entity}</search>"
    reply = trajectory.transitions[-2].replies[0].text
    assert last == f"<think>done</think><answer>{reply}</answer>"
    names = index_names(WORLD.candidates)
    for mode in ("random", "knowing", "thrifty", "optimal"):
        for played in play(ScriptedPlanner(WORLD, mode), WORLD.make_queries("train", 30)):
            for chunk in list_chunks(played):
                parsed = parse_chunk(chunk, names, require_think=True)
                assert isinstance(parsed.action, CallAction | AnswerAction)
                assert parsed.faults == ()
            assert played.transitions[-1].terminated
            assert played.transitions[-1].reward_terms["format"] == 0


@pytest.mark.parametrize(
    ("cost_weight", "combination"),
    [(0.0, "gated"), (0.5, "gated"), (0.9, "gated"), (0.5, "additive")],
)
def test_the_optimal_policy_earns_the_utility_of_the_optimum(
    cost_weight: float, combination: str
) -> None:
    optimum = WORLD.find_optimum(cost_weight, combination)
    planner = ScriptedPlanner(WORLD, "optimal", combination=combination)
    played = play(planner, WORLD.make_queries("test", 900), cost_weights=(cost_weight,))
    outcomes, charges = get_terms(played, "outcome"), get_terms(played, "charge_usd")
    worth = [
        compute_worth(outcome, charge, WORLD.reference_usd, cost_weight, combination)
        for outcome, charge in zip(outcomes, charges, strict=True)
    ]
    calls = [float(len(list_asked(trajectory))) for trajectory in played]
    for values, exact in (
        (worth, optimum.utility),
        (outcomes, optimum.success),
        (charges, optimum.charge_usd),
        (calls, optimum.calls),
    ):
        error = float(np.std(values)) / math.sqrt(len(values))
        assert np.mean(values) == pytest.approx(exact, abs=4 * error + 1e-12)


def test_the_optimal_policy_follows_the_cost_weight_of_the_episode() -> None:
    queries = WORLD.make_queries("test", 60)
    played = play(ScriptedPlanner(WORLD, "optimal"), queries, cost_weights=(0.0, 0.9))
    weights = {trajectory.transitions[0].observation.cost_weight for trajectory in played}
    assert weights == {0.0, 0.9}
    for trajectory in played:
        plans = WORLD.find_optimum(trajectory.transitions[0].observation.cost_weight).plans
        relations = tuple(trajectory.query.metadata["relations"].split(","))
        assert tuple(list_asked(trajectory)) == plans[relations]


def test_where_a_guess_is_best_the_optimal_policy_answers_without_a_call() -> None:
    planner = ScriptedPlanner(WORLD, "optimal", combination="additive")
    (trajectory,) = play(planner, WORLD.make_queries("test", 1), cost_weights=(1.0,))
    assert len(trajectory.transitions) == 1
    assert list_asked(trajectory) == []


def test_knowing_policies_ask_only_who_knows_and_random_ones_ask_everybody() -> None:
    queries = WORLD.make_queries("train", 90)
    for trajectory in play(ScriptedPlanner(WORLD, "knowing"), queries):
        asked, hops = list_asked(trajectory), int(trajectory.query.metadata["hops"])
        relations = trajectory.query.metadata["relations"].split(",")
        assert len(asked) == hops
        assert all(WORLD.accuracy[n][r] > 0 for n, r in zip(asked, relations, strict=True))
    played = play(ScriptedPlanner(WORLD, "random"), queries)
    assert {name for t in played for name in list_asked(t)} == set(WORLD.members)
    assert all(len(list_asked(trajectory)) <= 4 for trajectory in played)
    knowing = play(ScriptedPlanner(WORLD, "knowing"), queries)
    assert np.mean(get_terms(played, "outcome")) < np.mean(get_terms(knowing, "outcome"))


def test_after_an_unknown_reply_somebody_else_is_asked_the_same() -> None:
    played = play(ScriptedPlanner(WORLD, "random"), WORLD.make_queries("train", 60))
    seen = 0
    for trajectory in played:
        for step, after in zip(trajectory.transitions, trajectory.transitions[1:], strict=False):
            if step.replies[0].text == "unknown" and after.replies:
                seen += 1
                assert after.replies[0].call.text == step.replies[0].call.text
                assert after.replies[0].call.candidate_id != step.replies[0].call.candidate_id
    assert seen > 10


def test_a_policy_that_always_asks_one_who_does_not_know_guesses() -> None:
    query = next(
        q for q in WORLD.make_queries("train", 30) if q.metadata["relations"].startswith("heir")
    )
    (trajectory,) = play(ScriptedPlanner(WORLD, "always alpha"), [query])
    assert list_asked(trajectory) == ["alpha"]
    assert list_chunks(trajectory)[-1].endswith(f"<answer>{query.metadata['entity']}</answer>")


def test_equal_seeds_give_equal_episodes_and_repeated_queries_are_drawn_anew() -> None:
    query = WORLD.make_queries("train", 3)[2]
    planner = ScriptedPlanner(WORLD, "random", seed=4)
    played = play(planner, [query] * 20)
    assert played == play(ScriptedPlanner(WORLD, "random", seed=4), [query] * 20)
    assert len({tuple(list_chunks(trajectory)) for trajectory in played}) > 5
    assert played != play(ScriptedPlanner(WORLD, "random", seed=5), [query] * 20)


def test_episodes_with_a_failed_call_are_no_demonstrations() -> None:
    dead = SpecialistSpec(
        relations=("boss",), prices=make_prices(1.0, 1e-4), failures={FailureKind.SERVER: 1.0}
    )
    world = WORLD.add_specialist("dead", dead)
    queries = world.make_queries("train", 60)
    played = play(ScriptedPlanner(world, "random"), queries, world=world)
    assert 0 < len(played) < len(queries)
    assert all("dead" not in list_asked(trajectory) for trajectory in played)


def test_a_delegating_policy_hands_the_question_over_and_answers_with_the_reply() -> None:
    queries = WORLD.make_queries("train", 12)
    played = play(DelegatingPlanner(WORLD.candidates), queries)
    assert len({list_asked(trajectory)[0] for trajectory in played}) > 1
    for query, trajectory in zip(queries, played, strict=True):
        assert trajectory.transitions[0].replies[0].call.text == query.text
        assert list_chunks(trajectory)[1] == "<think>done</think><answer>unknown</answer>"


def test_calls_that_are_not_made_count_for_nothing() -> None:
    """Under a budget that nobody fits into, everybody is tried, and the answer is a guess."""
    config = MultiRoundConfig(prompt="short", max_usd=1e-5)
    (trajectory,) = write_demonstrations(
        lambda: MultiRound(WORLD.candidates, config),
        ScriptedPlanner(WORLD, "random"),
        WORLD,
        WORLD.make_queries("train", 1),
        seed=0,
    )
    chunks = list_chunks(trajectory)
    assert len(set(chunks)) == 5
    assert "<answer>" in chunks[-1]
    assert list_asked(trajectory) == []


def test_the_last_information_block_is_the_reply() -> None:
    assert extract_reply("\n\n<information> Ada\n</information>\n\ncalls 3\n") == "Ada"
    two = "<information>Bo</information><information>Cy</information>"
    assert extract_reply(two) == "Cy"
    assert extract_reply("calls 3") is None


@pytest.mark.parametrize("mode", ["best", "always nobody", "always "])
def test_an_unknown_mode_is_refused(mode: str) -> None:
    with pytest.raises(RLRouteError, match=f"scripted mode '{mode}'"):
        ScriptedPlanner(WORLD, mode)


def test_a_question_from_elsewhere_is_refused() -> None:
    with pytest.raises(RLRouteError, match="query 'q': not a question of this relations world"):
        ScriptedPlanner(WORLD, "random").start(Query("q", "Who wrote Hamlet?"))


def test_the_thrifty_mode_asks_those_who_know_and_cheap_ones_more_at_great_cost_weights() -> None:
    planner = ScriptedPlanner(WORLD, "thrifty")
    known = ["alpha", "large", "small"]
    assert planner.weigh_options(known, 0.0) == [1.0, 1.0, 1.0]
    alpha, large, small = planner.weigh_options(known, 0.9)
    assert small > alpha > large == pytest.approx(math.exp(-3 * 0.9))
    agent = planner.start(WORLD.make_queries("train", 1)[0])
    first = WORLD.accuracy[agent.choose(0.9)]
    assert first[agent.relations[0]] > 0
