"""ScienceWorld: science at school level in a simulated house (Wang et al., 2022).

Tasks are variations of the library's task types, in its own split; the executors are those of
TextWorld. A scripted executor follows the library's gold sequence of the variation; where it does
not, it looks around or at its inventory, which takes no time in the simulation, so the next step of
the sequence stays the next one. The score is the library's progress score, at least 0. A wrong
focus ends a task, as in the library.

An agent behind a pool may send any command; one that the simulator does not know, or that could
mean several things, changes nothing. The gold sequence goes on where the agent gives its next
command.

The simulator is a Java program, started once a process and closed at its end. It draws its chance
from the number of the variation, but goes through sets in the order of addresses; it is started
with an option that makes that order the same each time, without which nothing could be replayed.
When a task is first played its whole gold sequence is recorded (0.3 to 4 s), after which episodes
of scripted executors need the simulator no more.

The default `small` executor seldom focuses, picks up, moves, pours, mixes, connects or uses things
(0.05), `large` nearly always does (0.98). 5 variations of each default task type, 5 seeds each:

| policy                        | score | USD per task | steps | large calls |
| ----------------------------- | ----- | ------------ | ----- | ----------- |
| always small                  | 0.51  | 0.0052       | 19.2  | 0           |
| always large                  | 0.99  | 0.0108       | 10.5  | 10.5        |
| large for hard steps only     | 0.98  | 0.0049       | 10.7  | 2.9         |
| random                        | 0.95  | 0.0087       | 12.7  | 6.6         |
| large at the first 3 steps    | 0.54  | 0.0071       | 18.7  | 3.0         |
| large after confidence < 0.45 | 0.93  | 0.0071       | 13.5  | 4.1         |

What it leaves out: the library's simplifications, and its list of all valid commands, which takes
longer than the step.

How to use:
    world = ScienceWorld(ScienceWorldConfig(tasks=("find-plant",)))
    state = world.reset(world.list_tasks("train")[0], seed=1)
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator

from rlroute.config import StrictModel
from rlroute.extras import require
from rlroute.types import Call, Query, Reply, RLRouteError, SplitName
from rlroute.worlds.base import WorldState, WorldStep, describe_executors
from rlroute.worlds.scripted_executors import (
    Executors,
    ExecutorSpec,
    check_executors,
    make_default_executors,
    normalise_command,
)
from rlroute.worlds.text_games import Episode, Memo, Scene, name_features

TASKS = (
    *("find-animal", "find-living-thing", "find-non-living-thing", "find-plant"),
    *("lifespan-longest-lived", "lifespan-longest-lived-then-shortest-lived"),
    *("chemistry-mix-paint-secondary-color", "power-component"),
)
FREE_COMMANDS = ("look around", "inventory")
VERBS: tuple[str, ...] = (
    *("go", "open", "close", "look", "examine", "focus", "pick", "put", "move", "drop", "pour"),
    *("dunk", "mix", "connect", "disconnect", "use", "activate", "deactivate", "read", "eat"),
    *("flush", "wait", "wait1", "inventory", "task"),
)
KINDS: tuple[str, ...] = ("things", "doors", "carried")
HARD_VERBS = ("focus", "pick", "move", "pour", "mix", "connect", "use")
INSTRUCTIONS = (
    "You do science in a simulated house. Commands: open X, close X, go to X, look in X, "
    "look at X, focus on X, pick up X, put down X, move X to Y, pour X in Y, dunk X in Y, mix X, "
    "connect X to Y, disconnect X, use X on Y, activate X, deactivate X, read X, eat X, flush X, "
    "wait, wait1, look around, inventory. Reply with one command and nothing else."
)
COMMON_START = "Your task is to "  # of all task descriptions
REFUSALS = ("No known action", "Unknown action", "Ambiguous request")
ORDER_OPTIONS = "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2"
REMEMBERED_SCENES = 20_000
ARTICLE = re.compile(r"^(a|an|the) (substance called )?")
UNSEEN = ("the agent", "a substance called air")  # in every room


class ScienceWorldConfig(StrictModel):
    """ScienceWorld tasks and who does them.

    Of each of `tasks` so many variations are taken, evenly spaced, from the library's own splits
    (all, where there are fewer). Episodes end after `horizon` steps. `hash_features` are the places
    for hashed words (of feedback and objective, each). `advise` names the cheapest executor with
    `advise_share` of the best one's probability to follow.
    """

    kind: Literal["scienceworld"] = "scienceworld"
    tasks: tuple[str, ...] = Field(default=TASKS, min_length=1)
    train_variations: int = Field(default=20, ge=0)
    val_variations: int = Field(default=5, ge=0)
    test_variations: int = Field(default=10, ge=0)
    horizon: int = Field(default=20, ge=1)
    hash_features: int = Field(default=16, ge=1, le=1024)
    advise_share: float = Field(default=0.8, gt=0, le=1)
    executors: tuple[ExecutorSpec, ...] = make_default_executors(dict.fromkeys(HARD_VERBS, 0.05))

    @field_validator("executors")
    @classmethod
    def check_pool(cls, executors: tuple[ExecutorSpec, ...]) -> tuple[ExecutorSpec, ...]:
        """Refuse executors of one name, and verbs that no command has."""
        check_executors(executors, VERBS)
        return executors


class ScienceWorld:
    """A lane of ScienceWorld tasks; see `rlroute.worlds.base.World` and the module's text.

    Raises:
        RLRouteError: the library or a Java runtime is missing, or a task is unknown.
    """

    name = "scienceworld"

    def __init__(self, config: ScienceWorldConfig) -> None:
        self.config = config
        self.games = ScienceWorldGames()
        known = self.games.simulator.environment.get_task_names()
        unknown = [task for task in config.tasks if task not in known]
        if unknown:
            raise RLRouteError(f"tasks: unknown task '{unknown[0]}' (known: {', '.join(known)})")
        executors = Executors(config.executors)
        self.executors = executors.candidates
        self.executor_features_KD = describe_executors(self.executors)
        self.feature_names = name_features(self.games, config.hash_features)
        self.horizon = config.horizon
        self.episode = Episode(
            self.games,
            executors,
            horizon=config.horizon,
            graded=True,
            hash_features=config.hash_features,
            advise_share=config.advise_share,
        )

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the variations of a split; `Query.task` is the task type."""
        counts = {
            "train": self.config.train_variations,
            "val": self.config.val_variations,
            "test": self.config.test_variations,
        }
        return tuple(
            Query(
                f"scienceworld-{task}-{variation}",
                f"ScienceWorld task {task}, variation {variation}.",
                task=task,
                dataset="scienceworld",
                metadata={"split": split, "variation": str(variation)},
            )
            for task in self.config.tasks
            for variation in self.games.list_variations(task, split, counts[split])
        )

    def fork(self) -> Self:
        """Return another lane over the same tasks."""
        return type(self)(self.config)

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task."""
        return self.episode.reset(task, seed)

    def bound_cost_usd(self, executor: int) -> float:
        """Return an upper bound in USD of the executor's next step."""
        return self.episode.bound_cost_usd(executor)

    def request(self, executor: int) -> Call | None:
        """Return what an executor behind a pool is sent; None for a scripted one."""
        return self.episode.request(executor)

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let the executor give a command; ValueError as `World.step` says."""
        return self.episode.step(executor, reply)

    def advise(self) -> int | None:
        """Return the cheapest executor that follows nearly as often as the best one."""
        return self.episode.advise()


class Simulator:
    """The library's simulator, which stands at one task after some commands."""

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self.place: tuple[str, tuple[str, ...]] | None = None  # the task's id and the commands

    def load(self, task: Query, *, gold: bool) -> tuple[str, ...]:
        """Start a task; return its gold sequence where that is wanted, which plays it through."""
        variation = int(task.metadata["variation"])
        self.environment.load(task.task, variation, "", generateGoldPath=gold)
        self.place = None if gold else (task.id, ())
        if gold:
            return tuple(self.environment.get_gold_action_sequence())
        self.environment.server.step("look around")  # until then the last task's score stands
        return ()

    def answer(self, task: Query, commands: tuple[str, ...]) -> str:
        """Bring a task to the state after these commands; return what the last one was answered.

        The answer is empty where there are no commands.
        """
        if not commands:
            self.load(task, gold=False)
            return ""
        if self.place != (task.id, commands[:-1]):
            self.load(task, gold=False)
            for command in commands[:-1]:
                self.environment.server.step(command)
        answer = str(self.environment.server.step(commands[-1]))
        self.place = (task.id, commands)
        return answer


