"""An exported text policy at work: a question in, an answer with its calls and its price out.

It plays one greedy episode with the environment, the parser and the sampler that it was trained
with, against a pool of the user's. The prompt is built from that pool: a candidate that the policy
never met may be offered, and one that is missing is simply not.

What it leaves out: training, grading, and a server that batches the questions of many users (give
several at once to `answer_async`: what is ready together is generated together).

How to use:

    router = TextRouter.load("my-router", pool="pool.yaml")
    router.answer("Who directed the film that won in 1995?", cost_weight=0.2).text
"""

from __future__ import annotations

import asyncio
import hashlib
import numbers
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rlroute.envs.multi_round import MultiRound
from rlroute.export.text_bundle import TextBundle, read_text_bundle
from rlroute.pool.open import OpenPool, open_pool
from rlroute.pool.pool_file import PoolFile, load_pool
from rlroute.rollout.engine import run_episode
from rlroute.rollout.policy_files import load_policy
from rlroute.rollout.samplers.transformers import TransformersSampler
from rlroute.rollout.text_agent import TextAgent
from rlroute.types import Call, Candidate, FailureKind, Query, Reply, RLRouteError


class CandidatePool(Protocol):
    """A pool that says who can be asked."""

    @property
    def candidates(self) -> Mapping[str, Candidate] | Sequence[Candidate]:
        """The candidates, in the order of the prompt."""

    async def ask_many(self, calls: Sequence[Call]) -> list[Reply]:
        """Return one reply per call, in the same order."""


class TextCall(NamedTuple):
    """One call of an episode; `reply` is the whole text that came back, the cost in USD."""

    candidate_id: str
    query: str
    reply: str
    cost_usd: float


@dataclass(frozen=True)
class TextAnswer:
    """What came of a question.

    `text` is None where the episode ended without an answer: a call failed (`failure` says how), or
    the limits of text or calls were reached. `chunks` are the texts that the policy wrote, one per
    turn; `cost_usd` is what all calls cost, a failed one included.
    """

    text: str | None
    calls: tuple[TextCall, ...]
    cost_usd: float
    chunks: tuple[str, ...]
    cost_weight: float
    failure: FailureKind | None = None


class TextRouter:
    """Answers questions; made by `TextRouter.load`.

    `candidates` are those of the pool, in the order of the prompt; `trained_candidates` those that
    the policy learnt with; `cost_weight_range` is what it was trained for; `summary` says what was
    trained on what, and what it reached.
    """

    def __init__(self, bundle: TextBundle, model: Any, tokenizer: Any, pool: CandidatePool) -> None:
        """Build a router from its parts.

        Raises:
            RLRouteError: the pool is empty, or two of its candidates share a name.
        """
        offered = pool.candidates
        self.candidates: tuple[Candidate, ...] = tuple(
            offered.values() if isinstance(offered, Mapping) else offered
        )
        self.trained_candidates = bundle.candidates
        self.summary = bundle.summary
        weights = bundle.environment.cost_weights
        self.cost_weight_range = (min(weights), max(weights))
        self.pool = pool
        self._bundle, self._tokenizer = bundle, tokenizer
        self._opened: OpenPool | None = None
        self._sampler = TransformersSampler(model, tokenizer)
        self._lock = threading.Lock()
        self._make_environment(self.cost_weight_range[0])  # refuses names that cannot be told apart

    @classmethod
    def load(cls, folder: str | Path, *, pool: str | Path | PoolFile | CandidatePool) -> TextRouter:
        """Load what `rlroute export` wrote of a text run.

        `pool` is a pool file (its path, or as read) or a pool that is open already.

        Raises:
            RLRouteError: the folder is no exported text router, or a torn or newer one; the pool
                cannot be opened.
        """
        bundle = read_text_bundle(Path(folder))
        if isinstance(pool, str | Path):
            pool = load_pool(Path(pool))
        model, tokenizer = load_policy(Path(folder), bundle.precision)
        if not isinstance(pool, PoolFile):
            return cls(bundle, model, tokenizer, pool)
        opened = open_pool(pool)
        router = cls(bundle, model, tokenizer, opened)
        router._opened = opened
        return router

    def close(self) -> None:
        """Close the pool, if it was opened here."""
        if self._opened is not None:
            asyncio.run(self._opened.close())

    def answer(self, question: str | Query, *, cost_weight: float | None = None) -> TextAnswer:
        """Answer one question; without a cost weight, at the lowest that was trained for.

        Several threads take turns.

        Raises:
            RLRouteError: an empty question or one that does not fit the context, a cost weight
                outside the trained range, or this is called where an event loop runs.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with self._lock:
                return asyncio.run(self.answer_async(question, cost_weight=cost_weight))
        raise RLRouteError("answer: an event loop is running here; await answer_async instead")

    async def answer_async(
        self, question: str | Query, *, cost_weight: float | None = None
    ) -> TextAnswer:
        """Answer one question; those that are awaited side by side are generated in batches.

        Raises:
            RLRouteError: as `answer`.
        """
        weight = self._check_weight(cost_weight)
        agent = TextAgent(
            self._sampler,
            self._tokenizer,
            action_seed=0,
            max_new_tokens=self._bundle.max_new_tokens,
            context_tokens=self._bundle.context_tokens,
            temperature=0.0,
        )
        environment = self._make_environment(weight)
        played = await run_episode(
            environment, agent, self.pool, make_query(question), episode_seed=0
        )
        replies = [reply for step in played.transitions for reply in step.replies]
        calls = tuple(
            TextCall(reply.call.candidate_id, reply.call.text, reply.text, reply.cost_usd)
            for reply in replies
        )
        return TextAnswer(
            text=environment.find_answer(),
            calls=calls,
            cost_usd=sum(call.cost_usd for call in calls),
            chunks=tuple(step.decision.text for step in played.transitions),
            cost_weight=weight,
            failure=played.failure,
        )

    def write_prompt(self, question: str | Query, *, cost_weight: float | None = None) -> str:
        """Return what the policy would read of a question, with every candidate of the pool.

        Raises:
            RLRouteError: as `answer`.
        """
        environment = self._make_environment(self._check_weight(cost_weight))
        return environment.reset(make_query(question), seed=0).text

    def _make_environment(self, cost_weight: float) -> MultiRound:
        return MultiRound(self.candidates, self._bundle.environment, cost_weight=cost_weight)

    def _check_weight(self, cost_weight: float | None) -> float:
        low, high = self.cost_weight_range
        if cost_weight is None:
            return low
        if not isinstance(cost_weight, numbers.Real) or not low <= cost_weight <= high:
            allowed = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
            raise RLRouteError(
                f"cost_weight {cost_weight!r} lies outside what this router was trained for "
                f"({allowed})"
            )
        return float(cost_weight)


def make_query(question: str | Query) -> Query:
    """Return a question as a query; a text is named by its digest.

    Raises:
        RLRouteError: it is empty, or no text.
    """
    if isinstance(question, Query):
        return question
    if not isinstance(question, str) or not question.strip():
        fault = "is empty" if isinstance(question, str) else f"is a {type(question).__name__}"
        raise RLRouteError(f"question {fault}: give the text of a question")
    digest = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
    return Query(f"question-{digest[:16]}", question)
