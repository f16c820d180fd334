"""Logged sessions: several turns each, who took each turn, what it cost and what it was worth.

What it is: a folder of two files, read, checked and written.

    executors.json   {"cost_unit": "USD", "executors": [{"id": "weak", "unit_price": 1.0}, ...]}
    sessions.jsonl   one turn a line, in any order:
    {"session_id": "a", "turn": 1, "text": "...", "action": "weak", "cost": 120.0, "quality": 0.12}

`text` is what the router read before the turn (`features`, a list of numbers, may stand in its
place in every line). `turn` counts from 1. `cost` is what the turn cost, in `cost_unit`, and
`unit_price` what an executor charges for a unit of work (such as a token) in that unit. `quality`
is any number, the greater the better. A line may have `split`: train, val or test. Other keys are
refused.

Splits are by session, from a hash of its texts, unless the log states them; sessions with equal
texts never stand on two sides.

What it leaves out: budgets, of which a log knows nothing (`rlroute.algorithms.offline`), and logs
that are made rather than read (`rlroute.data.session_world`).

How to use: `log = read_sessions(folder)`, `parts = split_sessions(log)`, `write_sessions(log, to)`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlroute.config import StrictModel, parse_config
from rlroute.data.splits import DEFAULT_FRACTIONS, assign_splits, find_leak
from rlroute.data.text_files import read_utf8
from rlroute.files import atomic_folder, write_atomic
from rlroute.types import SPLITS, BoolArray, FloatArray, IntArray, RLRouteError, SplitName

SESSIONS_FILE = "sessions.jsonl"
EXECUTORS_FILE = "executors.json"

Finite: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]


class ExecutorEntry(StrictModel):
    """An executor; `unit_price` is what it charges for a unit of work, in the log's cost unit."""

    id: Name
    unit_price: NonNegative
    description: str = ""


class ExecutorsFile(StrictModel):
    """What executors.json holds."""

    cost_unit: Name
    executors: tuple[ExecutorEntry, ...] = Field(min_length=2)


class TurnLine(StrictModel):
    """What a line of sessions.jsonl holds."""

    session_id: Name
    turn: Annotated[int, Field(ge=1)]
    text: str | None = None
    features: Annotated[tuple[Finite, ...], Field(min_length=1)] | None = None
    action: Name
    cost: NonNegative
    quality: Finite
    split: SplitName | None = None


@dataclass(frozen=True)
class Turn:
    """One turn: the position of the executor that took it, cost in the log's unit, quality.

    One of `text` and `features` is set, the same one in all turns of a log.
    """

    action: int
    cost: float
    quality: float
    text: str = ""
    features: tuple[float, ...] = ()


@dataclass(frozen=True)
class Session:
    """Turns in order, at least one; `split` is None where the log states none."""

    id: str
    turns: tuple[Turn, ...]
    split: SplitName | None = None

    @property
    def key(self) -> str:
        """What must not stand in two splits: all that the router reads in the session."""
        return "\n".join(turn.text or json.dumps(turn.features) for turn in self.turns)


@dataclass(frozen=True)
class SessionLog:
    """Sessions sorted by id; executors by unit price, the cheapest first."""

    name: str
    cost_unit: str
    executors: tuple[ExecutorEntry, ...]
    sessions: tuple[Session, ...]

    @property
    def executor_ids(self) -> tuple[str, ...]:
        """The executors' ids, the cheapest first."""
        return tuple(executor.id for executor in self.executors)

    @property
    def feature_count(self) -> int:
        """The numbers in each turn's `features`; 0 where the log holds texts."""
        return len(self.sessions[0].turns[0].features)

    @property
    def max_turns(self) -> int:
        """The turns of the longest session."""
        return max(len(session.turns) for session in self.sessions)


@dataclass(frozen=True)
class SessionArrays:
    """S sessions of at most T turns as arrays; what pads a short session is 0 and not valid.

    `cost_ST` is in the log's unit, both it and `quality_ST` are float64.
    """

    valid_ST: BoolArray
    action_ST: IntArray
    cost_ST: npt.NDArray[np.float64]
    quality_ST: npt.NDArray[np.float64]


