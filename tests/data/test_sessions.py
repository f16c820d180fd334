"""Logged sessions: faults named by file, line and key; splits without leaks; the made world."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlroute.data.session_optimum import solve_sessions
from rlroute.data.session_world import (
    DIFFICULTY_WORDS,
    LENGTH_WORDS,
    GeneratedExecutor,
    GeneratedSessionsConfig,
    SessionWorld,
)
from rlroute.data.sessions import (
    SessionLog,
    compute_log_digest,
    make_arrays,
    read_sessions,
    split_sessions,
    stack_features,
    write_sessions,
)
from rlroute.types import RLRouteError

EXECUTORS = [{"id": "strong", "unit_price": 10.0}, {"id": "weak", "unit_price": 1.0}]
LINES: list[dict[str, Any]] = [
    {"session_id": "b", "turn": 1, "text": "hi", "action": "weak", "cost": 3.0, "quality": 0.5},
    {"session_id": "a", "turn": 2, "text": "so", "action": "strong", "cost": 40, "quality": -1.5},
    {"session_id": "a", "turn": 1, "text": "prove", "action": "weak", "cost": 0, "quality": 0.1},
]


def write_folder(folder: Path, lines: list[Any], executors: Any = EXECUTORS) -> Path:
    """Write a log as it might be found; a line that is no mapping is written as it is."""
    folder.mkdir(exist_ok=True)
    content = {"cost_unit": "USD", "executors": executors}
    (folder / "executors.json").write_text(json.dumps(content))
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "sessions.jsonl").write_text("\n".join(texts) + "\n")
    return folder


def make_log(sessions: int = 60) -> SessionLog:
    """Return a made log."""
    world = SessionWorld(GeneratedSessionsConfig(sessions=sessions))
    return world.make_log(world.draw())


# --- Reading and writing --------------------------------------------------------------------------


def test_lines_in_any_order_become_sessions_with_the_cheapest_executor_first(tmp_path):
    log = read_sessions(write_folder(tmp_path / "log", LINES))
    assert log.cost_unit == "USD"
    assert log.executor_ids == ("weak", "strong")
    assert [session.id for session in log.sessions] == ["a", "b"]
    assert [turn.text for turn in log.sessions[0].turns] == ["prove", "so"]
    arrays = make_arrays(log)
    assert arrays.valid_ST.tolist() == [[True, True], [True, False]]
    assert arrays.action_ST.tolist() == [[0, 1], [0, 0]]
    assert arrays.cost_ST.tolist() == [[0, 40], [3, 0]]
    assert arrays.quality_ST.tolist() == [[0.1, -1.5], [0.5, 0]]


def test_what_is_written_is_read_again_and_equal_logs_give_equal_bytes(tmp_path):
    log = make_log()
    write_sessions(log, tmp_path / "one")
    again = read_sessions(tmp_path / "one")
    assert replace(again, name=log.name) == log
    assert compute_log_digest(again) == compute_log_digest(log)
    write_sessions(again, tmp_path / "two")
    for name in ("sessions.jsonl", "executors.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_features_may_stand_in_the_place_of_texts(tmp_path):
    lines = [
        {**{k: v for k, v in line.items() if k != "text"}, "features": [n, 0.5]}
        for n, line in enumerate(LINES)
    ]
    log = read_sessions(write_folder(tmp_path / "log", lines))
    assert log.feature_count == 2
    assert stack_features(log).tolist() == [[2, 0.5], [1, 0.5], [0, 0.5]]
    write_sessions(log, tmp_path / "again")
    assert read_sessions(tmp_path / "again").sessions == log.sessions


def test_a_folder_with_other_files_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RLRouteError, match=r"notes\.txt"):
        write_sessions(make_log(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def change(number: int, **changes: Any) -> Callable[[], list[Any]]:
    """Return a maker of lines with keys of one line changed; None takes a key away."""

    def make() -> list[Any]:
        lines = [dict(line) for line in LINES]
        lines[number].update(changes)
        lines[number] = {key: value for key, value in lines[number].items() if value is not None}
        return lines

    return make


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (change(1, price=3), ["line 2", "unknown key 'price'", "quality"]),
        (change(1, cost=None), ["line 2", "cost", "required"]),
        (change(0, cost=-1), ["line 1", "cost"]),
        (change(0, quality=float("nan")), ["line 1", "quality"]),
        (change(2, action="medium"), ["line 3", "action", "'medium'", "weak, strong"]),
        (change(1, turn=3), ["line 2", "turn 3 of session 'a' comes without turn 2"]),
        (change(1, turn=1), ["turn 1 of session 'a' stands twice"]),
        (change(1, text=None), ["line 2", "either 'text' or 'features'"]),
        (change(1, features=[1.0]), ["line 2", "either 'text' or 'features'"]),
        (change(1, text=None, features=[1.0]), ["line 2", "mixed", "line 1"]),
        (change(1, split="train"), ["line 2", "split", "every line or in none"]),
        (change(1, split="dev"), ["line 2", "split"]),
        (lambda: [*LINES, "{"], ["line 4", "not valid JSON"]),
        (lambda: [*LINES, "[1]"], ["line 4", "a JSON object was expected"]),
    ],
)
def test_a_fault_names_file_line_and_key(tmp_path, make, told):
    folder = write_folder(tmp_path / "log", make())
    with pytest.raises(RLRouteError) as caught:
        read_sessions(folder)
    message = str(caught.value)
    assert all(part in message for part in ["sessions.jsonl", *told]), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("executors", "told"),
    [
        ([{"id": "weak"}, EXECUTORS[0]], "unit_price"),
        ([EXECUTORS[0], EXECUTORS[0]], "listed twice"),
        ([EXECUTORS[0]], "executors"),
        ([{**EXECUTORS[0], "prize": 1}, EXECUTORS[1]], "unknown key 'executors.0.prize'"),
    ],
)
def test_an_executor_without_a_price_is_an_error(tmp_path, executors, told):
    folder = write_folder(tmp_path / "log", LINES, executors)
    with pytest.raises(RLRouteError, match=r"executors\.json") as caught:
        read_sessions(folder)
    assert told in str(caught.value)


# --- Splits ---------------------------------------------------------------------------------------


def test_sessions_are_split_whole_and_equal_ones_stay_together():
    log = make_log(400)
    twin = replace(log.sessions[0], id="twin")
    parts = split_sessions(replace(log, sessions=(*log.sessions, twin)))
    ids = {split: {session.id for session in part.sessions} for split, part in parts.items()}
    assert sum(map(len, ids.values())) == 401
    assert len(set.union(*ids.values())) == 401
    assert 0.6 < len(ids["train"]) / 401 < 0.8
    assert all(("twin" in names) == (log.sessions[0].id in names) for names in ids.values())


def test_splits_that_a_log_states_are_kept(tmp_path):
    lines = [
        {**line, "session_id": name, "text": f"{line['text']} {name}", "split": split}
        for name, split in (("x", "train"), ("y", "val"), ("z", "test"))
        for line in LINES[1:]
    ]
    parts = split_sessions(read_sessions(write_folder(tmp_path / "log", lines)))
    assert {split: part.sessions[0].id for split, part in parts.items()} == {
        "train": "x",
        "val": "y",
        "test": "z",
    }


def test_equal_sessions_in_two_splits_are_a_leak(tmp_path):
    lines = [
        {**LINES[0], "session_id": "first", "text": "Hello  THERE", "split": "train"},
        {**LINES[0], "session_id": "second", "text": "hello there", "split": "test"},
    ]
    with pytest.raises(RLRouteError, match=r"'first' .train. and 'second' .test.*leak"):
        read_sessions(write_folder(tmp_path / "log", lines))


def test_a_split_without_a_session_is_an_error(tmp_path):
    log = read_sessions(write_folder(tmp_path / "log", LINES))
    with pytest.raises(RLRouteError, match="falls into split"):
        split_sessions(log)


# --- The made world -------------------------------------------------------------------------------


def test_equal_configs_make_equal_logs_in_another_process_too():
    code = (
        "from rlroute.data.session_world import *\n"
        "from rlroute.data.sessions import compute_log_digest\n"
        "world = SessionWorld(GeneratedSessionsConfig(sessions=60))\n"
        "print(compute_log_digest(world.make_log(world.draw())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == compute_log_digest(make_log(60))


def test_more_sessions_begin_with_the_fewer_and_another_seed_gives_others():
    assert make_log(80).sessions[:60] == make_log(60).sessions
    world = SessionWorld(GeneratedSessionsConfig(sessions=60, seed=1))
    assert world.make_log(world.draw()).sessions != make_log(60).sessions


def test_the_text_tells_difficulty_and_length():
    drawn = SessionWorld(GeneratedSessionsConfig(sessions=50)).draw()
    for s, texts in enumerate(drawn.texts):
        assert len(texts) == drawn.valid_ST[s].sum()
        for t, text in enumerate(texts):
            words = text.replace(",", "").split()
            assert words[0] in DIFFICULTY_WORDS[drawn.difficulty_ST[s, t]]
            assert words[-1] in LENGTH_WORDS[drawn.length_ST[s, t]]


def test_costs_and_qualities_are_those_of_the_config():
    config = GeneratedSessionsConfig(sessions=4000)
    drawn = SessionWorld(config).draw()
    tokens_STK = drawn.cost_STK / [1, 10]
    assert set(np.unique(tokens_STK[drawn.length_ST == 0])) == set(config.short)
    assert set(np.unique(tokens_STK[drawn.length_ST == 1])) == set(config.long)
    for difficulty in range(3):
        quality_NK = drawn.quality_STK[drawn.difficulty_ST == difficulty]
        means = [executor.quality[difficulty] for executor in config.executors]
        assert quality_NK.mean(axis=0).tolist() == pytest.approx(means, abs=0.01)
        assert (abs(quality_NK - means) <= config.quality_noise).all()
    going_on = drawn.valid_ST[:, 1:].sum() / drawn.valid_ST[:, :-1].sum()
    assert going_on == pytest.approx(config.continue_probability, abs=0.02)
    stays = (drawn.difficulty_ST[:, 1:] == drawn.difficulty_ST[:, :-1]).mean()
    assert stays == pytest.approx(0.5 + 0.5 / 3, abs=0.02)


def test_the_log_holds_the_outcome_of_the_executor_that_was_asked():
    world = SessionWorld(GeneratedSessionsConfig(sessions=2000))
    drawn = world.draw()
    logged = make_arrays(world.make_log(drawn))
    asked = logged.action_ST[..., None]
    cost_ST = np.take_along_axis(drawn.cost_STK, asked, axis=2)[..., 0]
    assert (logged.cost_ST[logged.valid_ST] == cost_ST[drawn.valid_ST]).all()
    shares = [
        (logged.action_ST[drawn.valid_ST & (drawn.difficulty_ST == d)] == 1).mean()
        for d in range(3)
    ]
    means = np.mean(world.config.habits, axis=0)
    assert shares == pytest.approx(means.tolist(), abs=0.05)


@pytest.mark.parametrize(
    ("settings_", "told"),
    [
        ({"quality_noise": 0.3}, "quality_noise"),
        ({"executors": ({"id": "a", "unit_price": 2, "quality": (0.5, 0.5, 0.5)},) * 2}, "same id"),
        (
            {
                "executors": (
                    {"id": "a", "unit_price": 2, "quality": (0.5, 0.5, 0.5)},
                    {"id": "b", "unit_price": 1, "quality": (0.5, 0.5, 0.5)},
                )
            },
            "cheapest first",
        ),
    ],
)
def test_a_world_that_cannot_be_is_refused(settings_, told):
    with pytest.raises(ValueError, match=told):
        GeneratedSessionsConfig(**settings_)


# --- The optimum ----------------------------------------------------------------------------------


def expect_best(
    config: GeneratedSessionsConfig,
    turn: int,
    kind: tuple[int, int],
    balance: float,
    cost_weight: float,
) -> float:
    """Return the value of a state by plain recursion over all that can happen."""
    difficulty, length = kind
    worths = []
    for executor in config.executors:
        total = 0.0
        tokens = config.short if length == 0 else config.long
        for count in tokens:
            cost = executor.unit_price * count
            value = executor.quality[difficulty] - cost_weight * cost
            if balance < cost:
                value -= 5.0
            elif turn + 1 < config.max_turns:
                for following in range(3):
                    stays = config.persistence * (following == difficulty)
                    chance = (stays + (1 - config.persistence) / 3) / 2
                    for next_length in range(2):
                        rest = expect_best(
                            config, turn + 1, (following, next_length), balance - cost, cost_weight
                        )
                        value += 0.9 * config.continue_probability * chance * rest
            total += value / len(tokens)
        worths.append(total)
    return max(worths)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 80), st.sampled_from([0.0, 0.01]), st.sampled_from([0.0, 0.4]))
def test_dynamic_programming_equals_plain_recursion(budget, cost_weight, persistence):
    config = GeneratedSessionsConfig(
        max_turns=2,
        short=(2, 4),
        long=(6,),
        persistence=persistence,
        executors=(
            GeneratedExecutor(id="a", unit_price=1, quality=(0.5, 0.3, 0.2)),
            GeneratedExecutor(id="b", unit_price=3, quality=(0.6, 0.6, 0.3)),
            GeneratedExecutor(id="c", unit_price=7, quality=(0.6, 0.6, 0.8)),
        ),
    )
    optimum = solve_sessions(
        SessionWorld(config), penalty=5.0, discount=0.9, cost_weight=cost_weight
    )
    assert optimum.unit == 2
    expected = np.mean(
        [
            expect_best(config, 0, (difficulty, length), budget, cost_weight)
            for difficulty in range(3)
            for length in range(2)
        ]
    )
    assert optimum.compute_value(budget) == pytest.approx(expected)


def test_a_greater_budget_is_never_worth_less():
    optimum = solve_sessions(SessionWorld(GeneratedSessionsConfig()), penalty=5.0, discount=0.99)
    values = [optimum.compute_value(budget) for budget in range(0, 6000, 130)]
    assert (np.diff(values) >= -1e-12).all()
    assert optimum.compute_value(8000) == optimum.compute_value(4800)
