"""An exported router of memory tiers at work: for each module of a pipeline, the tier to run it in.

It decides as the trained policy does, greedily, from the same features and by the same network
(`rlroute.envs.memory_tiers`). Modules are decided in the pipeline's order: the filter; the
extractors one after the other, from what was known before any of them runs; the summary. After each
of these stages `settle` says what it cost, for the policy sees what was spent.

A router may be shared between threads, an episode not. What it leaves out: running the modules and
answering, which are the caller's (`rlroute.memory.pipeline`), and budgets.

How to use:

    router = TierRouter.load("my-tier-router")
    episode = router.start("Where does Anna live?", cost_weight=0.3)
    episode.choose("filter", texts=retrieved).tier
    episode.settle(cost_usd=0.0004)
    for name in ("entity", "temporal", "topic"):
        episode.choose(name, texts=filtered).tier
    episode.settle(cost_usd=0.0009)                     # of the three
    episode.choose("summary", texts=filtered, notes={"entity": [...], "temporal": [], ...}).tier
    episode.settle(cost_usd=0.0002)
"""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlroute.data.encoders import check_endpoint
from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.export.tier_bundle import TierBundle, read_tier_bundle
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.outcomes import Answers, ModuleFacts, PipelineFacts
from rlroute.memory.states import TextVectors, average_texts, combine_notes, embed_notes
from rlroute.types import FloatArray, IntArray, RLRouteError, UsdArray

LARGEST_STAGE_USD = 10_000.0
LANE = np.array([0])


@dataclass(frozen=True)
class TierChoice:
    """The tier that a module is to run in: its name and place among the module's tiers.

    `probabilities` (they sum to 1) are the policy's, by name.
    """

    module: str
    tier: str
    index: int
    probabilities: dict[str, float]


class TierRouter:
    """Chooses tiers for the modules of a memory pipeline; made by `TierRouter.load`.

    `modules` and their tiers are those of the pipeline that it learnt with, `fingerprint` is that
    pipeline's (`PipelineFacts.fingerprint`). `reference_usd` is the unit of costs. `summary` says
    what was trained on what, and what it reached.
    """

    def __init__(self, bundle: TierBundle) -> None:
        """Build a router from its parts, which must fit."""
        self.modules: tuple[ModuleFacts, ...] = bundle.facts.modules
        self.fingerprint: str = bundle.facts.fingerprint
        self.reference_usd: float = bundle.reference_usd
        self.cost_weight_range: tuple[float, float] = (
            bundle.cost_weight_min,
            bundle.cost_weight_max,
        )
        self.summary: dict[str, Any] = bundle.summary
        self._bundle = bundle
        # A tokenizer is changed by every call, so one thread at a time uses the encoder.
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model_folder: str | Path | None = None,
        endpoint: str | None = None,
    ) -> TierRouter:
        """Load what `rlroute export` wrote of a run on memory tiers.

        `model_folder` says where the model of a `path` encoder lies, should it have moved; the url
        of an `openai` encoder has to be named as `endpoint`.

        Raises:
            RLRouteError: the folder is no such router, or a torn, changed or newer one, what its
                encoder needs is not installed, or it asks another endpoint than `endpoint`.
        """
        moved = None if model_folder is None else Path(model_folder)
        bundle = read_tier_bundle(Path(folder), model_folder=moved)
        check_endpoint(bundle.encoder, endpoint, Path(folder))
        return cls(bundle)

    def start(self, question: str, *, cost_weight: float | None = None) -> TierEpisode:
        """Start an episode for a question; without a cost weight, the lowest that was trained for.

        Raises:
            RLRouteError: the question is no text, or the cost weight lies outside the trained
                range.
        """
        if not isinstance(question, str) or not question.strip():
            raise RLRouteError(f"question {question!r}: give its text")
        low, high = self.cost_weight_range
        weight = low if cost_weight is None else cost_weight
        if not isinstance(weight, numbers.Real) or not low <= weight <= high:
            allowed = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
            raise RLRouteError(
                f"cost_weight {weight!r} lies outside what this router was trained for ({allowed})"
            )
        return TierEpisode(self._bundle, self._lock, question, float(weight))


