"""Sessions that are made: turns of varying difficulty and length, and executors of two prices.

What it is: a world whose rules are known, so that what is learnt from its log can be judged. A turn
is easy, medium or hard, which decides what an executor's answer is worth, and short or long, which
decides how many tokens it takes; both stand in words of its text. Difficulty tends to stay from
turn to turn, and a session may end after any turn. The user's turns do not depend on who answered.
`SessionWorld.draw` gives sessions with the outcome of every executor on every turn, and `make_log`
what a logging policy of mixed habits would have left of them.

What it leaves out: budgets and learning; the best policy under a budget is in
`rlroute.data.session_optimum`.

How to use: `world = SessionWorld(GeneratedSessionsConfig())`, `drawn = world.draw()`,
`log = world.make_log(drawn)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.sessions import ExecutorEntry, Session, SessionLog, Turn
from rlroute.seeding import draw_uniform
from rlroute.types import BoolArray, IntArray

Float64Array: TypeAlias = npt.NDArray[np.float64]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Triple: TypeAlias = tuple[Share, Share, Share]  # for easy, medium and hard turns
Tokens: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]

COST_UNIT = "price x tokens"
DIFFICULTIES = ("easy", "medium", "hard")
LENGTHS = ("short", "long")
DIFFICULTY_WORDS = (
    ("define", "list", "rename", "repeat", "spell", "translate"),
    ("compare", "convert", "estimate", "explain", "sort", "summarise"),
    ("derive", "diagnose", "formalise", "optimise", "prove", "refactor"),
)
LENGTH_WORDS = (
    ("brief", "quick", "short", "terse"),
    ("complete", "detailed", "lengthy", "thorough"),
)
TEMPLATE = "{} and {} the {} and {}, {} and {}"
TOPICS = (
    *("invoice", "garden", "engine", "recipe", "river", "contract", "schedule", "poem"),
    *("network", "budget", "bridge", "market", "survey", "letter", "planet", "museum"),
)


class GeneratedExecutor(StrictModel):
    """An executor of the world: price per token, and mean quality on easy, medium, hard turns."""

    id: str = Field(min_length=1)
    unit_price: Annotated[int, Field(ge=1)]
    quality: Triple


def make_executors() -> tuple[GeneratedExecutor, ...]:
    """Return the default executors: they differ little on easy turns and much on hard ones."""
    return (
        GeneratedExecutor(id="weak", unit_price=1, quality=(0.75, 0.5, 0.2)),
        GeneratedExecutor(id="strong", unit_price=10, quality=(0.8, 0.75, 0.7)),
    )


class GeneratedSessionsConfig(StrictModel):
    """A log of made sessions.

    Sessions have up to `max_turns` turns and go on after each with `continue_probability`; the
    next turn keeps the difficulty with probability `persistence` and draws it anew otherwise.
    `short` and `long` list the tokens that a turn may take, all equally likely. Quality is uniform
    within `quality_noise` of its mean. A session is logged under one of the `habits`, each equally
    likely: the probabilities that the dearest executor takes an easy, medium, hard turn (else one
    of the others does, all equally likely).
    """

    kind: Literal["generated"] = "generated"
    sessions: Annotated[int, Field(ge=10)] = 2000
    seed: int = 0
    max_turns: Annotated[int, Field(ge=1, le=8)] = 4
    continue_probability: Share = 0.9
    persistence: Share = 0.5
    executors: tuple[GeneratedExecutor, ...] = Field(default_factory=make_executors, min_length=2)
    short: Tokens = (40, 50, 60)
    long: Tokens = (80, 100, 120)
    quality_noise: Share = 0.1
    habits: Annotated[tuple[Triple, ...], Field(min_length=1)] = (
        (0.1, 0.1, 0.1),
        (0.5, 0.5, 0.5),
        (0.9, 0.9, 0.9),
        (0.2, 0.5, 0.9),
    )

    @model_validator(mode="after")
    def check_executors(self) -> GeneratedSessionsConfig:
        """Refuse ids that stand twice, an order that is not by price, and too much noise."""
        ids = [executor.id for executor in self.executors]
        if len(set(ids)) < len(ids):
            raise ValueError("executors: two have the same id")
        if list(self.executors) != sorted(self.executors, key=lambda e: (e.unit_price, e.id)):
            raise ValueError("executors: list them by unit_price (then id), the cheapest first")
        means = [mean for executor in self.executors for mean in executor.quality]
        if not self.quality_noise <= min(means) or max(means) + self.quality_noise > 1:
            raise ValueError("quality_noise: quality would leave [0, 1]")
        return self


@dataclass(frozen=True)
class DrawnSessions:
    """S sessions of at most T turns with the outcome of every executor.

    `difficulty_ST` and `length_ST` are positions in `DIFFICULTIES` and `LENGTHS`, `cost_STK` is in
    price x tokens; what lies beyond a session's end is drawn all the same and not valid.
    """

    ids: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    valid_ST: BoolArray
    difficulty_ST: IntArray
    length_ST: IntArray
    cost_STK: Float64Array
    quality_STK: Float64Array


class SessionWorld:
    """Draws sessions; equal configs give equal ones, and more sessions begin with the fewer."""

    def __init__(self, config: GeneratedSessionsConfig) -> None:
        self.config = config
        self.quality_KD = np.array([executor.quality for executor in config.executors])
        self.price_K = np.array([executor.unit_price for executor in config.executors])
        self.tokens = (np.array(config.short), np.array(config.long))  # by length
        stay = config.persistence
        self.transition_DD = stay * np.eye(len(DIFFICULTIES)) + (1 - stay) / len(DIFFICULTIES)

    def draw(self) -> DrawnSessions:
        """Draw the config's sessions."""
        count, turns = self.config.sessions, self.config.max_turns
        difficulty_ST = self._draw_difficulties(count, turns)
        session_S1, turn_1T = np.arange(count)[:, None], np.arange(turns)[None]
        length_ST = self._pick(len(LENGTHS), "length", session_S1, turn_1T)
        going_on = self.config.continue_probability
        goes_on_ST = self._uniform("goes on", session_S1, turn_1T) < going_on
        valid_ST = np.ones((count, turns), np.bool_)
        valid_ST[:, 1:] = np.logical_and.accumulate(goes_on_ST[:, :-1], axis=1)
        cells = session_S1[..., None], turn_1T[..., None], np.arange(len(self.price_K))
        tokens_STK = self._draw_tokens(length_ST, cells)
        noise_STK = self.config.quality_noise * (2 * self._uniform("quality", *cells) - 1)
        quality_STK = self.quality_KD.T[difficulty_ST] + noise_STK
        return DrawnSessions(
            ids=tuple(f"session-{s:06d}" for s in range(count)),
            texts=self._write_texts(valid_ST, difficulty_ST, length_ST),
            valid_ST=valid_ST,
            difficulty_ST=difficulty_ST,
            length_ST=length_ST,
            cost_STK=(tokens_STK * self.price_K).astype(np.float64),
            quality_STK=quality_STK,
        )

    def make_log(self, drawn: DrawnSessions) -> SessionLog:
        """Return what the logging policy leaves of drawn sessions."""
        action_ST = self._draw_actions(drawn)
        sessions = []
        for s, name in enumerate(drawn.ids):
            turns = []
            for t, text in enumerate(drawn.texts[s]):
                action = int(action_ST[s, t])
                cost, quality = drawn.cost_STK[s, t, action], drawn.quality_STK[s, t, action]
                turns.append(Turn(action, float(cost), float(quality), text))
            sessions.append(Session(name, tuple(turns)))
        entries = [
            ExecutorEntry(id=one.id, unit_price=one.unit_price) for one in self.config.executors
        ]
        return SessionLog("generated", COST_UNIT, tuple(entries), tuple(sessions))

    def _uniform(self, purpose: str, *cells: Any) -> Float64Array:
        return draw_uniform(self.config.seed, "sessions", purpose, *cells)

    def _pick(self, count: int, purpose: str, *cells: Any) -> IntArray:
        return (self._uniform(purpose, *cells) * count).astype(np.int64)

    def _draw_difficulties(self, count: int, turns: int) -> IntArray:
        """Return the difficulty of each turn [S, T], a chain along the session."""
        session_S = np.arange(count)
        difficulty_ST = np.empty((count, turns), np.int64)
        for t in range(turns):
            difficulty_ST[:, t] = self._pick(len(DIFFICULTIES), "difficulty", session_S, t)
            if t > 0:
                stays_S = self._uniform("stays", session_S, t) < self.config.persistence
                difficulty_ST[stays_S, t] = difficulty_ST[stays_S, t - 1]
        return difficulty_ST

    def _draw_tokens(self, length_ST: IntArray, cells: tuple[Any, Any, Any]) -> IntArray:
        """Return the tokens that each executor would take on each turn [S, T, K]."""
        by_length = [
            tokens[self._pick(len(tokens), f"tokens {name}", *cells)]
            for name, tokens in zip(LENGTHS, self.tokens, strict=True)
        ]
        return np.where(length_ST[..., None] == 0, *by_length)

    def _draw_actions(self, drawn: DrawnSessions) -> IntArray:
        """Return the executor of each turn [S, T] under the session's habit."""
        count, turns = drawn.difficulty_ST.shape
        session_S1, turn_1T = np.arange(count)[:, None], np.arange(turns)[None]
        habit_S1 = self._pick(len(self.config.habits), "habit", session_S1)
        dearest_ST = np.array(self.config.habits)[habit_S1, drawn.difficulty_ST]
        cheaper = len(self.price_K) - 1
        return np.where(
            self._uniform("habit kept", session_S1, turn_1T) < dearest_ST,
            cheaper,
            self._pick(cheaper, "other executor", session_S1, turn_1T),
        )

    def _write_texts(
        self, valid_ST: BoolArray, difficulty_ST: IntArray, length_ST: IntArray
    ) -> tuple[tuple[str, ...], ...]:
        """Return what the router reads: two words of difficulty, two topics, two of length."""
        session_S1, turn_1T = np.ix_(*(np.arange(size) for size in valid_ST.shape))

        def choose(words: Sequence[str], place: int) -> npt.NDArray[np.str_]:
            picked_ST = self._pick(len(words), f"word {place}", session_S1, turn_1T)
            return np.array(words)[picked_ST]

        verbs_2ST = [
            pick_rows([choose(words, n) for words in DIFFICULTY_WORDS], difficulty_ST)
            for n in (0, 1)
        ]
        topics_2ST = [choose(TOPICS, n) for n in (2, 3)]
        manners_2ST = [
            pick_rows([choose(words, n) for words in LENGTH_WORDS], length_ST) for n in (4, 5)
        ]
        words_ST6 = np.stack([*verbs_2ST, *topics_2ST, *manners_2ST], axis=-1).tolist()
        return tuple(
            tuple(TEMPLATE.format(*words) for words in row[: int(valid_T.sum())])
            for row, valid_T in zip(words_ST6, valid_ST, strict=True)
        )


def pick_rows(options: Sequence[npt.NDArray[np.str_]], index_ST: IntArray) -> npt.NDArray[np.str_]:
    """Return, cell by cell, the option of that number."""
    picked_ST: npt.NDArray[np.str_] = np.take_along_axis(np.stack(options), index_ST[None], axis=0)[
        0
    ]
    return picked_ST
