"""Synthetic outcome tables with a known optimum: item response, difficulty against ability.

What it is: queries of made-up words, candidates with prices, and for every pair the chance of
success `sigmoid(discrimination * (ability - difficulty))`. A query's difficulty is the mean
difficulty of its words, and a candidate's ability may differ from topic to topic, so both can be
read off the text: a router can learn all there is to know. What the best policy earns, and what an
oracle that sees the draws earns, are known exactly, at any cost weight.

What it leaves out: holes, and anything that real tables have and nobody planted; latency too, but
where `seconds_per_token` asks for it.

How to use: `made = make_irt_table(IrtTableConfig(queries=2000), seed=0)`, then `made.table` like
any table, `made.features_QF` for a router without encoder, `made.compute_best_value(0.5)`.
Everything is a hash of seed and coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlroute.config import StrictModel
from rlroute.data.splits import assign_splits
from rlroute.data.table import OutcomeTable
from rlroute.seeding import draw_uniform
from rlroute.types import (
    TOKENS_PER_PRICE,
    Candidate,
    FloatArray,
    IntArray,
    Prices,
    Query,
    RLRouteError,
    SplitName,
)

Float64Array = npt.NDArray[np.float64]
# Each candidate costs so many times the one below; the first 0.10 USD per million tokens.
PRICE_STEP, FIRST_PRICE = 2.0, 0.1
ANSWER_PRICE = 4.0  # an answer token's price in prompt tokens
PROMPT_TOKENS_PER_WORD = 2
ANSWER_TOKENS = (50, 250)  # from the first to below the second, the same for all candidates
WORD_SPREAD = 6.0  # difficulties of words lie so far apart; a mean of words varies less


class IrtTableConfig(StrictModel):
    """What a made table looks like. Ability, difficulty and specialty are on the same scale.

    `ability_step` lies between a candidate and the next dearer one; `specialty` is the largest
    deviation of an ability in one topic (0: plain item response, the ablest is ablest everywhere).
    """

    queries: int = Field(default=3000, ge=1)
    candidates: int = Field(default=5, ge=2, le=26)
    topics: int = Field(default=6, ge=1)
    words: int = Field(default=40, ge=2, description="vocabulary of a topic")
    length: int = Field(default=8, ge=1, description="words in a query")
    discrimination: float = Field(default=2.0, gt=0)
    ability_step: float = Field(default=0.4, ge=0)
    specialty: float = Field(default=1.5, ge=0)
    seconds_per_token: tuple[float, float] | None = Field(
        default=None,
        description="what the fastest and the slowest candidate take for an answer token; which is "
        "which has nothing to do with price. null: latencies are unknown",
    )


@dataclass(frozen=True)
class IrtTable:
    """A made table with what is hidden in real ones.

    `features_QF` counts words, divided by the length of the query (F = topics * words).
    `success_QK` is the chance of a score of 1; scores are 0 or 1, drawn independently.
    """

    table: OutcomeTable
    features_QF: FloatArray
    topic_Q: IntArray
    difficulty_Q: Float64Array
    ability_TK: Float64Array
    success_QK: Float64Array
    cost_reference_usd: float
    latency_reference_seconds: float

    def select_split(self, split: SplitName) -> IrtTable:
        """Return the queries of one split; the cost reference stays.

        Raises:
            RLRouteError: the split has no query.
        """
        rows = self.table.split_Q == split
        return replace(
            self,
            table=self.table.select_split(split),
            features_QF=self.features_QF[rows],
            topic_Q=self.topic_Q[rows],
            difficulty_Q=self.difficulty_Q[rows],
            success_QK=self.success_QK[rows],
        )

    def compute_policy_value(
        self, probability_QK: npt.ArrayLike, cost_weight: float, latency_weight: float = 0.0
    ) -> float:
        """Return the mean expected utility of a policy, over all draws of the scores."""
        utility_QK = self.expect_utility(cost_weight, latency_weight)
        return float((np.asarray(probability_QK, np.float64) * utility_QK).sum(1).mean())

    def compute_best_value(self, cost_weight: float, latency_weight: float = 0.0) -> float:
        """Return the mean expected utility of the best policy, which knows chances, not draws."""
        return float(self.expect_utility(cost_weight, latency_weight).max(1).mean())

    def expect_utility(self, cost_weight: float, latency_weight: float) -> Float64Array:
        """Return the expected utility of every pair [Q, K]; without latencies their weight is 0."""
        utility_QK = self.success_QK - cost_weight * self.normalise_cost()
        if latency_weight:
            seconds_QK = self.table.latency_seconds_QK.astype(np.float64)
            utility_QK -= latency_weight * seconds_QK / self.latency_reference_seconds
        return utility_QK

    def compute_oracle_value(self, cost_weight: float) -> float:
        """Return the mean expected utility of the oracle, which sees the draws of each query.

        The oracle takes the cheapest success, or else the cheapest failure: candidates stand in
        the order of their costs, and the i-th decides where all cheaper ones fail. Where a success
        costs more than it is worth, the cheapest failure stands in for it.
        """
        cost_QK = cost_weight * self.normalise_cost()
        order_QK = np.argsort(cost_QK, axis=1, kind="stable")
        success_QK = np.take_along_axis(self.success_QK, order_QK, axis=1)
        cost_QK = np.take_along_axis(cost_QK, order_QK, axis=1)
        failure_Q1 = -cost_QK[:, :1]
        all_fail_QK = np.cumprod(1 - success_QK, axis=1)
        cheaper_fail_QK = np.hstack((np.ones_like(failure_Q1), all_fail_QK[:, :-1]))
        value_QK = cheaper_fail_QK * success_QK * np.maximum(1 - cost_QK, failure_Q1)
        return float((value_QK.sum(1) + all_fail_QK[:, -1] * failure_Q1[:, 0]).mean())

    def normalise_cost(self) -> Float64Array:
        """Return the costs [Q, K] in units of the dearest candidate's mean train cost."""
        return self.table.cost_usd_QK.astype(np.float64) / self.cost_reference_usd


