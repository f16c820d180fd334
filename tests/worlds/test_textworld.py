from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlroute.config import parse_config
from rlroute.pool.pool_file import PricesEntry
from rlroute.types import Reply, RLRouteError, Usage
from rlroute.worlds import textworld
from rlroute.worlds.scripted_executors import PoolExecutor, ScriptedExecutor, find_verb
from rlroute.worlds.textworld import LiveGames, TextWorld, TextWorldConfig, TextWorldGames

pytest.importorskip("textworld", reason="the extra 'textworld' is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*is not fully supported")

SMALL = PricesEntry(input=0.4, output=1.6)
LARGE = PricesEntry(input=2.0, output=8.0)
SIZE = {"rooms": 3, "objects": 5, "min_quest_length": 3, "max_quest_length": 4}
COUNTS = {"train_games": 2, "val_games": 1, "test_games": 1}
SCRIPTED = (
    ScriptedExecutor(id="small", prices=SMALL, follow={"take": 0.3}, follow_otherwise=0.6),
    ScriptedExecutor(id="large", prices=LARGE, follow_otherwise=1.0),
)
AGENT = (PoolExecutor(id="agent", prices=LARGE),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("games")


def make_world(folder, executors=SCRIPTED, **fields):
    return TextWorld(
        TextWorldConfig(folder=folder, executors=executors, **{**SIZE, **COUNTS, **fields})
    )


def play(world, task, seed, actions):
    """Play executors in turn until the end; return the states and steps."""
    states, steps = [world.reset(task, seed)], []
    while not steps or not steps[-1].done:
        steps.append(world.step(actions[len(steps) % len(actions)], None))
    return [*states, *(step.state for step in steps)], steps


def write_digest(world, seeds=4):
    """Return a digest of all that episodes show, with the small and large executor in turn."""
    digest = hashlib.sha256()
    for task in world.list_tasks("train"):
        for seed in range(seeds):
            states, steps = play(world, task, seed, [0, 0, 1])
            for state in states:
                digest.update(state.text.encode() + state.features_W.tobytes())
            for step in steps:
                digest.update(repr((step.usage, step.cost_usd, step.score, step.note)).encode())
    return digest.hexdigest()


def answer(world, text, executor=0):
    """Return the reply of an agent to what it is sent now."""
    return Reply(world.request(executor), text, Usage(200, 5), cost_usd=0.00044)


def test_the_executor_that_always_follows_wins_in_as_many_steps_as_the_quest_has(folder):
    world = make_world(folder)
    for task in world.list_tasks("train"):
        _, steps = play(world, task, 1, [1])
        assert len(steps) == int(task.metadata["quest_length"])
        assert [step.score for step in steps] == [0.0] * (len(steps) - 1) + [1.0]


def test_equal_seeds_make_equal_episodes_whatever_was_played_before(folder):
    alone = write_digest(make_world(folder))
    textworld.SCENES.values.clear()
    textworld.SHOWN.values.clear()
    world, other = make_world(folder), make_world(folder).fork()
    task = world.list_tasks("test")[0]
    other.reset(task, 9)
    other.step(0, None)
    assert write_digest(world) == alone


def test_an_episode_is_the_same_in_another_process(folder):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_textworld as here; "
        "from pathlib import Path; "
        "print(here.write_digest(here.make_world(Path(sys.argv[2]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.split()[-1] == write_digest(make_world(folder))


def test_lanes_do_not_disturb_each_other(folder):
    world = make_world(folder)
    task = world.list_tasks("train")[0]
    expected = [play(world, task, seed, [0])[1] for seed in (1, 2)]
    lanes = [world.fork(), world.fork()]
    for lane, seed in zip(lanes, (1, 2), strict=True):
        lane.reset(task, seed)
    for turn in range(max(map(len, expected))):
        for lane, steps in zip(lanes, expected, strict=True):
            if turn < len(steps):
                step = lane.step(0, None)
                assert (step.note, step.cost_usd) == (steps[turn].note, steps[turn].cost_usd)


def test_scripted_executors_follow_the_policy_as_often_as_stated(folder):
    world = make_world(folder)
    task = world.list_tasks("train")[0]
    world.reset(task, 0)
    command = world.episode.scene.policy_command
    rate = SCRIPTED[0].find_follow_probability(command)
    followed = []
    for seed in range(600):
        world.reset(task, seed)
        followed.append(world.step(0, None).note == command)
    assert np.mean(followed) == pytest.approx(rate, abs=0.09)


def test_a_reply_that_is_no_command_changes_nothing_and_costs_a_step(folder):
    world = make_world(folder, AGENT)
    task = world.list_tasks("train")[0]
    world.reset(task, 1)
    scene = world.episode.scene
    step = world.step(0, answer(world, "please " + scene.policy_command))
    assert world.episode.scene is scene
    assert world.episode.commands == ()
    assert "no command of the game" in step.state.text
    assert "nothing happens" in world.request(0).text
    assert (step.usage, step.cost_usd) == (Usage(200, 5), 0.00044)
    names = world.feature_names
    assert step.state.features_W[names.index("understood")] == 0
    assert step.state.features_W[names.index("confidence")] == 0
    assert step.state.features_W[names.index("step_fraction")] == np.float32(1 / world.horizon)


def test_an_agent_wins_by_commands_in_any_case_and_spacing(folder):
    world = make_world(folder, AGENT)
    task = world.list_tasks("train")[0]
    world.reset(task, 1)
    done = False
    while not done:
        command = world.episode.scene.policy_command.upper().replace(" ", "  ")
        step = world.step(0, answer(world, f" {command}\n"))
        done = step.done
    assert step.score == 1


def test_an_agent_is_told_the_task_the_conversation_and_the_possible_commands(folder):
    world = make_world(folder, AGENT)
    world.reset(world.list_tasks("train")[0], 1)
    command = world.episode.scene.policy_command
    world.step(0, answer(world, command))
    call = world.request(0)
    assert call.candidate_id == "agent"
    assert world.episode.scene.objective in call.text
    assert f"> {command}\n" in call.text
    assert world.episode.scene.policy_command in call.text.partition("Possible commands: ")[2]
    assert "one of the possible commands" in call.system


class HiddenPolicyGames(TextWorldGames):
    """The same games, which do not know what to do next."""

    def play(self, task, commands):
        return dataclasses.replace(super().play(task, commands), policy_command=None)


def test_the_next_command_of_the_game_shows_in_neither_text_nor_features(folder):
    world, blind = make_world(folder, AGENT), make_world(folder, AGENT)
    blind.episode.games = HiddenPolicyGames(blind.config)
    for task in world.list_tasks("train"):
        states = [lane.reset(task, 1) for lane in (world, blind)]
        done = False
        while not done:
            assert states[0].text == states[1].text
            assert np.array_equal(states[0].features_W, states[1].features_W)
            assert world.request(0).text == blind.request(0).text
            command = world.episode.scene.policy_command
            steps = [lane.step(0, answer(lane, command)) for lane in (world, blind)]
            states, done = [step.state for step in steps], steps[0].done


def test_features_are_named_finite_and_of_modest_size(folder):
    world = make_world(folder)
    assert len(set(world.feature_names)) == len(world.feature_names)
    assert "confidence" in world.feature_names
    for task in world.list_tasks("train"):
        for state in play(world, task, 3, [0])[0]:
            assert state.features_W.shape == (len(world.feature_names),)
            assert state.features_W.dtype == np.float32
            assert np.isfinite(state.features_W).all()
            assert state.features_W.min() >= -1
            assert state.features_W.max() <= 3
            assert state.legal_K.tolist() == [True, True]


def test_texts_are_short_and_the_first_one_says_the_objective(folder):
    world = make_world(folder)
    for task in world.list_tasks("train"):
        states, _ = play(world, task, 3, [0])
        assert world.episode.scene.objective in states[0].text
        assert len(states[0].text.split()) <= 60
        assert all(len(state.text.split()) <= 25 for state in states[1:])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2), min_size=20, max_size=20), st.integers(0, 50), st.text())