class TierEpisode:
    """The decisions for one question; made by `TierRouter.start`.

    `choices` are those so far, in the order of the modules.
    """

    def __init__(
        self, bundle: TierBundle, lock: threading.Lock, question: str, cost_weight: float
    ) -> None:
        self.question, self.cost_weight = question, cost_weight
        self.choices: list[TierChoice] = []
        self._scorer, self._lock = bundle.scorer, lock
        self._modules, self._facts = bundle.facts.modules, bundle.facts
        self._vectors = TextVectors(bundle.encoder)
        with lock:
            query_1E = self._vectors.encode([question])
        self._told = ToldOutcomes(bundle.facts, query_1E)
        self._episodes = TierEpisodes(self._told, reference_usd=bundle.reference_usd)
        self._episodes.start(LANE, np.array([cost_weight], dtype=np.float32))
        self._filtered: tuple[list[str], FloatArray] | None = None  # texts, their mean embedding

    @property
    def cost_usd(self) -> float:
        """What the settled stages cost together, in USD."""
        return float(self._episodes.spent_usd_B[0])

    def choose(
        self,
        module: str,
        *,
        texts: Sequence[str] | None = None,
        notes: Mapping[str, Sequence[str]] | None = None,
    ) -> TierChoice:
        """Choose the tier of the next module; equal ones go to the cheaper.

        Args:
            module: its name; modules come in the pipeline's order.
            texts: of the retrieved chunks for the filter, of the filtered ones for all others. They
                may be left out once the first extractor was given them.
            notes: for the summary, what every extractor wrote, line by line; empty where nothing.

        Raises:
            RLRouteError: the module is unknown or not the next one, a stage was not settled, or
                texts or notes are missing or do not fit. Nothing was chosen then.
        """
        step = self._find_step(module)
        self._told.state_E = self._read_state(step, texts, notes)
        seen = self._episodes.observe()
        with torch.inference_mode():
            scores = self._scorer(
                torch.as_tensor(seen.features_BF),
                torch.tensor([step]),
                torch.as_tensor(seen.mask_BK),
            )
        logp_K = np.asarray(scores.logp_BK[0])
        facts = self._modules[step]
        if not np.isfinite(logp_K[: len(facts.tiers)]).all():
            raise RLRouteError("the policy's scores are not finite: the costs are far too large")
        index = int(logp_K.argmax())
        shares = [math.exp(logp) for logp in logp_K[: len(facts.tiers)]]
        choice = TierChoice(
            module, facts.tiers[index], index, dict(zip(facts.tiers, shares, strict=True))
        )
        self.choices.append(choice)
        if step + 1 < self._facts.find_stage(step).stop:  # the stage runs after its last module
            self._episodes.act(np.array([index]))
        return choice

    def settle(self, cost_usd: float) -> None:
        """Say what the stage that was chosen for cost in USD: all its modules, failed runs as well.

        Raises:
            RLRouteError: no stage waits for that, or the cost is no number from 0.
        """
        if len(self.choices) == self._episodes.step:
            raise RLRouteError(f"settle: nothing is to be settled; {self._say_next()}")
        if not isinstance(cost_usd, numbers.Real) or not 0 <= cost_usd <= LARGEST_STAGE_USD:
            raise RLRouteError(
                f"cost_usd is {cost_usd!r}: give USD, from 0 to {LARGEST_STAGE_USD:,.0f}"
            )
        self._told.cost_usd = float(cost_usd)
        self._episodes.act(np.array([self.choices[-1].index]))

    def _find_step(self, module: str) -> int:
        """Return the place of the module that is to be chosen for."""
        names = [one.name for one in self._modules]
        if module not in names:
            raise RLRouteError(f"choose: unknown module {module!r} (known: {', '.join(names)})")
        step = self._episodes.step
        if len(self.choices) > step:
            stage = ", ".join(names[self._facts.find_stage(step)])
            raise RLRouteError(f"choose: settle {stage} first (the cost in USD)")
        if step == len(names) or names[step] != module:
            raise RLRouteError(f"choose: it is not the turn of '{module}'; {self._say_next()}")
        return step

    def _say_next(self) -> str:
        """Say what comes next."""
        if self._episodes.ended:
            return "all modules are decided: start another episode"
        return f"choose for '{self._modules[self._episodes.step].name}' next"

    def _read_state(
        self,
        step: int,
        texts: Sequence[str] | None,
        notes: Mapping[str, Sequence[str]] | None,
    ) -> FloatArray:
        """Return the embedding of what the module is going to read [E]."""
        last = len(self._modules) - 1
        extractors = [one.name for one in self._modules[1:last]]
        if step < last and notes is not None:
            raise RLRouteError(
                f"notes are read by '{self._modules[last].name}' alone, not by "
                f"'{self._modules[step].name}'"
            )
        said = None if texts is None else check_texts("texts", texts)
        if said is None and (step == 0 or self._filtered is None):
            of = "retrieved" if step == 0 else "filtered"
            raise RLRouteError(f"texts are missing: give those of the {of} chunks")
        if step == 0:
            assert said is not None
            return self._average(said)
        if self._filtered is None:
            assert said is not None
            self._filtered = (said, self._average(said))
        elif said is not None and said != self._filtered[0]:
            raise RLRouteError(
                f"texts differ from those that '{extractors[0]}' was decided from: all read the "
                "same filtered chunks"
            )
        if step < last:
            return self._filtered[1]
        lines = check_notes(notes, extractors)
        with self._lock:
            notes_XE, has_notes_X = embed_notes(self._vectors, lines)
        filtered_1E = self._filtered[1][None]
        state_E: FloatArray = combine_notes(notes_XE[None], has_notes_X[None], filtered_1E)[0]
        return state_E

    def _average(self, texts: list[str]) -> FloatArray:
        """Return the mean embedding of texts [E]."""
        with self._lock:
            return average_texts(self._vectors, texts)


