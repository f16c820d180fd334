"""The static track of TwinRouterBench as a world: logged agent trajectories, four tiers, one cache.

A task is a trajectory of the bank (`rlroute.data.twin_router_bank`), an executor is a tier.
Whatever tier takes a step, the next logged prefix follows: the labels were found on this path. An
episode goes on to the end of its trajectory; its score is 1 if no step's tier was below its label,
else 0, and is known only then. What a step costs depends on the tier of the step before, through
the prompt cache, exactly as in the benchmark's CostSave (`rlroute.data.twin_router_cost`).

| feature             | what                                                                   |
| ------------------- | ---------------------------------------------------------------------- |
| tokens              | log10 of the prefix's tokens (as `high` counts them), less 3           |
| growth              | log10 of 1 + the tokens since the row before (at first: all), over 2   |
| step                | log2 of the step's index, over 3                                       |
| after_none, ...     | one-hot: the tier of the step before; none at the start                |
| warm_low, ...       | 1 if the tier would find the row before in its cache                   |
| system, user, ...   | log10 of 1 + the number of the prefix's messages with this role        |
| tool_calls          | log10 of 1 + the number of tool calls in the prefix                    |
| words_0, ...        | hashed words of the last two messages (system left out), norm 1        |
| is_swebench, ...    | one-hot: the workload, only where the config declares it               |

`executor_features_KD` has one column more than usual: the price of cached prompt tokens over that
of others.

The labels, the length of the trajectory and whether it has failed already are never shown.

What it leaves out: the replies of models, for no model is called; and the seed of an episode, which
decides nothing.

Source: arXiv 2605.18859. The bank is the user's own download: none ships.

How to use: `TwinRouterWorld(TwinRouterConfig(bank=Path("question_bank.jsonl")))`.
"""

from __future__ import annotations

import copy
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.twin_router_bank import (
    ROLES,
    TIERS,
    WORKLOADS,
    BankRow,
    ChatMessage,
    FractionSplit,
    SplitConfig,
    read_bank,
    split_trajectories,
)
from rlroute.data.twin_router_cost import (
    HIGH,
    PRICES,
    ApproximateTokens,
    Oracle,
    PricedTrajectory,
    TokensConfig,
    find_oracle,
    price_bank,
)
from rlroute.seeding import mix
from rlroute.types import (
    Call,
    Candidate,
    FloatArray,
    Query,
    Reply,
    RLRouteError,
    SplitName,
    Usage,
)
from rlroute.worlds.base import WorldState, WorldStep, describe_executors

NONE = len(TIERS)  # the place of "no tier yet" among the tiers of the step before
WORD = re.compile(r"[^\W\d_]+|\d")
READ_CHARACTERS = 4000  # of a message, half from its beginning and half from its end
TASK_WORDS = 36
NEWS_WORDS = 14
CHARACTERS_PER_WORD = 8


class TwinRouterConfig(StrictModel):
    """A world over a question bank.

    `bank` is the user's `question_bank.jsonl`. `tokens` says how tokens are counted, `split` how
    trajectories are split (shares, or one of several folds). `declare_workload` shows the policy
    which benchmark a task is from, which a result has to mention. `hashed_words` is the number of
    features that hashed words share.
    """

    kind: Literal["twin_router"] = "twin_router"
    bank: Path
    tokens: TokensConfig = ApproximateTokens()
    split: SplitConfig = FractionSplit()
    declare_workload: bool = False
    hashed_words: int = Field(default=24, ge=1, le=256)


@dataclass(frozen=True)
class Shown:
    """What each step of a trajectory shows, whatever was chosen: features [T, .] and texts.

    `words_TF` ends with the workload, where the config declares it.
    """

    counts_TF: FloatArray
    words_TF: FloatArray
    texts: tuple[str, ...]


