"""Runs every tier of every module for a set of questions, and keeps the outcomes in arrays.

Each question's tree is walked level by level: the filter's tiers, every extractor behind each of
them, every summary of every combination of notes, and an answer to each. With three tiers and three
extractors that is 3 + 27 + 243 = 273 module runs per question at most; a pipeline with a store runs
equal content once, and none at all when it is enumerated again. What depends on a failed run is not
run.

What it leaves out: keeping the tree (`rlroute.memory.tree_files`).

How to use: `enumerate_tree(pipeline, data.questions["train"], encoder, data.grade)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.data.encoders import Encoder
from rlroute.memory.base import Grade, MemoryQuestion
from rlroute.memory.live import LiveOutcomes, TierPipeline
from rlroute.memory.states import TextVectors
from rlroute.memory.tree import TREE_ARRAYS, TierTree
from rlroute.types import RLRouteError

QUESTIONS_AT_ONCE = 16  # so many questions' module runs are handed to the pipeline together

Arrays = dict[str, npt.NDArray[Any]]


def enumerate_tree(
    pipeline: TierPipeline,
    questions: Sequence[MemoryQuestion],
    encoder: Encoder,
    grade: Grade,
    *,
    progress: Callable[[int], None] | None = None,
) -> TierTree:
    """Return the outcomes of all questions; `progress` is told how many more are done.

    Raises:
        RLRouteError: there is no question, or `grade` returns a score outside [0, 1].
    """
    if not questions:
        raise RLRouteError("a tree needs at least one question")
    vectors = TextVectors(encoder)
    parts = []
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        some = questions[start : start + QUESTIONS_AT_ONCE]
        parts.append(enumerate_some(LiveOutcomes(pipeline, some, encoder, grade, vectors)))
        if progress is not None:
            progress(len(some))
    return TierTree(
        facts=pipeline.facts,
        questions=tuple(questions),
        encoder_fingerprint=encoder.fingerprint(),
        **{name: np.concatenate([part[name] for part in parts]) for name in TREE_ARRAYS},
    )


def enumerate_some(live: LiveOutcomes) -> Arrays:
    """Run everything for a few questions and return the arrays of their tree."""
    facts = live.facts
    questions, leaves, filters = len(live.questions), facts.leaves, facts.tier_counts[0]
    index_N = np.repeat(np.arange(questions), leaves)
    tier_NM = np.tile(facts.list_leaves(), (questions, 1))
    cost_MN = [live.run(index_N, step, tier_NM) for step in range(len(facts.modules))]
    answers = live.answer(index_N, tier_NM)
    first_Q = np.arange(questions) * leaves
    first_N = (first_Q[:, None] + np.arange(filters) * (leaves // filters)).ravel()
    filtered_NE = live.look(index_N[first_N], 1, tier_NM[first_N])
    return {
        "query_QE": live.query_QE,
        "retrieved_QE": live.look(index_N[first_Q], 0, tier_NM[first_Q]),
        "filtered_QKE": filtered_NE.reshape(questions, filters, -1),
        "filter_cost_QK": cost_MN[0][first_N].reshape(questions, filters),
        **read_extractors(live),
        "summary_cost_QL": cost_MN[-1].reshape(questions, leaves),
        "answer_cost_QL": answers.cost_usd_B.reshape(questions, leaves),
        "leaf_score_QL": answers.score_B.reshape(questions, leaves),
    }


def read_extractors(live: LiveOutcomes) -> Arrays:
    """Return costs and notes of all runs of the extractors; NaN and none where one failed."""
    facts = live.facts
    filters, *counts, _ = facts.tier_counts
    shape = (len(live.questions), filters, len(counts), max(counts))
    place_N4, runs = [], []
    for question, first, place in np.ndindex(shape[:3]):
        for tier in range(counts[place]):
            lane = (question, (first, *[tier] * len(counts), 0))  # its own tier alone is read
            if live.find_run(lane, 0).failure is not None:
                continue
            run = live.find_run(lane, place + 1)
            if run.failure is None:
                place_N4.append((question, first, place, tier))
                runs.append(run)
    cost = np.full(shape, np.nan)
    notes = np.zeros((*shape, live.query_QE.shape[1]), dtype=np.float32)
    has_notes = np.zeros(shape, dtype=np.bool_)
    if runs:
        at = tuple(np.array(place_N4).T)
        cost[at] = [run.cost_usd for run in runs]
        notes[at], has_notes[at] = live.embed_notes(runs)
    return {"extract_cost_QKXN": cost, "notes_QKXNE": notes, "has_notes_QKXN": has_notes}
