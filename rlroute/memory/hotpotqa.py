"""HotpotQA: questions over many documents, each question with documents of its own.

Two forms are read, told apart item by item:

- the long-context variant that BudgetMem uses: `index`, `input` (the question), `context` (one
  text in which each document begins with a line "Document n:"), `answers` (a list or a text) and
  perhaps `num_docs`;
- the authors' own (`hotpot_train_v1.1.json`, `hotpot_dev_distractor_v1.json`): `_id`, `question`,
  `answer`, `type`, and `context`, a list of [title, [sentence, ...]].

A document of the history is its text after the header, the title in the first line. The kind of a
question is its `type` (bridge, comparison), multi-hop in the variant, which names none. Several
answers are joined with a comma and a blank, as in the original, and graded by `grade_stemmed_f1`.

Splits go by a hash of the question, so that one question with two sets of documents stays on one
side. With `test_path` that file is the test split, and `path` is divided into train and val in the
ratio of their shares (with the defaults 80 to 20, as in the original).

What it leaves out: supporting facts (documents have no turns that evidence could name), and taking
an answer out of answer tags, which is the answerer's work. Source: Yang et al., 2018.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rlroute.config import StrictModel, parse_config
from rlroute.data.splits import find_leak, hash_to_unit
from rlroute.memory.base import History, MemoryData, MemoryQuestion
from rlroute.memory.dataset_files import (
    FileModel,
    Fractions,
    Text,
    TextOrNumber,
    assign_split_names,
    group_questions,
    read_items,
)
from rlroute.rewards.memory_answers import grade_stemmed_f1
from rlroute.types import Query, RLRouteError

MULTI_HOP = "multi-hop"
HEADER = re.compile(r"^[ \t]*Document[ \t]+(\d+)[ \t]*:[ \t]*", re.MULTILINE)


class HotpotConfig(StrictModel):
    """The file, perhaps one with the test questions, and how the former is divided.

    `limit` takes so many questions of `path`, chosen by hash; None takes all.
    """

    kind: Literal["hotpotqa"]
    path: Path
    test_path: Path | None = None
    fractions: Fractions = (0.64, 0.16, 0.2)
    seed: int = 0
    limit: int | None = Field(default=None, ge=1)


def list_answers(value: Any) -> Any:
    """Return a lone answer as a list of one."""
    return [value] if isinstance(value, str | int | float) else value


class LongContextItem(FileModel):
    """An item of the long-context variant."""

    index: TextOrNumber
    input: Text
    context: Text
    answers: Annotated[tuple[TextOrNumber, ...], BeforeValidator(list_answers), Field(min_length=1)]
    num_docs: int | None = None


class DistractorItem(FileModel):
    """An item of the authors' form."""

    id: Text = Field(alias="_id")
    question: Text
    answer: TextOrNumber
    type: Text = MULTI_HOP
    context: tuple[tuple[Text, tuple[str, ...]], ...] = Field(min_length=1)


Item = tuple[MemoryQuestion, History]


def read_hotpotqa(config: HotpotConfig) -> MemoryData:
    """Read the file or the two files.

    Raises:
        RLRouteError: a fault of a file, or a test question that stands in the other file too.
    """
    items = read_file(config.path, "")
    if config.limit is not None:
        draws = [hash_to_unit(question.query.id, config.seed) for question, _ in items]
        chosen = sorted(range(len(items)), key=draws.__getitem__)[: config.limit]
        items = [items[place] for place in sorted(chosen)]
    test_items = [] if config.test_path is None else read_file(config.test_path, "test/")
    fractions = config.fractions
    if config.test_path is not None:
        rest = fractions[0] + fractions[1]
        if rest <= 0:
            raise RLRouteError(f"fractions {fractions}: leave nothing for train and val")
        fractions = (fractions[0] / rest, 1 - fractions[0] / rest, 0.0)
    splits = assign_split_names(list_texts(items), fractions, config.seed)
    splits += ["test"] * len(test_items)
    items += test_items
    leak = find_leak(list_texts(items), splits)
    if leak is not None:
        first, second = (items[place][0].query.id for place in leak)
        raise RLRouteError(
            f"{config.test_path}: question '{second}' stands in {config.path} too, as '{first}'"
        )
    questions = list(zip(splits, (question for question, _ in items), strict=True))
    return MemoryData(
        name="hotpotqa",
        histories={history.id: history for _, history in items},
        questions=group_questions(config.path, questions),
        grade=grade_hotpotqa,
    )


def list_texts(items: Sequence[Item]) -> list[str]:
    """Return the questions' texts."""
    return [question.query.text for question, _ in items]


def read_file(path: Path, prefix: str) -> list[Item]:
    """Read the items of one file; `prefix` stands before their ids."""
    items = []
    for number, raw in enumerate(read_items(path)):
        where = f"{path}, item {number}"
        if isinstance(raw, dict) and "input" in raw:
            items.append(
                read_long_context(where, parse_config(LongContextItem, raw, where), prefix)
            )
        elif isinstance(raw, dict) and "_id" in raw:
            items.append(read_distractor(parse_config(DistractorItem, raw, where), prefix))
        else:
            raise RLRouteError(
                f"{where}: must be an object with 'input' (the long-context variant) or '_id' "
                "(the authors' form)"
            )
    return items


def read_long_context(where: str, item: LongContextItem, prefix: str) -> Item:
    """Return question and documents of the long-context variant."""
    documents = split_documents(item.context)
    wanted = 1 if item.num_docs is None else item.num_docs
    if len(documents) < wanted:
        raise RLRouteError(
            f"{where}, context: holds {len(documents)} documents of {wanted}; each begins with a "
            "line 'Document n:', n counting up"
        )
    return make_item(prefix + item.index, item.input, ", ".join(item.answers), MULTI_HOP, documents)


def read_distractor(item: DistractorItem, prefix: str) -> Item:
    """Return question and documents of the authors' form."""
    documents = tuple(
        "\n".join((title, " ".join(sentence.strip() for sentence in sentences)))
        for title, sentences in item.context
    )
    return make_item(prefix + item.id, item.question, item.answer, item.type, documents)


def make_item(item_id: str, text: str, answer: str, kind: str, documents: tuple[str, ...]) -> Item:
    """Return a question and its history, which share an id."""
    query = Query(item_id, text, kind, "hotpotqa", (answer,))
    return MemoryQuestion(query, item_id), History(item_id, documents=documents)


def split_documents(context: str) -> tuple[str, ...]:
    """Return the documents of a context without their headers; blank ones are kept.

    A header counts only if its number follows that of the header before, so that a line of this
    form inside a document does not divide it. The first may have any number.
    """
    bounds: list[re.Match[str]] = []
    for match in HEADER.finditer(context):
        if not bounds or int(match[1]) == int(bounds[-1][1]) + 1:
            bounds.append(match)
    starts = [match.start() for match in bounds]
    ends = [*starts[1:], len(context)]
    return tuple(
        context[match.end() : end].strip() for match, end in zip(bounds, ends, strict=False)
    )


def grade_hotpotqa(question: MemoryQuestion, answer: str) -> float:
    """Return the F1 of an answer with the gold answers, joined."""
    return max(grade_stemmed_f1(answer, gold) for gold in question.query.references)
