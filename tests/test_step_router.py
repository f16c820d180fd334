"""Step routers at work: the trainer's decisions, without its libraries; texts, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from step_router_example import BOUNDS, SIMPLE, find_choice_run, find_step_run, make_bundle

from rlroute import StepRouter
from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.envs.step_budget import StepBudget
from rlroute.export.step_bundle import write_step_bundle
from rlroute.policies.choice_cache import ChoicePolicy
from rlroute.policies.stepwise import StepPolicy
from rlroute.rollout.plan import draw_action_uniform
from rlroute.rollout.stage import Stage
from rlroute.step_export import export_step_run
from rlroute.step_router import BudgetExhausted, StepEpisode
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import load_policy, make_policy
from rlroute.trainers.step_problem import plan_evaluation
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.types import Batch, RLRouteError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the exported run of a kind lies: calls, usd or choice."""
    scratch, made = tmp_path_factory.mktemp("exports"), {}

    def find(kind: str) -> Path:
        if kind not in made:
            _, run = find_choice_run() if kind == "choice" else find_step_run(kind)
            made[kind] = scratch / kind
            export_step_run(run, made[kind])
        return made[kind]

    return find


def load_trained(kind: str, *, greedy: bool = True) -> tuple[StepRecipe, Stage, StepPolicy]:
    """Return recipe, world and policy as evaluation has them."""
    recipe, run = find_choice_run() if kind == "choice" else find_step_run(kind)
    stage = Stage(recipe.world, lanes=16, reading=kind == "choice")
    features = len(stage.feature_names)
    model, _ = load_policy(run / BEST_FOLDER, recipe.policy, stage.world, features)
    return recipe, stage, make_policy(model, model.network, version=0, greedy=greedy)


def play_beside(
    router: StepRouter,
    stage: Stage,
    batch: Batch,
    row: int,
    environment: StepBudget,
    seeds: tuple[int, int],
    uniforms: list[float | None],
) -> StepEpisode:
    """Ask the router at each step of an environment; both have to do what the batch did."""
    task = stage.tasks["test"][batch.query_index_B[row]]
    observation = environment.reset(task, seeds[0], world_seed=seeds[1])
    cap = environment.cap
    episode = router.start(cap=None if np.isinf(cap) else cap, cost_weight=environment.cost_weight)
    world, ids = environment.world, [one.id for one in router.executors]
    steps = int(batch.valid_BT[row].sum())
    for turn in range(steps):
        assert not environment.ended
        bounds = {name: world.bound_cost_usd(k) for k, name in enumerate(ids)}
        asked: dict[str, Any] = {
            "text": environment.state.text,
            "features": environment.state.features_W,
            "bounds_usd": bounds,
        }
        if not environment.affordable:  # the environment ends it with a step in name only
            with pytest.raises(BudgetExhausted):
                episode.choose(**asked)
            environment.observe(())
            break
        step = episode.choose(**asked, uniform=uniforms[turn])
        action = int(batch.action_BT[row, turn])
        assert step.executor == ids[action]
        assert list(step.probabilities) == [ids[k] for k in np.flatnonzero(observation.mask_K)]
        assert step.probabilities[step.executor] == pytest.approx(
            float(np.exp(batch.logp_BT[row, turn])), abs=1e-5
        )
        environment.propose(action)
        before = environment.read_record().cost_usd
        observation = environment.observe(()).observation
        episode.settle(environment.read_record().cost_usd - before)
    if environment.exhausted:
        with pytest.raises(BudgetExhausted):
            episode.choose(**asked)
    record = environment.read_record()
    assert episode.steps == record.steps
    assert episode.cost_usd == pytest.approx(record.cost_usd)
    return episode


# --- Decisions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["calls", "usd", "choice"])
@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_whole_episodes_are_those_of_the_trained_policy(
    folders: Callable[[str], Path], kind: str, greedy: bool
) -> None:
    router = StepRouter.load(folders(kind))
    recipe, stage, policy = load_trained(kind, greedy=greedy)
    plan = plan_evaluation(7, "test", 12, rollouts=1)
    chosen: set[tuple[int, ...]] = set()
    for cap in recipe.budget.caps:
        # the cost weights are drawn as in training: the text names them then
        budget = recipe.budget.model_copy(update={"caps": (cap,)})
        config = recipe.episode.model_copy(update={"budget": budget})
        batch = stage.play(policy, plan, "test", config, {})
        for row in range(12):
            seeds = (int(plan.episodes.episode_seed_B[row]), int(plan.world_seed_B[row]))
            environment = StepBudget(stage.world.fork(), config)
            uniform_T = [
                None
                if greedy
                else float(draw_action_uniform(plan.episodes.action_seed_B[[row]], turn)[0])
                for turn in range(router.horizon)
            ]
            episode = play_beside(router, stage, batch, row, environment, seeds, uniform_T)
            chosen.add(tuple(batch.action_BT[row, batch.valid_BT[row]]))
            if isinstance(policy, ChoicePolicy):
                assert batch.conversations is not None
                length = int(batch.conversations.length_B[row])
                read = batch.conversations.ids_BL[row, :length].tolist()
                assert episode._conversation.ids[:length] == read  # token by token
    assert len(chosen) >= 3  # the decisions depend on what is seen


