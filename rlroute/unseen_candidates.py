"""Candidates that a policy was never trained on, added by their profiles, on the test split.

`evaluate_unseen` adds a run's `hold_out_candidates` after n calls each on train queries (and after
all of them), and measures policy and profile on the test split of the whole table: AIQ, mean regret
to the oracle over the cost weights, and how often the new ones are picked. `beside` is a run that
was trained with them.

Cost weights and regrets are in the units of the run itself: quality given up per mean cost of the
dearest candidate that it was trained with. A run beside it is asked at the same price of money.

What it leaves out: the profiles (`rlroute.data.candidate_profiles`), which queries are asked
(`rlroute.data.profile_calls`), adding a candidate to an exported router (`rlroute.router`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from rich.table import Table

from rlroute.data.candidate_profiles import ProfileCalls, estimate_profile, fit_prior
from rlroute.data.prepare import encode_texts
from rlroute.data.profile_calls import choose_queries, gather_calls
from rlroute.data.route_profiles import (
    ProfileSwitches,
    draw_random_vectors,
    propagate,
    scale_min_max,
)
from rlroute.data.routing_data import (
    RoutingData,
    assign_clusters,
    build_candidate_features,
    find_split,
    get_profile,
    measure_profiles,
)
from rlroute.data.table import OutcomeTable
from rlroute.evaluation.evaluate import compute_validation_metrics
from rlroute.evaluation.metrics import compute_selection_shares
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.table_baselines_item_response import (
    ItemResponse,
    compute_information,
    compute_success,
    estimate_ability,
)
from rlroute.trainers.decision import make_cost_weights
from rlroute.trainers.recipe import UnseenConfig
from rlroute.trainers.run_folder import Run, load_best, open_table
from rlroute.types import Candidate, FloatArray, IntArray, Profile, RLRouteError

SAMPLED_TEXTS = 32  # queries that a text representation quotes per candidate
ALL_CALLS = "all"


@dataclass(frozen=True)
class UnseenResult:
    """How a policy does on test with the new candidates; costs in USD.

    `calls` is how many calls each new candidate's profile is from, None where the policy was
    trained with it. `share` is how often one of them is picked, over all cost weights.
    """

    name: str
    calls: int | None
    calls_cost_usd: float
    aiq: float
    regret: float
    quality: float
    share: float


@dataclass(frozen=True, eq=False)
class WholeTable:
    """The table of a run with the candidates that were held out, embedded by the run's encoder."""

    table: OutcomeTable
    features_QF: FloatArray
    train_cluster_Q: IntArray

    @property
    def train(self) -> OutcomeTable:
        """The train split."""
        return self.table.select_split("train")

    @property
    def train_features_QF(self) -> FloatArray:
        """The embeddings of the train split."""
        return self.features_QF[find_split(self.table, "train")]


def open_whole_table(run: Run) -> WholeTable:
    """Read the table of a run as it would be had nobody been held out."""
    table = open_table(run.recipe.model_copy(update={"hold_out_candidates": ()})).table
    table = table.group_splits()
    features_QF = encode_texts(run.prepared.encoder, table.texts)
    train_QF = features_QF[find_split(table, "train")]
    return WholeTable(table, features_QF, assign_clusters(train_QF, run.prepared.centroids_CF))


def evaluate_unseen(run: Run, beside: Run | None = None) -> list[UnseenResult]:
    """Measure a run's policy with its held-out candidates added, and a run trained with them.

    Raises:
        RLRouteError: nobody was held out, or the run beside it is of another table or candidates.
    """
    held = run.recipe.hold_out_candidates
    if not held:
        raise RLRouteError(f"{run.folder}: trained with all candidates of its table")
    config = run.recipe.profile.unseen or UnseenConfig()
    whole, seed = open_whole_table(run), run.recipe.seed
    policy = GreedyPolicy(load_best(run)[0])
    found = [measure(run, whole, policy, (), "without them", 0)]
    numbers: list[int | str] = [*dict.fromkeys(config.calls), ALL_CALLS]
    for number in numbers:
        added = [profile_candidate(run, whole, one, number, config, seed) for one in held]
        known = tuple(candidate for candidate, _ in added)
        paid = sum(calls.cost_usd for _, calls in added)
        asked = max(len(calls) for _, calls in added)
        name = "all train queries" if number == ALL_CALLS else f"{number} calls"
        found.append(measure(run, whole, policy, known, name, asked, paid))
    if beside is not None:
        found.append(measure_beside(run, whole, beside))
    return found


