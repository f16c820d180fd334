"""Procedural tasks of reasoning-gym as queries, graded by reasoning-gym's own scorers.

What it is: a generator is named with its settings per difficulty level; task i of a level is made
from a seed that depends on nothing but (seed, role, generator, level), so that tasks and worked
examples never come from the same seed. A query can be rebuilt for its grading from its metadata.

What it leaves out: asking anybody (`rlroute.pool`) and composing a table (`rlroute.collection`).
Only generators whose answer stands in `entry["answer"]` are of use: examples are made of it.

How to use (extra `local`):
    queries = make_queries("gcd", 1, {"max_value": 20}, count=10, seed=0)
    grade_answer(queries[0], "4")   # in [0, 1]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from rlroute.data.splits import normalise_text
from rlroute.extras import require
from rlroute.seeding import derive_seed
from rlroute.types import Query, RLRouteError

DATASET = "reasoning_gym"
TRIES_PER_TASK = 20  # small levels repeat themselves: so many draws before a task is given up


def make_queries(
    generator: str,
    level: int,
    settings: Mapping[str, Any],
    *,
    count: int,
    seed: int,
    exclude: Collection[str] = (),
) -> list[Query]:
    """Make the tasks of one difficulty level, with what is needed to grade them in `metadata`.

    Args:
        generator: a name that reasoning-gym registers, the `task` of the queries.
        level: the difficulty, 1 being the easiest.
        settings: arguments of the generator that make this level.
        count: how many tasks; no text is made twice, so a level of few possible tasks gives fewer.
        seed: the seed of the whole collection.
        exclude: texts that must not be made (of other levels, or of worked examples).

    Raises:
        RLRouteError: reasoning-gym is missing, the generator unknown, or the settings refused.
    """
    task_seed = derive_seed(seed, "tasks", generator, level)
    stated = json.dumps(dict(settings), sort_keys=True)
    seen = {normalise_text(text) for text in exclude}
    queries: list[Query] = []
    for index in range(count * TRIES_PER_TASK):
        if len(queries) == count:
            break
        entry = _make_entry(generator, stated, task_seed, index)
        text = entry["question"].strip()
        if normalise_text(text) in seen:
            continue
        seen.add(normalise_text(text))
        queries.append(
            Query(
                id=f"{generator}-{level}-{len(queries):03d}",
                text=text,
                task=generator,
                dataset=DATASET,
                references=(str(entry["answer"]),),
                metadata={
                    "level": str(level),
                    "settings": stated,
                    "seed": str(task_seed),
                    "index": str(index),
                },
            )
        )
    return queries


def make_examples(
    generator: str, levels: Sequence[Mapping[str, Any]], *, count: int, seed: int
) -> list[tuple[str, str]]:
    """Make worked examples (question, answer) of one generator, taking its levels in turn.

    Their seeds are not those of `make_queries`; no example is made twice.

    Raises:
        RLRouteError: as `make_queries`, or a level makes too few different examples.
    """
    examples: dict[str, str] = {}
    for number in range(count):
        level = number % len(levels) + 1
        stated = json.dumps(dict(levels[level - 1]), sort_keys=True)
        example_seed = derive_seed(seed, "examples", generator, level)
        entries = (_make_entry(generator, stated, example_seed, i) for i in range(TRIES_PER_TASK))
        entry = next((e for e in entries if e["question"].strip() not in examples), None)
        if entry is None:
            raise RLRouteError(f"generator '{generator}', level {level}: too few different tasks")
        examples[entry["question"].strip()] = str(entry["answer"]).strip()
    return list(examples.items())


def grade_answer(query: Query, answer: str) -> float:
    """Score an answer in [0, 1] by the scorer of the query's generator (some give partial credit).

    Raises:
        RLRouteError: the query was not made by `make_queries`.
    """
    missing = {"settings", "seed", "index"} - set(query.metadata)
    if missing:
        raise RLRouteError(f"query {query.id}: no {sorted(missing)[0]} in its metadata to grade by")
    stated, seed = query.metadata["settings"], int(query.metadata["seed"])
    dataset = _open_dataset(query.task, stated, seed)
    entry = _make_entry(query.task, stated, seed, int(query.metadata["index"]))
    return min(1.0, max(0.0, float(dataset.score_answer(answer, entry))))


@lru_cache(maxsize=256)
def _open_dataset(generator: str, stated_settings: str, seed: int) -> Any:
    """Return reasoning-gym's dataset object of a level; `stated_settings` is JSON."""
    reasoning_gym = require("reasoning_gym", "local")
    try:
        settings = json.loads(stated_settings)
        return reasoning_gym.create_dataset(generator, seed=seed, size=1_000_000, **settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise RLRouteError(
            f"generator '{generator}', settings {stated_settings}: {error}"
        ) from None


@lru_cache(maxsize=20_000)
def _make_entry(generator: str, stated_settings: str, seed: int, index: int) -> dict[str, Any]:
    """Return entry `index` of a level as reasoning-gym makes it."""
    entry: dict[str, Any] = _open_dataset(generator, stated_settings, seed)[index]
    if entry["answer"] is None:
        raise RLRouteError(f"generator '{generator}' states no answer: no examples can be made")
    return entry
