"""Boundary rollouts on disk, the sweep, the cheapest success, and dear steps that can be spared."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from step_worlds import THREE_EXECUTORS, THREE_KINDS, MeteredWorld, WaitingPool, make_chain

import rlroute.rollout.boundary as boundary_module
from rlroute.config import parse_config
from rlroute.envs.step_budget import StepBudgetConfig
from rlroute.rollout.boundary import (
    BoundaryRollout,
    RolloutFile,
    make_script,
    prune,
    read_boundary,
    run_boundaries,
    run_sweep,
    select_expert,
)
from rlroute.rollout.stage import Stage
from rlroute.rollout.step_plan import plan_static
from rlroute.types import RLRouteError
from rlroute.worlds.chain import ChainConfig

CHAIN = make_chain(2, train=8, val=3, test=3)
CONFIG = parse_config(
    StepBudgetConfig, {"budget": {"caps": [1]}, "reward": {"unit": "calls"}}, "test"
)


class PooledStage(Stage):
    """A stage on which executors live behind a pool."""

    def __init__(self, pool: WaitingPool, lanes: int = 4) -> None:
        super().__init__(CHAIN, lanes=lanes, pool=pool, reading=True)
        self.world = MeteredWorld(2, behind_pool=True)
        self.tasks = {split: self.world.list_tasks(split) for split in ("train", "val", "test")}


def fill(path: Path, stage: Stage | None = None, *, chain=CHAIN, seed: int = 0) -> RolloutFile:
    """Play three rollouts of each static policy on train, and a sweep of five on two tasks."""
    stage = stage or Stage(chain, lanes=4)
    file = RolloutFile(path, chain.model_dump_json())
    run_boundaries(stage, file, CONFIG, "train", 3, seed=seed)
    run_sweep(stage, file, CONFIG, "train", [1, 4], 5, seed=seed)
    return file


# --- Playing --------------------------------------------------------------------------------------


def test_every_task_gets_its_rollouts_without_a_cap(tmp_path):
    file = fill(tmp_path / "b.jsonl")
    assert len(file.rollouts) == 8 * 2 * 3 + 2 * 5
    for task in Stage(CHAIN, lanes=1).tasks["train"]:
        small = file.list_of("train", task.id, "small")
        large = file.list_of("train", task.id, "large")
        assert [one.number for one in small] == [one.number for one in large] == [0, 1, 2]
        assert {one.calls for one in small} == {0}
        assert {one.calls for one in large} == {10}  # the recipe's cap of 1 does not hold here
        assert {one.dear_rate for one in small} == {0.0}
        assert len({one.seed for one in small + large}) == 6
    swept = file.list_of("train", "chain-0-train-4", "sweep")
    assert [one.dear_rate for one in swept] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [sum(one.actions) for one in swept] == [one.calls for one in swept]
    assert swept[-1].calls == 10
    assert file.list_of("train", "chain-0-train-0", "sweep") == []


def test_the_means_of_a_task_are_those_of_its_first_rollouts(tmp_path):
    file = fill(tmp_path / "b.jsonl")
    task = "chain-0-train-4"
    found = read_boundary(file, "train", task, 2, "usd")
    large = file.list_of("train", task, "large")[:2]
    assert found.scores_large == tuple(one.score for one in large)
    assert found.cost_large == pytest.approx(10 * 0.0076)
    assert found.cost_small == pytest.approx(10 * 0.00152)
    assert read_boundary(file, "train", task, 3, "calls").cost_large == 10


def test_a_rollout_can_be_played_again_from_its_seed_and_executors(tmp_path):
    stage, file = Stage(CHAIN, lanes=4), fill(tmp_path / "b.jsonl")
    kept = list(file.rollouts.values())
    index = {task.id: n for n, task in enumerate(stage.tasks["train"])}
    plan = plan_static(
        np.array([index[one.task] for one in kept]), np.array([one.seed for one in kept])
    )
    script = make_script([one.actions for one in kept], stage.world.horizon)
    free = CONFIG.model_copy(update={"budget": type(CONFIG.budget)()})
    batch = stage.play(script, plan, "train", free, {})
    assert batch.ends.score_B.tolist() == [one.score for one in kept]
    assert batch.action_BT.tolist() == [list(one.actions) for one in kept]


def test_arrays_and_single_environments_leave_the_same_file(tmp_path):
    fill(tmp_path / "arrays.jsonl", Stage(CHAIN, lanes=4))
    fill(tmp_path / "single.jsonl", Stage(CHAIN, lanes=4, reading=True))
    assert (tmp_path / "arrays.jsonl").read_text() == (tmp_path / "single.jsonl").read_text()


def test_seeds_differ_between_runs_and_splits_and_are_otherwise_fixed(tmp_path):
    stage = Stage(CHAIN, lanes=4)
    file, other = fill(tmp_path / "b.jsonl"), fill(tmp_path / "other.jsonl", seed=1)
    run_boundaries(stage, file, CONFIG, "val", 3, seed=0)
    seeds = [one.seed for one in file.rollouts.values()]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {one.seed for one in other.rollouts.values()}


# --- On disk --------------------------------------------------------------------------------------


class PlugPulledError(Exception):
    """Somebody pulls the plug."""


@pytest.mark.parametrize("after", [1, 3, 7])
def test_an_interrupted_run_goes_on_to_the_same_file(tmp_path, monkeypatch, after):
    monkeypatch.setattr(boundary_module, "CHUNK", 8)
    whole, parted = tmp_path / "whole.jsonl", tmp_path / "parted.jsonl"
    fill(whole)
    left = Counter(chunks=after)

    def stop(count: int) -> None:
        left["chunks"] -= 1
        if left["chunks"] < 0:
            raise PlugPulledError

    stage = Stage(CHAIN, lanes=4)
    file = RolloutFile(parted, CHAIN.model_dump_json())
    with suppress(PlugPulledError):
        run_boundaries(stage, file, CONFIG, "train", 3, seed=0, tell=stop)
        run_sweep(stage, file, CONFIG, "train", [1, 4], 5, seed=0, tell=stop)
    assert left["chunks"] == -1
    before = parted.read_text(encoding="utf-8")
    assert len(before) < len(whole.read_text(encoding="utf-8"))
    told: list[int] = []
    file = RolloutFile(parted, CHAIN.model_dump_json())
    kept = len(file.rollouts)
    run_boundaries(stage, file, CONFIG, "train", 3, seed=0, tell=told.append)
    assert told[0] == kept  # what lies there is not played again
    fill(parted)
    assert parted.read_text(encoding="utf-8") == whole.read_text(encoding="utf-8")


@pytest.mark.parametrize("lines", [1, 2, 20])
@pytest.mark.parametrize("torn", [1, 30])
def test_a_torn_last_line_is_played_again(tmp_path, lines, torn):
    path = tmp_path / "b.jsonl"
    fill(path)
    text = path.read_text(encoding="utf-8")
    at = [n for n, letter in enumerate(text) if letter == "\n"][lines - 1]
    path.write_text(text[: at + 1 - torn], encoding="utf-8")
    fill(path)
    assert path.read_text(encoding="utf-8") == text


def test_a_file_without_a_header_gets_one(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text("", encoding="utf-8")
    fill(path)
    fill(tmp_path / "other.jsonl")
    assert path.read_text(encoding="utf-8") == (tmp_path / "other.jsonl").read_text("utf-8")


def test_rollouts_of_another_world_are_refused_in_one_line(tmp_path):
    fill(tmp_path / "b.jsonl")
    with pytest.raises(
        RLRouteError, match=r"b.jsonl: these rollouts are of another world"
    ) as caught:
        fill(tmp_path / "b.jsonl", chain=make_chain(3, train=8, val=3, test=3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", '{"split": "train"}', '"text"', "7"])
def test_a_line_that_is_no_rollout_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "b.jsonl"
    fill(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*lines[:4], line, *lines[4:]]) + "\n", encoding="utf-8")
    with pytest.raises(RLRouteError, match=r"b.jsonl, line 5: no rollout"):
        RolloutFile(path, CHAIN.model_dump_json())


def test_the_lines_are_plain_json(tmp_path):
    fill(tmp_path / "b.jsonl")
    header, first, *_ = (tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(header)) == {"format_version", "world"}
    assert set(json.loads(first)) == set(BoundaryRollout.__dataclass_fields__)


# --- Executors behind a pool ----------------------------------------------------------------------


def test_a_call_that_goes_on_failing_ends_the_run_and_what_was_played_is_kept(tmp_path):
    clean = RolloutFile(tmp_path / "clean.jsonl", "metered")
    run_boundaries(PooledStage(WaitingPool()), clean, CONFIG, "train", 2, seed=0)
    large = [one for one in clean.rollouts.values() if one.arm == "large"]
    broken = large[5]
    file = RolloutFile(tmp_path / "b.jsonl", "metered")
    stage = PooledStage(WaitingPool({f"{broken.seed} 0": 10**6}))
    with pytest.raises(RLRouteError, match=f"task '{broken.task}': a call .* failed") as caught:
        run_boundaries(stage, file, CONFIG, "train", 2, seed=0)
    assert "\n" not in str(caught.value)
    again = RolloutFile(tmp_path / "b.jsonl", "metered")
    assert 0 < len(again.rollouts) < len(clean.rollouts)
    assert len(again.rollouts) % 4 == 3  # all but the broken one of its chunk of four
    assert broken.key not in again.rollouts
    run_boundaries(PooledStage(WaitingPool()), again, CONFIG, "train", 2, seed=0)
    assert again.rollouts == clean.rollouts


def test_calls_that_fail_once_change_no_rollout(tmp_path):
    files = [RolloutFile(tmp_path / f"{n}.jsonl", "metered") for n in range(2)]
    run_boundaries(PooledStage(WaitingPool()), files[0], CONFIG, "val", 2, seed=0)
    seeds = [one.seed for one in files[0].rollouts.values()]
    pool = WaitingPool({f"{seed} 1": 1 for seed in seeds})
    run_boundaries(PooledStage(pool), files[1], CONFIG, "val", 2, seed=0)
    assert files[0].path.read_text("utf-8") == files[1].path.read_text("utf-8")


# --- Experts --------------------------------------------------------------------------------------


def make_rollout(k: float, calls: int, score: float, steps: int = 10, **fields) -> BoundaryRollout:
    actions = (1,) * calls + (0,) * (steps - calls)
    rollout = BoundaryRollout(
        *("train", "task", "sweep", int(k), k / 5, 0, score, 0.01 * calls, calls, actions)
    )
    return replace(rollout, **fields)


def test_the_expert_of_the_sheet():
    rollouts = [
        make_rollout(k, calls, score)
        for k, calls, score in [(1, 1, 0), (2, 3, 1), (3, 6, 1), (4, 3, 1), (5, 10, 1)]
    ]
    assert select_expert(rollouts, "calls") is rollouts[1]
    assert select_expert(rollouts[::-1], "calls") is rollouts[1]


def test_equal_costs_are_told_apart_by_steps_then_rate_then_order():
    long, short = make_rollout(1, 3, 1.0, steps=10), make_rollout(4, 3, 1.0, steps=8)
    assert select_expert([long, short], "calls") is short
    rare, often = make_rollout(2, 3, 1.0), make_rollout(3, 3, 1.0)
    assert select_expert([often, rare], "calls") is rare
    first, second = make_rollout(2, 3, 1.0, seed=1), make_rollout(2, 3, 1.0, seed=2)
    assert select_expert([first, second], "calls") is first


def test_the_cheapest_success_depends_on_the_unit():
    many, dear = make_rollout(1, 4, 1.0, cost_usd=0.02), make_rollout(2, 2, 1.0, cost_usd=0.03)
    assert select_expert([many, dear], "usd") is many
    assert select_expert([many, dear], "calls") is dear


def test_without_a_success_there_is_no_expert():
    failures = [make_rollout(k, k, 0.0) for k in range(1, 6)]
    assert select_expert(failures, "calls") is None
    assert select_expert([], "calls") is None
    graded = [make_rollout(1, 1, 0.4), make_rollout(2, 2, 0.7), make_rollout(3, 3, 0.9)]
    assert select_expert(graded, "calls") is None
    assert select_expert(graded, "calls", success=0.6) is graded[1]


def test_pruning_keeps_success_and_only_the_dear_steps_that_it_needs(tmp_path):
    chain = make_chain(2, train=60, val=1, test=1)
    stage = Stage(chain, lanes=4)
    file = RolloutFile(tmp_path / "b.jsonl", chain.model_dump_json())
    run_sweep(stage, file, CONFIG, "train", range(60), 10, seed=0)
    tasks = stage.tasks["train"]
    found = [select_expert(file.list_of("train", task.id, "sweep"), "calls") for task in tasks]
    experts = [one for one in found if one is not None]
    assert len(experts) > 40
    kept = prune(stage, experts, CONFIG, "train")
    critical_QT = stage.world.lanes.tables["train"][2]
    spared = 0
    for before, after in zip(experts, kept, strict=True):
        assert (after.task, after.seed) == (before.task, before.seed)
        assert after.score == 1
        assert after.calls <= before.calls
        assert after.cost_usd <= before.cost_usd
        critical_T = critical_QT[int(after.task.rsplit("-", 1)[1])]
        assert not np.array(after.actions)[~critical_T].any()
        spared += before.calls - after.calls
    assert spared > 20
    assert prune(stage, kept, CONFIG, "train") == kept


def test_pruning_never_raises_a_cost():
    class WanderingWorld(MeteredWorld):
        """Without the dear executor at the start, the cheap one succeeds late and pays for it."""

        horizon = 6

        def fork(self):
            return WanderingWorld(2)

        def reset(self, task, seed):
            self.early = False
            return super().reset(task, seed)

        def step(self, executor, reply):
            step = super().step(executor, reply)
            self.early |= self.turn == 1 and executor == 1
            done = self.turn == (2 if self.early else 6)
            cost_usd = 0.004 if executor else 0.002
            return replace(step, done=done, score=float(done), cost_usd=cost_usd)

    class WanderingStage(PooledStage):
        def __init__(self):
            super().__init__(WaitingPool())
            self.world, self.pool = WanderingWorld(2), None

    stage = WanderingStage()
    task = stage.tasks["train"][0]
    expert = BoundaryRollout("train", task.id, "sweep", 0, 0.5, 3, 1.0, 0.006, 1, (1, 0))
    for unit, calls, cost in (("usd", 1, 0.006), ("calls", 0, 0.012)):
        config = CONFIG.model_copy(
            update={"reward": CONFIG.reward.model_copy(update={"unit": unit})}
        )
        (kept,) = prune(stage, [expert], config, "train")
        assert kept.score == 1
        assert (kept.calls, kept.cost_usd) == (calls, pytest.approx(cost))


def test_pruning_with_three_executors_ends_at_the_cheapest(tmp_path):
    chain = ChainConfig(kinds=THREE_KINDS, executors=THREE_EXECUTORS, train=10, val=1, test=1)
    stage = Stage(chain, lanes=4)
    file = RolloutFile(tmp_path / "b.jsonl", "three")
    run_boundaries(stage, file, CONFIG, "train", 2, seed=0)
    solved = [one for one in file.rollouts.values() if one.arm == "large" and one.score == 1]
    assert len(solved) > 5
    for before, after in zip(solved, prune(stage, solved, CONFIG, "train"), strict=True):
        assert set(before.actions) == {2}
        assert after.score == 1
        assert after.cost_usd < before.cost_usd


def test_nothing_to_prune_is_left_as_it_is():
    stage = Stage(CHAIN, lanes=4)
    assert prune(stage, [], CONFIG, "train") == []
    cheap = BoundaryRollout("train", "chain-0-train-0", "small", 0, 0.0, 1, 0.0, 0.1, 0, (0,) * 10)
    assert prune(stage, [cheap], CONFIG, "train") == [cheap]
