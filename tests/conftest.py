"""What tests of several packages share: one thread, W&B offline, a tiny table and router."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

SCRATCH = Path(tempfile.mkdtemp(prefix="rlroute-tests-"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
for kind in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
    os.environ[f"WANDB_{kind}"] = str(SCRATCH / f"wandb_{kind.lower()}")
    Path(os.environ[f"WANDB_{kind}"]).mkdir()

import torch  # noqa: E402 - the threads are set before

from rlroute.data.encoders import TfidfConfig  # noqa: E402
from rlroute.data.routing_data import (  # noqa: E402
    ProfileConfig,
    RoutingData,
    fit_clusters,
    fit_feature_scale,
    measure_profiles,
    prepare_splits,
)
from rlroute.data.table import OutcomeTable  # noqa: E402
from rlroute.data.tfidf_encoder import TfidfEncoder  # noqa: E402
from rlroute.export.bundle import BundleContents  # noqa: E402
from rlroute.policies.mlp import CandidateScorer, ScorerConfig  # noqa: E402
from rlroute.types import (  # noqa: E402
    Candidate,
    Limits,
    Prices,
    Profile,
    Query,
    SplitName,
)

torch.set_num_threads(1)

# Scores and costs in USD of the candidates large, small, tool: the tool solves sums for nothing.
SCORE_QK = [
    [1.0, 0.0, 1.0],
    [1.0, 1.0, 0.0],
    [1.0, 0.5, 1.0],
    [0.0, 1.0, 0.0],
    [1.0, 0.0, 1.0],
    [0.5, 0.5, 0.0],
    [1.0, 0.0, 1.0],
    [1.0, 1.0, 0.0],
    [0.0, 0.0, 1.0],
    [1.0, 1.0, 0.0],
    [1.0, 0.25, 1.0],
    [0.0, 1.0, 0.0],
]
COST_USD_QK = [
    [0.004, 0.001, 0.0],
    [0.003, 0.002, 0.0],
    [0.005, 0.001, 0.0],
    [0.004, 0.001, 0.0],
    [0.006, 0.001, 0.0],
    [0.002, 0.002, 0.0],
    [0.004, 0.001, 0.0],
    [0.005, 0.001, 0.0],
    [0.004, 0.002, 0.0],
    [0.003, 0.001, 0.0],
    [0.004, 0.001, 0.0],
    [0.004, 0.001, 0.0],
]
HOLE = (1, 2)  # the second query has no outcome of the tool

hypothesis.settings.register_profile("rlroute", deadline=None)  # no test is about time
hypothesis.settings.load_profile("rlroute")


@pytest.fixture(scope="session")
def tiny_table() -> OutcomeTable:
    """12 queries x 3 candidates; queries 0-5 train, 6-8 val, 9-11 test; one hole in train."""
    score_QK = np.array(SCORE_QK, dtype=np.float32)
    cost_usd_QK = np.array(COST_USD_QK, dtype=np.float32)
    present_QK = np.ones(score_QK.shape, dtype=np.bool_)
    present_QK[HOLE] = False
    score_QK[HOLE] = cost_usd_QK[HOLE] = np.nan
    tokens_QK = np.where(present_QK, np.float32(10), np.float32(np.nan))
    return OutcomeTable(
        name="tiny",
        queries=tuple(
            Query(f"q{row:02}", f"question {row}", ("sums", "words")[row % 2], "tiny")
            for row in range(12)
        ),
        candidates=(
            Candidate("large", Prices(2.0, 8.0)),
            Candidate("small", Prices(0.5, 1.0)),
            Candidate("tool", Prices(0.0, 0.0), kind="tool"),
        ),
        score_QK=score_QK,
        cost_usd_QK=cost_usd_QK,
        present_QK=present_QK,
        prompt_tokens_QK=tokens_QK,
        completion_tokens_QK=tokens_QK.copy(),
        latency_seconds_QK=np.full(score_QK.shape, np.nan, dtype=np.float32),
        split_Q=np.array(["train"] * 6 + ["val"] * 3 + ["test"] * 3),
    )


@pytest.fixture(scope="session")
def tiny_splits(tiny_table: OutcomeTable) -> dict[SplitName, RoutingData]:
    """The splits of the tiny table with 4 features per query, rows of length 1."""
    features_QF = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    features_QF /= np.linalg.norm(features_QF, axis=1, keepdims=True)
    train_QF = features_QF[tiny_table.split_Q == "train"]
    train = tiny_table.select_split("train")
    centroids_CF = fit_clusters(train_QF, ProfileConfig(clusters=2), seed=0)
    candidates = measure_profiles(train, train_QF, centroids_CF)
    scale = fit_feature_scale(candidates)
    return prepare_splits(tiny_table, features_QF, candidates, scale)


@pytest.fixture(scope="session")
def tiny_data(tiny_splits: dict[SplitName, RoutingData]) -> RoutingData:
    """The train split of the tiny table: 6 queries, the tool is absent for the second."""
    return tiny_splits["train"]


CLUSTERS = 3
SUBJECTS = ["birds", "hills", "primes", "rivers", "verbs", "sums"]
FORMS = ["how many {} are there", "name three {}", "explain {} to a child", "are {} old", "list {}"]
TRAIN_TEXTS = [form.format(subject) for subject in SUBJECTS for form in FORMS]


def make_candidates(count: int) -> tuple[Candidate, ...]:
    draw = np.random.default_rng(3)
    candidates = []
    for k in range(count):
        mean_cost = float(2e-5 * 3.0**k)
        profile = Profile(
            mean_score=0.3 + 0.1 * k,
            mean_cost_usd=mean_cost,
            score_C=draw.uniform(0.2, 0.9, CLUSTERS).astype(np.float32),
            cost_usd_C=(mean_cost * draw.uniform(0.5, 2.0, CLUSTERS)).astype(np.float32),
        )
        prices = Prices(input=0.1 * 3**k, output=0.4 * 3**k, per_call=1e-6 * k)
        limits = Limits(context_tokens=4096 if k else None)
        candidates.append(
            Candidate(f"model-{k}", prices, "model", f"Größe {k} | 小", limits, profile)
        )
    return tuple(candidates)


@pytest.fixture(scope="session")
def router_contents() -> BundleContents:
    """A small untrained router whose random weights choose differently from query to query."""
    encoder = TfidfEncoder.fit(TfidfConfig(dimension=16), TRAIN_TEXTS, seed=0)
    candidates = make_candidates(4)
    scale = fit_feature_scale(candidates)
    config = ScorerConfig(features=encoder.dimension, clusters=CLUSTERS, hidden=32, dropout=0.5)
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.4
        for name, value in CandidateScorer(config).state_dict().items()
    }
    summary = {
        "table": "birds",
        "queries": {"train": 30, "val": 10, "test": 12},
        "algorithm": "grpo",
        "seed": 3,
        "updates": 40,
        "validation": {"update": 25, "metric": "aiq", "aiq": 0.71234},
    }
    return BundleContents(
        scorer=config,
        weights=weights,
        encoder=encoder,
        candidates=candidates,
        scale=scale,
        cost_weight_min=0.0,
        cost_weight_max=10.0,
        summary=summary,
        recipe_yaml="table: birds\nseed: 3\n",
    )
