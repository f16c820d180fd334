"""The settings of the generated memory world: how large it is, and what makes it hard.

    data: {kind: generated, seed: 0, paraphrase: 0.35, distractors: 0.5}

What it leaves out: behaviour (`rlroute.memory.world`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlroute.config import StrictModel
from rlroute.memory.config import Share


class HistoryCounts(StrictModel):
    """How many histories each split has; no history is in two splits."""

    train: int = Field(default=80, ge=0)
    val: int = Field(default=15, ge=0)
    test: int = Field(default=25, ge=0)


class GeneratedMemoryConfig(StrictModel):
    """A world of conversations; equal settings give equal text, question by question.

    `paraphrase` is the share of facts that are said in ways which the lexicon does not list,
    `distractors` the share of other turns that look like facts and are none (about other people,
    wished for, denied), `changes` the share of single-valued relations whose value changes, and
    `relative_dates` the share of dated events that are told as "last Friday" or "three days ago".
    `questions_per_kind` is what a history has at most: where too little was said, it has fewer.
    """

    kind: Literal["generated"] = "generated"
    seed: int = 0
    histories: HistoryCounts = HistoryCounts()
    people: int = Field(default=3, ge=2, le=6)
    sessions: int = Field(default=20, ge=6, le=60)
    turns_per_session: int = Field(default=12, ge=4, le=40)
    questions_per_kind: int = Field(default=5, ge=1, le=20)
    paraphrase: Share = 0.35
    distractors: Share = 0.5
    changes: Share = 0.4
    relative_dates: Share = 0.6

    @model_validator(mode="after")
    def check_room(self) -> GeneratedMemoryConfig:
        """Refuse sessions in whose halves not everybody can state a fact after the opening."""
        least = 2 * self.people + 2
        if self.turns_per_session < least:
            raise ValueError(f"turns_per_session must be at least {least} for {self.people} people")
        return self