def test_features_by_name_and_in_order_say_the_same() -> None:
    router = StepRouter(make_bundle())
    assert router.feature_names == ("critical", "hint", "critical_hint")
    by_name = {"hint": 1.0, "critical_hint": 0.5, "critical": 0.25}
    steps = [
        router.start(cap=2, cost_weight=0.2).choose(features=features)
        for features in (by_name, [0.25, 1.0, 0.5], np.array([0.25, 1.0, 0.5], dtype=np.float32))
    ]
    assert steps[0] == steps[1] == steps[2]
    assert steps[0] != router.start(cap=2, cost_weight=0.2).choose(features=[1.0, 0.25, 0.5])


def test_only_allowed_executors_have_a_probability() -> None:
    episode = StepRouter(make_bundle()).start(cap=None)
    for name in ("small", "large"):
        step = episode.choose(features=SIMPLE, allowed=[name])
        assert step.executor == name
        assert step.probabilities == {name: 1.0}
        assert step.budget_left is None
    assert sum(episode.choose(features=SIMPLE).probabilities.values()) == pytest.approx(1)


def test_a_uniform_number_samples_by_the_probabilities() -> None:
    router = StepRouter(make_bundle())
    small = router.start(cap=None).choose(features=SIMPLE).probabilities["small"]
    assert 0.01 < small < 0.99
    for uniform, name in ((0.0, "small"), (small - 1e-3, "small"), (small + 1e-3, "large")):
        step = router.start(cap=None).choose(features=SIMPLE, uniform=uniform)
        assert step.executor == name


def test_without_a_cost_weight_the_lowest_counts() -> None:
    router = StepRouter(make_bundle())
    assert router.cost_weight_range == (0.1, 0.5)
    assert router.start(cap=1).cost_weight == 0.1
    steps = [
        router.start(cap=1, cost_weight=weight).choose(features=SIMPLE)
        for weight in (None, 0.1, 0.5)
    ]
    assert steps[0] == steps[1] != steps[2]


def test_threads_share_a_router(folders: Callable[[str], Path]) -> None:
    for kind in ("calls", "choice"):
        router = StepRouter.load(folders(kind))

        def play(cap: int, router: StepRouter = router) -> list[Any]:
            episode = router.start(cap=cap, cost_weight=0.2)
            return [
                episode.choose(text=f"step {turn} of {cap}", features=[turn % 2, 1.0, 0.0])
                for turn in range(router.horizon)
            ]

        expected = [play(cap) for cap in range(6)]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(play, range(6))) == expected


# --- Texts ----------------------------------------------------------------------------------------


def test_a_text_that_is_too_long_is_refused_and_a_shorter_one_goes_on(
    folders: Callable[[str], Path],
) -> None:
    router = StepRouter.load(folders("choice"))
    steps = []
    for stumble in (False, True):
        episode = router.start(cap=2)
        episode.choose(text="A chain of steps.")
        if stumble:
            with pytest.raises(RLRouteError, match="longer than the 300 tokens that the policy"):
                episode.choose(text="Much is new. " * 60)
        steps.append(episode.choose(text="This step is critical."))
    assert steps[0] == steps[1]


def test_what_a_language_model_needs_is_asked_for(folders: Callable[[str], Path]) -> None:
    router = StepRouter.load(folders("choice"))
    assert router.reads == "text"
    episode = router.start(cap=2)
    for text in (None, "", " \n", 3):
        with pytest.raises(RLRouteError, match=r"text is missing.*give the task"):
            episode.choose(text=text, features=SIMPLE)  # type: ignore[arg-type]
    episode.choose(text="A chain of steps.")
    with pytest.raises(RLRouteError, match="give what is new since the step before"):
        episode.choose(features=SIMPLE)
    assert episode.choose(text="").executor in ("small", "large")  # nothing may be new


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"features": None}, "features are missing: the policy reads critical, hint"),
        ({"features": {"critical": 1, "hint": 0}}, "features: 'critical_hint' is missing"),
        ({"features": SIMPLE | {"steps_left": 1}}, "features: unknown name 'steps_left'"),
        ({"features": [1.0, 0.0]}, r"features have shape \(2,\); give 3 numbers"),
        ({"features": [1.0, 0.0, float("nan")]}, "not a finite number"),
        ({"features": [1.0, 0.0, "much"]}, "no number"),
        ({"features": [[1.0], 0.0, 0.0]}, "no number"),
        ({"allowed": []}, "allowed is empty: name at least one of small, large"),
        ({"allowed": ["small", "gpt"]}, r"unknown executor 'gpt' \(known: small, large\)"),
        ({"allowed": "small"}, r"write \['small'\]"),
        ({"bounds_usd": None}, "bounds_usd is missing: the budget is in USD"),
        ({"bounds_usd": {"small": 0.1}}, "bounds_usd: 'large' is missing"),
        ({"bounds_usd": BOUNDS | {"gpt": 0.1}}, "bounds_usd: unknown name 'gpt'"),
        ({"bounds_usd": BOUNDS | {"large": -0.1}}, "bounds_usd of 'large' is -0.1"),
        ({"bounds_usd": BOUNDS | {"large": float("nan")}}, "bounds_usd of 'large' is nan"),
        ({"bounds_usd": BOUNDS | {"large": 1e300}}, "give USD, from 0 to 10,000"),
        ({"uniform": 1.0}, "uniform 1.0: give a number from 0 to below 1"),
    ],
)
def test_what_cannot_be_decided_on_is_refused_and_changes_nothing(
    wrong: dict[str, Any], said: str
) -> None:
    episode = StepRouter(make_bundle("usd")).start(cap=0.02)
    with pytest.raises(RLRouteError, match=said) as caught:
        episode.choose(**({"features": SIMPLE, "bounds_usd": BOUNDS} | wrong))
    assert "\n" not in str(caught.value)
    assert (episode.steps, episode.budget_left) == (0, 0.02)


