"""An exported cascade at work: whom to ask, and after each look whether to stop or go on.

What it is: a step router (`rlroute.step_router`) that turns the query and what was seen of the
answers into features by itself, as the world of the training did. What a look may cost at most, for
budgets in USD, is the candidate's largest cost in the training table, unless stated otherwise.

What it leaves out: asking, and checking answers. The caller tells of each answer what it cost, its
tokens, and whether it passed. A router may be shared between threads, an episode not.

How to use:

    router = CascadeRouter.load("my-cascade")
    episode = router.start("How many primes are below 100?", cost_weight=0.3)
    while not episode.done:
        name = episode.choose().executor
        if name != router.stop:
            episode.observe(cost_usd=0.0012, completion_tokens=80, passed=True)
    episode.hand                        # whose answer to give; None: nobody's
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from rlroute.export.cascade_parts import CascadeParts
from rlroute.export.step_bundle import StepBundle, read_step_bundle
from rlroute.step_router import StepChoice, StepEpisode, StepRouter, check_money, make_mask
from rlroute.types import RLRouteError
from rlroute.worlds.cascade_view import NOBODY, STOP, CascadeSeen, find_clusters

LANE = np.array([0])


class CascadeRouter:
    """Looks at answers and stops or goes on; made by `CascadeRouter.load`.

    `candidates` can be asked, the cheapest first; `stop` is what `choose` names at the end.
    `checks` says that the policy was trained with a check of answers.
    """

    stop = STOP

    def __init__(self, bundle: StepBundle) -> None:
        """Build a router from its parts, which must fit."""
        if bundle.cascade is None:
            raise RLRouteError("this router was not trained on a cascade: load it as a StepRouter")
        self.steps = StepRouter(bundle)
        self.parts: CascadeParts = bundle.cascade
        self.candidates: tuple[str, ...] = self.parts.view.candidate_ids
        self.checks: bool = self.parts.view.checker is not None

    @classmethod
    def load(cls, folder: str | Path) -> CascadeRouter:
        """Load what `rlroute export` wrote of a run on a cascade.

        Raises:
            RLRouteError: the folder is no such router, or a torn, changed or newer one.
        """
        return cls(read_step_bundle(Path(folder)))

    def start(
        self, query: str, *, cap: float | None = None, cost_weight: float | None = None
    ) -> CascadeEpisode:
        """Start a query under a hard cap in the router's unit; None is no cap.

        Raises:
            RLRouteError: the query is no text, or cap or cost weight do not fit (`StepRouter`).
        """
        if not isinstance(query, str) or not query.strip():
            raise RLRouteError("the query is empty: give its text")
        return CascadeEpisode(self.parts, self.steps.start(cap=cap, cost_weight=cost_weight), query)


class CascadeEpisode:
    """The looks at one query's answers; made by `CascadeRouter.start`. `done`: take what is there.

    `steps` is the episode of the router below: its `budget_left`, `cost_usd`, `overruns`.
    """

    def __init__(self, parts: CascadeParts, steps: StepEpisode, query: str) -> None:
        self.steps, self.done = steps, False
        self._parts, self._view = parts, parts.view
        self._features_1F = parts.encoder.encode([query])
        self._cluster_1 = find_clusters(self._features_1F, parts.view.centroids_CF)
        self._seen = CascadeSeen.open(1, len(parts.view.candidate_ids))
        self._failed: set[str] = set()
        self._asked: str | None = None

    @property
    def hand(self) -> str | None:
        """Whose answer is in hand: what to give if the episode ends now."""
        hand = int(self._seen.hand_B[0])
        return None if hand == NOBODY else self._view.candidate_ids[hand]

    def choose(
        self,
        *,
        allowed: Collection[str] | None = None,
        bounds_usd: Mapping[str, float] | None = None,
        uniform: float | None = None,
    ) -> StepChoice:
        """Decide whom to ask next, or to stop (`CascadeRouter.stop`), which ends the episode.

        Args:
            allowed: who may be asked (None: everybody who was not yet).
            bounds_usd: what a look at every candidate can cost at most, where it is not what it
                cost in the training table.
            uniform: a number in [0, 1) at which the executor is sampled; None: the likeliest.

        Raises:
            BudgetExhausted: nothing is in hand and nobody is surely affordable.
            RLRouteError: the episode is done, the look before was not observed, or an argument does
                not fit.
        """
        if self.done:
            raise RLRouteError("choose: the episode is done; start another one")
        if self._asked is not None:
            raise RLRouteError(f"choose: observe the answer of '{self._asked}' first, or fail it")
        bounds = dict(zip((STOP, *self._view.candidate_ids), self._parts.bound_usd_K, strict=True))
        choice = self.steps.choose(
            features=self._view.read(self._features_1F, self._cluster_1, self._seen)[0],
            allowed=self._list_open(allowed),
            bounds_usd={**bounds, **bounds_usd} if bounds_usd else bounds,
            uniform=uniform,
        )
        if choice.executor == STOP:
            self.steps.settle(0.0)
            self.done = True
        else:
            self._asked = choice.executor
        return choice

    def _list_open(self, allowed: Collection[str] | None) -> list[str]:
        """Return who may be chosen: those not asked yet, and `stop` with an answer in hand."""
        ids = self._view.candidate_ids
        mask_K = make_mask(allowed, list(ids)) & ~self._seen.asked_BK[0]
        found = [one for one, may in zip(ids, mask_K, strict=True) if may]
        found = [one for one in found if one not in self._failed]
        if self.hand is not None or self._parts.allow_skip:
            found.insert(0, STOP)
        if not found:
            raise RLRouteError("choose: nobody is left to ask, and no answer is in hand")
        return found

    def observe(
        self,
        *,
        cost_usd: float,
        completion_tokens: float | None = None,
        passed: bool | None = None,
    ) -> None:
        """Say what the answer looked like; `cost_usd` includes what the check cost.

        Without its tokens an answer counts as one of usual length.

        Raises:
            RLRouteError: no look is open, a number does not fit, or `passed` is missing (the policy
                was trained with a check) or has no use (it was not).
        """
        if self._asked is None:
            raise RLRouteError("observe: no look is open; choose comes first")
        money = check_money(cost_usd, "cost_usd")
        if (passed is None) == (self._view.checker is not None):
            needed = "needs" if passed is None else "was trained without a check and has no use for"
            raise RLRouteError(f"observe: this router {needed} `passed`")
        candidates = len(self._view.candidate_ids)
        tokens_1K = np.full((1, candidates), self._read_tokens(completion_tokens), np.float32)
        place = self._view.candidate_ids.index(self._asked)
        self.steps.settle(money)
        self._seen.note(
            *(LANE, np.array([place]), np.array([bool(passed)])),
            self._view.read_length(tokens_1K)[:, place],
            np.array([money]),
            self._view.keep,
        )
        self._asked = None
        self._see_whether_done()

    def fail(self, cost_usd: float) -> None:
        """Say that the call failed, and what was billed for it; it counts as a look.

        Raises:
            RLRouteError: no look is open, or the cost is no number from 0.
        """
        if self._asked is None:
            raise RLRouteError("fail: no look is open; choose comes first")
        money = check_money(cost_usd, "cost_usd")
        self.steps.settle(money)
        self._seen.paid_usd_B[0] += money
        self._failed.add(self._asked)
        self._asked = None
        self._see_whether_done()

    def _see_whether_done(self) -> None:
        """End the episode where no further look is possible."""
        over = self._seen.asked_BK[0].sum() + len(self._failed)
        self.done = bool(over >= min(self._view.max_looks, len(self._view.candidate_ids)))

    def _read_tokens(self, tokens: float | None) -> float:
        """Return a number of tokens, NaN where it was not said."""
        if tokens is None:
            return math.nan
        if not isinstance(tokens, numbers.Real) or not 0 <= tokens < math.inf:
            raise RLRouteError(f"completion_tokens is {tokens!r}: give a number from 0, or None")
        return float(tokens)
