"""Candidates that a policy was never trained on, added by their profiles, on the test split.

`evaluate_unseen` adds a run's `hold_out_candidates` after n calls each on train queries (and after
all of them), and measures policy and profile on the test split of the whole table: AIQ, mean regret
to the oracle over the cost weights, how often the new ones are picked, and the regret against that
of `beside`, a run that was trained with them (without one: against doing without the new ones),
paired over the queries. Where latency counts that is at its least weight. A run with users is also
measured user by user: utility, and regret to the user's own oracle.

Cost weights and regrets are in the units of the run itself: quality given up per mean cost of the
dearest candidate that it was trained with. A run beside it is asked at the same price of money.

What it leaves out: the profiles (`rlroute.unseen_profiles`), what is borrowed
(`rlroute.policies.lending`), adding a candidate to an exported router (`rlroute.router`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rlroute.data.routing_data import (
    FeatureScale,
    RoutingData,
    build_candidate_features,
    find_split,
)
from rlroute.data.users import Preference, UserWeights, make_preference
from rlroute.evaluation import metrics
from rlroute.evaluation.evaluate import summarise_sweep
from rlroute.evaluation.intervals import Estimate, draw_resamples, make_estimate
from rlroute.evaluation.preferences import Setting, compute_utility, find_best
from rlroute.evaluation.sampling import Sweep, check_cost_weights, sweep_policy
from rlroute.evaluation.unseen import UnseenReport, UnseenResult, UnseenUserResult
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.lending import lend_descriptions
from rlroute.trainers.decision import list_latency_weights, make_cost_weights
from rlroute.trainers.recipe import UnseenConfig
from rlroute.trainers.run_folder import Run, load_best
from rlroute.types import Candidate, FloatArray, RLRouteError
from rlroute.unseen_profiles import ALL_CALLS, WholeTable, open_whole_table, profile_candidate


def lend_for_run(run: Run, policy: GreedyPolicy) -> FeatureScale:
    """Return a run's scale with the lenders of its policy, over its validation weights.

    Where latency counts, over some of its weights too.
    """
    recipe, prepared = run.recipe, run.prepared
    weights = make_cost_weights(recipe.cost_weight, recipe.validation.cost_weights)
    val = prepared.splits["val"]
    policies = [policy]
    if recipe.weighs_latency:
        waiting = list_latency_weights(recipe.latency_weight)
        policies = [replace(policy, preference=Preference(weight)) for weight in waiting]
    return lend_descriptions(policies, val, weights, prepared.candidates, prepared.scale)


def evaluate_unseen(run: Run, beside: Run | None = None) -> UnseenReport:
    """Measure a run's policy with its held-out candidates added, and a run trained with them.

    Raises:
        RLRouteError: nobody was held out, or the run beside it is of another table or candidates.
    """
    found = measure_unseen(run, beside)
    compared = found.measured[-1] if beside is not None else found.measured[0]
    results = [
        replace(one.result, regret_gap=found.bench.compare(one, compared))
        if one is not compared
        else one.result
        for one in found.measured
    ]
    users = [
        user
        for one in found.measured
        if one.result.calls is not None
        for user in found.bench.measure_users(one, found.measured[0])
    ]
    return UnseenReport(run.recipe.hold_out_candidates, tuple(results), tuple(users))


def measure_unseen(run: Run, beside: Run | None = None) -> MeasuredRun:
    """Measure the policy without the new ones, after every number of calls, and that beside it.

    Raises:
        RLRouteError: as `evaluate_unseen`.
    """
    held = run.recipe.hold_out_candidates
    if not held:
        raise RLRouteError(f"{run.folder}: trained with all candidates of its table")
    config = run.recipe.profile.unseen or UnseenConfig()
    bench = Bench(run, open_whole_table(run), open_policy(run))
    found, tried = [bench.measure((), "without them", 0)], set[tuple[int, ...]]()
    numbers: list[int | str] = [*dict.fromkeys(config.calls), ALL_CALLS]
    for number in numbers:
        added = [
            profile_candidate(run, bench.whole, one, number, config, run.recipe.seed)
            for one in held
        ]
        known = tuple(candidate for candidate, _ in added)
        paid = sum(calls.cost_usd for _, calls in added)
        asked = tuple(len(calls) for _, calls in added)
        name = name_calls(asked)
        if number == ALL_CALLS:
            name = "all train queries"
        elif asked in tried:  # no more were to be had, or allowed by the design
            continue
        tried.add(asked)
        found.append(bench.measure(known, name, max(asked), paid))
    if beside is not None:
        found.append(bench.measure_beside(beside))
    return MeasuredRun(bench, tuple(found))


def open_policy(run: Run) -> GreedyPolicy:
    """Return a run's best policy at the least weight of latency."""
    return GreedyPolicy(load_best(run)[0], preference=Preference(run.recipe.latency_weight.min))


