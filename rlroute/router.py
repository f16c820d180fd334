"""An exported router at work: a text in, the candidate to ask out.

It decides as the trained policy does (`rlroute.policies.decision.GreedyPolicy`), with the same code
for the maths, and needs no training library. A route depends on its own query only, not on what is
routed beside it, and several threads may use one router at once.

What it leaves out: asking the candidates.

How to use:

    router = Router.load("my-router")
    router.route("How many primes are below 100?", cost_weight=0.1).candidate_id
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlroute.data.candidate_files import check_profiles, dump_candidates, parse_candidates
from rlroute.data.encoders import check_endpoint
from rlroute.data.newcomer_profiles import DEFAULT_SWITCHES, profile_from_results
from rlroute.data.repricing import check_prices, reprice_candidates
from rlroute.data.route_profiles import ProfileSwitches
from rlroute.data.routing_data import build_candidate_features
from rlroute.data.table import OutcomeTable
from rlroute.data.users import Preference, UserWeights
from rlroute.export.bundle import WEIGHTS_FILE, BundleContents, read_bundle
from rlroute.export.wishes import read_wishes
from rlroute.policies.decision import score
from rlroute.policies.weights import build_scorer
from rlroute.types import BoolArray, Candidate, Prices, RLRouteError


@dataclass(frozen=True)
class Route:
    """A decision on one query; every mapping holds the allowed candidates only.

    `members` are the ids to ask, side by side: the candidate's own, those of a subset, none for
    `skip`. `models` and `efforts` go with them: a pair such as `model@high` in its parts, otherwise
    the id and None; `effort` is that of the only member.
    `ranking` lists them best first: `ranking[0]` is `candidate_id`, the rest are fallbacks.
    `probabilities` (they sum to 1) are those the policy samples from while it learns, but for its
    margin (`rlroute.policies.margin`); the router does not sample, it takes the largest.
    `estimated_quality` and `estimated_cost_usd` are what the policy weighs against each other. They
    start at the candidate's means on the train split and are shaped by the reward of decisions
    alone, so they rank candidates and are not calibrated forecasts; a quality may lie outside [0,
    1]. `estimated_latency_seconds` is there where the policy weighs latency.
    """

    candidate_id: str
    cost_weight: float
    ranking: tuple[str, ...]
    probabilities: dict[str, float]
    estimated_quality: dict[str, float]
    estimated_cost_usd: dict[str, float]
    members: tuple[str, ...]
    models: tuple[str, ...]
    efforts: tuple[str | None, ...]
    latency_weight: float = 0.0
    estimated_latency_seconds: dict[str, float] | None = None

    @property
    def effort(self) -> str | None:
        """The effort to ask for, where one candidate is asked that is a pair; otherwise None."""
        return self.efforts[0] if len(self.efforts) == 1 else None


class Router:
    """Chooses among candidates; made by `Router.load`, immutable, safe to share between threads.

    `candidates` have their measured profiles, `cost_weight_range` is what the policy was trained
    for, `cost_reference_usd` is the cost that a cost weight refers to (mean train cost of the
    dearest candidate), `summary` says what was trained on what. `latency_weight_range` is (0, 0)
    where latency does not count, otherwise the unit is `latency_reference_seconds` (mean train
    latency of the slowest candidate). `users` are those that can be named.
    """

    candidates: tuple[Candidate, ...]
    cost_weight_range: tuple[float, float]
    cost_reference_usd: float
    summary: dict[str, Any]
    latency_weight_range: tuple[float, float]
    latency_reference_seconds: float | None
    users: dict[str, UserWeights]

    def __init__(self, contents: BundleContents, source: str | Path = "router") -> None:
        """Build a router from its parts, which must fit; `source` names them in errors."""
        self.cost_weight_range = (contents.cost_weight_min, contents.cost_weight_max)
        self.cost_reference_usd = contents.scale.cost_reference_usd
        self.summary = contents.summary
        self.latency_reference_seconds = contents.scale.latency_reference_seconds
        self._wishes = read_wishes(contents)
        self.latency_weight_range = self._wishes.latency_weights
        self.users = dict(self._wishes.users)
        self._scale = contents.scale
        self._encoder = contents.encoder
        # The tokenizer of a transformer is changed by every call, so one thread at a time uses it.
        self._encoder_lock = threading.Lock()
        weights_path = Path(source) / WEIGHTS_FILE
        self._model = build_scorer(contents.scorer, contents.weights, weights_path)
        self._set_candidates(contents.candidates)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        model_folder: str | Path | None = None,
        endpoint: str | None = None,
    ) -> Router:
        """Load what `rlroute export` wrote.

        `model_folder` says where the model of a `path` encoder lies, should it have moved. A router
        with an `openai` encoder sends texts and a key to the url that its folder names, so you
        have to name it too, as `endpoint`.

        Raises:
            RLRouteError: the folder is no exported router, a torn, changed or newer one, or one
                that asks another endpoint than `endpoint`.
        """
        moved = None if model_folder is None else Path(model_folder)
        contents = read_bundle(Path(folder), model_folder=moved)
        check_endpoint(contents.encoder, endpoint, Path(folder))
        return cls(contents, folder)

    def route(
        self,
        text: str,
        *,
        cost_weight: float = 0.0,
        latency_weight: float | None = None,
        user: str | UserWeights | None = None,
        allowed: Collection[str] | None = None,
        prices: Mapping[str, Prices] | None = None,
    ) -> Route:
        """Decide for one query; `allowed` names the candidates that may be chosen (None: all).

        `latency_weight` is 0 (or the least that it was trained for) where it is not given. `user`,
        one of `users` by name or the weights of another, stands in the place of both weights.

        `prices` are those of today where they differ from the router's (`reprice`, which is
        quicker for many queries).

        A subset may be chosen where all its members are named, or it is itself; `skip` where it is
        named.

        Raises:
            RLRouteError: the text is empty or no string, a weight lies outside the trained range,
                the user is unknown or given beside weights, `allowed` is empty, leaves nothing to
                choose or names an unknown candidate, `prices` as `reprice`, or the endpoint of an
                `openai` encoder gives no vector.
        """
        router = self if prices is None else self.reprice(prices)
        return router.route_many(
            [text],
            cost_weight=cost_weight,
            latency_weight=latency_weight,
            user=user,
            allowed=allowed,
        )[0]

    def route_many(
        self,
        texts: Sequence[str],
        *,
        cost_weight: float = 0.0,
        latency_weight: float | None = None,
        user: str | UserWeights | None = None,
        allowed: Collection[str] | None = None,
    ) -> list[Route]:
        """Decide for several queries, each exactly as `route` would.

        Raises:
            RLRouteError: as `route`.
        """
        wish, mask_K = (
            self._wishes.find(cost_weight, latency_weight, user, self._ids),
            self._make_mask(allowed),
        )
        if isinstance(texts, str):
            raise RLRouteError("route_many takes a list of texts; use route for a single one")
        texts = list(texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                fault = "is empty" if isinstance(text, str) else f"is a {type(text).__name__}"
                raise RLRouteError(f"text {position} {fault}: give the text of a query")
        with self._encoder_lock:
            features_QF = self._encoder.encode(texts)
        # One by one: the rounding of a product depends on how many rows it has.
        return [self._decide(features_F, wish, mask_K) for features_F in features_QF]

    def route_features(
        self,
        features_F: npt.ArrayLike,
        *,
        cost_weight: float = 0.0,
        latency_weight: float | None = None,
        user: str | UserWeights | None = None,
        allowed: Collection[str] | None = None,
    ) -> Route:
        """Decide for a query whose embedding [F], by this router's encoder, is already at hand.

        Raises:
            RLRouteError: as `route`, or the embedding has another length or is not finite.
        """
        vector_F = np.asarray(features_F, dtype=np.float32)
        dimension = self._encoder.dimension
        if vector_F.shape != (dimension,):
            raise RLRouteError(
                f"features have shape {vector_F.shape}; give a vector of {dimension}"
            )
        if not np.isfinite(vector_F).all():
            raise RLRouteError("features hold a value that is not a finite number")
        wish = self._wishes.find(cost_weight, latency_weight, user, self._ids)
        return self._decide(vector_F, wish, self._make_mask(allowed))

    def describe_encoder(self) -> dict[str, Any]:
        """Return what the encoder is; of one behind an endpoint also price and cost so far (USD).

        `usage.cost_usd_per_text` is then what the encoding of a query has cost on average.
        """
        return self._encoder.describe()

    def with_candidates(self, candidates: Sequence[Candidate]) -> Router:
        """Return a router that chooses among other candidates, without training.

        Each needs a profile measured as those of `self.candidates` were (same query clusters). The
        profile is taken as given: after a change of prices, `mean_cost_usd` and `cost_usd_C` must
        be the costs at the new prices, since the policy decides by them (`reprice` sees to that).

        Raises:
            RLRouteError: no candidate, an id twice, a number that is no price or profile, or a
                profile that is missing or has another number of clusters.
        """
        # The same checks as for a file: what is passed in here was never read from one.
        checked = parse_candidates(dump_candidates(candidates), "with_candidates")
        check_profiles(checked, self._scale, "with_candidates")
        router = copy.copy(self)
        router._set_candidates(checked)
        return router

    def add_candidate(
        self,
        candidate: Candidate,
        results: OutcomeTable | None = None,
        switches: ProfileSwitches = DEFAULT_SWITCHES,
    ) -> Router:
        """Return a router that knows one candidate more, without training.

        `results` is a table with its outcomes on some queries (`rlroute.data.table.read_results`;
        a few hundred suffice, split `train`). Without them its profile is what candidates of such
        prices, kind and family are expected to do; see `rlroute.data.candidate_profiles`. The
        `switches` say how it is described for that (`rlroute.data.route_profiles`), all but `text`.
        What the policy learnt of descriptions it borrows (`rlroute.policies.lending`); a router
        that was exported before there was a lender reads its own description.

        Raises:
            RLRouteError: a candidate of that id is known, has no outcome in the results (none with
                a latency where the router weighs it), a number is no price, the known candidates
                tell too little, or the switches ask for texts.
        """
        if candidate.id in self._ids:
            raise RLRouteError(f"add_candidate: '{candidate.id}' is a candidate of this router")
        check_prices(candidate.id, candidate.prices)
        with self._encoder_lock:
            centroids_CF = self._model.centroids_CF.numpy()
            added = profile_from_results(
                *(candidate, self.candidates, centroids_CF, results, self._encoder.encode),
                switches=switches,
                seed=self.summary["seed"],
            )
        checked = parse_candidates(dump_candidates([added]), "add_candidate")
        router = copy.copy(self)
        router._set_candidates((*self.candidates, *checked), (*self._described, *checked))
        return router

    def reprice(self, prices: Mapping[str, Prices]) -> Router:
        """Return a router whose candidates named in `prices` charge others, without training.

        Estimated costs move by what the tokens of a candidate's profile cost at the new prices
        (`rlroute.data.repricing`); estimated qualities stay exactly as they are.

        Raises:
            RLRouteError: an unknown candidate, a number that is no price, or a profile without
                tokens whose prices do not all move by one factor.
        """
        router = copy.copy(self)
        router._set_candidates(reprice_candidates(self.candidates, prices), self._described)
        return router

    def _set_candidates(
        self,
        candidates: tuple[Candidate, ...],
        described: tuple[Candidate, ...] | None = None,
    ) -> None:
        """Take candidates; `described` are they at the prices that they were profiled at.

        The network knows a candidate as described; only what it costs per cluster is of today.
        """
        self.candidates = candidates
        self._described = described or candidates
        self._ids = [candidate.id for candidate in candidates]
        self._asked_K = [{member.candidate_id for member in one.asked} for one in candidates]
        features_KD = build_candidate_features(self._described, self._scale)
        clusters = self._model.config.clusters
        features_KD[:, -clusters:] = build_candidate_features(candidates, self._scale)[
            :, -clusters:
        ]
        self._candidate_features_KD = features_KD

    def _make_mask(self, allowed: Collection[str] | None) -> BoolArray:
        """Return where a candidate may be chosen [K]."""
        if allowed is None:
            return np.ones(len(self._ids), dtype=np.bool_)
        if isinstance(allowed, str):
            raise RLRouteError(f"allowed takes a list of ids; write [{allowed!r}] for a single one")
        plain = [one.id for one in self.candidates if one.kind != "subset"]
        members = sorted(set[str]().union(*self._asked_K))
        known = ", ".join(dict.fromkeys([*plain, *members]))
        choices = {*self._ids, *members}
        unknown = sorted(
            str(name) for name in allowed if not isinstance(name, str) or name not in choices
        )
        if unknown:
            raise RLRouteError(f"allowed: unknown candidate '{unknown[0]}' (known: {known})")
        if not allowed:
            raise RLRouteError(f"allowed is empty: name at least one of {known}")
        named = set(allowed)
        mask_K = np.array(
            [
                one.id in named or (bool(asked) and asked <= named)
                for one, asked in zip(self.candidates, self._asked_K, strict=True)
            ],
            dtype=np.bool_,
        )
        if not mask_K.any():
            raise RLRouteError(
                f"allowed: no action asks only {', '.join(sorted(named))}; name more of {known}"
            )
        return mask_K

    def _decide(
        self,
        features_F: npt.NDArray[np.float32],
        wish: tuple[float, Preference],
        mask_K: BoolArray,
    ) -> Route:
        """Decide for an embedding [F]; ties go to the candidate that comes first."""
        weight, preference = wish
        with torch.inference_mode():
            scores = score(
                self._model,
                features_F[None],
                self._candidate_features_KD,
                mask_K[None],
                np.array([weight], dtype=np.float32),
                *preference.repeat(1, latency=self._model.config.latency),
                served=True,
            )
            latency_K = None if scores.latency_BK is None else scores.latency_BK[0].tolist()
            logits_K, logp_K, quality_K, cost_K = (
                values_BK[0].tolist()
                for values_BK in (
                    scores.logits_BK,
                    scores.logp_BK,
                    scores.quality_BK,
                    scores.cost_BK,
                )
            )
        allowed = np.flatnonzero(mask_K).tolist()
        if not all(math.isfinite(logits_K[k]) for k in allowed):
            raise RLRouteError("the policy's scores overflow: the features are too large")
        ranked = sorted(allowed, key=lambda k: -logits_K[k])
        ids = self._ids
        asked = self.candidates[ranked[0]].asked
        return Route(
            candidate_id=ids[ranked[0]],
            cost_weight=weight,
            ranking=tuple(ids[k] for k in ranked),
            probabilities={ids[k]: math.exp(logp_K[k]) for k in allowed},
            estimated_quality={ids[k]: quality_K[k] for k in allowed},
            estimated_cost_usd={ids[k]: cost_K[k] * self.cost_reference_usd for k in allowed},
            members=tuple(member.candidate_id for member in asked),
            models=tuple(member.model for member in asked),
            efforts=tuple(member.effort for member in asked),
            latency_weight=preference.latency_weight,
            estimated_latency_seconds=None
            if latency_K is None
            else {ids[k]: latency_K[k] * (self.latency_reference_seconds or 0.0) for k in allowed},
        )
