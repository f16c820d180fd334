from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rlroute.config import parse_config
from rlroute.pool.pool_file import PricesEntry
from rlroute.types import Reply, RLRouteError, Usage
from rlroute.worlds import scienceworld
from rlroute.worlds.scienceworld import (
    ScienceWorld,
    ScienceWorldConfig,
    ScienceWorldGames,
    extend_java_options,
    find_next,
    list_things,
    shorten,
)
from rlroute.worlds.scripted_executors import PoolExecutor, ScriptedExecutor

pytest.importorskip("scienceworld", reason="the extra 'scienceworld' is not installed")

SMALL = PricesEntry(input=0.4, output=1.6)
LARGE = PricesEntry(input=2.0, output=8.0)
TASKS = ("find-non-living-thing", "find-animal")
SCRIPTED = (
    ScriptedExecutor(id="small", prices=SMALL, follow={"focus": 0.2}, follow_otherwise=0.7),
    ScriptedExecutor(id="large", prices=LARGE, follow_otherwise=1.0),
)
AGENT = (PoolExecutor(id="agent", prices=LARGE),)

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime")


def make_world(executors=SCRIPTED, **fields):
    counts = {"train_variations": 2, "val_variations": 1, "test_variations": 1}
    return ScienceWorld(
        ScienceWorldConfig(**{"tasks": TASKS, "executors": executors, **counts, **fields})
    )


def play(world, task, seed, actions):
    states, steps = [world.reset(task, seed)], []
    while not steps or not steps[-1].done:
        steps.append(world.step(actions[len(steps) % len(actions)], None))
        states.append(steps[-1].state)
    return states, steps


def write_digest(world):
    digest = hashlib.sha256()
    for task in world.list_tasks("train")[::2]:  # one of each type
        for seed in range(3):
            states, steps = play(world, task, seed, [0, 1])
            for state in states:
                digest.update(state.text.encode() + state.features_W.tobytes())
            for step in steps:
                digest.update(repr((step.usage, step.cost_usd, step.score, step.note)).encode())
    return digest.hexdigest()


def forget_what_was_played():
    scienceworld.SCENES.values.clear()
    scienceworld.GOLD.clear()


def answer(world, text):
    return Reply(world.request(0), text, Usage(300, 6), cost_usd=0.00065)


@needs_java
def test_the_executor_that_always_follows_earns_the_whole_score():
    world = make_world()
    for task in world.list_tasks("train"):
        scores = [step.score for step in play(world, task, 1, [1])[1]]
        assert scores[-1] == 1
        assert scores == sorted(scores)
        assert scores[0] < 1


@needs_java
def test_equal_seeds_make_equal_episodes_whatever_was_played_before():
    world = make_world()
    first = write_digest(world)
    forget_what_was_played()
    world.reset(world.list_tasks("test")[1], 0)
    assert write_digest(make_world().fork()) == first


@needs_java
def test_an_episode_is_the_same_in_another_process():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_scienceworld as here; "
        "print(here.write_digest(here.make_world()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == write_digest(make_world())
    assert done.stderr == ""  # the simulator was closed without complaint


@needs_java
def test_an_executor_that_does_not_follow_wastes_the_step_and_nothing_else():
    idle = (ScriptedExecutor(id="small", prices=SMALL, follow_otherwise=0.0),)
    world = make_world(idle, horizon=12)
    task = world.list_tasks("train")[0]
    _, steps = play(world, task, 1, [0])
    assert len(steps) == 12
    assert {step.note for step in steps} == {"look around", "inventory"}
    assert steps[-1].score == 0
    assert world.episode.commands == ()


@needs_java
def test_scripted_executors_follow_as_often_as_stated():
    world = make_world()
    task = world.list_tasks("train")[0]
    world.reset(task, 0)
    command = world.episode.scene.policy_command
    followed = []
    for seed in range(600):
        world.reset(task, seed)
        followed.append(world.step(0, None).note == command)
    rate = SCRIPTED[0].find_follow_probability(command)
    assert np.mean(followed) == pytest.approx(rate, abs=0.09)


