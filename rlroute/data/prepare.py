"""From a table on disk to splits ready for policies: encode, measure profiles, cut.

How to use: `prepare_table(read_table("pocket"), TfidfConfig(), ProfileConfig(), seed=0)` and of
what it returns `.splits["train"]`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlroute.data.embedding_cache import encode_cached
from rlroute.data.encoder_config import EncoderConfig, OpenaiConfig
from rlroute.data.encoders import Encoder, fit_encoder
from rlroute.data.hand_features import JoinedEncoder
from rlroute.data.routing_data import (
    FeatureScale,
    ProfileConfig,
    RoutingData,
    find_split,
    fit_clusters,
    fit_feature_scale,
    measure_profiles,
    prepare_splits,
)
from rlroute.data.table import OutcomeTable
from rlroute.types import Candidate, FloatArray, SplitName

CACHE_VARIABLE = "RLROUTE_CACHE"
QUICK_KINDS = ("tfidf", "features", "word_vectors")  # faster than reading a cache


@dataclass(frozen=True)
class PreparedTable:
    """A table's splits with all that was fitted on its train split.

    `centroids_CF` are the centres of the query clusters that the profiles are measured on.
    """

    encoder: Encoder
    centroids_CF: FloatArray
    candidates: tuple[Candidate, ...]
    scale: FeatureScale
    splits: dict[SplitName, RoutingData]


def prepare_table(
    table: OutcomeTable,
    encoder_config: EncoderConfig,
    profile_config: ProfileConfig,
    seed: int,
    *,
    latency: bool = False,
) -> PreparedTable:
    """Fit encoder, profiles and feature scale on the train split, and encode every query.

    With `latency` policies see latencies; the table must know all of them
    (`rlroute.data.latencies.require_latencies`).

    Raises:
        RLRouteError: a split is empty, a candidate has no train outcome, or an extra is missing.
    """
    table = table.group_splits()
    train = table.select_split("train")
    encoder = fit_encoder(encoder_config, train.texts, seed)
    features_QF = encode_texts(encoder, table.texts)
    train_features_QF = features_QF[find_split(table, "train")]
    centroids_CF = fit_clusters(train_features_QF, profile_config, seed)
    candidates = measure_profiles(train, train_features_QF, centroids_CF, latency=latency)
    scale = fit_feature_scale(candidates, latency=latency)
    splits = prepare_splits(table, features_QF, candidates, scale)
    return PreparedTable(encoder, centroids_CF, candidates, scale, splits)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """Return the embeddings [N, F]; those of transformers and endpoints are cached on disk.

    What an endpoint was paid for is written batch by batch, so that a failure loses one of them at
    most. The cache folder is `$RLROUTE_CACHE`, by default `~/.cache/rlroute`.
    """
    if isinstance(encoder, JoinedEncoder):
        return encoder.join(encode_texts(encoder.base, texts), texts)
    if encoder.kind in QUICK_KINDS:
        return encoder.encode(texts)
    root = Path(os.environ.get(CACHE_VARIABLE, Path.home() / ".cache" / "rlroute"))
    config = encoder.config
    batch = config.batch_size if isinstance(config, OpenaiConfig) else None
    return encode_cached(encoder, texts, root / "embeddings", texts_per_shard=batch)


def compute_table_digest(table: OutcomeTable, *, latency: bool = False) -> str:
    """Return a SHA-256 of what a table says: texts, splits, candidates with prices, outcomes.

    A run keeps it, so that an evaluation on a table that has changed since is refused. With
    `latency` that counts as an outcome too.
    """
    digest = hashlib.sha256()
    for query, split in zip(table.queries, table.split_Q, strict=True):
        digest.update(f"{query.id}\0{query.task}\0{query.text}\0{split}\0".encode())
    for candidate in table.candidates:
        prices = candidate.prices
        digest.update(f"{candidate.id}\0".encode())
        digest.update(f"{prices.input}\0{prices.output}\0{prices.per_call}\0".encode())
    arrays = [table.score_QK, table.cost_usd_QK, *([table.latency_seconds_QK] if latency else [])]
    for array_QK in arrays:
        digest.update(np.nan_to_num(array_QK, nan=-1.0).tobytes())
    return digest.hexdigest()