def test_no_step_costs_more_than_its_bound(folder, actions, seed, text):
    world = make_world(folder, (*SCRIPTED, PoolExecutor(id="agent", prices=SMALL)))
    world.reset(world.list_tasks("train")[seed % 2], seed)
    kinds, done = [one.id for one in world.executors], False
    for action in actions:
        if done:
            break
        bound, call = world.bound_cost_usd(action), world.request(action)
        reply = None
        if kinds[action] == "agent":  # one token a byte, and all that may be written
            most = Usage(len((call.system + call.text).encode()), call.max_output_tokens)
            cost = SMALL.to_prices().compute_cost(most.prompt_tokens, most.completion_tokens)
            reply = Reply(call, text, most, cost_usd=cost)
        step = world.step(action, reply)
        assert step.cost_usd <= bound
        done = step.done


def test_prompts_and_costs_grow_with_the_conversation(folder):
    world = make_world(folder, AGENT, horizon=6)
    world.reset(world.list_tasks("train")[0], 1)
    bounds = []
    for _ in range(6):
        bounds.append(world.bound_cost_usd(0))
        world.step(0, answer(world, "look"))
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]


def test_commands_that_change_nothing_are_left_out_of_the_prefix(folder):
    world = make_world(folder, AGENT)
    world.reset(world.list_tasks("train")[0], 1)
    scene = world.episode.scene
    step = world.step(0, answer(world, "inventory"))
    assert "carrying" in world.request(0).text
    assert world.episode.commands == ()
    assert world.episode.scene is scene
    assert step.note == "inventory"


