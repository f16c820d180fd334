"""From a table to what streams are drawn from: embeddings, short contexts, clusters, a cost unit.

Linear learners keep a matrix per candidate, so their contexts are short: the first `dimension`
principal components of the embeddings (fitted on the train split, texts alone), scaled to a mean
squared length of 1, and a constant 1. No outcome goes into anything that a learner sees; the one
number taken from outcomes is the unit of cost, the mean cost of the dearest candidate.

What it leaves out: profiles. Learners that need them measure them on the stream and pay for it.

How to use: `features_QE = encode_queries(table, TfidfConfig(), seed=0)`, then
`prepare_stream(table, features_QE, dimension=64, clusters=32, seed=0)`.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rlroute.bandits.base import Float64Array
from rlroute.bandits.stream import StreamData
from rlroute.data.encoders import Encoder, EncoderConfig, fit_encoder
from rlroute.data.prepare import encode_texts
from rlroute.data.routing_data import ProfileConfig, fit_clusters
from rlroute.data.table import OutcomeTable, list_arrays
from rlroute.seeding import derive_seed
from rlroute.types import FloatArray, RLRouteError


def fit_stream_encoder(table: OutcomeTable, config: EncoderConfig, seed: int) -> Encoder:
    """Return the encoder of a table's streams, fitted on its train split.

    Raises:
        RLRouteError: there is no train split, or an extra is missing.
    """
    texts = [query.text for query in table.select_split("train").queries]
    return fit_encoder(config, texts, seed)


def encode_queries(table: OutcomeTable, config: EncoderConfig, seed: int) -> FloatArray:
    """Return the embeddings [Q, E] of a table's queries.

    Raises:
        RLRouteError: as `fit_stream_encoder`.
    """
    encoder = fit_stream_encoder(table, config, seed)
    return encode_texts(encoder, [query.text for query in table.queries])


def prepare_stream(
    table: OutcomeTable,
    features_QE: FloatArray,
    *,
    dimension: int,
    clusters: int,
    seed: int,
    success_QK: Float64Array | None = None,
) -> StreamData:
    """Fit what streams need on a table's queries; candidates are put in the order of their ids.

    Raises:
        RLRouteError: all candidates are free.
    """
    train_Q = table.split_Q == "train"
    order_K = np.argsort(np.array([candidate.id for candidate in table.candidates]), kind="stable")
    if success_QK is not None:
        success_QK = success_QK[:, order_K]
    table = dataclasses.replace(
        table,
        candidates=tuple(table.candidates[k] for k in order_K),
        **{name: getattr(table, name)[:, order_K] for name in list_arrays()},
    )
    return StreamData(
        table=table,
        context_QF=ContextReducer(features_QE[train_Q], dimension, seed).reduce(features_QE),
        features_QE=features_QE,
        centroids_CE=fit_clusters(features_QE[train_Q], ProfileConfig(clusters=clusters), seed),
        cost_reference_usd=measure_reference(table),
        success_QK=success_QK,
    )


def measure_reference(table: OutcomeTable) -> float:
    """Return the mean cost of the dearest candidate in USD.

    Raises:
        RLRouteError: nobody costs anything.
    """
    reference = float(np.nanmax(np.nanmean(table.cost_usd_QK, axis=0, dtype=np.float64)))
    if reference <= 0:
        raise RLRouteError(f"{table.name}: all candidates cost 0 USD: nothing to route for")
    return reference


class ContextReducer:
    """From embeddings to short contexts: at most `dimension` components and a constant 1.

    The components are fitted on the rows that are handed in; `features` is a context's length.
    """

    def __init__(self, train_QE: FloatArray, dimension: int, seed: int) -> None:
        from sklearn.decomposition import PCA

        train64_QE = train_QE.astype(np.float64)
        count = min(dimension, *train_QE.shape[::-1])
        self.model = PCA(count, random_state=derive_seed(seed, "contexts"))
        self.model.fit(train64_QE)
        self.features = count + 1
        length = float(np.sqrt((self.model.transform(train64_QE) ** 2).sum(axis=1).mean()))
        self.length = length if length > 0 else 1.0

    def reduce(self, features_QE: FloatArray) -> Float64Array:
        """Return the contexts [Q, features] of embeddings."""
        reduced_QF = self.model.transform(features_QE.astype(np.float64)) / self.length
        return np.hstack([reduced_QF, np.ones((len(reduced_QF), 1))])