# --- Reading --------------------------------------------------------------------------------------


def read_sessions(folder: Path) -> SessionLog:
    """Read and check a log.

    Raises:
        RLRouteError: the first fault, with file, line and key.
    """
    if not folder.is_dir():
        raise RLRouteError(f"{folder}: no folder with {EXECUTORS_FILE} and {SESSIONS_FILE}")
    stated = read_executors(folder / EXECUTORS_FILE)
    executors = tuple(sorted(stated.executors, key=lambda one: (one.unit_price, one.id)))
    position = {executor.id: k for k, executor in enumerate(executors)}
    path = folder / SESSIONS_FILE
    lines: dict[str, list[tuple[str, TurnLine]]] = {}
    for number, text in enumerate(read_utf8(path).decode("utf-8").split("\n"), start=1):
        if text.strip():
            where = f"{path}, line {number}"
            line = parse_line(text, where)
            if line.action not in position:
                raise RLRouteError(
                    f"{where}: action: '{line.action}' is no executor of {EXECUTORS_FILE} "
                    f"(allowed: {', '.join(position)})"
                )
            lines.setdefault(line.session_id, []).append((where, line))
    check_alike([entry for entries in lines.values() for entry in entries])
    sessions = [build_session(name, lines[name], position) for name in sorted(lines)]
    log = SessionLog(folder.resolve().name, stated.cost_unit, executors, tuple(sessions))
    check_leaks(log)
    return log


def read_executors(path: Path) -> ExecutorsFile:
    """Read executors.json.

    Raises:
        RLRouteError: no such file, not JSON, a key is missing or unknown, or an id stands twice.
    """
    content = load_object(read_utf8(path).decode("utf-8"), str(path))
    stated = parse_config(ExecutorsFile, content, str(path))
    counts = Counter(executor.id for executor in stated.executors)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise RLRouteError(f"{path}: executors: '{twice[0]}' is listed twice")
    return stated