def test_games_are_played_alike_by_one_live_game_and_by_many(folder, monkeypatch):
    expected = write_digest(make_world(folder), seeds=2)
    monkeypatch.setattr(textworld, "LIVE", LiveGames(1))
    textworld.SCENES.values.clear()
    textworld.SHOWN.values.clear()
    assert write_digest(make_world(folder), seeds=2) == expected
    assert len(textworld.LIVE.games) == 1


def test_points_of_several_quests_are_the_score_where_it_is_graded(folder):
    world = make_world(folder, min_quest_length=2, parallel_quests=2, graded=True, train_games=1)
    _, steps = play(world, world.list_tasks("train")[0], 1, [1])
    assert {0.5, 1.0} <= {step.score for step in steps}
    assert world.episode.scene.objective.count(".") >= 2


def test_the_splits_share_no_game(folder):
    world = make_world(folder, train_games=50, val_games=20, test_games=30)
    tasks = [world.list_tasks(split) for split in ("train", "val", "test")]
    assert [len(some) for some in tasks] == [50, 20, 30]
    assert len({task.id for some in tasks for task in some}) == 100
    assert world.list_tasks("train") == tasks[0]
    other = make_world(folder, seed=1, train_games=50)
    assert {task.id for task in other.list_tasks("train")}.isdisjoint(one.id for one in tasks[0])


def test_quest_lengths_take_turns(folder):
    tasks = make_world(folder, train_games=6, max_quest_length=5).list_tasks("train")
    assert sorted(task.task for task in tasks) == [f"quest-{n}" for n in (3, 3, 4, 4, 5, 5)]


def test_games_are_kept_under_what_decides_them_and_made_once(folder):
    world = make_world(folder)
    world.prepare(["train"])
    file = world.games.find_file(world.list_tasks("train")[0])
    made = file.stat().st_mtime_ns
    world.prepare(["train"])
    assert file.stat().st_mtime_ns == made
    assert sorted(one.name for one in file.parent.iterdir()) == ["game.json", "game.z8"]
    larger = make_world(folder, objects=6)
    assert larger.games.find_file(larger.list_tasks("train")[0]) != file
    assert not list(folder.glob(".*"))