def make_irt_table(config: IrtTableConfig, seed: int) -> IrtTable:
    """Make a table with the splits of `assign_splits`; the same seed makes the same table.

    Raises:
        RLRouteError: so few queries that a split is empty.
    """
    index_Q = np.arange(config.queries)
    topic_Q, word_QL = draw_words(config, seed, index_Q)
    difficulty_Q = draw_difficulties(config, seed)[topic_Q[:, None], word_QL].mean(1)
    success_QK = compute_success(config, seed, topic_Q, word_QL)
    features_QF = count_words(config, topic_Q, word_QL)
    table = build_irt_table(config, seed, index_Q, topic_Q, word_QL, success_QK)
    train_Q = table.split_Q == "train"
    if set(table.split_Q.tolist()) != {"train", "val", "test"}:
        raise RLRouteError(f"irt table: {config.queries} queries leave a split empty; take more")
    reference = float(table.cost_usd_QK[train_Q].mean(0, dtype=np.float64).max())
    slowest = float(table.latency_seconds_QK[train_Q].mean(0, dtype=np.float64).max())
    ability_TK = draw_abilities(config, seed)
    return IrtTable(
        *(table, features_QF, topic_Q, difficulty_Q, ability_TK, success_QK),
        cost_reference_usd=reference,
        latency_reference_seconds=slowest,
    )


def make_irt_outcomes(config: IrtTableConfig, seed: int, index_Q: IntArray) -> OutcomeTable:
    """Return some queries of `make_irt_table(config, seed).table`, for tables too large to hold."""
    topic_Q, word_QL = draw_words(config, seed, index_Q)
    success_QK = compute_success(config, seed, topic_Q, word_QL)
    return build_irt_table(config, seed, index_Q, topic_Q, word_QL, success_QK)


def draw_words(config: IrtTableConfig, seed: int, index_Q: IntArray) -> tuple[IntArray, IntArray]:
    """Return the topic [Q] and the words [Q, L] of queries."""
    topic_Q = draw_below(config.topics, seed, "topic", index_Q)
    word_QL = draw_below(config.words, seed, "word", index_Q[:, None], np.arange(config.length))
    return topic_Q, word_QL


def compute_success(
    config: IrtTableConfig, seed: int, topic_Q: IntArray, word_QL: IntArray
) -> Float64Array:
    """Return the chance of a score of 1 of every pair [Q, K]."""
    difficulty_Q = draw_difficulties(config, seed)[topic_Q[:, None], word_QL].mean(1)
    ability_QK = draw_abilities(config, seed)[topic_Q]
    success_QK: Float64Array = 1 / (
        1 + np.exp(-config.discrimination * (ability_QK - difficulty_Q[:, None]))
    )
    return success_QK