def name_calls(asked: Sequence[int]) -> str:
    """Return the name of a result by how many calls each of the new ones was asked."""
    most = max(asked)
    return f"{most} calls" if min(asked) == most else f"at most {most} calls"


@dataclass(frozen=True, eq=False)
class Measured:
    """A result with the regret of each test query [Q], averaged over the cost weights.

    `added` are the new ones that the policy knew.
    """

    result: UnseenResult
    regret_Q: npt.NDArray[np.float64]
    added: tuple[Candidate, ...] = ()


@dataclass(frozen=True, eq=False)
class Bench:
    """What all results of a run share: its policy, the whole table, the resamples of test."""

    run: Run
    whole: WholeTable
    policy: GreedyPolicy

    @cached_property
    def scale(self) -> FeatureScale:
        """The scale with those that lend their descriptions to the new ones."""
        return lend_for_run(self.run, self.policy)

    @cached_property
    def weight_RQ(self) -> npt.NDArray[np.float64]:
        """The weights of the test queries in every resample."""
        recipe = self.run.recipe
        queries = int((self.whole.table.split_Q == "test").sum())
        return draw_resamples(queries, recipe.evaluation.bootstrap, recipe.seed)

    def measure(
        self, added: Sequence[Candidate], name: str, calls: int, paid: float = 0.0
    ) -> Measured:
        """Measure the policy on the test split of the whole table; who is not added is no choice.

        `paid` is what the calls cost in USD.
        """
        data, served = self.serve(added)
        return replace(self.make_result(data, served, name, calls, paid), added=tuple(added))

    def measure_users(self, measured: Measured, compared: Measured) -> list[UnseenUserResult]:
        """Measure the policy for every user of the run, with the candidates of a result added."""
        recipe, found = self.run.recipe, []
        for name, user in recipe.users.items():
            weight = user.cost_weight
            (data, own), (_, other) = (self.serve(one.added, user) for one in (measured, compared))
            ids = [one.id for one in data.table.candidates]
            utility_QK = compute_utility(data, Setting(weight, make_preference(user, ids)))
            probability_QK = own.compute_probabilities(data, weight)
            utility_Q = metrics.average_picks(utility_QK, probability_QK)
            before_Q = metrics.average_picks(utility_QK, other.compute_probabilities(data, weight))
            held_K = np.array([one in recipe.hold_out_candidates for one in ids])
            quality_Q = metrics.average_picks(data.table.score_QK, probability_QK)
            gain_Q = utility_Q - before_Q
            gain = make_estimate(float(gain_Q.mean()), self.weight_RQ @ gain_Q)
            found.append(
                UnseenUserResult(
                    user=name,
                    name=measured.result.name,
                    utility=float(utility_Q.mean()),
                    regret=float((find_best(utility_QK, data) - utility_Q).mean()),
                    quality=float(quality_Q.mean()),
                    share=float(probability_QK[:, held_K].sum(axis=1).mean()),
                    gain=None if measured is compared else gain,
                )
            )
        return found

    def serve(
        self, added: Sequence[Candidate], user: UserWeights | None = None
    ) -> tuple[RoutingData, ServedPolicy]:
        """Return the test split of the whole table and the policy with some candidates added.

        It decides for a user, or for nobody in particular.
        """
        run, whole = self.run, self.whole
        by_id = {one.id: one for one in (*run.prepared.candidates, *added)}
        test = whole.table.select_split("test")
        known_K = np.array([one.id in by_id for one in test.candidates])
        candidates = tuple(by_id[one.id] for one in test.candidates if one.id in by_id)
        features_KD = build_candidate_features(candidates, self.scale)
        data = RoutingData(
            table=test,
            features_QF=whole.features_QF[find_split(whole.table, "test")],
            candidate_features_KD=features_KD,
            cost_reference_usd=run.prepared.scale.cost_reference_usd,
            latency_reference_seconds=run.prepared.scale.latency_reference_seconds,
        )
        policy = self.policy
        if user is not None:
            preference = make_preference(user, [one.id for one in candidates])
            policy = replace(policy, preference=preference)
        return data, ServedPolicy(policy, features_KD, known_K)

    def measure_beside(self, beside: Run) -> Measured:
        """Measure a run that was trained with the held-out candidates, at the run's cost weights.

        Raises:
            RLRouteError: it was not, or is of another table.
        """
        test = beside.prepared.splits["test"]
        known = self.whole.table.select_split("test")
        same = [one.id for one in test.table.candidates] == [one.id for one in known.candidates]
        if not same or [one.id for one in test.table.queries] != [one.id for one in known.queries]:
            raise RLRouteError(
                f"{beside.folder}: --beside takes a run on the same table, trained with all of its "
                "candidates"
            )
        reference = self.run.prepared.scale.cost_reference_usd
        policy = ServedPolicy(
            open_policy(beside),
            test.candidate_features_KD,
            np.ones(len(known.candidates), dtype=np.bool_),
            weight_factor=beside.prepared.scale.cost_reference_usd / reference,
        )
        data = replace(test, cost_reference_usd=reference)
        return self.make_result(data, policy, f"trained with them ({beside.folder.name})", None, 0)

    def make_result(
        self, data: RoutingData, policy: ServedPolicy, name: str, calls: int | None, paid: float
    ) -> Measured:
        """Sweep the run's cost weights on a split of the whole table."""
        recipe = self.run.recipe
        weight_L = check_cost_weights(
            make_cost_weights(recipe.cost_weight, recipe.evaluation.cost_weights)
        )
        sweep: Sweep = sweep_policy(policy, data, weight_L)
        metrics = summarise_sweep(sweep, data, weight_L)
        held_K = np.array([one.id in recipe.hold_out_candidates for one in data.table.candidates])
        result = UnseenResult(
            name=name,
            calls=calls,
            calls_cost_usd=paid,
            aiq=metrics["aiq"],
            regret=metrics["regret_oracle"],
            quality=metrics["quality"],
            share=float(sweep.share_NK[:, held_K].sum(axis=1).mean()),
            regret_gap=None,
        )
        return Measured(result, sweep.regret_LQ.mean(axis=0))

    def compare(self, one: Measured, other: Measured) -> Estimate:
        """Return the regret of one minus that of another, with a paired 95% interval."""
        gap_Q = one.regret_Q - other.regret_Q
        return make_estimate(float(gap_Q.mean()), self.weight_RQ @ gap_Q)


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """All that was measured of a run: without the new ones, by number of calls, beside it."""

    bench: Bench
    measured: tuple[Measured, ...]


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """A policy that knows some of a table's candidates, by its own features of them.

    `weight_factor` turns a cost weight of the table's unit of cost into one of the policy's.
    """

    policy: GreedyPolicy
    features_KD: FloatArray
    known_K: Any
    weight_factor: float = 1.0
    name: str = "policy"

    def compute_probabilities(self, data: RoutingData, cost_weight: float) -> FloatArray:
        """Return one-hot rows over all candidates of the table [Q, K]."""
        table = data.table
        own = replace(
            data,
            candidate_features_KD=self.features_KD,
            table=replace(
                table,
                candidates=tuple(
                    one for one, known in zip(table.candidates, self.known_K, strict=True) if known
                ),
                present_QK=table.present_QK[:, self.known_K],
            ),
        )
        found_QK = np.zeros(table.present_QK.shape, dtype=np.float32)
        found_QK[:, self.known_K] = self.policy.compute_probabilities(
            own, cost_weight * self.weight_factor
        )
        return found_QK
