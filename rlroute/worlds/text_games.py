"""Text games as worlds: what a scene is, what of it is shown, and one lane of an episode.

A game is a function from commands to scenes (`TextGames`). The scene also holds the game's own next
command, which decides what scripted executors do and what `advise` says; neither text nor features
are made from it. `Episode` is the lane: it lets an executor give a command and shows what followed.

| feature         | what                                                                         |
| --------------- | ---------------------------------------------------------------------------- |
| step_fraction   | steps taken, as a share of the horizon                                       |
| score           | share of the game's points won so far                                        |
| stale_steps     | steps since a thing was first seen or a point won, over 5; at most 2         |
| confidence      | the last executor's confidence in its step; 1 at the start                   |
| understood      | 0 where the last reply was no command of the game, else 1                    |
| last_rank       | rank of the last executor by price, in [0, 1]; 0 at the start                |
| last_VERB       | 1 for the verb of the last command                                           |
| count_KIND      | log(1 + n) / 2 for the n things of a kind                                    |
| new_KIND        | the same for those never seen before in the episode                          |
| goal_KIND       | the same for those that share a word with the objective                      |
| feedback_hash_I | hashed words of what the game said last                                      |
| goal_hash_I     | hashed words of the objective                                                |

What it leaves out: games (`rlroute.worlds.textworld`, `rlroute.worlds.scienceworld`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from rlroute.types import Call, Query, Reply, Usage
from rlroute.worlds.base import WorldState, WorldStep
from rlroute.worlds.scripted_executors import (
    Executors,
    ScriptedExecutor,
    attempt_step,
    estimate_usage,
    find_verb,
    hash_words,
    limit_words,
    list_words,
)

FIRST_WORDS, LATER_WORDS = 60, 25  # of the texts for a policy
HISTORY_WORDS = 40  # of what the game said at earlier steps, in the text for an executor
STALE_STEPS = 5
COMMON_WORDS = frozenset(
    (
        *("a", "an", "and", "at", "by", "first", "for", "from", "in", "into", "is", "it", "of"),
        *("on", "or", "please", "s", "task", "that", "the", "then", "this", "to", "with", "you"),
        "your",
    )
)
BASE_FEATURES = ("step_fraction", "score", "stale_steps", "confidence", "understood", "last_rank")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a game stands.

    `feedback` is what it said last. `things` lists by kind what can be seen (or done); `names` are
    the things in short. `details` is what an executor reads besides. `score` is the share of points
    won. `policy_command` is the game's own next command, for executors and `advise` only.
    """

    objective: str
    feedback: str
    things: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]
    details: str
    score: float
    won: bool
    done: bool
    policy_command: str | None


class TextGames(Protocol):
    """Games that are really played; equal commands lead to equal scenes.

    `verbs` are the first words that commands can have, `kinds` the kinds of things in scenes,
    `instructions` what an executor is told of all games. Commands that change nothing ("look") are
    free: they are no part of `commands`.
    """

    verbs: tuple[str, ...]
    kinds: tuple[str, ...]
    instructions: str

    def play(self, task: Query, commands: tuple[str, ...]) -> Scene:
        """Return the scene after these commands."""

    def peek(self, task: Query, commands: tuple[str, ...], command: str) -> str:
        """Return what a free command shows after these commands."""

    def is_free(self, command: str) -> bool:
        """Say whether a command changes nothing."""

    def list_distractions(self, scene: Scene) -> tuple[str, ...]:
        """Return the commands of an executor that does not follow; at least one."""

    def admit(self, task: Query, commands: tuple[str, ...], text: str) -> str | None:
        """Return the command that a reply is after these commands; None where it is none."""


class Memo(Generic[Value]):
    """Remembers the latest `limit` values by key."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.values: OrderedDict[Hashable, Value] = OrderedDict()

    def find(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the value of a key, computed where it is not remembered."""
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key]
        value = self.values[key] = compute()
        if len(self.values) > self.limit:
            self.values.popitem(last=False)
        return value