@needs_java
@pytest.mark.parametrize("text", ["do some science", "", "open door to kitchen please"])
def test_a_reply_that_the_simulator_does_not_know_changes_nothing(text):
    world = make_world(AGENT)
    task = world.list_tasks("train")[0]
    world.reset(task, 1)
    scene = world.episode.scene
    step = world.step(0, answer(world, text))
    assert world.episode.scene is scene
    assert "no command of the game" in step.state.text
    assert (step.usage, step.cost_usd, step.score) == (Usage(300, 6), 0.00065, 0.0)
    done = False
    while not done:  # the task is as it was: its gold sequence still solves it
        step = world.step(0, answer(world, world.episode.scene.policy_command))
        done = step.done
    assert step.score == 1


@needs_java
def test_a_command_that_could_mean_several_things_changes_nothing():
    world = make_world(AGENT, tasks=("find-plant",), train_variations=1)
    task = world.list_tasks("train")[0]
    metadata = {**task.metadata, "variation": "1"}  # begins among three wood cups
    task = dataclasses.replace(task, id="scienceworld-find-plant-1", metadata=metadata)
    world.reset(task, 1)
    scene = world.episode.scene
    step = world.step(0, answer(world, "open wood cup"))
    assert "no command of the game" in step.state.text
    assert world.games.play(task, ("open wood cup",)).feedback.startswith("Ambiguous request")
    assert world.episode.scene is scene
    steps = [step]
    while not steps[-1].done:
        steps.append(world.step(0, answer(world, world.episode.scene.policy_command)))
    assert steps[-1].score == 1


@needs_java
def test_an_agent_may_leave_the_gold_sequence_and_come_back_to_it():
    world = make_world(AGENT)
    task = world.list_tasks("train")[1]
    world.reset(task, 1)
    gold = world.episode.scene.policy_command
    step = world.step(0, answer(world, "Put down  ORANGE"))
    assert step.note == "put down orange"
    assert world.episode.commands == ("put down orange",)
    assert world.episode.scene.policy_command == gold
    done = False
    while not done:
        step = world.step(0, answer(world, world.episode.scene.policy_command))
        done = step.done
    assert step.score == 1


@needs_java
def test_a_focus_on_the_wrong_thing_ends_the_task_at_score_0():
    world = make_world(AGENT)
    task = next(one for one in world.list_tasks("train") if one.task == "find-animal")
    world.reset(task, 1)
    step = world.step(0, answer(world, "focus on orange"))
    assert (step.done, step.score) == (True, 0.0)


@needs_java
def test_looking_around_is_free():
    world = make_world(AGENT)
    world.reset(world.list_tasks("train")[0], 1)
    scene = world.episode.scene
    world.step(0, answer(world, "LOOK around"))
    assert world.episode.scene is scene
    assert world.episode.feedback in scene.details


class HiddenPolicyGames(ScienceWorldGames):
    """The same tasks, of which no gold sequence is known."""

    def play(self, task, commands):
        return dataclasses.replace(super().play(task, commands), policy_command=None)


@needs_java
def test_the_next_command_shows_in_neither_text_nor_features():
    world, blind = make_world(AGENT), make_world(AGENT)
    blind.episode.games = HiddenPolicyGames()
    for task in world.list_tasks("train"):
        states = [lane.reset(task, 1) for lane in (world, blind)]
        done = False
        while not done and not world.episode.games.is_free(world.episode.scene.policy_command):
            assert states[0].text == states[1].text
            assert np.array_equal(states[0].features_W, states[1].features_W)
            assert world.request(0).text == blind.request(0).text
            command = world.episode.scene.policy_command
            steps = [lane.step(0, answer(lane, command)) for lane in (world, blind)]
            states, done = [step.state for step in steps], steps[0].done


