"""Exported cascades: they decide as the trainer's policy, from query and looks alone; bad input."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cascade_tables import make_config
from step_router_example import make_bundle

from rlroute import CascadeRouter, StepRouter
from rlroute.cascade_router import CascadeEpisode
from rlroute.config import parse_config
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.step_export import export_step_run
from rlroute.step_router import BudgetExhausted
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import load_policy, make_policy
from rlroute.trainers.step_problem import fix_setting
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.types import RLRouteError

CHECK = {"true_positive": 0.9, "false_positive": 0.2, "price_usd": 0.0005}
WEIGHTS = (0.0, 0.4, 1.0)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the table, the run and the exported router lie."""
    return tmp_path_factory.mktemp("cascade")


@pytest.fixture(scope="module")
def recipe(scratch: Path) -> StepRecipe:
    """A run of seconds, trained and exported."""
    world = make_config(scratch / "table", checker=CHECK, tokens=True)
    stated = {
        "environment": "step_budget",
        "world": world.model_dump(mode="json"),
        "updates": 4,
        "budget": {"unit": "usd", "caps": [0.013, None]},
        "reward": {"unit": "usd", "scale": "train", "hard_bonus": 0.0, "gate": False},
        "cost_weight": {"min": 0.0, "max": 1.0},
        "boundary": {"rollouts": 1, "evaluation_rollouts": 1, "sweep": 0},
        "policy": {"kind": "mlp", "hidden": 16, "start": 5.0},
        "warm_start": None,
        "algorithm": {"kind": "ppo", "episodes": 128},
        "optimiser": {"learning_rate": 0.02},
        "validation": {"every": 2},
        "tracking": {"wandb": False},
    }
    found = parse_config(StepRecipe, stated, "recipe")
    train_steps(found, scratch / "run")
    export_step_run(scratch / "run", scratch / "router")
    return found


@pytest.fixture(scope="module")
def router(recipe: StepRecipe, scratch: Path) -> CascadeRouter:
    """The exported router."""
    return CascadeRouter.load(scratch / "router")


def answer(episode: CascadeEpisode, stage: Stage, number: int) -> tuple[list[str], list[float]]:
    """Play a test query with what the table knows; return who was chosen, how probably."""
    split, ids = stage.world.table.splits["test"], stage.world.view.candidate_ids
    chosen, probabilities = [], []
    while not episode.done:
        choice = episode.choose()
        chosen.append(choice.executor)
        probabilities.append(choice.probabilities[choice.executor])
        if chosen[-1] != CascadeRouter.stop:
            where = (number, ids.index(chosen[-1]))
            episode.observe(
                cost_usd=float(split.cost_usd_QK[where]),
                completion_tokens=float(split.tokens_QK[where]),
                passed=bool(split.passed_QK[where]),
            )
    return chosen, probabilities


@pytest.mark.parametrize("cap", [None, 0.013])
def test_the_router_decides_as_the_policy_does_from_the_query_and_the_looks(
    recipe, router, scratch, cap
):
    stage = Stage(recipe.world, lanes=8)
    features = len(stage.feature_names)
    model, _ = load_policy(scratch / "run" / BEST_FOLDER, recipe.policy, stage.world, features)
    policy = make_policy(model, model.network, version=0, greedy=True)
    ids = [one.id for one in stage.world.executors]
    paths = set()
    for weight in WEIGHTS:
        config = fix_setting(recipe.episode, cap, weight)
        plan = plan_static(np.arange(60), np.arange(60))
        batch = stage.play(policy, plan, "test", config, {})
        for number, task in enumerate(stage.tasks["test"]):
            episode = router.start(task.text, cap=cap, cost_weight=weight)
            chosen, probabilities = answer(episode, stage, number)
            played_T = batch.valid_BT[number]
            assert chosen == [ids[k] for k in batch.action_BT[number, played_T]]
            np.testing.assert_allclose(
                probabilities, np.exp(batch.logp_BT[number, played_T]), rtol=1e-4
            )
            assert episode.steps.cost_usd == pytest.approx(batch.ends.cost_usd_B[number], rel=1e-5)
            hand = stage.world.view.candidate_ids.index(episode.hand)
            score = stage.world.table.splits["test"].score_QK[number, hand]
            assert score == batch.ends.score_B[number]
            assert cap is None or episode.steps.cost_usd <= cap
            paths.add(tuple(chosen))
    assert len(paths) > 1


