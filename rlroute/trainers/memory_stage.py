"""What a run on memory tiers works with: questions, pipeline, encoder, audit, outcomes.

    open_memory_stage   data, models, pipeline, fitted encoder, store of module runs
    audit               which tiers differ, and what they cost (refuses tiers that do not differ)
    open_outcomes       trees of a split (made once, kept on file), or the live pipeline

It leaves out learning (`rlroute.trainers.memory_run`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from rlroute.data.encoders import Encoder, fit_encoder, load_encoder
from rlroute.memory.audit import TierAudit, audit_tiers
from rlroute.memory.base import History, MemoryData, MemoryQuestion
from rlroute.memory.datasets import open_memory_data
from rlroute.memory.enumerate import enumerate_tree
from rlroute.memory.live import LiveOutcomes
from rlroute.memory.open import open_models, open_pipeline
from rlroute.memory.outcomes import TierOutcomes
from rlroute.memory.pipeline import Pipeline
from rlroute.memory.store import RunStore
from rlroute.memory.tree import TierTree
from rlroute.memory.tree_files import load_tree, save_tree
from rlroute.tracking import make_progress
from rlroute.trainers.memory_recipe import LiveConfig, MemoryRecipe
from rlroute.trainers.run_folder import ENCODER_FOLDER
from rlroute.types import SPLITS, SplitName

TREE_FOLDER = "tree"
STORE_FILE = "module_runs.jsonl"


@dataclass(frozen=True)
class MemoryStage:
    """A recipe's data and pipeline, opened. `questions` are those that the recipe uses."""

    recipe: MemoryRecipe
    folder: Path
    data: MemoryData
    pipeline: Pipeline
    encoder: Encoder
    questions: dict[SplitName, tuple[MemoryQuestion, ...]]

    def audit(self) -> TierAudit:
        """Run every tier on some training questions.

        Raises:
            RLRouteError: two tiers of a module do the same, or a tier is cheaper than a lower one.
        """
        chosen = spread(self.questions["train"], self.recipe.audit_questions)
        with Console(stderr=True).status("auditing the tiers"):
            found = audit_tiers(self.pipeline, chosen)
        found.check()
        return found

    @property
    def tree_folder(self) -> Path:
        """Where the trees lie."""
        outcomes = self.recipe.outcomes
        shared = None if isinstance(outcomes, LiveConfig) else outcomes.folder
        return shared or self.folder / TREE_FOLDER

    def open_outcomes(self, split: SplitName) -> TierOutcomes:
        """Return what comes of tiers on a split; a tree that is on file is read."""
        if isinstance(self.recipe.outcomes, LiveConfig):
            questions = self.questions[split]
            return LiveOutcomes(self.pipeline, questions, self.encoder, self.data.grade)
        return self.open_tree(split)

    def open_tree(self, split: SplitName) -> TierTree:
        """Return the tree of a split, from the file or made now.

        Raises:
            RLRouteError: the file is torn, or of other questions or another pipeline.
        """
        questions, path = self.questions[split], self.tree_folder / split
        if path.exists():
            return load_tree(
                path,
                questions=questions,
                fingerprint=self.pipeline.facts.fingerprint,
                encoder_fingerprint=self.encoder.fingerprint(),
            )
        with make_progress(Console(stderr=True), "questions") as progress:
            task = progress.add_task(f"tree, {split}", total=len(questions), note="")
            tree = enumerate_tree(
                *(self.pipeline, questions, self.encoder, self.data.grade),
                progress=lambda count: progress.advance(task, count),
            )
        save_tree(tree, path)
        return tree


@contextmanager
def open_memory_stage(recipe: MemoryRecipe, folder: Path) -> Iterator[MemoryStage]:
    """Open a recipe's data and pipeline; the encoder of a run that lies in `folder` is read.

    Raises:
        RLRouteError: data, models or pipeline cannot be opened.
    """
    opened = open_memory_data(recipe.data)
    data = opened.data
    questions = {
        split: spread(data.questions[split], getattr(recipe.questions, split)) for split in SPLITS
    }
    store_path = folder / STORE_FILE if isinstance(recipe.outcomes, LiveConfig) else None
    models = open_models(recipe.models, opened.generated)
    try:
        with closing(RunStore(recipe.outcomes.store or store_path)) as store:
            pipeline = open_pipeline(
                *(recipe.pipeline, data, models.pool, models.candidates, store),
                *(models.identities, models.addresses),
            )
            encoder = open_encoder(recipe, folder, list_texts(data, questions["train"]))
            yield MemoryStage(recipe, folder, data, pipeline, encoder, questions)
    finally:
        asyncio.run(models.close())


def open_encoder(recipe: MemoryRecipe, folder: Path, texts: Sequence[str]) -> Encoder:
    """Return the encoder of the run that lies in `folder`, else a new one, fitted on the texts."""
    stored = folder / ENCODER_FOLDER
    if stored.exists():
        return load_encoder(stored)
    # its own seed, whatever the run's: runs of several seeds share their trees
    return fit_encoder(recipe.encoder, texts, seed=0)


def spread(questions: Sequence[MemoryQuestion], count: int | None) -> tuple[MemoryQuestion, ...]:
    """Return `count` questions, evenly spaced; all of them where there are no more."""
    if count is None or count >= len(questions):
        return tuple(questions)
    places = np.linspace(0, len(questions), count, endpoint=False).astype(int)
    return tuple(questions[place] for place in places)


def list_texts(data: MemoryData, questions: Sequence[MemoryQuestion]) -> list[str]:
    """Return what the encoder is fitted on: questions, and the turns of their histories."""
    used = dict.fromkeys(question.history_id for question in questions)
    texts = [question.query.text for question in questions]
    return texts + [text for name in used for text in list_turns(data.histories[name])]


def list_turns(history: History) -> list[str]:
    """Return the texts of a history."""
    turns = [turn.text for session in history.sessions for turn in session.turns]
    return turns + list(history.documents)