def test_features_that_overflow_the_network_are_refused() -> None:
    episode = StepRouter(make_bundle(hidden=0)).start(cap=2)
    with pytest.raises(RLRouteError, match="scores are not finite"):
        episode.choose(features=[3e38, 3e38, -3e38])
    assert episode.steps == 0


def test_caps_and_cost_weights_that_make_no_sense_are_refused() -> None:
    router = StepRouter(make_bundle())
    for cap in (-1, float("nan"), float("inf"), "5"):
        with pytest.raises(RLRouteError, match="give a number of calls from 0, or None"):
            router.start(cap=cap)  # type: ignore[arg-type]
    for weight in (0.09, 0.51, float("nan"), "0.3"):
        with pytest.raises(RLRouteError, match=r"trained for \(0\.1 to 0\.5\)"):
            router.start(cap=5, cost_weight=weight)  # type: ignore[arg-type]
    assert router.start(cap=np.int64(5), cost_weight=np.float32(0.3)).budget_left == 5


# --- Without the training libraries ---------------------------------------------------------------

BLOCKED = (
    *("accelerate", "datasets", "deepspeed", "gymnasium", "jinja2", "matplotlib", "pandas"),
    *("peft", "trl", "vllm", "wandb"),
)
SCRIPT = """
import json, sys

for name in json.loads(sys.argv[2]):
    sys.modules[name] = None
from rlroute import StepRouter

router = StepRouter.load(sys.argv[1])
episode, steps = router.start(cap=2, cost_weight=0.2), []
for asked in json.loads(sys.stdin.read()):
    step = episode.choose(**asked)
    steps.append([step.executor, step.probabilities, step.budget_left])
ours = {name.split(".")[1] for name in sys.modules if name.startswith("rlroute.")}
assert not ours & {"trainers", "algorithms", "evaluation", "cli"}, ours
print(json.dumps(steps))
"""


@pytest.mark.parametrize("kind", ["calls", "choice"])
def test_a_process_without_training_libraries_decides_the_same(
    folders: Callable[[str], Path], kind: str
) -> None:
    blocked = [*BLOCKED, *(["transformers"] if kind == "calls" else [])]
    asked = [
        {
            "text": f"This step is {'critical' if turn % 2 else 'simple'}.",
            "features": [turn % 2, 1, 0],
        }
        for turn in range(5)
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folders(kind)), json.dumps(blocked)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    episode = StepRouter.load(folders(kind)).start(cap=2, cost_weight=0.2)
    for one, (executor, probabilities, budget_left) in zip(
        asked, json.loads(done.stdout), strict=True
    ):
        step = episode.choose(**one)
        assert (step.executor, step.budget_left) == (executor, budget_left)
        assert step.probabilities == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize("kind", ["calls", "usd", "choice"])
def test_the_example_of_the_card_runs(folders: Callable[[str], Path], kind: str) -> None:
    card = (folders(kind) / "README.md").read_text(encoding="utf-8")
    example = card.split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(example.replace("path/to/this/folder", str(folders(kind))), found)
    assert found["step"].executor in ("small", "large")
    assert found["step"].budget_left > 0
    assert found["episode"].cost_usd == 0.0012


def test_a_folder_without_a_router_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="no exported step router lies here"):
        StepRouter.load(tmp_path)


def test_a_loaded_router_says_what_it_is(tmp_path: Path) -> None:
    write_step_bundle(make_bundle(), tmp_path / "router")
    router = StepRouter.load(tmp_path / "router")
    assert [(one.id, one.prices.input) for one in router.executors] == [
        ("small", 0.4),
        ("large", 2),
    ]
    assert not set(router.feature_names) & set(BUDGET_FEATURES)
    assert (router.horizon, router.unit, router.reads) == (6, "calls", "features")
    assert router.counted == ("large",)
    assert router.summary["world"] == "chain"
