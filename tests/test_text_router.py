"""A text router plays the trainer's greedy episode, with whatever pool it is given."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from text_run_example import WORLD, find_text_run, make_recipe

from rlroute import TextRouter
from rlroute.config import parse_config
from rlroute.pool.relations import RelationsWorld
from rlroute.pool.relations_config import RelationsConfig, SpecialistSpec
from rlroute.rollout.policy_files import load_policy
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.text_runs import export_text_run
from rlroute.trainers.text_problem import TextRollouts, build_problem, plan_evaluation
from rlroute.types import Call, Candidate, FailureKind, Prices, Reply, RLRouteError


@pytest.fixture(scope="module")
def world() -> RelationsWorld:
    return RelationsWorld(parse_config(RelationsConfig, WORLD, "world"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exports") / "router"
    export_text_run(find_text_run(), to)
    return to


@pytest.fixture(scope="module")
def router(folder: Path, world: RelationsWorld) -> TextRouter:
    return TextRouter.load(folder, pool=world)


def test_an_answer_is_the_greedy_episode_of_the_trainer(
    router: TextRouter, world: RelationsWorld
) -> None:
    recipe = make_recipe()
    model, tokenizer = load_policy(find_text_run() / "best", "float32")
    sampler = TransformersSampler(model, tokenizer)
    rollouts = TextRollouts(build_problem(recipe), recipe, tokenizer, sampler)
    queries = world.make_queries("test", 6)
    try:
        for weight in recipe.episode.cost_weights:
            plan = plan_evaluation(len(queries), 0)
            played = rollouts.play(queries, plan, temperature=0.0, cost_weight=weight)
            for query, trajectory in zip(queries, played, strict=True):
                answer = router.answer(query, cost_weight=weight)
                texts = tuple(step.decision.text for step in trajectory.transitions)
                replies = [reply for step in trajectory.transitions for reply in step.replies]
                assert answer.chunks == texts
                assert [call.reply for call in answer.calls] == [one.text for one in replies]
                assert answer.cost_usd == pytest.approx(sum(one.cost_usd for one in replies))
                assert answer.failure == trajectory.failure
                assert answer.cost_weight == weight
    finally:
        rollouts.close()


def test_some_answer_was_asked_for_and_is_given(router: TextRouter, world: RelationsWorld) -> None:
    answers = [router.answer(query) for query in world.make_queries("test", 8)]
    assert any(answer.text and answer.calls for answer in answers)
    assert all(answer.cost_weight == router.cost_weight_range[0] for answer in answers)
    calls = [call for answer in answers for call in answer.calls]
    assert all(call.cost_usd > 0 and call.query for call in calls)


def test_a_candidate_that_is_new_in_the_pool_is_offered_and_a_missing_one_is_not(
    router: TextRouter, folder: Path, world: RelationsWorld
) -> None:
    spec = parse_config(
        SpecialistSpec, {"relations": ["coach"], "prices": {"input": 1, "output": 1}}, "newcomer"
    )
    wider = TextRouter.load(folder, pool=world.add_specialist("newcomer", spec))
    question = "Who is the coach of Ada?"
    assert "newcomer" not in router.write_prompt(question)
    lines = wider.write_prompt(question).splitlines()
    assert "newcomer" in lines
    assert "newcomer" not in [one.id for one in wider.trained_candidates]
    assert wider.answer(question).chunks

    stated = WORLD | {"specialists": {"alpha": WORLD["specialists"]["alpha"]}}
    narrow = TextRouter.load(
        folder, pool=RelationsWorld(parse_config(RelationsConfig, stated, "world"))
    )
    assert [one.id for one in narrow.candidates] == ["alpha", "large", "small"]
    assert "beta" not in narrow.write_prompt(question)
    assert all(call.candidate_id != "beta" for call in narrow.answer(question).calls)


def test_answers_side_by_side_are_those_of_one_by_one(
    router: TextRouter, world: RelationsWorld
) -> None:
    queries = world.make_queries("val", 5)

    async def ask_all() -> list[object]:
        return await asyncio.gather(
            *(router.answer_async(query, cost_weight=0.5) for query in queries)
        )

    assert asyncio.run(ask_all()) == [router.answer(query, cost_weight=0.5) for query in queries]


def test_what_a_router_cannot_answer_is_refused_in_one_line(router: TextRouter) -> None:
    for weight in (-0.1, 0.6, float("nan"), "0.1"):
        with pytest.raises(RLRouteError, match=r"cost_weight .* \(0 to 0\.5\)"):
            router.answer("Who is the boss of Ada?", cost_weight=weight)  # type: ignore[arg-type]
    for question in ("", "  \n"):
        with pytest.raises(RLRouteError, match="question is empty"):
            router.answer(question)
    with pytest.raises(RLRouteError, match="question is a int"):
        router.answer(3)  # type: ignore[arg-type]
    with pytest.raises(RLRouteError, match="leave no room in a context of 192"):
        router.answer("word " * 400)

    async def ask_in_a_loop() -> None:
        router.answer("Who is the boss of Ada?")

    with pytest.raises(RLRouteError, match="await answer_async instead"):
        asyncio.run(ask_in_a_loop())


class Failing:
    """A pool whose every call times out."""

    candidates = tuple(Candidate(name, Prices(1.0, 1.0)) for name in ("alpha", "beta", "large"))

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        return [Reply(call, cost_usd=0.25, failure=FailureKind.TIMEOUT) for call in calls]


def test_a_failed_call_is_named_and_gives_no_answer(folder: Path, world: RelationsWorld) -> None:
    router = TextRouter.load(folder, pool=Failing())
    answers = [router.answer(query) for query in world.make_queries("test", 6)]
    failed = [answer for answer in answers if answer.failure is not None]
    assert failed
    for answer in failed:
        assert answer.failure is FailureKind.TIMEOUT
        assert answer.text is None
        assert answer.cost_usd == 0.25
        assert answer.calls[0].reply == ""


def test_a_pool_file_can_be_given_by_its_path(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "candidates:\n  alpha: {type: simulated, skill: 1.0, prices: {input: 1, output: 1}}\n",
        encoding="utf-8",
    )
    router = TextRouter.load(folder, pool=path)
    assert [one.id for one in router.candidates] == ["alpha"]
    assert router.answer("Who is the boss of Ada?").chunks
    router.close()
    with pytest.raises(RLRouteError, match=r"absent\.yaml"):
        TextRouter.load(folder, pool=tmp_path / "absent.yaml")


def test_a_folder_that_is_no_whole_router_is_refused(
    folder: Path, world: RelationsWorld, tmp_path: Path
) -> None:
    with pytest.raises(RLRouteError, match="no exported text router lies here"):
        TextRouter.load(tmp_path, pool=world)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "router.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"format_version": 2}, "format_version 2, this rlroute reads 1"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"candidates": []}, "candidates"),
        ({"adress": "x"}, "unknown key 'adress'"),
    ):
        (copy / "router.json").write_text(json.dumps(content | change), encoding="utf-8")
        with pytest.raises(RLRouteError, match=message):
            TextRouter.load(copy, pool=world)
    (copy / "router.json").write_text(json.dumps(content), encoding="utf-8")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(RLRouteError, match="the policy cannot be loaded"):
        TextRouter.load(copy, pool=world)
    weights.unlink()
    with pytest.raises(RLRouteError, match="the policy cannot be loaded"):
        TextRouter.load(copy, pool=world)
