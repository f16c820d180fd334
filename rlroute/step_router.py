"""An exported step-by-step router at work: before each step, who takes it; after it, what it cost.

It decides as the trained policy does, greedily, with the same ledger, mask, features and network.
An executor is masked where the caller does not allow it, or where a bound of its cost does not fit
into what is left of the budget, so a cap cannot be passed as long as no step costs more than its
bound. A chosen step takes its bound from the budget; `settle` gives back what was not needed.

A router may be shared between threads, an episode not. What it leaves out: taking the steps,
describing the state (the caller knows the world), and episodes longer than those of the training.

How to use:

    router = StepRouter.load("my-step-router")
    episode = router.start(cap=5, cost_weight=0.3)
    step = episode.choose(features={"critical": 1, "hint": 0, "critical_hint": 0})
    step.executor                        # takes the step
    episode.settle(cost_usd=0.0012)
"""

from __future__ import annotations

import math
import numbers
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rlroute.envs.budget import NO_CAP, PICODOLLARS_PER_USD, BudgetLedger
from rlroute.envs.step_budget import write_step_text
from rlroute.export.step_bundle import ChoiceNetwork, StepBundle, read_step_bundle
from rlroute.policies.choice_cache import ConversationCache, borrow_for_reading
from rlroute.policies.choice_tokens import Conversation
from rlroute.policies.decision import sample_actions
from rlroute.policies.priced_scorer import PricedScorer
from rlroute.policies.step_scorer import StepScorer
from rlroute.types import BoolArray, Candidate, FloatArray, RLRouteError, UsdArray

LARGEST_STEP_USD = 10_000.0  # of one step; far below what the ledger's whole numbers hold
LANE = np.array([0])

Features = Mapping[str, float] | npt.ArrayLike


class BudgetExhausted(RLRouteError):  # noqa: N818 - an end in order, nothing is broken
    """The rest of the budget surely pays for nobody who may be chosen.

    Nothing was chosen and the episode stands as before: it can be asked again with others allowed
    or with lower bounds. `budget_left` is in the budget's unit, calls or USD.
    """

    def __init__(self, message: str, budget_left: float) -> None:
        super().__init__(message)
        self.budget_left = budget_left


@dataclass(frozen=True)
class StepChoice:
    """Who takes the next step.

    `probabilities` (they sum to 1) are the policy's, of those who could be chosen. `budget_left` is
    what was left before the step, in calls or USD; None without a cap.
    """

    executor: str
    probabilities: dict[str, float]
    budget_left: float | None


class StepRouter:
    """Chooses executors for the steps of episodes; made by `StepRouter.load`.

    `executors` have the prices that the policy was trained with, the cheapest first. `reads` says
    what the policy reads of the state: "features", which `feature_names` name, or "text". `unit` is
    what a cap counts: USD, or calls of the `counted` executors. An episode has at most `horizon`
    steps. `summary` says what was trained on what, and what it reached.
    """

    def __init__(self, bundle: StepBundle) -> None:
        """Build a router from its parts, which must fit."""
        budget, weights = bundle.environment.budget, bundle.environment.cost_weight
        self.executors: tuple[Candidate, ...] = bundle.executors
        self.feature_names: tuple[str, ...] = bundle.feature_names
        self.horizon: int = bundle.horizon
        self.reads: Literal["features", "text"] = (
            "text" if isinstance(bundle.network, ChoiceNetwork) else "features"
        )
        self.unit: Literal["calls", "usd"] = budget.unit
        self.counted: tuple[str, ...] = budget.counted or ()
        self.cost_weight_range: tuple[float, float] = (weights.min, weights.max)
        self.summary: dict[str, Any] = bundle.summary
        self._bundle = bundle
        # The tokenizer is changed by every call, so one thread at a time uses a language model.
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path) -> StepRouter:
        """Load what `rlroute export` wrote of a step-by-step run.

        Raises:
            RLRouteError: the folder is no such router, or a torn, changed or newer one, or a
                language model decides and the extra `text` is not installed.
        """
        return cls(read_step_bundle(Path(folder)))

    def start(self, *, cap: float | None, cost_weight: float | None = None) -> StepEpisode:
        """Start an episode under a hard cap in the router's unit; None is no cap.

        Without a cost weight, the lowest that was trained for counts.

        Raises:
            RLRouteError: the cap is no number from 0, or the cost weight lies outside the trained
                range.
        """
        if cap is not None and (not isinstance(cap, numbers.Real) or not 0 <= cap < math.inf):
            raise RLRouteError(f"cap {cap!r}: give a number of {self.unit} from 0, or None")
        low, high = self.cost_weight_range
        weight = low if cost_weight is None else cost_weight
        if not isinstance(weight, numbers.Real) or not low <= weight <= high:
            allowed = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
            raise RLRouteError(
                f"cost_weight {weight!r} lies outside what this router was trained for ({allowed})"
            )
        return StepEpisode(self._bundle, self._lock, cap, float(weight))


