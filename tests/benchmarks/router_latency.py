"""Time of a decision of an exported router, with and without encoding the text.

    python tests/benchmarks/router_latency.py my-router
    python tests/benchmarks/router_latency.py pocket --threads 1

The argument is a folder that `rlroute export` wrote, or a table (a folder, or the name of one that
ships): its encoder and profiles are then fitted and the policy keeps its first weights, which take
the same time as trained ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from rlroute import Router
from rlroute.data.encoders import TfidfConfig
from rlroute.data.prepare import prepare_table
from rlroute.data.routing_data import ProfileConfig
from rlroute.data.table import read_table
from rlroute.export.bundle import MANIFEST_FILE, BundleContents, write_bundle
from rlroute.policies.mlp import CandidateScorer, ScorerConfig

QUESTIONS = [
    "How many primes are below one hundred, and which of them are of the form 4 n + 1?",
    "Sort these words by their last letter: birds, hills, rivers, verbs, sums.",
    "A train leaves at 10:15 and arrives at 13:40. For how long does it travel, in minutes?",
    "Explain to a child why the sea looks blue on a clear day. " * 10,
]


def main() -> None:
    """Print p50 and p99 of `route` and `route_features` in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", help="exported router, or table")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=3000, help="decisions to time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = QUESTIONS
    if (Path(arguments.source) / MANIFEST_FILE).exists():
        router = Router.load(arguments.source)
    else:
        texts = [query.text for query in read_table(arguments.source).select_split("test").queries]
        with tempfile.TemporaryDirectory() as folder:
            write_bundle(make_contents(arguments.source), Path(folder) / "router")
            router = Router.load(Path(folder) / "router")
    features_QF = router._encoder.encode(texts[:200])
    print(
        f"{len(router.candidates)} candidates, {features_QF.shape[1]} features, "
        f"{arguments.threads} thread(s), {arguments.repeats} decisions"
    )
    weight = sum(router.cost_weight_range) / 2
    decisions: dict[str, Callable[[int], object]] = {
        "route": lambda n: router.route(texts[n % len(texts)], cost_weight=weight),
        "route_features": lambda n: router.route_features(
            features_QF[n % len(features_QF)], cost_weight=weight
        ),
    }
    for name, decide in decisions.items():
        p50, p99 = measure(decide, arguments.repeats)
        print(f"{name:<15} p50 {p50:.3f} ms   p99 {p99:.3f} ms")


def make_contents(table_name: str) -> BundleContents:
    """Return an untrained router for a table."""
    prepared = prepare_table(read_table(table_name), TfidfConfig(), ProfileConfig(), seed=0)
    config = ScorerConfig(
        features=prepared.encoder.dimension,
        clusters=len(prepared.centroids_CF),
    )
    summary = {
        "table": table_name,
        "queries": {name: len(data.features_QF) for name, data in prepared.splits.items()},
        "algorithm": "none",
        "seed": 0,
        "updates": 0,
        "validation": {"update": 0, "metric": "none"},
    }
    return BundleContents(
        scorer=config,
        weights=CandidateScorer(config).state_dict(),
        encoder=prepared.encoder,
        candidates=prepared.candidates,
        scale=prepared.scale,
        cost_weight_min=0.0,
        cost_weight_max=10.0,
        summary=summary,
        recipe_yaml="",
    )


def measure(decide: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Return p50 and p99 of a call in milliseconds, after a tenth as many to warm up."""
    for n in range(repeats // 10):
        decide(n)
    seconds = []
    for n in range(repeats):
        start = time.perf_counter()
        decide(n)
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return float(p50), float(p99)


if __name__ == "__main__":
    main()