class ToldOutcomes:
    """Outcomes of one question as a caller tells them, for `TierEpisodes`: one lane, no answers."""

    def __init__(self, facts: PipelineFacts, query_1E: FloatArray) -> None:
        self.facts, self.query_QE = facts, query_1E
        self.questions: tuple[MemoryQuestion, ...] = ()
        self.state_E: FloatArray = np.zeros(query_1E.shape[1], dtype=np.float32)
        self.cost_usd = 0.0

    def look(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> FloatArray:
        """Return the embedding of what was said to be read [1, E]."""
        return self.state_E[None]

    def run(self, question_index_B: IntArray, step: int, tier_BM: IntArray) -> UsdArray:
        """Return what the stage that ends at `step` was said to cost [1]; 0 inside a stage."""
        ends = step + 1 == self.facts.find_stage(step).stop
        return np.array([self.cost_usd if ends else 0.0])

    def answer(self, question_index_B: IntArray, tier_BM: IntArray) -> Answers:
        """Refuse: the caller answers.

        Raises:
            ValueError: always.
        """
        raise ValueError("a router does not answer")


# --- Arguments ------------------------------------------------------------------------------------


def check_texts(what: str, texts: Sequence[str]) -> list[str]:
    """Return texts as a list.

    Raises:
        RLRouteError: it is a single string, or holds something else than strings.
    """
    if isinstance(texts, str):
        raise RLRouteError(f"{what} takes a list of texts; write [text] for a single one")
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise RLRouteError(f"{what} takes a list of texts, and holds something else")
    return list(texts)


def check_notes(
    notes: Mapping[str, Sequence[str]] | None, extractors: Sequence[str]
) -> list[list[str]]:
    """Return the lines of each extractor, in the pipeline's order.

    Raises:
        RLRouteError: they are missing, a name is unknown or lacks, or lines are no list of texts.
    """
    named = ", ".join(extractors)
    if not isinstance(notes, Mapping):
        raise RLRouteError(f"notes are missing: give those of {named}, by name")
    for name in notes:
        if name not in extractors:
            raise RLRouteError(f"notes: unknown extractor {name!r} (known: {named})")
    for name in extractors:
        if name not in notes:
            raise RLRouteError(f"notes: '{name}' is missing; give [] where it wrote nothing")
    return [check_texts(f"notes of '{name}'", notes[name]) for name in extractors]