class StepEpisode:
    """The steps of one task; made by `StepRouter.start`. `cap` is None where there is none."""

    def __init__(
        self, bundle: StepBundle, lock: threading.Lock, cap: float | None, cost_weight: float
    ) -> None:
        self.cap, self.cost_weight = cap, cost_weight
        self._bundle, self._lock = bundle, lock
        self._ids = [executor.id for executor in bundle.executors]
        self._budget = bundle.environment.budget
        self._ledger = BudgetLedger(self._budget, bundle.executors, lanes=1)
        self._ledger.open_lanes(LANE, np.array([math.inf if cap is None else float(cap)]))
        self._turn = 0
        self._pending: tuple[int, UsdArray] | None = None  # who was chosen, the bounds [1, K]
        self._conversation, self._cache = Conversation(), ConversationCache()

    @property
    def steps(self) -> int:
        """How many steps were chosen."""
        return self._turn + (self._pending is not None)

    @property
    def budget_left(self) -> float | None:
        """What is left, in calls or USD, a step that is not settled at its bound; None: no cap."""
        if self._ledger.cap_B[0] == NO_CAP:
            return None
        left = int(self._ledger.cap_B[0] - self._ledger.spent_B[0])
        if self._pending is not None:
            executor, bound_1K = self._pending
            left -= int(self._ledger.count_units(bound_1K)[0, executor])
        left = max(left, 0)
        return left if self._budget.unit == "calls" else left / PICODOLLARS_PER_USD

    @property
    def cost_usd(self) -> float:
        """What the settled steps cost, in USD; NaN once a step was passed over unsettled."""
        return float(self._ledger.cost_usd_B[0])

    @property
    def overruns(self) -> int:
        """How many steps cost more than their bound: only they can pass a cap in USD."""
        return self._ledger.overruns

    def choose(
        self,
        *,
        text: str | None = None,
        features: Features | None = None,
        allowed: Collection[str] | None = None,
        bounds_usd: Mapping[str, float] | None = None,
        uniform: float | None = None,
    ) -> StepChoice:
        """Decide who takes the next step; ties go to the executor that comes first.

        Which of `text` and `features` the policy reads, `StepRouter.reads` says; the other may be
        given, so that one caller serves both kinds.

        Args:
            text: at the first step the task, later what is new since the step before; of a session
                the query at hand, which takes the place of features.
            features: of the state, by name or in the order of `feature_names`.
            allowed: who may be chosen (None: all).
            bounds_usd: what the next step of every executor can cost at most, in USD; needed where
                the budget is in USD.
            uniform: a number in [0, 1) at which the executor is sampled; None: the likeliest.

        Raises:
            BudgetExhausted: nobody who is allowed is surely affordable.
            RLRouteError: the step before was not settled (needed where the budget is in USD), the
                horizon is reached, or an argument is missing or does not fit.
        """
        self._finish_step()
        bound_1K = self._read_bounds(bounds_usd)
        mask_K = self._find_choices(allowed, bound_1K)
        if uniform is not None and not 0 <= uniform < 1:
            raise RLRouteError(f"uniform {uniform!r}: give a number from 0 to below 1, or None")
        budget_left, network = self.budget_left, self._bundle.network
        if isinstance(network, ChoiceNetwork):
            logp_K = self._score_text(network, text, mask_K)
        else:
            sessions = self._bundle.sessions
            if sessions is not None and features is None:
                features = sessions.describe(text, bound_1K)
            logp_K = self._score_features(network, features, mask_K, bound_1K)
        if not np.isfinite(logp_K[mask_K]).all():
            raise RLRouteError("the policy's scores are not finite: features are far too large")
        action = int(logp_K.argmax())
        if uniform is not None:
            action = int(sample_actions(logp_K[None], np.array([uniform]))[0])
        if isinstance(network, ChoiceNetwork):
            self._conversation.ids.append(network.encoder.label_ids[action])
        self._pending = (action, bound_1K)
        return StepChoice(
            executor=self._ids[action],
            probabilities={self._ids[k]: math.exp(logp_K[k]) for k in np.flatnonzero(mask_K)},
            budget_left=budget_left,
        )

    def settle(self, cost_usd: float) -> None:
        """Say what the chosen step cost in USD, a failed one what it was billed.

        Where calls are counted it may be left out: a step is charged by who was chosen.

        Raises:
            RLRouteError: no step is open, or the cost is no number from 0.
        """
        if self._pending is None:
            raise RLRouteError("settle: no step is open; choose comes first")
        self._charge(check_money(cost_usd, "cost_usd"))

    def _charge(self, cost_usd: float) -> None:
        """Charge the open step and close it."""
        assert self._pending is not None
        executor, bound_1K = self._pending
        self._ledger.settle(
            np.array([executor]), bound_1K[:, executor], np.array([cost_usd]), np.array([True])
        )
        self._pending = None
        self._turn += 1

    def _finish_step(self) -> None:
        """Close the step before, and see whether another one fits into the horizon."""
        if self._pending is not None:
            if self._budget.unit == "usd":
                name = self._ids[self._pending[0]]
                raise RLRouteError(f"choose: settle the step of '{name}' first (its cost in USD)")
            self._charge(math.nan)  # nobody said what it cost; its call is counted all the same
        if self._turn >= self._bundle.horizon:
            raise RLRouteError(
                f"choose: the episode has had {self._turn} steps, the horizon that the policy was "
                "trained for; start another episode"
            )

    def _read_bounds(self, bounds_usd: Mapping[str, float] | None) -> UsdArray:
        """Return the bounds [1, K]; zeros where none are needed and none are given."""
        if bounds_usd is None:
            if self._budget.unit == "usd":
                raise RLRouteError("bounds_usd is missing: the budget is in USD")
            return np.zeros((1, len(self._ids)))
        check_names("bounds_usd", bounds_usd, self._ids)
        bounds = [check_money(bounds_usd[name], f"bounds_usd of '{name}'") for name in self._ids]
        return np.array([bounds])

    def _find_choices(self, allowed: Collection[str] | None, bound_1K: UsdArray) -> BoolArray:
        """Return who may be chosen and is affordable [K]."""
        allowed_K = make_mask(allowed, self._ids)
        mask_K: BoolArray = allowed_K & self._ledger.find_affordable(bound_1K)[0]
        if not mask_K.any():
            left = self.budget_left
            assert left is not None  # without a cap everyone is affordable
            raise BudgetExhausted(
                f"the budget is exhausted: {left:g} of {self.cap:g} {self._budget.unit} left, "
                f"less than a step of {' or '.join(np.array(self._ids)[allowed_K])} may take",
                left,
            )
        return mask_K

    def _score_features(
        self,
        network: StepScorer | PricedScorer,
        features: Features | None,
        mask_K: BoolArray,
        bound_1K: UsdArray,
    ) -> FloatArray:
        """Return the log-probabilities [K] of a small network."""
        world_F = read_features(features, self._bundle.feature_names)
        turn_1 = np.array([self._turn])
        budget_F = self._ledger.read_features(turn_1, self._bundle.horizon, bound_1K)[0]
        with torch.inference_mode():
            scores = network(
                torch.as_tensor(np.concatenate([world_F, budget_F])[None]),
                torch.as_tensor(self._bundle.executor_features_KD),
                torch.as_tensor(mask_K[None]),
                torch.tensor([self.cost_weight], dtype=torch.float32),
            )
        return np.asarray(scores.logp_BK[0])

    def _score_text(
        self, network: ChoiceNetwork, text: str | None, mask_K: BoolArray
    ) -> FloatArray:
        """Return the log-probabilities [K] of a language model, which reads on."""
        if not isinstance(text, str) or not (text.strip() or self._turn):
            said = "the task" if self._turn == 0 else "what is new since the step before"
            raise RLRouteError(f"text is missing: the policy reads texts; give {said}")
        conversation, before = self._conversation, len(self._conversation.ids)
        with self._lock, borrow_for_reading(network.model):
            try:
                conversation.add_text(network.encoder, self._write(text), network.context_tokens)
            except RLRouteError:
                del conversation.ids[before:]
                raise RLRouteError(
                    f"text: with it the episode is longer than the {network.context_tokens} tokens "
                    "that the policy reads; say less at each step"
                ) from None
            piece = conversation.ids[conversation.read :]
            conversation.read = len(conversation.ids)
            hidden_1H = self._cache.read(network.model, [0], [piece])
            mask_1K = torch.as_tensor(mask_K[None], device=hidden_1H.device)
            scores = network.model.score(hidden_1H, mask_1K)
        return scores.logp_BK[0].cpu().numpy()

    def _write(self, text: str) -> str:
        """Return a text as the policy read it in training."""
        stated = self._bundle.environment.state_cost_weight and self._turn == 0
        return write_step_text(text, self._ledger, self.cost_weight if stated else None)