def profile_candidate(
    run: Run,
    whole: WholeTable,
    candidate_id: str,
    number: int | str,
    config: UnseenConfig,
    seed: int,
) -> tuple[Candidate, ProfileCalls]:
    """Return a held-out candidate with a profile from so many calls, and the calls."""
    train = whole.train
    ids = [candidate.id for candidate in train.candidates]
    column = ids.index(candidate_id)
    held_Q = np.flatnonzero(train.present_QK[:, column])
    if number == ALL_CALLS:
        alone = train.select_candidates([candidate_id])
        calls = gather_calls(train, whole.train_cluster_Q, candidate_id, held_Q)
        measured = measure_profiles(
            alone, whole.train_features_QF[held_Q], run.prepared.centroids_CF
        )
        return measured[0], calls
    response = None
    if config.design == "information" and number:
        response = ItemResponse(run.prepared.splits["train"], run.prepared.splits["val"])
    rows_N = held_Q[choose_rows(whole, held_Q, int(number), config, seed, response)]
    calls = gather_calls(train, whole.train_cluster_Q, candidate_id, rows_N)
    candidate = train.candidates[column]
    extra_KE, extra_E = describe_further(run, whole, candidate, rows_N, calls, config, seed)
    factor_seed = seed if config.learning == "trained" else None
    prior = fit_prior(run.prepared.candidates, extra_KE, factor_seed)
    profile = estimate_profile(candidate, prior, calls, extra_E)
    if response is not None:
        profile = follow_ability(profile, response, whole, rows_N, calls)
    return replace(candidate, profile=profile), calls


def choose_rows(
    whole: WholeTable,
    held_Q: IntArray,
    number: int,
    config: UnseenConfig,
    seed: int,
    response: ItemResponse | None,
) -> IntArray:
    """Return which of the queries that the candidate has outcomes for are asked."""
    group_Q: Any = whole.train_cluster_Q[held_Q]
    if config.design == "aptitude":
        queries = whole.train.queries
        group_Q = np.array([queries[row].task for row in held_Q.tolist()])
    information_Q = None
    if response is not None:
        slope_Q, difficulty_Q, ability_K = response.describe(whole.train_features_QF[held_Q])
        # what the calls tell if the new one is as able as the known ones are on average
        information_Q = compute_information(slope_Q, difficulty_Q, [ability_K.mean()])[:, 0]
    design = "stratified" if config.design == "information" and not number else config.design
    return choose_queries(design, number, group_Q, seed, information_Q)


def follow_ability(
    profile: Profile,
    response: ItemResponse,
    whole: WholeTable,
    rows_N: IntArray,
    calls: ProfileCalls,
) -> Profile:
    """Return the profile with the scores that an ability estimated from the calls stands for."""
    slope_Q, difficulty_Q, ability_K = response.describe(whole.train_features_QF)
    ability = estimate_ability(
        slope_Q[rows_N],
        difficulty_Q[rows_N],
        calls.score_N,
        float(ability_K.mean()),
        float(ability_K.std()),
    )
    success_Q = compute_success(slope_Q, difficulty_Q, [ability])[:, 0]
    count_C = np.bincount(whole.train_cluster_Q, minlength=len(profile.score_C))
    total_C = np.bincount(whole.train_cluster_Q, weights=success_Q, minlength=len(count_C))
    score_C = np.where(count_C > 0, total_C / np.maximum(count_C, 1), success_Q.mean())
    return replace(profile, mean_score=float(success_Q.mean()), score_C=score_C.astype(np.float32))


# --- Further columns of a description -------------------------------------------------------------


def describe_further(
    run: Run,
    whole: WholeTable,
    candidate: Candidate,
    rows_N: IntArray,
    calls: ProfileCalls,
    config: ProfileSwitches,
    seed: int,
) -> tuple[FloatArray | None, Any]:
    """Return what the switches add to the descriptions of the known [K, E] and of the new one [E].

    Raises:
        RLRouteError: a representation that says nothing on this table.
    """
    known = run.prepared.candidates
    if config.representation == "prices":
        return None, ()
    if config.representation == "random":
        drawn = draw_random_vectors([*(one.id for one in known), candidate.id], seed)
        return drawn[:-1].astype(np.float32), drawn[-1]
    # the new one's own vector: what the calls say by prices alone
    plain = estimate_profile(candidate, fit_prior(known), calls)
    score_KC = np.array([get_profile(one).score_C for one in known] + [plain.score_C])
    vector_KE: Any = score_KC
    cluster_CE: Any = np.eye(score_KC.shape[1])
    if config.representation == "text":
        vector_KE = embed_texts(run, whole, candidate, rows_N)
        cluster_CE = run.prepared.centroids_CF
    if config.form == "graph":
        vector_KE = propagate(vector_KE, cluster_CE, scale_min_max(score_KC), config.hops)
    return vector_KE[:-1].astype(np.float32), vector_KE[-1]


def embed_texts(run: Run, whole: WholeTable, candidate: Candidate, rows_N: IntArray) -> Any:
    """Return the embedded description and solved queries of the known and the new one [K + 1, F].

    A text without a word is the zero vector.
    """
    train = whole.train
    ids = [one.id for one in train.candidates]
    everything = np.arange(len(train.queries))
    texts = []
    for one in [*run.prepared.candidates, candidate]:
        asked_N = rows_N if one.id == candidate.id else everything
        column = ids.index(one.id)
        solved_N = asked_N[np.nan_to_num(train.score_QK[asked_N, column]) > 0.5]
        rows = solved_N[choose_queries("random", SAMPLED_TEXTS, solved_N, run.recipe.seed)]
        quoted = [train.queries[row].text for row in rows.tolist()]
        texts.append("\n".join([one.description, *quoted]).strip())
    filled = [place for place, text in enumerate(texts) if text]
    vector_KF = np.zeros((len(texts), run.prepared.encoder.dimension))
    if filled:
        vector_KF[filled] = encode_texts(run.prepared.encoder, [texts[place] for place in filled])
    return vector_KF


