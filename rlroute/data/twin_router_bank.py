"""The question bank of TwinRouterBench's static track: logged agent trajectories, one tier a step.

What it is: `read_bank` reads `question_bank.jsonl`, which holds a JSON object per routing prefix: a
chat so far and the cheapest tier with which the whole trajectory still passed. Rows of one
`instance_id` are a trajectory. `split_trajectories` splits trajectories, never rows, and evenly
within each workload. What is read of a row:

| key                         | what                                                              |
| --------------------------- | ----------------------------------------------------------------- |
| `id`                        | a text, different in every row                                    |
| `benchmark`                 | the workload, one of `WORKLOADS`                                  |
| `instance_id`, `step_index` | the trajectory, and the place in it (1, 2, ...; gaps are allowed) |
| `messages`                  | the prefix: `role`, `content`, `tool_calls`, and what names them  |
| `target_tier_id`            | the label, 0 to 3; `target_tier`, where present, has to agree     |

The content of a message is a text, null, or a list of blocks; one message may be a text in one row
and a list in the next, so both are normalised to text. Two messages are the same if `role`,
`content` (as text), `tool_calls`, `tool_call_id` and `name` are, where an absent key differs from
null, as in the published scorer.

What it leaves out: every other key. Provenance (`collector`, `notes`, ...) is no feature,
`total_steps` is known only afterwards, and `functions` are not counted by the scorer. Nor does it
look for near-duplicates between trajectories. Tokens and prices stand in
`rlroute.data.twin_router_cost`.

Source: arXiv 2605.18859; the labels are upper bounds that depend on the order of their search.

How to use: `trajectories = read_bank(Path("question_bank.jsonl"))`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.data.text_files import read_utf8
from rlroute.seeding import mix
from rlroute.types import RLRouteError, SplitName

TIERS = ("low", "mid", "mid_high", "high")
WORKLOADS = ("swebench", "bfcl", "mtrag", "qmsum", "pinchbench")
ROLES = ("system", "user", "assistant", "tool")
IDENTITY_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a prefix.

    `text` is what is counted as tokens: the content, then the name and the arguments of each of its
    `tool_calls`, each on a line of its own. Messages with equal `identity` are the same message.
    """

    role: str
    text: str
    tool_calls: int
    identity: str


@dataclass(frozen=True, slots=True)
class BankRow:
    """A routing prefix: the chat before step `step_index`, and `gold`, the label (0 to 3)."""

    id: str
    step_index: int
    messages: tuple[ChatMessage, ...]
    gold: int


@dataclass(frozen=True, slots=True)
class LoggedTrajectory:
    """The rows of one instance in the order of their steps; some steps may be missing."""

    id: str
    workload: str
    rows: tuple[BankRow, ...]