def read_features(features: Features | None, names: tuple[str, ...]) -> FloatArray:
    """Return the world's features [W] in their order.

    Raises:
        RLRouteError: they are missing, a name is unknown or lacks, or a value is no finite number.
    """
    if features is None:
        raise RLRouteError(f"features are missing: the policy reads {', '.join(names)}")
    if isinstance(features, Mapping):
        check_names("features", features, names)
        features = [features[name] for name in names]
    try:
        vector_W = np.asarray(features, dtype=np.float32)
    except (TypeError, ValueError):
        raise RLRouteError("features hold a value that is no number") from None
    if vector_W.shape != (len(names),):
        raise RLRouteError(f"features have shape {vector_W.shape}; give {len(names)} numbers")
    if not np.isfinite(vector_W).all():
        raise RLRouteError("features hold a value that is not a finite number")
    return vector_W


def check_names(what: str, found: Mapping[str, Any], names: Collection[str]) -> None:
    """Raise RLRouteError where a mapping has an unknown key or lacks a name."""
    unknown = [key for key in found if key not in names]
    if unknown:
        raise RLRouteError(f"{what}: unknown name {unknown[0]!r} (known: {', '.join(names)})")
    missing = [name for name in names if name not in found]
    if missing:
        raise RLRouteError(f"{what}: '{missing[0]}' is missing")


def check_money(amount: float, what: str) -> float:
    """Return an amount of one step in USD.

    Raises:
        RLRouteError: it is no number from 0 to `LARGEST_STEP_USD`.
    """
    if not isinstance(amount, numbers.Real) or not 0 <= amount <= LARGEST_STEP_USD:
        raise RLRouteError(f"{what} is {amount!r}: give USD, from 0 to {LARGEST_STEP_USD:,.0f}")
    return float(amount)


def make_mask(allowed: Collection[str] | None, ids: list[str]) -> BoolArray:
    """Return who may be chosen [K]; None is everyone.

    Raises:
        RLRouteError: it is a single name, empty, or names an unknown executor.
    """
    if allowed is None:
        return np.ones(len(ids), dtype=np.bool_)
    if isinstance(allowed, str):
        raise RLRouteError(f"allowed takes a list of ids; write [{allowed!r}] for a single one")
    unknown = sorted(str(name) for name in allowed if name not in ids)
    if unknown:
        raise RLRouteError(f"allowed: unknown executor '{unknown[0]}' (known: {', '.join(ids)})")
    if not allowed:
        raise RLRouteError(f"allowed is empty: name at least one of {', '.join(ids)}")
    return np.array([name in allowed for name in ids], dtype=np.bool_)