@functools.cache
def start_simulator() -> Simulator:
    """Start the simulator of this process, or return it.

    Raises:
        RLRouteError: the library or a Java runtime is missing, or Java does not start.
    """
    library = require("scienceworld", "scienceworld")
    java = shutil.which("java")
    if java is None:
        raise RLRouteError("java: not found on the PATH; ScienceWorld needs a Java runtime")
    with extend_java_options(ORDER_OPTIONS):
        tried = subprocess.run([java, "-version"], capture_output=True)
        if tried.returncode != 0:  # the library would not say so
            raise RLRouteError(f"{java}: does not start with {ORDER_OPTIONS}; try Java 17")
        environment = library.ScienceWorldEnv("")
    atexit.register(close_simulator, environment)
    return Simulator(environment)


def close_simulator(environment: Any) -> None:
    """End the Java program; the library's destructor, which would do so again, is left nothing."""
    environment.close()
    environment.close = str


@contextmanager
def extend_java_options(options: str) -> Iterator[None]:
    """Add options for Java programs that are started in the block; the library takes none."""
    before = os.environ.get("JAVA_TOOL_OPTIONS")
    os.environ["JAVA_TOOL_OPTIONS"] = f"{before or ''} {options}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["JAVA_TOOL_OPTIONS"]
        else:
            os.environ["JAVA_TOOL_OPTIONS"] = before


