"""TextWorld: generated text games (Cote et al., 2018), really played with Microsoft's library.

Each task is a game of its own: rooms, things, and a quest of a stated number of commands, all made
from the game's seed. The objective is said in one sentence (the last command of the quest, in other
words). Executors give one command a step; the game is won when the quest is done. A scripted
executor follows the library's policy for the current state, which also finds the way back from
commands that led astray.

Compiled games are kept in a folder, one each, named after everything that decides a game; a game is
made (about a second) when it is first played, or with all others by `prepare`.

Episodes of one game begin alike, and the library is slow, so a process remembers scenes by the
commands that led there, and plays on only where a prefix is new. Commands that change nothing
(examine, look, inventory) are left out of the prefix.

The default executors make the choice matter. `small` seldom manages to handle things (0.1 for
take, drop, put, insert, eat, lock and close), which is about a quarter of the steps; `large` always
does (0.98). 40 games of the train split, 5 seeds each, one episode at a time:

| policy                        | won  | USD per game | steps | large calls |
| ----------------------------- | ---- | ------------ | ----- | ----------- |
| always small                  | 0.28 | 0.0027       | 12.6  | 0           |
| always large                  | 1.00 | 0.0064       | 6.8   | 6.8         |
| large for hard steps only     | 1.00 | 0.0029       | 7.0   | 1.8         |
| random                        | 0.91 | 0.0051       | 8.7   | 4.2         |
| large at the first 3 steps    | 0.41 | 0.0044       | 11.6  | 3.0         |
| large after confidence < 0.45 | 0.93 | 0.0043       | 9.2   | 2.8         |

A network of 2 x 64 units that was fitted to the hard steps of 100 other games tells them apart with
an area under the curve of 0.97, and wins as often as always-large at 0.51 to 0.53 of its cost.

What it leaves out: the library's other challenges, and its own text of long objectives, which spell
out the whole quest.

How to use:
    world = TextWorld(TextWorldConfig(train_games=20))
    state = world.reset(world.list_tasks("train")[0], seed=1)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel
from rlroute.extras import require
from rlroute.files import atomic_folder
from rlroute.types import SPLITS, Call, Query, Reply, SplitName
from rlroute.worlds.base import WorldState, WorldStep, describe_executors
from rlroute.worlds.scripted_executors import (
    Executors,
    ExecutorSpec,
    check_executors,
    find_command,
    find_verb,
    make_default_executors,
)
from rlroute.worlds.text_games import Episode, Memo, Scene, name_features

FREE_VERBS = ("examine", "look", "inventory")
KINDS: tuple[str, ...] = (
    *("go", "take", "open", "close", "unlock", "lock", "drop", "insert", "put", "eat"),
    "examine",
)
VERBS: tuple[str, ...] = (*KINDS, "look", "inventory")
HARD_VERBS = ("take", "insert", "put", "drop", "eat", "lock", "close")
INSTRUCTIONS = (
    "You play a text game. Reply with one of the possible commands, exactly as it is written, and "
    "nothing else."
)
GAMES_PER_SPLIT = 1_000_000  # game seeds of a split start at a multiple of it
REMEMBERED_SCENES = 50_000
LIVE_GAMES = 32  # that stand open at once, each after commands of its own
ROOM = re.compile(r"-= (.+?) =-")
BLOCK = re.compile(r"\n>[^\n]*$")  # the prompt and the status line, which counts turns


class TextWorldConfig(StrictModel):
    """TextWorld games and who plays them.

    `seed` decides the games; those of the splits are disjoint. A quest has `min_quest_length` to
    `max_quest_length` commands, each length equally often, in a world of `rooms` and at least
    `objects` things. With `parallel_quests` above 1 a game has several, with a point each; `graded`
    makes the share of points the score, in place of 1 for a game that was won. Episodes end after
    `horizon` steps. `hash_features` are the places for hashed words (of feedback and objective,
    each). `advise` names the cheapest executor with `advise_share` of the best one's probability to
    follow. `folder` keeps the compiled games (None: `rlroute/textworld` in the user's cache).
    """

    kind: Literal["textworld"] = "textworld"
    seed: int = Field(default=0, ge=0, le=1000)
    train_games: int = Field(default=200, ge=0, le=GAMES_PER_SPLIT)
    val_games: int = Field(default=40, ge=0, le=GAMES_PER_SPLIT)
    test_games: int = Field(default=100, ge=0, le=GAMES_PER_SPLIT)
    rooms: int = Field(default=8, ge=1, le=20)
    objects: int = Field(default=12, ge=1, le=40)
    min_quest_length: int = Field(default=4, ge=1)
    max_quest_length: int = Field(default=10, ge=1, le=30)
    parallel_quests: int = Field(default=1, ge=1, le=5)
    horizon: int = Field(default=14, ge=1)
    graded: bool = False
    hash_features: int = Field(default=16, ge=1, le=1024)
    advise_share: float = Field(default=0.8, gt=0, le=1)
    executors: tuple[ExecutorSpec, ...] = make_default_executors(dict.fromkeys(HARD_VERBS, 0.1))
    folder: Path | None = None

    @field_validator("executors")
    @classmethod
    def check_pool(cls, executors: tuple[ExecutorSpec, ...]) -> tuple[ExecutorSpec, ...]:
        """Refuse executors of one name, and verbs that no command has."""
        check_executors(executors, VERBS)
        return executors

    @model_validator(mode="after")
    def check_lengths(self) -> TextWorldConfig:
        """Refuse a range of lengths that is empty."""
        if self.min_quest_length > self.max_quest_length:
            raise ValueError("max_quest_length: must be at least min_quest_length")
        return self

    def list_seeds(self, split: SplitName) -> range:
        """Return the seeds of a split's games."""
        counts = (self.train_games, self.val_games, self.test_games)
        number = SPLITS.index(split)
        start = (self.seed * len(SPLITS) + number) * GAMES_PER_SPLIT
        return range(start, start + counts[number])

    def find_quest_length(self, seed: int) -> int:
        """Return the number of commands of the quest of a game."""
        lengths = self.max_quest_length - self.min_quest_length + 1
        return self.min_quest_length + seed % lengths


class TextWorld:
    """A lane of TextWorld games; see `rlroute.worlds.base.World` and the module's text.

    Raises:
        RLRouteError: the library is not installed.
    """

    name = "textworld"

    def __init__(self, config: TextWorldConfig) -> None:
        self.config = config
        self.games = TextWorldGames(config)
        executors = Executors(config.executors)
        self.executors = executors.candidates
        self.executor_features_KD = describe_executors(self.executors)
        self.feature_names = name_features(self.games, config.hash_features)
        self.horizon = config.horizon
        self.episode = Episode(
            self.games,
            executors,
            horizon=config.horizon,
            graded=config.graded,
            hash_features=config.hash_features,
            advise_share=config.advise_share,
        )

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the games of a split; the objective is in the text of an episode's first state."""
        return tuple(self.make_task(split, seed) for seed in self.config.list_seeds(split))

    def make_task(self, split: SplitName, seed: int) -> Query:
        """Return the task of a game seed; tasks are told apart by the lengths of their quests."""
        length = self.config.find_quest_length(seed)
        return Query(
            f"textworld-{seed}",
            f"Win game {seed} of TextWorld: a quest of {length} commands.",
            task=f"quest-{length}",
            dataset="textworld",
            metadata={"split": split, "seed": str(seed), "quest_length": str(length)},
        )

    def prepare(self, splits: Iterable[SplitName] = SPLITS) -> None:
        """Make all games of these splits that are not in the folder yet, under a progress bar."""
        from rich.console import Console
        from rich.progress import track

        tasks = [task for split in splits for task in self.list_tasks(split)]
        missing = [task for task in tasks if not self.games.find_file(task).is_file()]
        for task in track(missing, "Making games", console=Console(stderr=True)):
            self.games.make_file(task)

    def fork(self) -> Self:
        """Return another lane over the same games."""
        return type(self)(self.config)

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a game."""
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


@dataclass
class LiveGame:
    """A game that stands open in the library, after some commands."""

    file: Path
    environment: Any
    state: Any


class LiveGames:
    """The latest games that stand open in this process, by their file and the commands so far."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.games: OrderedDict[tuple[Path, tuple[str, ...]], LiveGame] = OrderedDict()

    def reach(self, file: Path, commands: tuple[str, ...]) -> LiveGame:
        """Return the game after these commands; it is played on where it stands one before them."""
        live = self.games.pop((file, commands), None)
        if live is None and commands:
            live = self.games.pop((file, commands[:-1]), None)
            if live is not None:
                live.state, _, _ = live.environment.step(commands[-1])
        if live is None:
            live = self.start(file)
            for command in commands:
                live.state, _, _ = live.environment.step(command)
        self.games[file, commands] = live
        return live

    def start(self, file: Path) -> LiveGame:
        """Open a game at its beginning, in the place of the one that was used longest ago."""
        library = require("textworld", "textworld")
        if len(self.games) >= self.limit:
            self.games.popitem(last=False)[1].environment.close()
        wanted = library.EnvInfos(
            **dict.fromkeys(("feedback", "admissible_commands", "policy_commands"), True),
            **dict.fromkeys(("game", "score", "max_score", "won", "lost"), True),
        )
        environment = library.start(str(file), wanted)
        return LiveGame(file, environment, environment.reset())


# Of a process: its lanes and worlds share them, in one thread.
LIVE = LiveGames(LIVE_GAMES)
SCENES: Memo[Scene] = Memo(REMEMBERED_SCENES)
SHOWN: Memo[str] = Memo(REMEMBERED_SCENES)  # what free commands show


class TextWorldGames:
    """The games of a config; see `rlroute.worlds.text_games.TextGames`.

    Raises:
        RLRouteError: the library is not installed.
    """

    verbs = VERBS
    kinds = KINDS
    instructions = INSTRUCTIONS

    def __init__(self, config: TextWorldConfig) -> None:
        self.config = config
        self.library = require("textworld", "textworld")
        self.folder = config.folder or find_cache_folder()

    def find_file(self, task: Query) -> Path:
        """Return where the compiled game of a task is kept, whether it is there or not."""
        config, seed = self.config, int(task.metadata["seed"])
        deciding = {
            "library": self.library.__version__,
            "seed": seed,
            "rooms": config.rooms,
            "objects": config.objects,
            "quest_length": config.find_quest_length(seed),
            "parallel_quests": config.parallel_quests,
        }
        digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:24] / "game.z8"

    def make_file(self, task: Query) -> Path:
        """Generate and compile the game of a task where it is not kept yet; return its file."""
        file = self.find_file(task)
        if file.is_file():
            return file
        config, seed = self.config, int(task.metadata["seed"])
        options = self.library.GameOptions()
        options.nb_rooms, options.nb_objects = config.rooms, config.objects
        options.quest_length = config.find_quest_length(seed)
        options.nb_parallel_quests = config.parallel_quests
        options.seeds = seed
        options.grammar.only_last_action = True
        game = self.library.generator.make_game(options)
        with atomic_folder(file.parent) as folder:
            options.path = str(folder / file.name)
            self.library.generator.compile_game(game, options)
            (folder / file.with_suffix(".ni").name).unlink()  # the source in Inform 7
        return file

    def play(self, task: Query, commands: tuple[str, ...]) -> Scene:
        """Return the scene after these commands."""
        key = (self.find_file(task), commands)
        return SCENES.find(key, lambda: self.read_scene(self.make_file(task), commands))

    def read_scene(self, file: Path, commands: tuple[str, ...]) -> Scene:
        """Play these commands and read what the library says."""
        state = LIVE.reach(file, commands).state
        things = sort_commands(state.admissible_commands)
        done = bool(state.won or state.lost)
        policy = state.policy_commands or []
        return Scene(
            objective=" ".join(strip_greeting(quest.desc) for quest in state.game.quests),
            feedback=clean_feedback(state.feedback),
            things=things,
            names=tuple(one.removeprefix("examine ") for one in things.get("examine", ())),
            details="Possible commands: " + "; ".join(state.admissible_commands),
            score=state.score / state.max_score,
            won=bool(state.won),
            done=done,
            policy_command=policy[0] if policy and not done else None,
        )

    def peek(self, task: Query, commands: tuple[str, ...], command: str) -> str:
        """Return what a free command shows; it changes nothing but the game's count of turns."""
        file = self.make_file(task)

        def show() -> str:
            live = LIVE.reach(file, commands)
            return clean_feedback(live.environment.step(command)[0].feedback)

        return SHOWN.find((file, commands, command), show)

    def is_free(self, command: str) -> bool:
        """Say whether a command changes nothing."""
        return find_verb(command) in FREE_VERBS

    def list_distractions(self, scene: Scene) -> tuple[str, ...]:
        """Return all commands that can be given but the game's own next one."""
        listed = (one for commands in scene.things.values() for one in commands)
        others = tuple(one for one in listed if one != scene.policy_command)
        return (*others, "look", "inventory")

    def admit(self, task: Query, commands: tuple[str, ...], text: str) -> str | None:
        """Return the possible command that a reply is, if any."""
        things = self.play(task, commands).things.values()
        listed = [one for commands_of_kind in things for one in commands_of_kind]
        return find_command(text, [*listed, "look", "inventory"])


def find_cache_folder() -> Path:
    """Return where compiled games are kept unless the config names a folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rlroute" / "textworld"


def sort_commands(commands: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return commands by verb, without those that are always possible."""
    return {
        kind: found
        for kind in KINDS
        if (found := tuple(one for one in commands if find_verb(one) == kind))
    }


def strip_greeting(objective: str) -> str:
    """Return an objective without the library's greeting, which ends in an exclamation mark."""
    return " ".join(objective.rpartition("! ")[2].split())


def clean_feedback(text: str) -> str:
    """Return what a game said in one line, without title, prompt and status line."""
    text = BLOCK.sub("", text)
    room = ROOM.search(text)
    if "$$" in text and room:  # the title, drawn in dollars, and the objective
        text = text[room.start() :]
    return " ".join(ROOM.sub(r"\1.", text).split())