def read_bank(path: Path) -> tuple[LoggedTrajectory, ...]:
    """Read a bank (gzip, if the name ends in `.gz`); trajectories come by workload, then by id.

    Raises:
        RLRouteError: the file cannot be read, a line is no JSON object, a key that is read is
            missing or malformed, an id or a step stands twice, or one instance is in two workloads.
    """
    known: dict[str, ChatMessage] = {}  # prefixes repeat their messages: each is kept once
    line_of_id: dict[str, int] = {}
    workloads: dict[str, str] = {}
    rows: dict[str, dict[int, BankRow]] = defaultdict(dict)
    for number, line in enumerate(read_utf8(path).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_line(where, line)
        row = parse_row(where, record, known)
        if row.id in line_of_id:
            raise RLRouteError(
                f"{where}: id '{row.id}' stands in line {line_of_id[row.id]} already"
            )
        line_of_id[row.id] = number
        instance = read_text(where, record, "instance_id")
        workload = read_choice(where, record, "benchmark", WORKLOADS)
        if workloads.setdefault(instance, workload) != workload:
            raise RLRouteError(
                f"{where}: benchmark '{workload}' but instance_id '{instance}' is of "
                f"'{workloads[instance]}' in an earlier line"
            )
        if row.step_index in rows[instance]:
            earlier = rows[instance][row.step_index].id
            raise RLRouteError(
                f"{where}: step_index {row.step_index} of instance_id '{instance}' is that of row "
                f"'{earlier}' too"
            )
        rows[instance][row.step_index] = row
    order = sorted(workloads, key=lambda one: (WORKLOADS.index(workloads[one]), one))
    return tuple(
        LoggedTrajectory(one, workloads[one], tuple(rows[one][step] for step in sorted(rows[one])))
        for one in order
    )


def parse_line(where: str, line: str) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        RLRouteError: the line holds something else, or half of a surrogate pair.
    """
    try:
        record: Any = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RLRouteError(f"{where}: holds half of a surrogate pair, not a text") from None
    except (json.JSONDecodeError, RecursionError):
        raise RLRouteError(f"{where}: not valid JSON") from None
    if not isinstance(record, dict):
        raise RLRouteError(f"{where}: must be a JSON object")
    return record


def parse_row(where: str, record: Mapping[str, Any], known: dict[str, ChatMessage]) -> BankRow:
    """Return the row of a record; messages that are in `known` already are taken from there.

    Raises:
        RLRouteError: a key is missing or malformed.
    """
    step_index, gold = record.get("step_index"), record.get("target_tier_id")
    if type(step_index) is not int or step_index < 1:
        raise RLRouteError(f"{where}: 'step_index' must be a whole number from 1")
    if type(gold) is not int or not 0 <= gold < len(TIERS):
        raise RLRouteError(f"{where}: 'target_tier_id' must be a whole number from 0 to 3")
    if record.get("target_tier", TIERS[gold]) != TIERS[gold]:
        raise RLRouteError(
            f"{where}: 'target_tier' must be '{TIERS[gold]}', as 'target_tier_id' is {gold}"
        )
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RLRouteError(f"{where}: 'messages' must be a list of one or more messages")
    parsed = []
    for place, value in enumerate(messages):
        message = parse_message(f"{where}: 'messages[{place}]'", value)
        parsed.append(known.setdefault(message.identity, message))
    return BankRow(read_text(where, record, "id"), step_index, tuple(parsed), gold)


def parse_message(where: str, value: Any) -> ChatMessage:
    """Return a message, normalised.

    Raises:
        RLRouteError: the role is unknown, or content or tool calls have another form.
    """
    if not isinstance(value, dict):
        raise RLRouteError(f"{where} must be a JSON object")
    if value.get("role") not in ROLES:
        raise RLRouteError(f"{where}: 'role' must be one of {', '.join(ROLES)}")
    parts = parse_content(where, value.get("content"))
    identity = {key: value[key] for key in IDENTITY_KEYS if key in value}
    if "content" in identity:
        identity["content"] = "\n".join(parts)
    calls = value.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RLRouteError(f"{where}: 'tool_calls' must be a list, or null")
    for call in calls:
        parts += parse_tool_call(where, call)
    return ChatMessage(
        role=value["role"],
        text="\n".join(parts),
        tool_calls=len(calls),
        identity=json.dumps(identity, sort_keys=True, ensure_ascii=False),
    )


def parse_content(where: str, content: Any) -> list[str]:
    """Return the texts of a content; blocks without text (images) hold nothing that is counted."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise RLRouteError(f"{where}: 'content' must be a text, null, or a list of blocks")
    texts = [block.get("text") if isinstance(block, dict) else block for block in content]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise RLRouteError(f"{where}: a block of 'content' must be a text, or have one as 'text'")
    return [text for text in texts if text]


def parse_tool_call(where: str, call: Any) -> list[str]:
    """Return the name and the arguments of a tool call, as far as there are any."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RLRouteError(f"{where}: a tool call must have a 'function' with a 'name'")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        return [function["name"], json.dumps(arguments, ensure_ascii=False)]
    if arguments is not None and not isinstance(arguments, str):
        raise RLRouteError(f"{where}: 'arguments' of a tool call must be a text or an object")
    return [function["name"], arguments] if arguments else [function["name"]]


def read_text(where: str, record: Mapping[str, Any], key: str) -> str:
    """Return the text under a key, which must not be blank."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RLRouteError(f"{where}: '{key}' must be a text that is not empty")
    return value


def read_choice(where: str, record: Mapping[str, Any], key: str, allowed: Sequence[str]) -> str:
    """Return the text under a key, which must be one of those allowed."""
    value = record.get(key)
    if value not in allowed:
        raise RLRouteError(f"{where}: '{key}' must be one of {', '.join(allowed)}")
    return str(value)


class FractionSplit(StrictModel):
    """Shares of the trajectories of each workload; a very small workload may miss a split."""

    kind: Literal["fractions"] = "fractions"
    train: float = Field(default=0.7, ge=0, le=1)
    val: float = Field(default=0.1, ge=0, le=1)
    test: float = Field(default=0.2, ge=0, le=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_sum(self) -> FractionSplit:
        """Refuse shares that do not sum to 1."""
        if not math.isclose(self.train + self.val + self.test, 1.0, abs_tol=1e-9):
            raise ValueError("train, val and test must sum to 1")
        return self


class FoldSplit(StrictModel):
    """Cross-validation: `fold` (from 0) of `folds` is the test split, the next one val."""

    kind: Literal["folds"] = "folds"
    folds: int = Field(default=5, ge=3)
    fold: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def check_fold(self) -> FoldSplit:
        """Refuse a fold that there is not."""
        if self.fold >= self.folds:
            raise ValueError(f"fold must be from 0 to {self.folds - 1}, as folds is {self.folds}")
        return self


SplitConfig = Annotated[FractionSplit | FoldSplit, Field(discriminator="kind")]


def split_trajectories(
    trajectories: Sequence[LoggedTrajectory], config: FractionSplit | FoldSplit
) -> dict[str, SplitName]:
    """Return the split of each trajectory by its id.

    Within a workload the order is that of a hash of seed and id, so it depends neither on the order
    of rows in the file nor on the other workloads.
    """
    ids: dict[str, list[str]] = defaultdict(list)
    for one in trajectories:
        ids[one.workload].append(one.id)
    splits: dict[str, SplitName] = {}
    for workload, members in ids.items():
        hashed = {one: int(mix(config.seed, "split", workload, one)) for one in members}
        order = sorted(members, key=lambda one: (hashed[one], one))
        for place, member in enumerate(order):
            splits[member] = place_in_split(place, len(order), config)
    return splits


def place_in_split(place: int, count: int, config: FractionSplit | FoldSplit) -> SplitName:
    """Return the split of the trajectory at a place (from 0) among `count` of its workload."""
    if isinstance(config, FoldSplit):
        distance = (place - config.fold) % config.folds
        return "test" if distance == 0 else "val" if distance == 1 else "train"
    if place < round(count * config.train):
        return "train"
    return "val" if place < round(count * (config.train + config.val)) else "test"
