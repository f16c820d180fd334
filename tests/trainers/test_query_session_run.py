"""Query sessions end to end: a known optimum is learnt; baselines, report and export of the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from session_tables import make_session_config, make_session_table

from rlroute import StepRouter
from rlroute.config import parse_config
from rlroute.policies.kernel_start import KernelConfig, fit_kernel_start
from rlroute.policies.query_session_baselines import plan_hindsight
from rlroute.rollout.stage import Stage
from rlroute.step_export import export_step_run
from rlroute.step_runs import evaluate_step_run
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.run_folder import BEST_FOLDER
from rlroute.trainers.step_policy import build_model, load_policy, make_policy
from rlroute.trainers.step_problem import fix_setting, plan_evaluation
from rlroute.trainers.step_recipe import StepRecipe
from rlroute.trainers.step_run import train_steps
from rlroute.types import RLRouteError

# A cheap answer is 1e-4 USD and a dear one 1e-3: cheap ones throughout, one dear, two, all.
CAPS = (4.2e-4, 1.35e-3, 2.3e-3, 4.1e-3)


def make_recipe(folder, **parts) -> StepRecipe:
    """Return a recipe whose start knows nothing of topics: the profiles have one cluster."""
    world = make_session_config(folder, make_session_table(400), profile={"clusters": 1})
    stated = {
        "environment": "step_budget",
        "world": world.model_dump(mode="json"),
        "updates": 40,
        "budget": {"unit": "usd", "caps": list(CAPS)},
        "reward": {"unit": "usd", "hard_bonus": 0},
        "cost_weight": {"min": 0, "max": 0},
        "boundary": {"rollouts": 1, "evaluation_rollouts": 1},
        "policy": {"kind": "priced", "hidden": 32, "dropout": 0, "sharpness": 4},
        "warm_start": None,
        "algorithm": {"kind": "ppo", "episodes": 192},
        "optimiser": {"learning_rate": 0.005},
        "validation": {"every": 20},
        "evaluation": {"transcripts": 2, "bootstrap": 50},
        "tracking": {"wandb": False},
    }
    return parse_config(StepRecipe, stated | parts, "recipe")


@pytest.fixture(scope="module", params=["value_to_go", "price"])
def run(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("sessions")
    policy = {"kind": "priced", "money": request.param, "hidden": 32, "dropout": 0, "sharpness": 4}
    recipe = make_recipe(folder, policy=policy)
    train_steps(recipe, folder / "run")
    return recipe, folder / "run"


def play(recipe, stage, model, cap) -> np.ndarray:
    """Return the score of each test session under a cap."""
    policy = make_policy(model, model.network, version=0, greedy=True)
    plan = plan_evaluation(0, "test", len(stage.tasks["test"]), 1)
    batch = stage.play(policy, plan, "test", fix_setting(recipe.episode, cap, 0.0), {})
    assert (batch.ends.cost_usd_B <= cap * (1 + 1e-6)).all()
    return batch.ends.score_B


def find_best(stage, cap) -> np.ndarray:
    """Return what hindsight earns in each test session; here topics say all there is to know."""
    facts = stage.world.data.splits["test"]
    rows_ST = facts.session_ST
    _, best_S = plan_hindsight(
        *(facts.score_QK[rows_ST].astype(float), facts.cost_usd_QK[rows_ST]),
        facts.legal_QK[rows_ST],
        np.full(len(rows_ST), cap),
    )
    return best_S


def test_it_learns_which_queries_the_money_is_for(run):
    recipe, folder = run
    stage = Stage(recipe.world, lanes=16)
    features = len(stage.feature_names)
    learnt, _ = load_policy(folder / BEST_FOLDER, recipe.policy, stage.world, features)
    fresh = build_model(recipe, stage.world, features)
    reached, begun, best = (
        np.mean([scores(cap) for cap in CAPS[1:3]])  # at the others there is nothing to choose
        for scores in (
            lambda cap: play(recipe, stage, learnt, cap),
            lambda cap: play(recipe, stage, fresh, cap),
            lambda cap: find_best(stage, cap),
        )
    )
    assert reached >= 0.95 * best
    assert begun <= 0.9 * best  # it had that to learn


def test_the_run_is_compared_with_all_its_rivals_and_told(run):
    _, folder = run
    result = evaluate_step_run(folder)
    names = {policy.name for policy in result.policies}
    assert names >= {"always cheap", "random", "Lagrangian", "Lagrangian, adaptive", "hindsight"}
    assert "dynamic programming" in names
    assert any("never differ" in reason for reason in result.left_out)
    for place, cap in enumerate(CAPS):
        shown = result.shown[place]
        assert sum(name.startswith("sufficient") for name in shown) == 1  # chosen on val
        points = {policy.name: policy.points[place] for policy in result.policies}
        assert all(point.violations == 0 for point in points.values() if point is not None)
        bound = points["hindsight"].success.value
        for name in shown:
            assert points[name].success.value <= bound + 1e-6, (cap, name)
    # the smallest cap pays for four cheap answers; the dearest is bankrupt at once
    cheap, dear = (result.find(f"always {name}").points[0] for name in ("cheap", "dear"))
    assert (cheap.exhausted, cheap.steps) == (0, 4)
    assert dear.share_by_executor["dear"] == 0
    assert "query_session" in (folder / "report.html").read_text(encoding="utf-8")


def test_the_exported_router_decides_as_the_policy_from_a_querys_text(run, tmp_path):
    recipe, folder = run
    export_step_run(folder, tmp_path / "router")
    router = StepRouter.load(tmp_path / "router")
    stage = Stage(recipe.world, lanes=16)
    model, _ = load_policy(
        folder / BEST_FOLDER, recipe.policy, stage.world, len(stage.feature_names)
    )
    policy = make_policy(model, model.network, version=0, greedy=True)
    plan = plan_evaluation(0, "test", 5, 1)
    with pytest.raises(RLRouteError, match=r"^text is missing: give the query at hand$"):
        router.start(cap=1.0).choose(bounds_usd={one.id: 0.0 for one in router.executors})
    batch = stage.play(policy, plan, "test", fix_setting(recipe.episode, CAPS[1], 0.0), {})
    facts, ids = stage.world.data.splits["test"], [one.id for one in router.executors]
    for session in range(5):
        episode = router.start(cap=CAPS[1])
        for turn in np.flatnonzero(batch.valid_BT[session]):
            row = facts.session_ST[session, turn]
            bounds = dict(zip(ids, facts.bound_usd_QK[row].tolist(), strict=True))
            text = facts.table.queries[row].text
            step = episode.choose(text=text, bounds_usd=bounds)
            action = int(batch.action_BT[session, turn])
            assert step.executor == ids[action]
            assert np.log(step.probabilities[step.executor]) == pytest.approx(
                float(batch.logp_BT[session, turn]), abs=1e-4
            )
            episode.settle(cost_usd=float(facts.cost_usd_QK[row, action]))
    card = (tmp_path / "router" / "README.md").read_text(encoding="utf-8")
    assert "embedding_0" not in card
    assert "text of the query" in card
    manifest = json.loads((tmp_path / "router" / "bundle.json").read_text(encoding="utf-8"))
    assert manifest["policy"]["kind"] == "priced"
    (tmp_path / "router" / "encoder" / "encoder.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RLRouteError, match="encoder"):
        StepRouter.load(tmp_path / "router")


def test_it_can_start_at_a_single_turn_run_of_the_same_queries(run, tmp_path):
    recipe, folder = run
    stage = Stage(recipe.world, lanes=16)
    features = len(stage.feature_names)
    router = build_model(recipe, stage.world, features).network.router
    torch.nn.init.normal_(router.quality_tower.weight)
    path = tmp_path / "single" / BEST_FOLDER / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    save_file(router.state_dict(), path)
    policy = recipe.policy.model_copy(update={"start": tmp_path / "single", "sharpness": 2.0})
    started = build_model(recipe.model_copy(update={"policy": policy}), stage.world, features)
    taken = started.network.router
    torch.testing.assert_close(taken.quality_tower.weight, router.quality_tower.weight)
    assert taken.log_sharpness.exp().item() == pytest.approx(2.0)  # the recipe's own
    fresh = build_model(recipe, stage.world, features).network
    name = "value_TG" if policy.money == "value_to_go" else "log_money_N"
    fitted, plain = started.network.state_dict()[name], fresh.state_dict()[name]
    assert not torch.equal(plain, fitted)  # its own
    save_file(router.state_dict() | {"centroids_CF": router.centroids_CF + 1}, path)
    with pytest.raises(RLRouteError, match="was trained on other queries") as caught:
        build_model(recipe.model_copy(update={"policy": policy}), stage.world, features)
    assert "\n" not in str(caught.value)
    policy = recipe.policy.model_copy(update={"start": folder})  # no single-turn run
    with pytest.raises(RLRouteError, match="of another network"):
        build_model(recipe.model_copy(update={"policy": policy}), stage.world, features)


def test_a_start_keeps_its_quality_and_gets_measured_costs_where_money_is_planned(tmp_path):
    recipe = make_recipe(tmp_path)
    stage = Stage(recipe.world, lanes=4)
    features = len(stage.feature_names)
    router = build_model(recipe, stage.world, features).network.router
    for tower in (router.quality_tower, router.cost_tower):
        torch.nn.init.normal_(tower.weight)
    path = tmp_path / "single" / BEST_FOLDER / WEIGHTS_FILE
    path.parent.mkdir(parents=True)
    save_file(router.state_dict() | {"margin": torch.tensor(0.3)}, path)  # of no use here
    for money, kept in (("value_to_go", False), ("price", True)):
        policy = recipe.policy.model_copy(update={"start": tmp_path / "single", "money": money})
        planned = recipe.model_copy(update={"policy": policy})
        taken = build_model(planned, stage.world, features).network.router
        assert torch.equal(taken.quality_tower.weight, router.quality_tower.weight)
        assert torch.equal(taken.cost_tower.weight, router.cost_tower.weight) == kept
        assert kept or not taken.cost_tower.weight.any()


def test_it_can_start_at_a_kernel_regression(tmp_path):
    recipe = make_recipe(tmp_path)
    kernel = KernelConfig(anchors=80, penalty=0.1)
    recipe = recipe.model_copy(
        update={"policy": recipe.policy.model_copy(update={"kernel": kernel})}
    )
    stage = Stage(recipe.world, lanes=16)
    model = build_model(recipe, stage.world, len(stage.feature_names))
    start = fit_kernel_start(stage.world.data.prepared.splits["train"], kernel, recipe.seed)
    found = model.network.router
    assert np.array_equal(found.anchors_MF.numpy(), start.anchors_MF)
    assert np.array_equal(found.start_MD.numpy(), start.weight_MD)
    assert 0 < play(recipe, stage, model, CAPS[1]).mean() < 1


def test_the_start_is_kept_where_no_update_is_better_and_the_recipe_says_so(tmp_path):
    for start in (True, False):
        recipe = make_recipe(
            tmp_path,
            updates=1,
            policy={"kind": "priced", "hidden": 8, "dropout": 0, "kernel": {"anchors": 30}},
            optimiser={"learning_rate": 30.0},  # whatever it knew is lost
            validation={"every": 1, "start": start},
        )
        state = train_steps(recipe, tmp_path / f"run-{start}")
        assert state.best_update == (0 if start else 1)
        best = json.loads((tmp_path / f"run-{start}" / "best" / "best.json").read_text())
        assert best["update"] == state.best_update
    rows = (tmp_path / "run-True" / "metrics.jsonl").read_text().splitlines()
    reward = [json.loads(row)["eval/reward"] for row in rows]
    assert reward[0] > reward[1]


def test_the_priced_policy_is_refused_where_there_are_no_sessions(tmp_path):
    recipe = make_recipe(tmp_path, world={"kind": "chain", "train": 5, "val": 5, "test": 5})
    with pytest.raises(RLRouteError, match="world 'chain' has none") as caught:
        train_steps(recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