def test_games_are_kept_in_the_users_cache_unless_a_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    world = TextWorld(TextWorldConfig(train_games=1))
    file = world.games.find_file(world.list_tasks("train")[0])
    assert file.is_relative_to(tmp_path / "rlroute" / "textworld")


def test_advice_is_large_exactly_for_hard_steps(folder):
    world = make_world(folder)
    for task in world.list_tasks("train"):
        world.reset(task, 1)
        done = False
        while not done:
            verb = find_verb(world.episode.scene.policy_command)
            assert world.advise() == 1, verb  # both kinds of steps are hard: 0.3 and 0.6
            done = world.step(1, None).done
    easy = ScriptedExecutor(id="small", prices=SMALL, follow={"take": 0.3})
    world = make_world(folder, (easy, SCRIPTED[1]))
    world.reset(task, 1)
    while not world.episode.done:
        hard = find_verb(world.episode.scene.policy_command) == "take"
        assert world.advise() == int(hard)
        world.step(1, None)


def test_steps_that_cannot_be_taken_are_refused(folder):
    world = make_world(folder, (*SCRIPTED, *AGENT))
    world.reset(world.list_tasks("train")[0], 1)
    with pytest.raises(ValueError, match="executor 3"):
        world.step(3, None)
    with pytest.raises(ValueError, match="takes a reply"):
        world.step([one.id for one in world.executors].index("agent"), None)
    while not world.episode.done:
        world.step(world.horizon % 2, None)
    with pytest.raises(ValueError, match="done"):
        world.step(0, None)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"min_quest_length": 5, "max_quest_length": 4}, "max_quest_length"),
        ({"executors": []}, "executors: must name at least one"),
        ({"executors": [{"kind": "scripted", "id": "a"}]}, "executors.0.prices"),
        ({"rooms": 0}, "rooms"),
        ({"root": "here"}, "unknown key 'root'"),
    ],
)
def test_faults_of_the_config_are_named_in_one_line(stated, fault):
    with pytest.raises(RLRouteError, match=fault) as caught:
        parse_config(TextWorldConfig, stated, "recipe.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("follow", "fault"),
    [
        ({"take": 1.5}, "follow.take.*less than or equal to 1"),
        ({"take": -0.5}, "follow.take.*greater than or equal to 0"),
        ({"grab": 0.5}, "unknown verb 'grab'"),
    ],
)
def test_faults_of_the_skills_are_named_in_one_line(follow, fault):
    prices = {"input": 1.0, "output": 2.0}
    executor = {"kind": "scripted", "id": "a", "prices": prices, "follow": follow}
    with pytest.raises(RLRouteError, match=fault) as caught:
        parse_config(TextWorldConfig, {"executors": [executor]}, "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(RLRouteError, match=r"rlroute\[textworld\]"):
        TextWorld(TextWorldConfig())


@pytest.mark.slow
def test_the_default_executors_make_the_choice_matter(folder):
    world = TextWorld(TextWorldConfig(folder=folder))
    policies = {"small": lambda: 0, "large": lambda: 1, "advised": world.advise}
    score, cost = dict.fromkeys(policies, 0.0), dict.fromkeys(policies, 0.0)
    for task in world.list_tasks("train")[:10]:
        for seed in range(5):
            for name, choose in policies.items():
                world.reset(task, seed)
                while not world.episode.done:
                    step = world.step(choose(), None)
                    cost[name] += step.cost_usd
                score[name] += step.score / 50
    assert score["large"] >= 0.93
    assert score["advised"] >= score["large"] - 0.02
    assert score["small"] <= 0.5
    assert cost["advised"] <= 0.55 * cost["large"]