def name_features(games: TextGames, hash_features: int) -> tuple[str, ...]:
    """Return the names of the features, in order; see the module's table."""
    per_kind = [f"{what}_{kind}" for what in ("count", "new", "goal") for kind in games.kinds]
    hashed = [f"{what}_hash_{i}" for what in ("feedback", "goal") for i in range(hash_features)]
    return (*BASE_FEATURES, *(f"last_{verb}" for verb in games.verbs), *per_kind, *hashed)


class Episode:
    """One lane; the world's methods of the same names are these.

    Args:
        games: what is played.
        executors: who plays.
        horizon: the most steps of an episode.
        graded: whether a task's score is the share of points, or 1 if the game was won, else 0.
        hash_features: places for the hashed words of feedback and objective, each.
        advise_share: see `Executors.advise`.
    """

    def __init__(
        self,
        games: TextGames,
        executors: Executors,
        *,
        horizon: int,
        graded: bool,
        hash_features: int,
        advise_share: float,
    ) -> None:
        self.games, self.executors = games, executors
        self.horizon, self.graded = horizon, graded
        self.hash_features, self.advise_share = hash_features, advise_share
        self.done = True

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a task."""
        self.task, self.seed = task, seed
        self.commands: tuple[str, ...] = ()
        self.scene = self.games.play(task, ())
        self.feedback = self.scene.feedback
        self.steps, self.last_news, self.last_executor = 0, 0, 0
        self.last_verb, self.confidence, self.understood = "", 1.0, True
        self.done = False
        self.goal_words = find_content_words(self.scene.objective, self.games.verbs)
        self.goal_hash = hash_words(self.scene.objective, self.hash_features)
        self.seen: set[str] = set()
        self.history = [f"Task: {self.scene.objective}"]
        self.message = self.write_message()
        text = f"Task: {self.scene.objective} {find_first_sentence(self.feedback)}"
        return self.make_state(limit_words(self.describe_scene(text), FIRST_WORDS))

    @property
    def prompt(self) -> str:
        """All that an executor reads at this step."""
        return f"{self.games.instructions}\n{self.message}"

    def bound_cost_usd(self, executor: int) -> float:
        """Return the most that the executor's step can cost here, in USD."""
        return self.executors.bound_cost_usd(executor, self.prompt)

    def advise(self) -> int | None:
        """Return the cheapest executor that nearly follows as often as the best one, if known."""
        return self.executors.advise(self.scene.policy_command, self.advise_share)

    def request(self, executor: int) -> Call | None:
        """Return what an executor behind a pool is sent; None for a scripted one."""
        spec = self.executors.specs[executor]
        if isinstance(spec, ScriptedExecutor):
            return None
        return Call(
            spec.id,
            self.task,
            self.message,
            system=self.games.instructions,
            temperature=spec.temperature,
            sample=self.seed if spec.temperature > 0 else 0,
            max_output_tokens=spec.max_output_tokens,
        )

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let an executor give a command.

        Raises:
            ValueError: the episode is done, there is no such executor, or a reply is missing.
        """
        if self.done:
            raise ValueError("the episode is done: reset before the next step")
        if not 0 <= executor < len(self.executors.specs):
            raise ValueError(f"executor {executor}: there are {len(self.executors.specs)}")
        spec = self.executors.specs[executor]
        if isinstance(spec, ScriptedExecutor):
            usage = estimate_usage(spec, self.prompt)
            cost_usd = self.bound_cost_usd(executor)
            command: str | None = self.attempt(spec)
        else:
            if reply is None:
                raise ValueError(f"'{spec.id}' stands behind a pool: its step takes a reply")
            usage, cost_usd = reply.usage or Usage(0, 0), reply.cost_usd
            command = self.admit(reply)
        self.last_executor, self.last_verb = executor, find_verb(command or "")
        self.steps += 1
        self.take(command)
        score = self.scene.score if self.graded else float(self.scene.won)
        self.done = self.scene.done or self.steps == self.horizon
        note = command or "no command of the game"
        said = f"{spec.id} ({self.confidence:.1f}): {note}."
        said += f" {limit_words(find_first_sentence(self.feedback), 6)}" if command else ""
        state = self.make_state(limit_words(self.describe_scene(said), LATER_WORDS))
        return WorldStep(state, usage, cost_usd, self.done, score, note)

    def attempt(self, spec: ScriptedExecutor) -> str:
        """Return the command of a scripted executor."""
        scene = self.scene
        attempt = attempt_step(
            spec,
            scene.policy_command,
            self.games.list_distractions(scene),
            (self.seed, self.task.id, self.steps),
        )
        self.confidence, self.understood = attempt.confidence, True
        return attempt.command

    def admit(self, reply: Reply) -> str | None:
        """Return the command that a reply is; None where it is none."""
        command = self.games.admit(self.task, self.commands, reply.text)
        self.understood = command is not None
        self.confidence = float(self.understood)
        return command

    def take(self, command: str | None) -> None:
        """Give a command to the game, or none, and note what it said."""
        points = self.scene.score
        self.history.append(limit_words(self.feedback, HISTORY_WORDS))
        if command is None:
            self.feedback = "This is no command of the game; nothing happens."
        elif self.games.is_free(command) and command != self.scene.policy_command:
            self.feedback = self.games.peek(self.task, self.commands, command)
        else:
            self.commands = (*self.commands, command)
            self.scene = self.games.play(self.task, self.commands)
            self.feedback = self.scene.feedback
        if self.scene.score > points:
            self.last_news = self.steps
        self.history.append(f"> {command or '?'}")
        self.message = self.write_message()

    def write_message(self) -> str:
        """Return the conversation so far, with what was said last in full and what can be seen."""
        return "\n".join([*self.history, self.feedback, self.scene.details, "Your command:"])

    def describe_scene(self, text: str) -> str:
        """Return a text for the policy with the things that are counted, and the new ones."""
        counted = [f"{kind} {len(things)}" for kind, things in self.scene.things.items() if things]
        new = [name for name in self.scene.names if name not in self.seen]
        new.sort(key=self.serves_goal, reverse=True)  # the text may be cut at its end
        parts = [text, f"Now: {', '.join(counted)}."]
        return " ".join([*parts, f"New: {', '.join(new)}."] if new else parts)

    def make_state(self, text: str) -> WorldState:
        """Return what is seen now; what is seen now is not new next time."""
        scene, log = self.scene, np.log1p
        kinds = [scene.things.get(kind, ()) for kind in self.games.kinds]
        new = [sum(one not in self.seen for one in things) for things in kinds]
        goal = [sum(self.serves_goal(one) for one in things) for things in kinds]
        if any(new):
            self.last_news = self.steps
        stale = min((self.steps - self.last_news) / STALE_STEPS, 2.0)
        rank = self.last_executor / max(len(self.executors.specs) - 1, 1)
        base = [self.steps / self.horizon, scene.score, stale, self.confidence]
        base += [float(self.understood), rank]
        verbs = [float(verb == self.last_verb) for verb in self.games.verbs]
        counts = log([*map(len, kinds), *new, *goal]) / 2
        feedback_hash = hash_words(self.feedback, self.hash_features)
        features_W = np.concatenate([base, verbs, counts, feedback_hash, self.goal_hash])
        self.seen.update(scene.names, *kinds)
        legal_K = np.ones(len(self.executors.specs), dtype=np.bool_)
        return WorldState(text, features_W.astype(np.float32), legal_K)

    def serves_goal(self, thing: str) -> bool:
        """Say whether a thing shares a word with the objective."""
        return not self.goal_words.isdisjoint(list_words(thing))


def find_content_words(text: str, verbs: tuple[str, ...]) -> frozenset[str]:
    """Return the words of a text that are neither common words nor verbs of commands."""
    return frozenset(list_words(text)) - COMMON_WORDS - frozenset(verbs)


def find_first_sentence(text: str) -> str:
    """Return a text up to its first full stop."""
    return text.partition(".")[0] + "." if "." in text else text
