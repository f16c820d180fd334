"""A baseline that asks a cheap candidate several times and lets its disagreement decide (ACAR).

What it is: `SigmaRule`. Where the probes agree the problem looks easy, where no two agree it looks
hard. For each of the three levels (all agree, some do, none do) and each cost weight it sends to
the candidate of the best mean utility on train. On a table of subsets (`actions`) that candidate
may be an ensemble, which is ACAR's form: one model, two, or three.

All probes are paid, whatever is picked. Picking the probed candidate itself costs nothing more: one
of the answers in hand is given. Queries without probes are a level of their own, and pay none.

What it leaves out: asking. Probes are those that `rlroute collect --samples N` stored beside the
table (`rlroute.data.probes`), so a table of one answer per pair has no such baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from rlroute.data.probes import StoredProbes
from rlroute.evaluation.metrics import compute_utility, make_one_hot, pick_best
from rlroute.policies.table_baselines import Float64Array, check_candidates, list_candidate_ids
from rlroute.types import FloatArray, IntArray

if TYPE_CHECKING:
    from rlroute.data.routing_data import RoutingData

AGREE, SPLIT, DISAGREE, UNKNOWN = range(4)


class SigmaRule:
    """One candidate per level of disagreement, chosen on train; see the module's text."""

    def __init__(self, train: RoutingData, probes: StoredProbes) -> None:
        self.train, self.probes = train, probes
        self.candidate_ids = list_candidate_ids(train)
        self.prober = self.candidate_ids.index(probes.candidate_id)
        self.name = f"sigma rule ({probes.candidate_id})"

    def find_levels(self, data: RoutingData) -> IntArray:
        """Return the level of each query [Q]."""
        found = [self.probes.by_query.get(query.id) for query in data.table.queries]
        level = [
            UNKNOWN if probe is None else AGREE if probe.sigma == 0 else
            DISAGREE if probe.sigma == 1 else SPLIT
            for probe in found
        ]  # fmt: skip
        return np.array(level, dtype=np.int64)

    def list_costs(self, data: RoutingData) -> tuple[Float64Array, Float64Array]:
        """Return what a pick adds in USD [Q, K], and what the probes cost in USD [Q]."""
        found = [self.probes.by_query.get(query.id) for query in data.table.queries]
        probe_Q = np.array([0.0 if probe is None else probe.cost_usd for probe in found])
        added_QK = data.table.cost_usd_QK.astype(np.float64)
        probed_Q = np.array([probe is not None for probe in found])
        added_QK[probed_Q, self.prober] = 0.0  # one of the answers in hand
        return added_QK, probe_Q

    def choose_candidates(self, cost_weight: float) -> IntArray:
        """Return the order of candidates per level [4, K], the best mean train utility first."""
        added_QK, _ = self.list_costs(self.train)
        cost_QK = added_QK / self.train.cost_reference_usd
        score_QK = self.train.table.score_QK.astype(np.float64)
        utility_QK = compute_utility(score_QK, cost_QK, cost_weight)
        level_Q, present_QK = self.find_levels(self.train), self.train.table.present_QK
        orders = []
        for level in (AGREE, SPLIT, DISAGREE, UNKNOWN):
            rows_Q = level_Q == level
            rows_Q = rows_Q if rows_Q.any() else np.ones_like(rows_Q)
            count_K = present_QK[rows_Q].sum(0)
            total_K = np.where(present_QK, utility_QK, 0.0)[rows_Q].sum(0)
            mean_K = np.where(count_K > 0, total_K / np.maximum(count_K, 1), -np.inf)
            orders.append(np.argsort(-mean_K, kind="stable"))
        return np.array(orders)

    def pick(self, data: RoutingData, cost_weight: float) -> IntArray:
        """Return the pick of each query [Q]: the best present candidate of its level."""
        order_LK = self.choose_candidates(cost_weight)
        rank_LK = np.argsort(order_LK, axis=1)
        rank_QK = rank_LK[self.find_levels(data)].astype(np.float64)
        return pick_best(-rank_QK, rank_QK, data.table.present_QK)

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return [Q, K], 1 at the pick.

        Raises:
            RLRouteError: the candidates are not those it was fitted on.
        """
        check_candidates(self.name, self.candidate_ids, data)
        one_QK = make_one_hot(self.pick(data, cost_weight), len(self.candidate_ids))
        return one_QK.astype(np.float32)

    def compute_probe_cost(self, data: RoutingData, cost_weight: float) -> Float64Array:
        """Return what is paid in USD beside the pick's own cost [Q]: negative where it is in hand.

        The pick's own cost is added by whoever measures, so an answer in hand takes it off again.
        """
        pick_Q = self.pick(data, cost_weight)
        rows = np.arange(len(pick_Q))
        added_QK, probe_Q = self.list_costs(data)
        own_Q = data.table.cost_usd_QK[rows, pick_Q].astype(np.float64)
        return probe_Q + added_QK[rows, pick_Q] - own_Q