class TwinRouterWorld:
    """One lane over the trajectories of a bank; forks share all that was read and computed.

    Raises:
        RLRouteError: the bank or a tokenizer cannot be read.
    """

    def __init__(self, config: TwinRouterConfig) -> None:
        self.config = config
        self.name = "twin_router"
        self.executors = tuple(
            Candidate(tier, prices, "tier", f"tier {tier} of four")
            for tier, prices in zip(TIERS, PRICES, strict=True)
        )
        self.executor_features_KD = describe_tiers(self.executors)
        self.feature_names = name_features(config)
        bank = price_bank(read_bank(config.bank), config.tokens)
        self.trajectories = {one.logged.id: one for one in bank}
        self.horizon = max(len(one.logged.rows) for one in bank)
        self._split_of = split_trajectories([one.logged for one in bank], config.split)
        self._shown: dict[str, Shown] = {}
        self._oracles: dict[str, Oracle] = {}
        self._task_id = ""
        self._tiers: list[int] = []

    def list_tasks(self, split: SplitName) -> tuple[Query, ...]:
        """Return the trajectories of a split; `Query.task` is the workload, for reports only."""
        return tuple(
            Query(
                id=one.logged.id,
                text=find_task_text(one.logged.rows[0]),
                task=one.logged.workload,
                dataset=self.name,
            )
            for one in self.trajectories.values()
            if self._split_of[one.logged.id] == split
        )

    def fork(self) -> Self:
        """Return another lane over the same bank."""
        lane = copy.copy(self)
        lane._task_id, lane._tiers = "", []
        return lane

    def reset(self, task: Query, seed: int) -> WorldState:
        """Start a trajectory; the seed decides nothing.

        Raises:
            RLRouteError: the bank has no such trajectory.
        """
        if task.id not in self.trajectories:
            raise RLRouteError(f"task '{task.id}': {self.config.bank} has no such instance_id")
        self._task_id, self._tiers = task.id, []
        return self._show()

    def bound_cost_usd(self, executor: int) -> float:
        """Return what the tier's next step will cost exactly, for the log tells its output."""
        priced, step = self.trajectories[self._task_id], len(self._tiers)
        return priced.compute_step_cost(step, executor, self._count_cached(executor))

    def request(self, executor: int) -> Call | None:
        """Return None: no model is called."""
        return None

    def step(self, executor: int, reply: Reply | None) -> WorldStep:
        """Let a tier take the next step.

        Raises:
            ValueError: the episode is done, or there is no such tier.
        """
        if self._is_done() or not 0 <= executor < len(TIERS):
            raise ValueError(f"executor {executor} cannot act here")
        priced, step = self.trajectories[self._task_id], len(self._tiers)
        cached = self._count_cached(executor)
        usage = Usage(
            prompt_tokens=int(priced.prompt_tokens_TK[step, executor]),
            completion_tokens=int(priced.output_tokens_T[step]),
            cached_tokens=cached,
        )
        self._tiers.append(executor)
        done = self._is_done()
        return WorldStep(
            state=self._show(),
            usage=usage,
            cost_usd=priced.compute_step_cost(step, executor, cached),
            done=done,
            score=float(done and bool((np.array(self._tiers) >= priced.gold_T).all())),
            note=f"{TIERS[executor]}, {TIERS[priced.gold_T[step]]} needed",
        )

    def advise(self) -> int | None:
        """Return the tier on the cheapest path from here that reaches all labels to come.

        That an earlier step was below its label, if so, is not regarded: no policy can see it. None
        if the episode is done.
        """
        if self._is_done():
            return None
        previous = self._tiers[-1] if self._tiers else NONE
        return int(self.find_oracle(self._task_id).best_TJ[len(self._tiers), previous])

    def find_oracle(self, task_id: str) -> Oracle:
        """Return the cheapest path of a trajectory that passes, and its cost."""
        if task_id not in self._oracles:
            self._oracles[task_id] = find_oracle(self.trajectories[task_id])
        return self._oracles[task_id]

    def _is_done(self) -> bool:
        """Whether no step is left, or no task was started."""
        priced = self.trajectories.get(self._task_id)
        return priced is None or len(self._tiers) == len(priced.gold_T)

    def _count_cached(self, executor: int) -> int:
        """Return the prompt tokens that a tier would read from its cache now."""
        step = len(self._tiers)
        if step == 0:
            return 0
        priced, previous = self.trajectories[self._task_id], self._tiers[-1]
        last_use = int(priced.step_index_T[step - 1])
        return priced.count_cached(step, executor, previous, last_use)

    def _show(self) -> WorldState:
        """Return what is seen now; after the end, the last row again and no text."""
        if self._task_id not in self._shown:
            self._shown[self._task_id] = self._describe(self.trajectories[self._task_id])
        shown, step = self._shown[self._task_id], len(self._tiers)
        ended = self._is_done()
        row = step - 1 if ended else step
        after_J = np.zeros(len(TIERS) + 1, dtype=np.float32)
        after_J[self._tiers[-1] if self._tiers else NONE] = 1
        warm_K = np.zeros(len(TIERS), dtype=np.float32)
        if not ended:
            warm_K[:] = [self._count_cached(tier) > 0 for tier in range(len(TIERS))]
        parts = [shown.counts_TF[row], after_J, warm_K, shown.words_TF[row]]
        return WorldState(
            text="" if ended else shown.texts[step],
            features_W=np.concatenate(parts).astype(np.float32),
            legal_K=np.ones(len(TIERS), dtype=np.bool_),
        )

    def _describe(self, priced: PricedTrajectory) -> Shown:
        """Return what the steps of a trajectory show."""
        rows, tokens_T = priced.logged.rows, priced.prompt_tokens_TK[:, HIGH]
        workload = [float(priced.logged.workload == name) for name in WORKLOADS]
        growth_T = [
            int(tokens - (tokens_T[step - 1] if priced.continued_T[step] else 0))
            for step, tokens in enumerate(tokens_T)
        ]
        words = [hash_words(find_last_messages(row), self.config.hashed_words) for row in rows]
        declared = workload if self.config.declare_workload else []
        return Shown(
            counts_TF=np.array(
                [
                    count_row(row, int(tokens), growth)
                    for row, tokens, growth in zip(rows, tokens_T, growth_T, strict=True)
                ],
                dtype=np.float32,
            ),
            words_TF=np.array([[*vector, *declared] for vector in words], dtype=np.float32),
            texts=(
                self._introduce(priced, int(tokens_T[0])),
                *(
                    write_news(rows[step], rows[step - 1], growth_T[step], int(tokens_T[step]))
                    for step in range(1, len(rows))
                ),
            ),
        )

    def _introduce(self, priced: PricedTrajectory, tokens: int) -> str:
        """Return the first text: the task in few words, and what was said last, if other."""
        row = priced.logged.rows[0]
        name = f"{priced.logged.workload} task" if self.config.declare_workload else "Task"
        task = find_task_text(row)
        lines = [f"{name} of {tokens} tokens: {shorten(task, TASK_WORDS)}"]
        if row.messages[-1].text != task:
            lines.append(f"Last, {write_message(row.messages[-1])}")
        return "\n".join(lines)


