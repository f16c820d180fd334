"""What the readers of published data sets share: items of a file, types of fields, dates, splits.

Items are checked with pydantic models that hold the fields which are used; others are allowed and
not read, since the authors' files hold more. A fault names file, item and key in one line.

What it leaves out: the formats (`rlroute.memory.locomo`, `longmemeval`, `hotpotqa`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from rlroute.data.splits import assign_splits
from rlroute.data.text_files import read_utf8
from rlroute.memory.base import MemoryQuestion
from rlroute.types import SPLITS, RLRouteError, SplitName

Fractions = tuple[float, float, float]

WEEKDAY = re.compile(r"\s*\([A-Za-z]+\)\s*")
TIMES = ("%I:%M %p on %d %B, %Y", "%I:%M %p on %d %B %Y", "%Y/%m/%d %H:%M", "%Y-%m-%d %H:%M")
DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d %B, %Y", "%d %B %Y", "%B %d, %Y")


class FileModel(BaseModel):
    """A part of an item of a published file; fields that it does not name are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def write_number(value: Any) -> Any:
    """Return a number as text, as some gold answers are numbers; anything else as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
TextOrNumber = Annotated[Text, BeforeValidator(write_number)]


def read_items(path: Path) -> list[Any]:
    """Return the items of a JSON list, or of JSON Lines where the name ends in .jsonl (or + .gz).

    Raises:
        RLRouteError: the file cannot be read, is not JSON, holds no list, or an empty one.
    """
    text = read_utf8(path).decode("utf-8-sig")
    if ".jsonl" in path.suffixes:
        lines = enumerate(text.split("\n"), start=1)
        return [read_json(path, line, number) for number, line in lines if line.strip()]
    items = read_json(path, text)
    if not isinstance(items, list) or not items:
        raise RLRouteError(f"{path}: must hold a JSON list of one or more items")
    return items


def read_json(path: Path, text: str, line: int = 1) -> Any:
    """Parse JSON that begins in this line of a file.

    Raises:
        RLRouteError: it is not JSON; the message names the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {line + error.lineno - 1}"
        raise RLRouteError(f"{where}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise RLRouteError(f"{path}, line {line}: not valid JSON (nested too deeply)") from None


def read_when(text: str) -> str:
    """Return a date as ISO (2023-05-08, or 2023-05-08T13:56), or as it is where it is no date.

    Known are LoCoMo's form ("1:56 pm on 8 May, 2023"), LongMemEval's ("2023/05/30 (Tue) 23:40"),
    and a few without a time of day.
    """
    plain = " ".join(WEEKDAY.sub(" ", text).split())
    for form in TIMES + DATES:
        try:
            when = datetime.strptime(plain, form)
        except ValueError:
            continue
        return when.strftime("%Y-%m-%dT%H:%M" if form in TIMES else "%Y-%m-%d")
    return text.strip()


def assign_split_names(texts: Sequence[str], fractions: Fractions, seed: int) -> list[SplitName]:
    """Return the split of each text, by a hash of the text and the seed; equal texts share one.

    Raises:
        RLRouteError: a fraction is negative or they do not sum to 1.
    """
    index = {str(name): name for name in SPLITS}
    return [index[str(name)] for name in assign_splits(texts, fractions, seed)]


def group_questions(
    path: Path, questions: Sequence[tuple[SplitName, MemoryQuestion]]
) -> Mapping[SplitName, tuple[MemoryQuestion, ...]]:
    """Return the questions of each split in their order.

    Raises:
        RLRouteError: a history would stand in two splits, an id stands twice, or there is none.
    """
    if not questions:
        raise RLRouteError(f"{path}: holds no question that is used")
    split_of_history: dict[str, SplitName] = {}
    seen: set[str] = set()
    for split, question in questions:
        earlier = split_of_history.setdefault(question.history_id, split)
        if earlier != split:
            raise RLRouteError(
                f"{path}: history '{question.history_id}' would stand in {earlier} and in {split}"
            )
        if question.query.id in seen:
            raise RLRouteError(f"{path}: question id '{question.query.id}' stands twice")
        seen.add(question.query.id)
    return {
        split: tuple(question for name, question in questions if name == split) for split in SPLITS
    }