@needs_java
def test_features_texts_and_bounds_keep_their_limits():
    world = make_world()
    for task in world.list_tasks("train"):
        for seed in range(3):
            state, done = world.reset(task, seed), False
            assert len(state.text.split()) <= 60
            while not done:
                bound = world.bound_cost_usd(seed % 2)
                step = world.step(seed % 2, None)
                assert step.cost_usd <= bound
                assert len(step.state.text.split()) <= 25
                features_W = step.state.features_W
                assert features_W.shape == (len(world.feature_names),)
                assert np.isfinite(features_W).all()
                assert -1 <= features_W.min() <= features_W.max() <= 3
                done = step.done


@needs_java
def test_the_splits_are_the_librarys_and_share_no_variation():
    world = make_world(train_variations=8, val_variations=4, test_variations=6)
    tasks = [world.list_tasks(split) for split in ("train", "val", "test")]
    assert [len(some) for some in tasks] == [16, 8, 12]
    assert len({task.id for some in tasks for task in some}) == 36
    assert {task.task for task in tasks[0]} == set(TASKS)
    environment = world.games.simulator.environment
    environment.load("find-animal", 0, "")
    allowed = set(environment.get_variations_test())
    mine = [int(task.metadata["variation"]) for task in tasks[2] if task.task == "find-animal"]
    assert set(mine) <= allowed
    assert max(mine) - min(mine) == max(allowed) - min(allowed)


@needs_java
def test_a_task_type_that_the_library_does_not_know_is_named():
    with pytest.raises(RLRouteError, match="unknown task 'find-gold'") as caught:
        make_world(tasks=("find-gold",))
    assert "\n" not in str(caught.value)


def test_gold_sequences_go_on_where_their_next_command_is_given():
    gold = ("open door", "go out", "open door")
    assert find_next(gold, ()) == "open door"
    assert find_next(gold, ("go out", "open door", "look around")) == "go out"
    assert find_next(gold, ("open door", "go out", "open door")) is None


def test_rooms_are_read_as_things_and_doors():
    look = (
        "This room is called the hallway. In it, you see: \n\tthe agent\n"
        "\ta substance called air\n\ta flower pot 2 (containing water)\n\ta sink, which is on.\n"
        "You also see:\n\tA door to the kitchen (that is open)\n"
    )
    assert list_things(look) == {
        "things": ("a flower pot 2 (containing water)", "a sink, which is on."),
        "doors": ("A door to the kitchen (that is open)",),
    }
    assert shorten("a flower pot 2 (containing water)") == "flower pot 2"
    assert shorten("a substance called wood") == "wood"


def test_java_options_are_added_and_taken_back(monkeypatch):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx1g")
    with extend_java_options("-Dx=1"):
        assert os.environ["JAVA_TOOL_OPTIONS"] == "-Xmx1g -Dx=1"
    assert os.environ["JAVA_TOOL_OPTIONS"] == "-Xmx1g"
    monkeypatch.delenv("JAVA_TOOL_OPTIONS")
    with extend_java_options("-Dx=1"):
        assert os.environ["JAVA_TOOL_OPTIONS"] == "-Dx=1"
    assert "JAVA_TOOL_OPTIONS" not in os.environ


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    monkeypatch.setattr(scienceworld, "start_simulator", scienceworld.start_simulator.__wrapped__)
    with pytest.raises(RLRouteError, match=r"rlroute\[scienceworld\]"):
        ScienceWorld(ScienceWorldConfig())


def test_a_missing_java_is_named_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RLRouteError, match="java: not found on the PATH") as caught:
        scienceworld.start_simulator.__wrapped__()
    assert "\n" not in str(caught.value)


def test_a_java_that_does_not_start_is_named_in_one_line(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RLRouteError, match="java: does not start with -XX") as caught:
        scienceworld.start_simulator.__wrapped__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"tasks": []}, "tasks"),
        ({"horizon": 0}, "horizon"),
        (
            {"executors": [{"kind": "pool", "id": "a", "prices": {"input": 1}}]},
            "executors.0.prices.output",
        ),
    ],
)
def test_faults_of_the_config_are_named_in_one_line(stated, fault):
    with pytest.raises(RLRouteError, match=fault) as caught:
        parse_config(ScienceWorldConfig, stated, "recipe.yaml")
    assert "\n" not in str(caught.value)