def test_a_loaded_router_brings_no_training_library(recipe, scratch):
    code = (
        "import sys\n"
        "for name in ('accelerate', 'sklearn', 'gymnasium', 'wandb', 'trl', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from rlroute import CascadeRouter\n"
        f"episode = CascadeRouter.load({str(scratch / 'router')!r}).start('meadow meadow')\n"
        "print(episode.choose().executor)\n"
        "assert not [n for n in sys.modules if n.startswith('rlroute.trainers')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("small", "large")


def test_a_failed_call_is_charged_and_its_candidate_is_not_asked_again(router):
    episode = router.start("meadow meadow number one")
    first = episode.choose().executor
    episode.fail(cost_usd=0.002)
    assert episode.hand is None
    assert episode.steps.cost_usd == pytest.approx(0.002)
    assert not episode.done
    second = episode.choose().executor
    assert second not in (first, router.stop)
    episode.observe(cost_usd=0.01, completion_tokens=100, passed=False)
    assert (episode.hand, episode.done) == (second, True)


def test_who_may_be_asked_can_be_narrowed_and_a_cap_holds(router):
    episode = router.start("glacier glacier")
    assert episode.choose(allowed=["small"]).executor == "small"
    with pytest.raises(BudgetExhausted):
        router.start("glacier glacier", cap=0.001).choose()
    sampled = router.start("glacier glacier").choose(uniform=0.999)
    assert sum(sampled.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda episode: episode.observe(cost_usd=0.1, passed=True), "no look is open"),
        (lambda episode: episode.fail(cost_usd=0.1), "no look is open"),
        (lambda episode: episode.choose(allowed=["medium"]), "unknown executor 'medium'"),
        (lambda episode: (episode.choose(), episode.choose()), "observe the answer of"),
        (lambda episode: (episode.choose(), episode.observe(cost_usd=0.1)), "needs `passed`"),
        (
            lambda episode: (episode.choose(), episode.observe(cost_usd=-1, passed=True)),
            "cost_usd is -1",
        ),
        (
            lambda episode: (
                episode.choose(),
                episode.observe(cost_usd=0.1, passed=True, completion_tokens=math.nan),
            ),
            "completion_tokens is nan",
        ),
    ],
)
def test_bad_input_is_one_line(router, fault, words):
    with pytest.raises(RLRouteError) as caught:
        fault(router.start("harbour harbour"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_query_and_a_router_of_another_world_are_refused(router):
    with pytest.raises(RLRouteError, match="the query is empty"):
        router.start("  ")
    with pytest.raises(RLRouteError, match="load it as a StepRouter"):
        CascadeRouter(make_bundle())


@pytest.mark.parametrize("name", ["cascade.safetensors", "encoder/encoder.json", "bundle.json"])
def test_a_torn_router_is_refused(router, scratch, tmp_path, name):
    folder = tmp_path / "torn"
    shutil.copytree(scratch / "router", folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RLRouteError) as caught:
        CascadeRouter.load(folder)
    assert "\n" not in str(caught.value)


def test_the_card_shows_how_a_cascade_is_used_and_its_example_runs(router, scratch):
    card = (scratch / "router" / "README.md").read_text(encoding="utf-8")
    example = card.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(example.replace("path/to/this/folder", str(scratch / "router")), names)
    assert names["episode"].hand in ("small", "large")
    assert "query_0" not in card
    assert StepRouter.load(scratch / "router").reads == "features"
