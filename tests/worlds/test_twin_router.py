"""The world of logged trajectories: costs as scored, nothing shown too early, the best advice."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from twin_router_examples import (
    make_long_rows,
    make_published_rows,
    make_toy_rows,
    write_bank,
    write_words,
)

from rlroute.config import parse_config
from rlroute.data.twin_router_bank import TIERS, WORKLOADS, FoldSplit, FractionSplit
from rlroute.data.twin_router_cost import PRICES, WordTokens, compute_path_costs
from rlroute.evaluation.twin_router_score import score_predictions
from rlroute.seeding import mix
from rlroute.types import SPLITS, Query, RLRouteError
from rlroute.worlds.twin_router import TwinRouterConfig, TwinRouterWorld, hash_words, shorten

STRATEGIES = st.tuples(st.integers(0, 10_000), st.integers(0, 10_000))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of some dozens of trajectories over the five workloads."""
    rows = make_published_rows(share=8)
    return write_bank(tmp_path_factory.mktemp("bank") / "bank.jsonl", rows)


@pytest.fixture(scope="module")
def world(bank: Path) -> TwinRouterWorld:
    """The world of that bank."""
    return TwinRouterWorld(TwinRouterConfig(bank=bank))


def make_toy_world(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> TwinRouterWorld:
    """Write rows and return their world; words are tokens."""
    path = write_bank(folder / "bank.jsonl", rows)
    return TwinRouterWorld(TwinRouterConfig(bank=path, tokens=WordTokens(), **settings))


def list_all_tasks(world: TwinRouterWorld) -> list[Query]:
    """Return the tasks of all splits."""
    return [task for split in SPLITS for task in world.list_tasks(split)]


def draw_tiers(task: Query, seed: int) -> list[int]:
    """Return more tiers than any trajectory has steps."""
    return (mix(seed, "tiers", task.id, np.arange(100)) % np.uint64(4)).astype(int).tolist()


def summarise(world: TwinRouterWorld, seed: int) -> str:
    """Return a hash of everything that episodes of drawn tiers bring."""
    digest = hashlib.sha256()
    for task in list_all_tasks(world):
        state, done = world.reset(task, seed), False
        for tier in draw_tiers(task, seed):
            digest.update(state.text.encode() + state.features_W.tobytes())
            if done:
                break
            step = world.step(tier, None)
            state, done = step.state, step.done
            digest.update(repr((step.usage, step.cost_usd, step.score, step.note)).encode())
    return digest.hexdigest()


def test_the_tasks_of_the_splits_are_disjoint_and_every_workload_is_trained_on(
    world: TwinRouterWorld,
) -> None:
    ids = Counter(task.id for task in list_all_tasks(world))
    assert set(ids.values()) == {1}
    assert set(ids) == set(world.trajectories)
    assert {task.task for task in world.list_tasks("train")} == set(WORKLOADS)
    assert len(ids) == 520 // 8 - 1  # 5 + 16 + 24 + 18 + 1
    assert world.list_tasks("val") == world.list_tasks("val")


def test_folds_test_every_trajectory_once(bank: Path) -> None:
    tested: list[str] = []
    for fold in range(5):
        world = TwinRouterWorld(TwinRouterConfig(bank=bank, split=FoldSplit(fold=fold)))
        tested += [task.id for task in world.list_tasks("test")]
    assert sorted(tested) == sorted(world.trajectories)


@given(STRATEGIES)
@settings(max_examples=30)
def test_an_episode_costs_and_scores_what_the_scorer_says(
    world: TwinRouterWorld, drawn: tuple[int, int]
) -> None:
    tasks = list_all_tasks(world)
    task = tasks[drawn[0] % len(tasks)]
    priced = world.trajectories[task.id]
    tiers = draw_tiers(task, drawn[1])[: len(priced.gold_T)]
    if drawn[1] % 2:
        tiers = [max(pair) for pair in zip(tiers, priced.gold_T.tolist(), strict=True)]
    world.reset(task, 0)
    costs, step = [], None
    for tier in tiers:
        assert step is None or (not step.done and step.score == 0)
        bound = world.bound_cost_usd(tier)
        step = world.step(tier, None)
        assert step.cost_usd == bound
        usage = step.usage
        assert step.cost_usd == PRICES[tier].compute_cost(
            usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
        )
        costs.append(step.cost_usd)
    assert costs == compute_path_costs(priced, tiers)
    preds = {row.id: tier for row, tier in zip(priced.logged.rows, tiers, strict=True)}
    score = score_predictions((priced,), preds)
    assert step is not None
    assert step.done
    assert step.score == score.traj_pass / 100


def test_the_toy_example_is_played_step_by_step(tmp_path: Path) -> None:
    world = make_toy_world(tmp_path, make_toy_rows())
    assert (world.name, world.horizon) == ("twin_router", 3)
    assert [one.id for one in world.executors] == list(TIERS)
    assert all(one.kind == "tier" for one in world.executors)
    task = next(task for task in list_all_tasks(world) if task.id == "toy-1")
    world.reset(task, 0)
    assert world.request(3) is None
    steps = [world.step(tier, None) for tier in (0, 3, 3)]
    assert [1e6 * step.cost_usd for step in steps] == pytest.approx([11.24, 537.5, 329])
    assert [step.score for step in steps] == [0, 0, 1]
    assert [step.done for step in steps] == [False, False, True]
    assert steps[2].usage.cached_tokens == 58
    assert steps[2].note == "high, mid needed"
    assert steps[2].state.text == ""


def test_an_under_routed_step_fails_the_episode_which_goes_on_to_its_end(tmp_path: Path) -> None:
    world = make_toy_world(tmp_path, make_toy_rows())
    world.reset(Query("toy-1", ""), 0)
    steps = [world.step(tier, None) for tier in (0, 0, 3)]
    assert [(step.done, step.score) for step in steps] == [(False, 0), (False, 0), (True, 0)]


def test_illegal_steps_and_unknown_tasks_are_refused(tmp_path: Path) -> None:
    world = make_toy_world(tmp_path, make_toy_rows())
    with pytest.raises(ValueError, match="executor 0 cannot act here"):
        world.step(0, None)
    with pytest.raises(RLRouteError, match=r"'toy-9': .*bank\.jsonl has no such instance_id"):
        world.reset(Query("toy-9", ""), 0)
    world.reset(Query("toy-2", ""), 0)
    with pytest.raises(ValueError, match="executor 4 cannot act here"):
        world.step(4, None)
    assert world.step(0, None).done
    assert world.advise() is None
    with pytest.raises(ValueError, match="executor 0 cannot act here"):
        world.step(0, None)


def test_episodes_are_the_same_again_and_in_another_process(
    world: TwinRouterWorld, bank: Path
) -> None:
    expected = summarise(world, 3)
    assert summarise(world, 3) == expected
    assert summarise(world, 4) != expected  # other tiers are drawn
    code = (
        "import sys; from pathlib import Path; from test_twin_router import summarise;"
        "from rlroute.worlds.twin_router import TwinRouterConfig, TwinRouterWorld;"
        "print(summarise(TwinRouterWorld(TwinRouterConfig(bank=Path(sys.argv[1]))), 3))"
    )
    folder = Path(__file__).parent
    paths = os.pathsep.join(map(str, (folder, folder.parent, folder.parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", code, str(bank)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == expected


def test_forks_are_lanes_that_do_not_disturb_each_other(world: TwinRouterWorld) -> None:
    task = max(list_all_tasks(world), key=lambda one: len(world.trajectories[one.id].gold_T))
    other = world.fork()
    world.reset(task, 0)
    world.step(3, None)
    other.reset(task, 0)
    other.step(0, None)
    assert world.bound_cost_usd(3) < other.bound_cost_usd(3)
    assert other.bound_cost_usd(0) < world.bound_cost_usd(0)


def test_features_are_named_finite_and_of_modest_size(bank: Path) -> None:
    for declared in (False, True):
        world = TwinRouterWorld(TwinRouterConfig(bank=bank, declare_workload=declared))
        assert len(set(world.feature_names)) == len(world.feature_names)
        assert any(name.startswith("is_") for name in world.feature_names) == declared
        for task in list_all_tasks(world):
            state = world.reset(task, 0)
            for tier in draw_tiers(task, 1)[: len(world.trajectories[task.id].gold_T)]:
                assert state.features_W.dtype == np.float32
                assert state.features_W.shape == (len(world.feature_names),)
                assert np.abs(state.features_W).max() < 3
                assert state.legal_K.all()
                state = world.step(tier, None).state
    assert world.executor_features_KD.shape == (4, 4)
    assert world.executor_features_KD.dtype == np.float32
    assert world.executor_features_KD[:, 3] == pytest.approx(
        [0.5, 0.059 / 0.3, 0.6, 0.08], abs=1e-3
    )


def read_features(world: TwinRouterWorld, features_W: np.ndarray, *names: str) -> list[float]:
    """Return the features of these names."""
    return [float(features_W[world.feature_names.index(name)]) for name in names]


def test_the_tier_before_and_what_it_left_warm_are_shown(tmp_path: Path) -> None:
    world = make_toy_world(tmp_path, make_toy_rows())
    after = [f"after_{name}" for name in (*TIERS, "none")]
    warm = [f"warm_{name}" for name in TIERS]
    state = world.reset(Query("toy-1", ""), 0)
    assert read_features(world, state.features_W, *after) == [0, 0, 0, 0, 1]
    assert read_features(world, state.features_W, *warm) == [0, 0, 0, 0]
    state = world.step(2, None).state
    assert read_features(world, state.features_W, *after) == [0, 0, 1, 0, 0]
    assert read_features(world, state.features_W, *warm) == [0, 0, 1, 0]
    assert read_features(world, state.features_W, "tokens", "growth", "step") == pytest.approx(
        [np.log10(58) - 3, np.log10(35) / 2, 1 / 3]
    )
    counts = read_features(
        world, state.features_W, "system", "user", "assistant", "tool", "tool_calls"
    )
    assert counts == pytest.approx([np.log10(2)] * 5)


def test_a_changed_prefix_is_warm_for_nobody(tmp_path: Path) -> None:
    rows = make_toy_rows()
    rows[1]["messages"] = [{"role": "system", "content": "other"}, *rows[1]["messages"][1:]]
    world = make_toy_world(tmp_path, rows)
    world.reset(Query("toy-1", ""), 0)
    state = world.step(2, None).state
    assert read_features(world, state.features_W, *(f"warm_{tier}" for tier in TIERS)) == [0] * 4
    assert world.step(2, None).usage.cached_tokens == 0


def collect_states(world: TwinRouterWorld, task: Query, steps: int) -> list[tuple[str, bytes]]:
    """Return texts and features of the first steps of an episode of mid."""
    states = [world.reset(task, 0)]
    states += [world.step(1, None).state for _ in range(steps - 1)]
    return [(state.text, state.features_W.tobytes()) for state in states]


def test_neither_labels_nor_length_nor_provenance_nor_what_is_to_come_is_shown(
    tmp_path: Path,
) -> None:
    rows = [row for row in make_published_rows(share=8) if row["benchmark"] == "swebench"]
    world = make_toy_world(tmp_path, rows)
    hidden = copy.deepcopy([row for row in rows if row["step_index"] < 4])
    for row in hidden:  # shorter, with other labels, provenance and workload
        label = 3 - row["target_tier_id"]
        row |= {"target_tier_id": label, "target_tier": TIERS[label], "total_steps": 77}
        row |= {"notes": "x", "scenario": "x", "collector": "x", "benchmark": "qmsum"}
    (tmp_path / "hidden").mkdir()
    other = make_toy_world(tmp_path / "hidden", hidden)
    assert world.horizon > other.horizon == 3
    for task in list_all_tasks(world):
        assert collect_states(world, task, 3) == collect_states(other, task, 3)


def test_the_workload_is_shown_only_if_it_is_declared(tmp_path: Path) -> None:
    task = Query("toy-2", "")
    world = make_toy_world(tmp_path, make_toy_rows(), declare_workload=True)
    state = world.reset(task, 0)
    assert read_features(world, state.features_W, *(f"is_{name}" for name in WORKLOADS)) == [
        float(name == "mtrag") for name in WORKLOADS
    ]
    assert state.text.startswith("mtrag task of 106 tokens: file test class")
    world = make_toy_world(tmp_path, make_toy_rows())
    assert world.reset(task, 0).text.startswith("Task of 106 tokens: file test class")


def test_texts_are_short_and_say_what_is_new(world: TwinRouterWorld, tmp_path: Path) -> None:
    for task in list_all_tasks(world):
        state = world.reset(task, 0)
        assert 0 < len(state.text.split()) <= 60
        for tier in draw_tiers(task, 1)[: len(world.trajectories[task.id].gold_T)]:
            step = world.step(tier, None)
            assert (len(step.state.text.split()) == 0) == step.done
            assert len(step.state.text.split()) <= 25
    toy = make_toy_world(tmp_path, make_toy_rows())
    assert toy.reset(Query("toy-1", ""), 0).text == f"Task of 24 tokens: {write_words(10)}"
    words = write_words(20).split()
    heard = " ".join([*words[:7], "...", *words[-7:]])
    assert toy.step(0, None).state.text == f"tool: {heard} (+34 tokens, 58 in all)"
    assert toy.step(0, None).state.text == f"user: {write_words(5)} (+16 tokens, 74 in all)"


def test_the_first_text_also_says_what_was_said_last(tmp_path: Path) -> None:
    rows = make_toy_rows()
    world = make_toy_world(tmp_path, [rows[1]])  # the log of this trajectory begins at step 2
    first, last = world.reset(Query("toy-1", ""), 0).text.split("\n")
    assert first == f"Task of 58 tokens: {write_words(10)}"
    assert last.startswith("Last, tool: file test")


def test_texts_of_endless_words_are_cut() -> None:
    assert shorten("a b c d e", 4) == "a b ... d e"
    assert shorten("a b c d", 4) == "a b c d"
    assert len(shorten("x" * 10_000, 4)) == 4 * 8 + len(" ... ")


def test_hashed_words_know_no_case_and_have_norm_1() -> None:
    assert np.array_equal(hash_words("The File, 12", 24), hash_words("the file 1 2", 24))
    assert np.linalg.norm(hash_words("one two three", 24)) == pytest.approx(1)
    assert not hash_words("--- ... ", 24).any()
    assert not np.array_equal(hash_words("error", 24), hash_words("success", 24))


def test_who_follows_the_advice_takes_the_oracles_path(world: TwinRouterWorld) -> None:
    for task in list_all_tasks(world):
        oracle = world.find_oracle(task.id)
        world.reset(task, 0)
        tiers, costs, step = [], [], None
        while step is None or not step.done:
            tier = world.advise()
            assert tier is not None
            step = world.step(tier, None)
            tiers.append(tier)
            costs.append(step.cost_usd)
        assert tuple(tiers) == oracle.tiers
        assert sum(costs) == pytest.approx(oracle.cost_usd)
        assert step.score == 1


@given(STRATEGIES)
@settings(max_examples=30)
def test_advice_is_best_also_off_the_oracles_path(
    world: TwinRouterWorld, drawn: tuple[int, int]
) -> None:
    tasks = [task for task in list_all_tasks(world) if len(world.trajectories[task.id].gold_T) > 2]
    task = tasks[drawn[0] % len(tasks)]
    priced = world.trajectories[task.id]
    left = min(4, len(priced.gold_T) - 1)
    begun = draw_tiers(task, drawn[1])[: len(priced.gold_T) - left]
    world.reset(task, 0)
    for tier in begun:
        world.step(tier, None)
    advised = list(begun)
    while (tier := world.advise()) is not None:
        world.step(tier, None)
        advised.append(tier)
    ends = product(*(range(gold, 4) for gold in priced.gold_T.tolist()[-left:]))
    cheapest = min(sum(compute_path_costs(priced, [*begun, *end])) for end in ends)
    assert sum(compute_path_costs(priced, advised)) == pytest.approx(cheapest)


def test_the_advice_stays_at_high_over_a_short_easy_stretch(tmp_path: Path) -> None:
    world = make_toy_world(tmp_path, make_long_rows((3, 0, 0, 3)))
    world.reset(Query("long", ""), 0)
    world.step(3, None)
    assert world.advise() == 3
    world.step(0, None)  # left: to stay away is cheaper until high is needed
    assert world.advise() == 0


def test_a_config_is_read_from_plain_values_and_faults_are_named(bank: Path) -> None:
    values: dict[str, Any] = {"bank": str(bank), "tokens": {"kind": "words"}, "hashed_words": 8}
    config = parse_config(TwinRouterConfig, values, "recipe.yaml")
    assert config.split == FractionSplit()
    assert sum(name.startswith("words_") for name in TwinRouterWorld(config).feature_names) == 8
    with pytest.raises(RLRouteError, match=r"recipe.yaml: unknown key 'banks'"):
        parse_config(TwinRouterConfig, {"banks": "x"}, "recipe.yaml")
    with pytest.raises(ValidationError, match="hashed_words"):
        TwinRouterConfig(bank=bank, hashed_words=0)
    with pytest.raises(RLRouteError, match="cannot be read"):
        TwinRouterWorld(TwinRouterConfig(bank=bank.with_name("none.jsonl")))