def describe_tiers(executors: tuple[Candidate, ...]) -> FloatArray:
    """Return the features [K, 4] of the tiers: the usual ones, and cached over uncached price."""
    cached_K = [prices.compute_cost(1, 0, 1) / prices.compute_cost(1, 0) for prices in PRICES]
    columns = (describe_executors(executors), np.array(cached_K)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def name_features(config: TwinRouterConfig) -> tuple[str, ...]:
    """Return the names of the features, in their order."""
    return (
        *("tokens", "growth", "step", *ROLES, "tool_calls"),
        *(f"after_{tier}" for tier in TIERS),
        "after_none",
        *(f"warm_{tier}" for tier in TIERS),
        *(f"words_{number}" for number in range(config.hashed_words)),
        *(f"is_{workload}" for workload in WORKLOADS if config.declare_workload),
    )


def count_row(row: BankRow, tokens: int, growth: int) -> list[float]:
    """Return the features of a prefix that are counts; see the table of the module."""
    roles = Counter(message.role for message in row.messages)
    calls = sum(message.tool_calls for message in row.messages)
    return [
        float(np.log10(tokens) - 3),
        float(np.log10(1 + growth) / 2),
        float(np.log2(row.step_index) / 3),
        *(float(np.log10(1 + count)) for count in (*(roles[role] for role in ROLES), calls)),
    ]


def find_task_text(row: BankRow) -> str:
    """Return the first message of the user, or the first of all where the user said nothing."""
    said = [message.text for message in row.messages if message.role == "user"]
    return said[0] if said else row.messages[0].text


def find_last_messages(row: BankRow) -> str:
    """Return the text of the last two messages, system messages left out."""
    said = [message.text for message in row.messages if message.role != "system"]
    half = READ_CHARACTERS // 2
    return "\n".join(
        text if len(text) <= READ_CHARACTERS else f"{text[:half]}\n{text[-half:]}"
        for text in said[-2:]
    )


def hash_words(text: str, width: int) -> FloatArray:
    """Return the words of a text as a vector [width] of norm 1; 0 for a text without words.

    Each word adds 1 or -1 at a hashed place. Case does not matter, and digits count one by one.
    """
    words = [zlib.crc32(word.encode("utf-8")) for word in WORD.findall(text.lower())]
    hashed_N = mix("twin_router", np.array(words, dtype=np.uint64))
    vector_F = np.zeros(width)
    sign_N = np.where(hashed_N >> np.uint64(63), 1.0, -1.0)
    np.add.at(vector_F, (hashed_N % np.uint64(width)).astype(np.int64), sign_N)
    norm = float(np.linalg.norm(vector_F))
    return (vector_F / norm if norm else vector_F).astype(np.float32)


def write_news(row: BankRow, before: BankRow, growth: int, tokens: int) -> str:
    """Return what is new: what the user or a tool said last since the row before, and tokens."""
    new = row.messages[len(before.messages) :] or row.messages[-1:]
    heard = [message for message in new if message.role in ("user", "tool")]
    return f"{write_message((heard or new)[-1])} (+{growth} tokens, {tokens} in all)"


def write_message(message: ChatMessage) -> str:
    """Return a message in few words."""
    return f"{message.role}: {shorten(message.text, NEWS_WORDS)}"


def shorten(text: str, words: int) -> str:
    """Return the beginning and the end of a text on one line, at most so many words in all."""
    parts: Sequence[str] = text.split()
    if len(parts) > words:
        parts = [*parts[: words - words // 2], "...", *parts[-(words // 2) :]]
    line, half = " ".join(parts), words * CHARACTERS_PER_WORD // 2
    return line if len(line) <= 2 * half else f"{line[:half]} ... {line[-half:]}"
