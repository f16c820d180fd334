"""Sets of open questions with short answers: seven public ones, mixed for training and evaluation.

What it is: `read_questions` draws the mixture that Router-R1 was trained and tested on (7,000
questions of NQ and of HotpotQA to train, 100 of each to validate, up to 500 of each of the seven
sets to test) from the FlashRAG collection on the Hugging Face hub, or from a folder of files:

    FOLDER/<set>/<split>.jsonl      split: train, dev or test; one JSON object per line
    {"id": "test_0", "question": "who wrote emma", "golden_answers": ["Jane Austen"]}
    {"id": "test_0", "text": "who wrote emma", "references": ["Jane Austen"]}

The draw is a permutation by hash, so it is the same on every machine. No question of one part
stands in a part before it (test, then val, then train): what would leak is dropped and counted.

What it leaves out: near-duplicates beyond blanks, case and the question mark, batches (nothing here
or in an evaluation drops the last, incomplete one), and the prompt, which the environment builds.

How to use: `read_questions(QuestionSetConfig(source="folder"))`; the hub needs the extra `text`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, field_validator

from rlroute.config import StrictModel
from rlroute.data.splits import normalise_text
from rlroute.data.text_files import read_utf8
from rlroute.extras import require
from rlroute.seeding import draw_permutation
from rlroute.types import Query, RLRouteError

Count: TypeAlias = Annotated[int, Field(ge=0)]
Rows: TypeAlias = Mapping[str, list[Query]]  # of one set, by split of the source

HUB = "hub"
TASKS: dict[str, str] = {
    "nq": "general",
    "triviaqa": "general",
    "popqa": "general",
    "hotpotqa": "multi_hop",
    "2wikimultihopqa": "multi_hop",
    "musique": "multi_hop",
    "bamboogle": "multi_hop",
}
SOURCE_SPLITS = ("train", "dev", "test")
# Where the questions of a part come from: the first of these splits that the set has.
PREFERRED = {"test": ("test", "dev", "train"), "val": ("dev", "train", "test"), "train": ("train",)}
FIELDS = (("question", "golden_answers"), ("text", "references"))
# Other keys of both formats. A task is kept; the set names the dataset; metadata is left out.
OTHER_KEYS = ("task", "dataset", "metadata")


class QuestionSetConfig(StrictModel):
    """Which questions are drawn: numbers by set, and where they come from.

    `source` is "hub" or a folder. `repository` is the collection on the hub (or a folder laid out
    like one), `revision` its branch, tag or commit. A set that holds fewer than the number in
    `test` gives all that it has; for `train` and `val` that is an error: the mixture would shift.
    """

    source: str = Field(HUB, min_length=1)
    repository: str = "RUC-NLPIR/FlashRAG_datasets"
    revision: str | None = None
    train: dict[str, Count] = Field(default_factory=lambda: {"nq": 7000, "hotpotqa": 7000})
    val: dict[str, Count] = Field(default_factory=lambda: {"nq": 100, "hotpotqa": 100})
    test: dict[str, Count] = Field(default_factory=lambda: dict.fromkeys(TASKS, 500))
    seed: int = 42

    @field_validator("train", "val", "test")
    @classmethod
    def check_names(cls, numbers: dict[str, int]) -> dict[str, int]:
        """Refuse a set that there is not."""
        unknown = sorted(set(numbers) - set(TASKS))
        if unknown:
            raise ValueError(f"unknown set '{unknown[0]}' (known: {', '.join(TASKS)})")
        return numbers


@dataclass(frozen=True)
class Questions:
    """The three parts; train is shuffled, val and test stand set by set.

    `leaks` counts by "set/part" the questions of the source that were left out because they stand
    in test or val, `duplicates` those that stand in the same part already.
    """

    train: tuple[Query, ...]
    val: tuple[Query, ...]
    test: tuple[Query, ...]
    leaks: Mapping[str, int]
    duplicates: Mapping[str, int]


def read_questions(config: QuestionSetConfig) -> Questions:
    """Draw the questions of all three parts.

    Raises:
        RLRouteError: a set or file cannot be read, a line or row is damaged, an id stands twice, a
            set has no split to draw from, or too few questions for train or val.
    """
    counts = {"test": config.test, "val": config.val, "train": config.train}
    asked = {name for numbers in counts.values() for name, number in numbers.items() if number}
    sets = {name: load_set(config, name) for name in TASKS if name in asked}
    draw = Draw(config, sets)
    parts = {part: draw.draw_part(part, numbers) for part, numbers in counts.items()}
    order = draw_permutation(len(parts["train"]), config.seed, "order")
    questions = Questions(
        train=tuple(parts["train"][place] for place in order),
        val=parts["val"],
        test=parts["test"],
        leaks=+draw.leaks,  # the plus drops zeros
        duplicates=+draw.duplicates,
    )
    check_questions(questions)
    return questions


class Draw:
    """One drawing: parts are drawn one after the other, and what is taken stays taken."""

    def __init__(self, config: QuestionSetConfig, sets: Mapping[str, Rows]) -> None:
        self.config = config
        self.sets = sets
        self.leaks: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self._taken_rows: set[tuple[str, str, int]] = set()
        self._taken_texts: set[str] = set()

    def draw_part(self, part: str, numbers: Mapping[str, int]) -> tuple[Query, ...]:
        """Draw `numbers` questions by set, none of which stands in a part drawn before.

        Raises:
            RLRouteError: a set has no split for the part, or too few questions.
        """
        drawn: list[Query] = []
        seen: dict[str, set[str]] = {}
        for name in (name for name in self.sets if numbers.get(name, 0)):
            split = choose_split(self.config, name, part, self.sets[name])
            # two sets may test on one question; to train on it in both would count it twice
            scope = part if part == "train" else name
            rows = self._list_fresh(part, name, split, seen.setdefault(scope, set()))
            if part != "test" and len(rows) < numbers[name]:
                raise RLRouteError(
                    f"{locate_split(self.config, name, split)}: {part} asks for {numbers[name]} "
                    f"questions, {len(rows)} are left without doubles and those of other parts"
                )
            rows = rows[: numbers[name]]
            self._taken_rows |= {(name, split, row) for row in rows}
            drawn += [self.sets[name][split][row] for row in rows]
        self._taken_texts |= {normalise_text(query.text) for query in drawn}
        return tuple(drawn)

    def _list_fresh(self, part: str, name: str, split: str, seen: set[str]) -> list[int]:
        """Return in random order the rows of a split whose texts nobody has; `seen` grows."""
        queries = self.sets[name][split]
        fresh = []
        for row in draw_permutation(len(queries), self.config.seed, name, split).tolist():
            text = normalise_text(queries[row].text)
            if (name, split, row) in self._taken_rows:
                continue
            if text in self._taken_texts:
                self.leaks[f"{name}/{part}"] += 1
            elif text in seen:
                self.duplicates[f"{name}/{part}"] += 1
            else:
                seen.add(text)
                fresh.append(row)
        return fresh


def check_questions(questions: Questions) -> None:
    """Raise RLRouteError where a question stands in two parts, or an id stands twice."""
    parts = {"test": questions.test, "val": questions.val, "train": questions.train}
    part_of_text: dict[str, str] = {}
    part_of_id: dict[str, str] = {}
    for part, queries in parts.items():
        for query in queries:
            earlier = part_of_text.setdefault(normalise_text(query.text), part)
            if earlier != part:
                raise RLRouteError(f"question '{query.id}' of {part} stands in {earlier} too")
            if query.id in part_of_id:
                raise RLRouteError(
                    f"question id '{query.id}' stands in {part_of_id[query.id]} and again in "
                    f"{part}; ids must differ within a set, over all its splits"
                )
            part_of_id[query.id] = part


def choose_split(config: QuestionSetConfig, name: str, part: str, rows: Rows) -> str:
    """Return the split of the source that a part is drawn from."""
    for split in PREFERRED[part]:
        if split in rows:
            return split
    raise RLRouteError(
        f"{locate_set(config, name)}: has no split for {part} "
        f"(wanted: {' or '.join(PREFERRED[part])}; there: {', '.join(rows)})"
    )


def load_set(config: QuestionSetConfig, name: str) -> Rows:
    """Read all splits that a set has."""
    if config.source == HUB:
        return load_hub_set(config, name)
    folder = Path(config.source) / name
    paths = {split: folder / f"{split}.jsonl" for split in SOURCE_SPLITS}
    rows = {split: read_lines(path, name) for split, path in paths.items() if path.exists()}
    if not rows:
        raise RLRouteError(
            f"{folder}: holds none of {', '.join(path.name for path in paths.values())}; "
            f"write source 'hub', or a folder with <set>/<split>.jsonl"
        )
    return rows


def read_lines(path: Path, name: str) -> list[Query]:
    """Read one JSONL file of a set; a fault names its line."""
    queries: list[Query] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_utf8(path).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise RLRouteError(f"{where}: holds half of a surrogate pair, not a text") from None
        except (json.JSONDecodeError, RecursionError):
            raise RLRouteError(f"{where}: not valid JSON") from None
        query = parse_row(where, row, name)
        if query.id in first_line:
            raise RLRouteError(
                f"{where}: id '{row['id']}' stands in line {first_line[query.id]} already"
            )
        first_line[query.id] = number
        queries.append(query)
    return queries


def load_hub_set(config: QuestionSetConfig, name: str) -> Rows:
    """Read a set of the collection on the hub: one configuration with its splits."""
    datasets = require("datasets", "text")
    source = f"{config.repository}, set '{name}'"
    try:
        held = datasets.load_dataset(config.repository, name, revision=config.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RLRouteError(f"{source}: cannot be loaded ({reason})") from None
    rows: dict[str, list[Query]] = {}
    for split in (split for split in SOURCE_SPLITS if split in held):
        columns = [key for key in ("id", *FIELDS[0]) if key in held[split].column_names]
        records = held[split].select_columns(columns).to_list()
        rows[split] = [
            parse_row(f"{source}, split {split}, row {number}", record, name)
            for number, record in enumerate(records)
        ]
    return rows


def parse_row(where: str, row: Any, name: str) -> Query:
    """Return the query of one row of either format, its id and task those of the set."""
    if not isinstance(row, dict):
        raise RLRouteError(f"{where}: must be a JSON object")
    text_key, answers_key = FIELDS[1] if "text" in row else FIELDS[0]
    valid = ("id", text_key, answers_key, *OTHER_KEYS)
    unknown = sorted(set(row) - set(valid))
    if unknown:
        raise RLRouteError(f"{where}: unknown key '{unknown[0]}' (valid here: {', '.join(valid)})")
    identity, text, answers = (row.get(key) for key in ("id", text_key, answers_key))
    if type(identity) is not int and not is_text(identity):
        raise RLRouteError(f"{where}: 'id' must be a text that is not empty, or a whole number")
    if not is_text(text):
        raise RLRouteError(f"{where}: '{text_key}' must be a text that is not empty")
    if not isinstance(answers, list) or not answers or not all(map(is_text, answers)):
        raise RLRouteError(f"{where}: '{answers_key}' must be a list of one or more texts")
    task = row.get("task", "")
    if not isinstance(task, str):
        raise RLRouteError(f"{where}: 'task' must be a text")
    return Query(
        id=f"{name}/{identity}",
        text=end_with_question_mark(str(text)),
        task=task or TASKS[name],
        dataset=name,
        references=tuple(answers),
    )


def is_text(value: Any) -> bool:
    """Say whether this is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def end_with_question_mark(text: str) -> str:
    """Return the question without blanks around it and with a question mark at its end."""
    text = text.strip()
    return text if text.endswith("?") else f"{text}?"


def locate_set(config: QuestionSetConfig, name: str) -> str:
    """Name a set for an error."""
    hub = config.source == HUB
    return f"{config.repository}, set '{name}'" if hub else str(Path(config.source) / name)


def locate_split(config: QuestionSetConfig, name: str, split: str) -> str:
    """Name a split of a set for an error."""
    where = locate_set(config, name)
    return f"{where}, split {split}" if config.source == HUB else f"{where}/{split}.jsonl"
