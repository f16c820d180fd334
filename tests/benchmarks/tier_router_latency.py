"""Time of a decision of an exported tier router.

    python tests/benchmarks/tier_router_latency.py my-tier-router
    python tests/benchmarks/tier_router_latency.py --encoder minilm

The first argument is a folder that `rlroute export` wrote of a run on memory tiers. Without one a
network of the recipes' size is made for five modules of three tiers; it keeps its first weights,
which take the same time as trained ones.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from rlroute import TierRouter
from rlroute.data.encoders import MinilmConfig, TfidfConfig, fit_encoder
from rlroute.envs.memory_tiers import count_extras
from rlroute.export.tier_bundle import TierBundle
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory.world import generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig, HistoryCounts
from rlroute.policies.tier_scorer import TierScorer, TierScorerConfig, describe_tiers

ROLES = {"filter": "filter", "entity": "extract", "temporal": "extract", "topic": "extract"}
RETRIEVED, KEPT, TURNS = 10, 5, 6  # chunks, those that the filter keeps, turns in one
TIER_USD = (0.0, 0.0001, 0.001)


def main() -> None:
    """Print p50 and p99 in milliseconds: of each decision, and of a whole episode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("router", nargs="?", help="exported tier router")
    parser.add_argument("--encoder", choices=["tfidf", "minilm"], default="tfidf")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=300, help="episodes to time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts = list_turns()
    router = (
        TierRouter.load(arguments.router)
        if arguments.router
        else make_router(arguments.encoder, texts)
    )
    print(
        f"{len(router.modules)} modules, encoder {router._bundle.encoder.kind}, "
        f"{arguments.threads} thread(s), {arguments.repeats} episodes, {RETRIEVED} chunks"
    )
    measure(router, texts, max(arguments.repeats // 10, 1))
    seconds_NM = measure(router, texts, arguments.repeats)
    names = ["start", *(module.name for module in router.modules)]
    for name, seconds_N in [*zip(names, seconds_NM.T, strict=True), ("all", seconds_NM.sum(1))]:
        p50, p99 = np.percentile(seconds_N, [50, 99]) * 1000
        print(f"{name:<10} p50 {p50:8.3f} ms   p99 {p99:8.3f} ms")


def list_turns() -> list[str]:
    """Return what was said in some generated histories."""
    world = generate_memory(GeneratedMemoryConfig(histories=HistoryCounts(train=3, val=1, test=1)))
    return [
        f'{turn.speaker} said "{turn.text}"'
        for history in world.data.histories.values()
        for session in history.sessions
        for turn in session.turns
    ]


def make_router(kind: str, texts: list[str]) -> TierRouter:
    """Return an untrained router of the recipes' size."""
    config = TfidfConfig(dimension=128) if kind == "tfidf" else MinilmConfig()
    encoder = fit_encoder(config, texts, seed=0)
    modules = tuple(
        ModuleFacts(name, role, f"What {name} does.", ("Low", "Mid", "High"))  # type: ignore[arg-type]
        for name, role in (ROLES | {"summary": "summary"}).items()
    )
    facts = PipelineFacts(modules, "0" * 64)
    scorer = TierScorer(
        TierScorerConfig(
            dimension=encoder.dimension,
            extras=count_extras(facts.tier_counts),
            modules=len(modules),
            tiers=3,
        )
    )
    tier_usd = (TIER_USD,) * len(modules)
    descriptions = encoder.encode([module.description for module in modules])
    scorer.describe(descriptions, describe_tiers(tier_usd, 0.005))
    return TierRouter(
        TierBundle(
            facts=facts,
            tier_usd=tier_usd,
            reference_usd=0.005,
            cost_weight_min=0.0,
            cost_weight_max=1.0,
            scorer=scorer.eval().requires_grad_(False),
            encoder=encoder,
            summary={},
            recipe_yaml="",
        )
    )


def measure(router: TierRouter, texts: list[str], episodes: int) -> np.ndarray[Any, Any]:
    """Return the seconds of the start and of each decision [N, 1 + M], settling included."""
    extractors = [one.name for one in router.modules if one.role == "extract"]
    rows = []
    for n in range(episodes):
        first = n * RETRIEVED * TURNS
        turns = [texts[(first + turn) % len(texts)] for turn in range(RETRIEVED * TURNS)]
        chunks = ["\n".join(turns[at : at + TURNS]) for at in range(0, len(turns), TURNS)]
        marks = [time.perf_counter()]
        episode = router.start(f"What did {turns[0]} mean, number {n}?")
        marks.append(time.perf_counter())
        for module in router.modules:
            if module.role == "filter":
                episode.choose(module.name, texts=chunks)
                episode.settle(0.001)
            elif module.role == "extract":
                episode.choose(module.name, texts=chunks[:KEPT])
                if module.name == extractors[-1]:
                    episode.settle(0.001)
            else:
                notes = {name: turns[at : at + 4] for at, name in enumerate(extractors)}
                episode.choose(module.name, texts=chunks[:KEPT], notes=notes)
                episode.settle(0.001)
            marks.append(time.perf_counter())
        rows.append(np.diff(marks))
    return np.array(rows)


if __name__ == "__main__":
    main()
