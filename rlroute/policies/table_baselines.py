"""What baselines on a table share: predict scores and costs, then pick the best utility.

What it is: two protocols for what predicts, `PredictThenOptimise` which makes a policy of it, and
the small pieces that several baselines need (targets without holes, cosine features, an order of
arrival).

What it leaves out: the baselines themselves (`baselines`, `table_baselines_groups`,
`table_baselines_fitted`, `table_baselines_item_response`, `table_baselines_cascade`).

How to use: `PredictThenOptimise(predictor, train)`, or for what predicts scores alone
`PredictThenOptimise(ScoreWithCost(model, ridge), train)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from rlroute.evaluation.metrics import compute_utility, make_one_hot, pick_best
from rlroute.seeding import mix
from rlroute.types import FloatArray, IntArray, RLRouteError

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

Float64Array = npt.NDArray[np.float64]


class OutcomePredictor(Protocol):
    """Predicts score and normalised cost of every (query, candidate) cell from query features."""

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        ...

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return predicted score [Q, K] and predicted normalised cost [Q, K]."""
        ...


class ScorePredictor(Protocol):
    """Predicts the score of every (query, candidate) cell, and says nothing of costs.

    A constant per query may be missing: it changes no pick.
    """

    name: str

    def predict_score(self, features_QF: FloatArray) -> Float64Array:
        """Return predicted scores [Q, K]."""
        ...


@dataclass(frozen=True)
class ScoreWithCost:
    """A predictor of scores with the costs of another: baselines then differ in quality alone."""

    model: ScorePredictor
    cost_model: OutcomePredictor

    @property
    def name(self) -> str:
        """The name of what predicts the scores."""
        return self.model.name

    def predict(self, features_QF: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Return the model's scores [Q, K] and the cost model's normalised costs [Q, K]."""
        return self.model.predict_score(features_QF), self.cost_model.predict(features_QF)[1]


class KeptPrediction:
    """A predictor bound to the candidates it was fitted on, its last prediction kept.

    A sweep of the cost weight then predicts once.
    """

    def __init__(self, predictor: OutcomePredictor, train: RoutingData) -> None:
        self.predictor = predictor
        self.candidate_ids = list_candidate_ids(train)
        self._last: tuple[RoutingData, Float64Array, Float64Array] | None = None

    def predict(self, data: RoutingData) -> tuple[Float64Array, Float64Array]:
        """Return predicted score [Q, K] and normalised cost [Q, K] of the queries of `data`.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        check_candidates(self.predictor.name, self.candidate_ids, data)
        if self._last is None or self._last[0] is not data:
            self._last = (data, *self.predictor.predict(data.features_QF))
        return self._last[1], self._last[2]


class PredictThenOptimise:
    """Picks the largest predicted score - cost_weight * predicted cost, ties to the cheapest."""

    def __init__(self, predictor: OutcomePredictor, train: RoutingData) -> None:
        self.name = predictor.name
        self.kept = KeptPrediction(predictor, train)

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the pick among the present candidates.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        score_QK, cost_QK = self.kept.predict(data)
        utility_QK = compute_utility(score_QK, cost_QK, cost_weight)
        pick_Q = pick_best(utility_QK, cost_QK, data.table.present_QK)
        return make_one_hot(pick_Q, score_QK.shape[1]).astype(np.float32)


def list_candidate_ids(data: RoutingData) -> tuple[str, ...]:
    """Return the ids of the candidates in the order of their columns."""
    return tuple(candidate.id for candidate in data.table.candidates)


def check_candidates(name: str, fitted_on: tuple[str, ...], data: RoutingData) -> None:
    """Refuse data with other candidates than a baseline was fitted on.

    Raises:
        RLRouteError: the candidates differ.
    """
    ids = list_candidate_ids(data)
    if ids != fitted_on:
        raise RLRouteError(
            f"{name}: fitted on candidates {', '.join(fitted_on)}; "
            f"table '{data.table.name}' has {', '.join(ids)}"
        )


def list_outcomes(data: RoutingData) -> list[Float64Array]:
    """Return scores [Q, K] and normalised costs [Q, K] as float64, NaN in holes."""
    return [data.table.score_QK.astype(np.float64), data.normalised_cost_QK.astype(np.float64)]


def scale_rows(features_QF: FloatArray, center_F: FloatArray) -> FloatArray:
    """Centre rows and scale them to length 1 (a row of zeros stays), for cosines [Q, F]."""
    centred_QF = features_QF - center_F
    length_Q1 = np.linalg.norm(centred_QF, axis=1, keepdims=True)
    unit_QF: FloatArray = centred_QF / np.maximum(length_Q1, np.finfo(np.float32).tiny)
    return unit_QF


def draw_arrival(data: RoutingData) -> IntArray:
    """Return an order in which queries arrive [Q]: by a hash of their ids.

    What learns from one query after the other must not see them in the order of a table, which is
    sorted by task; and the order of rows in a file must change nothing.
    """
    word_Q = np.array([int(mix("arrival", query.id)) for query in data.table.queries], np.uint64)
    return np.argsort(word_Q, kind="stable")