# --- Measuring ------------------------------------------------------------------------------------


def measure(
    run: Run,
    whole: WholeTable,
    policy: GreedyPolicy,
    added: Sequence[Candidate],
    name: str,
    calls: int | None,
    paid: float = 0.0,
) -> UnseenResult:
    """Measure a policy on the test split of the whole table; who is not added is never picked."""
    by_id = {one.id: one for one in (*run.prepared.candidates, *added)}
    test = whole.table.select_split("test")
    known_K = np.array([one.id in by_id for one in test.candidates])
    candidates = tuple(by_id[one.id] for one in test.candidates if one.id in by_id)
    features_KD = build_candidate_features(candidates, run.prepared.scale)
    data = RoutingData(
        table=test,
        features_QF=whole.features_QF[find_split(whole.table, "test")],
        candidate_features_KD=features_KD,
        cost_reference_usd=run.prepared.scale.cost_reference_usd,
    )
    served = ServedPolicy(policy, features_KD, known_K)
    return make_result(run, data, served, name, calls, paid)


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """A policy that knows some of a table's candidates, by its own features of them.

    `weight_factor` turns a cost weight of the table's unit of cost into one of the policy's.
    `share_by_weight` keeps how often each candidate was picked [K] at the weights asked so far.
    """

    policy: GreedyPolicy
    features_KD: FloatArray
    known_K: Any
    weight_factor: float = 1.0
    name: str = "policy"
    share_by_weight: dict[float, Any] = field(default_factory=dict)

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
        weight = cost_weight * self.weight_factor
        found_QK[:, self.known_K] = self.policy.compute_probabilities(own, weight)
        self.share_by_weight[cost_weight] = compute_selection_shares(found_QK)
        return found_QK


def make_result(
    run: Run,
    data: RoutingData,
    policy: ServedPolicy,
    name: str,
    calls: int | None,
    paid: float,
) -> UnseenResult:
    """Sweep the run's cost weights on a split of the whole table."""
    recipe = run.recipe
    weights = make_cost_weights(recipe.cost_weight, recipe.evaluation.cost_weights)
    metrics = compute_validation_metrics(policy, data, weights)
    held_K = np.array([one.id in recipe.hold_out_candidates for one in data.table.candidates])
    shares = [share_K[held_K].sum() for share_K in policy.share_by_weight.values()]
    return UnseenResult(
        name=name,
        calls=calls,
        calls_cost_usd=paid,
        aiq=metrics["aiq"],
        regret=metrics["regret_oracle"],
        quality=metrics["quality"],
        share=float(np.mean(shares)),
    )


def measure_beside(run: Run, whole: WholeTable, beside: Run) -> UnseenResult:
    """Measure a run that was trained with the held-out candidates, at the run's cost weights.

    Raises:
        RLRouteError: it was not, or is of another table.
    """
    test = beside.prepared.splits["test"]
    known = whole.table.select_split("test")
    same = [one.id for one in test.table.candidates] == [one.id for one in known.candidates]
    if not same or [one.id for one in test.table.queries] != [one.id for one in known.queries]:
        raise RLRouteError(
            f"{beside.folder}: --beside takes a run on the same table, trained with all of its "
            "candidates"
        )
    reference = run.prepared.scale.cost_reference_usd
    policy = ServedPolicy(
        GreedyPolicy(load_best(beside)[0]),
        test.candidate_features_KD,
        np.ones(len(known.candidates), dtype=np.bool_),
        weight_factor=beside.prepared.scale.cost_reference_usd / reference,
    )
    data = replace(test, cost_reference_usd=reference)
    return make_result(run, data, policy, f"trained with them ({beside.folder.name})", None, 0.0)


def render_unseen(results: Sequence[UnseenResult], held: Sequence[str]) -> Table:
    """Return the results as a table for the console."""
    table = Table(title=f"never trained on: {', '.join(held)}")
    for column in ("policy", "AIQ", "regret", "quality at weight 0", "picked", "calls cost USD"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for one in results:
        paid = f"{one.calls_cost_usd:.4f}" if one.calls else "-"
        table.add_row(
            one.name,
            f"{one.aiq:.4f}",
            f"{one.regret:.4f}",
            f"{one.quality:.4f}",
            f"{one.share:.1%}",
            paid,
        )
    return table


def dump_unseen(results: Sequence[UnseenResult]) -> list[dict[str, Any]]:
    """Return the results as plain values for JSON."""
    return [asdict(one) for one in results]