def draw_below(limit: int, *coordinates: int | str | npt.NDArray[np.int64]) -> IntArray:
    """Return whole numbers from 0 to below `limit`, by coordinates."""
    return (draw_uniform("irt", *coordinates) * limit).astype(np.int64)


def draw_difficulties(config: IrtTableConfig, seed: int) -> Float64Array:
    """Return the difficulty of every word of every topic [T, V], around 0."""
    topic_T1, word_V = np.arange(config.topics)[:, None], np.arange(config.words)
    return WORD_SPREAD * (draw_uniform("irt", seed, "difficulty", topic_T1, word_V) - 0.5)


def draw_abilities(config: IrtTableConfig, seed: int) -> Float64Array:
    """Return the ability of every candidate in every topic [T, K]; on average the dearer the abler.

    The middle candidate has ability 0 but for its specialties.
    """
    step_K = np.arange(config.candidates) - (config.candidates - 1) / 2
    topic_T1 = np.arange(config.topics)[:, None]
    draw_TK = draw_uniform("irt", seed, "specialty", topic_T1, np.arange(config.candidates))
    return config.ability_step * step_K + config.specialty * (2 * draw_TK - 1)


def count_words(config: IrtTableConfig, topic_Q: IntArray, word_QL: IntArray) -> FloatArray:
    """Return how often each word stands in each query, over the query's length [Q, T * V]."""
    features_QF = np.zeros((len(topic_Q), config.topics * config.words), np.float32)
    column_QL = topic_Q[:, None] * config.words + word_QL
    np.add.at(features_QF, (np.arange(len(topic_Q))[:, None], column_QL), 1 / config.length)
    return features_QF


def build_irt_table(
    config: IrtTableConfig,
    seed: int,
    index_Q: IntArray,
    topic_Q: IntArray,
    word_QL: IntArray,
    success_QK: Float64Array,
) -> OutcomeTable:
    """Draw scores and answer lengths, and put them into a table with texts, prices and splits."""
    queries, candidates = success_QK.shape
    index_Q1, column_K = index_Q[:, None], np.arange(candidates)
    score_QK = draw_uniform("irt", seed, "score", index_Q1, column_K) < success_QK
    price_K = FIRST_PRICE * PRICE_STEP**column_K
    low, high = ANSWER_TOKENS
    answer_Q1 = low + draw_below(high - low, seed, "answer", index_Q1)
    prompt = config.length * PROMPT_TOKENS_PER_WORD
    cost_usd_QK = (prompt + ANSWER_PRICE * answer_Q1) * price_K / TOKENS_PER_PRICE
    texts = [
        " ".join(f"topic{topic}word{word}" for word in row)
        for topic, row in zip(topic_Q.tolist(), word_QL.tolist(), strict=True)
    ]
    seconds_QK = np.full((queries, candidates), np.nan, np.float32)
    if config.seconds_per_token is not None:
        fastest, slowest = config.seconds_per_token
        place_K = np.argsort(np.argsort(draw_uniform("irt", seed, "speed", column_K)))
        rate_K = fastest * (slowest / fastest) ** (place_K / (candidates - 1))
        seconds_QK = (answer_Q1 * rate_K).astype(np.float32)
    split_Q = assign_splits(texts, seed=seed)
    shape = (queries, candidates)
    return OutcomeTable(
        name="irt",
        queries=tuple(
            Query(f"irt-{q:07}", text, f"topic{topic}", "irt")
            for q, text, topic in zip(index_Q.tolist(), texts, topic_Q.tolist(), strict=True)
        ),
        candidates=tuple(
            Candidate(f"candidate-{chr(97 + k)}", Prices(float(price), float(ANSWER_PRICE * price)))
            for k, price in enumerate(price_K)
        ),
        score_QK=score_QK.astype(np.float32),
        cost_usd_QK=cost_usd_QK.astype(np.float32),
        present_QK=np.ones(shape, np.bool_),
        prompt_tokens_QK=np.full(shape, prompt, np.float32),
        completion_tokens_QK=np.broadcast_to(answer_Q1, shape).astype(np.float32),
        latency_seconds_QK=seconds_QK,
        split_Q=split_Q,
    )