# Of a process: its lanes and worlds share them, in one thread.
SCENES: Memo[Scene] = Memo(REMEMBERED_SCENES)
GOLD: dict[str, tuple[str, ...]] = {}  # by the task's id


class ScienceWorldGames:
    """The tasks of the library; see `rlroute.worlds.text_games.TextGames`."""

    verbs = VERBS
    kinds = KINDS
    instructions = INSTRUCTIONS

    def __init__(self) -> None:
        self.simulator = start_simulator()

    def list_variations(self, task: str, split: SplitName, count: int) -> list[int]:
        """Return the numbers of at most so many variations, evenly spaced over a split."""
        environment = self.simulator.environment
        self.simulator.place = None
        environment.load(task, 0, "")
        found = {
            "train": environment.get_variations_train,
            "val": environment.get_variations_dev,
            "test": environment.get_variations_test,
        }[split]()
        places = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
        return [int(found[place]) for place in places]

    def play(self, task: Query, commands: tuple[str, ...]) -> Scene:
        """Return the scene after these commands; the gold sequence is recorded at the first."""
        if task.id not in GOLD:
            GOLD[task.id] = self.simulator.load(task, gold=True)
            for steps in range(len(GOLD[task.id]) + 1):
                if self.find_scene(task, GOLD[task.id][:steps]).done:
                    break
        return self.find_scene(task, commands)

    def find_scene(self, task: Query, commands: tuple[str, ...]) -> Scene:
        """Return the scene after these commands, from memory or the simulator."""
        return SCENES.find((task.id, commands), lambda: self.read_scene(task, commands))

    def read_scene(self, task: Query, commands: tuple[str, ...]) -> Scene:
        """Play these commands and read what the simulator says."""
        answer = self.simulator.answer(task, commands)
        environment = self.simulator.environment
        look, inventory = environment.look(), environment.inventory()
        points = float(environment.server.getScore())
        completed = bool(environment.server.getCompleted())
        done = completed or points < 0
        things = {**list_things(look), "carried": list_lines(inventory)}
        return Scene(
            objective=collapse(environment.get_task_description()).removeprefix(COMMON_START),
            feedback=collapse(answer) or look.partition("\n")[0].partition(".")[0] + ".",
            things=things,
            names=tuple(shorten(one) for one in things["things"]),
            details=f"{collapse(look)}\n{collapse(inventory)}",
            score=max(points, 0.0),
            won=completed and points >= 1,
            done=done,
            policy_command=None if done else find_next(GOLD[task.id], commands),
        )

    def peek(self, task: Query, commands: tuple[str, ...], command: str) -> str:
        """Return what a free command shows."""
        look, inventory = self.play(task, commands).details.split("\n")
        return look if command == "look around" else inventory

    def is_free(self, command: str) -> bool:
        """Say whether a command changes nothing."""
        return command in FREE_COMMANDS

    def list_distractions(self, scene: Scene) -> tuple[str, ...]:
        """Return the free commands but the gold sequence's next one."""
        return tuple(one for one in FREE_COMMANDS if one != scene.policy_command)

    def admit(self, task: Query, commands: tuple[str, ...], text: str) -> str | None:
        """Return the reply, best in lower case, where the simulator takes it as a command."""
        for command in dict.fromkeys((normalise_command(text), collapse(text))):
            if command in FREE_COMMANDS:
                return command
            if not self.play(task, (*commands, command)).feedback.startswith(REFUSALS):
                return command
            self.simulator.place = None  # it may wait for the number of what was meant
        return None


def find_next(gold: tuple[str, ...], commands: tuple[str, ...]) -> str | None:
    """Return the next command of a gold sequence, of which some were given, in order."""
    given = 0
    for command in commands:
        given += given < len(gold) and command == gold[given]
    return gold[given] if given < len(gold) else None


def list_things(look: str) -> dict[str, tuple[str, ...]]:
    """Return the things and doors in the description of a room."""
    inside, _, outside = look.partition("You also see:")
    return {"things": list_lines(inside), "doors": list_lines(outside)}


def list_lines(text: str) -> tuple[str, ...]:
    """Return the lines of a list, without what is in every room."""
    lines = (line.strip() for line in text.splitlines() if line.startswith("\t"))
    return tuple(line for line in lines if line and line not in UNSEEN)


def shorten(thing: str) -> str:
    """Return the name of a thing, without article and state."""
    return re.split(r" \(|\. |, ", ARTICLE.sub("", thing))[0]


def collapse(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())