def load_object(text: str, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RLRouteError: it is not JSON, or something else than an object.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RLRouteError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise RLRouteError(f"{where}: a JSON object was expected")
    return content


def parse_line(text: str, where: str) -> TurnLine:
    """Check one line by itself."""
    line = parse_config(TurnLine, load_object(text, where), where)
    if (line.text is None) == (line.features is None):
        raise RLRouteError(f"{where}: text: give either 'text' or 'features'")
    return line


def check_alike(entries: Sequence[tuple[str, TurnLine]]) -> None:
    """Refuse a log without lines, and lines that differ from the first in what they hold."""
    if not entries:
        raise RLRouteError(f"{SESSIONS_FILE}: holds no turn")
    first_where, first = entries[0]
    for where, line in entries:
        if (line.text is None) != (first.text is None):
            raise RLRouteError(f"{where}: text: texts and features are mixed with {first_where}")
        if len(line.features or ()) != len(first.features or ()):
            raise RLRouteError(
                f"{where}: features: {len(line.features or ())} numbers, but "
                f"{len(first.features or ())} in {first_where}"
            )
        if (line.split is None) != (first.split is None):
            raise RLRouteError(f"{where}: split: state it in every line or in none")


def build_session(
    name: str, entries: Sequence[tuple[str, TurnLine]], position: dict[str, int]
) -> Session:
    """Return a session from its lines, which may stand in any order.

    Raises:
        RLRouteError: a turn stands twice or is missing, or the lines name two splits.
    """
    ordered = sorted(entries, key=lambda entry: entry[1].turn)
    for number, (where, line) in enumerate(ordered, start=1):
        if line.turn != number:
            fault = "stands twice" if line.turn < number else f"comes without turn {number}"
            raise RLRouteError(f"{where}: turn: turn {line.turn} of session '{name}' {fault}")
        if line.split != ordered[0][1].split:
            raise RLRouteError(f"{where}: split: session '{name}' stands in two splits")
    turns = tuple(
        Turn(position[line.action], line.cost, line.quality, line.text or "", line.features or ())
        for _, line in ordered
    )
    return Session(name, turns, ordered[0][1].split)


# --- Splits ---------------------------------------------------------------------------------------


def check_leaks(log: SessionLog) -> None:
    """Raise RLRouteError where the log's own splits hold equal sessions on two sides."""
    splits = [session.split for session in log.sessions if session.split is not None]
    leak = find_leak([session.key for session in log.sessions], splits) if splits else None
    if leak is not None:
        first, second = (log.sessions[place] for place in leak)
        raise RLRouteError(
            f"{log.name}: sessions '{first.id}' ({first.split}) and '{second.id}' "
            f"({second.split}) have the same texts: a leak between splits"
        )


def split_sessions(
    log: SessionLog,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> dict[SplitName, SessionLog]:
    """Return the log's sessions by split: its own where it states them, else by hash.

    Raises:
        RLRouteError: a split is empty, the fractions are no shares, or equal sessions stand on two
            sides.
    """
    if log.sessions[0].split is None:
        found = assign_splits([session.key for session in log.sessions], fractions, seed)
        pairs = zip(log.sessions, found.tolist(), strict=True)
        log = replace(log, sessions=tuple(replace(one, split=split) for one, split in pairs))
    check_leaks(log)
    parts = {
        split: replace(log, sessions=tuple(one for one in log.sessions if one.split == split))
        for split in SPLITS
    }
    for split, part in parts.items():
        if not part.sessions:
            raise RLRouteError(
                f"{log.name}: no session of {len(log.sessions)} falls into split '{split}'"
            )
    return parts


# --- Writing and arrays ---------------------------------------------------------------------------


def write_sessions(log: SessionLog, folder: Path) -> None:
    """Write a log as a folder, at once or not at all; the same log gives the same bytes.

    Raises:
        RLRouteError: the folder holds other files, or the log would not be read again.
    """
    other = {path.name for path in folder.glob("*")} - {SESSIONS_FILE, EXECUTORS_FILE}
    if other:
        raise RLRouteError(f"{folder}: holds other files ({min(other)}); name a new folder")
    check_leaks(log)
    with atomic_folder(folder) as temporary:
        stated = ExecutorsFile(cost_unit=log.cost_unit, executors=log.executors)
        content = json.dumps(stated.model_dump(mode="json"), indent=2)
        write_atomic(temporary / EXECUTORS_FILE, content + "\n")
        write_atomic(temporary / SESSIONS_FILE, "".join(format_lines(log)))
        read_sessions(temporary)


def format_lines(log: SessionLog) -> list[str]:
    """Return the lines of sessions.jsonl."""
    lines = []
    for session in log.sessions:
        for number, turn in enumerate(session.turns, start=1):
            read = {"features": turn.features} if turn.features else {"text": turn.text}
            row = {"session_id": session.id, "turn": number, **read}
            row |= {"action": log.executor_ids[turn.action], "cost": turn.cost}
            row |= {"quality": turn.quality}
            row |= {} if session.split is None else {"split": session.split}
            lines.append(json.dumps(row) + "\n")
    return lines


def compute_log_digest(log: SessionLog) -> str:
    """Return a SHA-256 over all that a log holds but its name."""
    content = [log.cost_unit, *(one.model_dump_json() for one in log.executors)]
    return hashlib.sha256("\n".join([*content, *format_lines(log)]).encode()).hexdigest()


def make_arrays(log: SessionLog) -> SessionArrays:
    """Return a log's actions, costs and qualities as arrays [S, T]."""
    shape = (len(log.sessions), log.max_turns)
    arrays = SessionArrays(
        valid_ST=np.zeros(shape, np.bool_),
        action_ST=np.zeros(shape, np.int64),
        cost_ST=np.zeros(shape),
        quality_ST=np.zeros(shape),
    )
    for s, session in enumerate(log.sessions):
        for t, turn in enumerate(session.turns):
            arrays.valid_ST[s, t] = True
            arrays.action_ST[s, t] = turn.action
            arrays.cost_ST[s, t] = turn.cost
            arrays.quality_ST[s, t] = turn.quality
    return arrays


def stack_features(log: SessionLog) -> FloatArray:
    """Return the turns' own features [rows, F], session by session, of a log that holds them."""
    rows = [turn.features for session in log.sessions for turn in session.turns]
    return np.array(rows, dtype=np.float32)
