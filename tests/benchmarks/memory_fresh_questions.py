"""A memory-tier policy against static assignments on many fresh questions of the generated world.

    PYTHONPATH=. python tests/benchmarks/memory_fresh_questions.py runs/memory --histories 200

Where most of the dearest cost is spent little is left to win, and the 25 test histories of the
default world cannot tell it from chance. A whole tree of ten times as many questions takes hours;
here only what is asked for runs: the policy at five cost weights, and the static assignments on the
frontier of train, the same for each kind of question (told the true kind). Histories of the run's
own splits are left out. It prints what `rlroute evaluate` measures at levels of cost, with paired
intervals over histories; every further run folder is measured on the same questions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlroute.evaluation.comparison import format_estimate
from rlroute.evaluation.memory_measures import MemoryFrame, MemoryPlays, measure_memory
from rlroute.evaluation.memory_table import TierPlayed
from rlroute.memory.live import LiveOutcomes
from rlroute.memory_runs import (
    describe_modules,
    list_histories,
    list_kinds,
    make_table,
    play,
    read_memory_run,
)
from rlroute.policies.decision import Decisions
from rlroute.policies.tier_baselines import BestStatic, KindStatic, list_level_statics
from rlroute.policies.tier_scorer import TierScorerPolicy
from rlroute.policies.tierwise import TierInputs
from rlroute.trainers.memory_recipe import MemoryRecipe
from rlroute.trainers.memory_run import load_best_scorer, read_cost_facts
from rlroute.trainers.memory_stage import open_memory_stage
from rlroute.types import IntArray, UsdArray

WEIGHTS = (0.0, 0.07, 0.53, 1.45, 4.0)


@dataclass(frozen=True)
class GivenTiers:
    """Takes the tiers that are stated for each lane [B, M]."""

    tier_BM: IntArray
    version: int = 0

    def decide(self, inputs: TierInputs, uniform_B: UsdArray) -> Decisions:
        """Decide for B lanes."""
        nothing_B = np.zeros(len(self.tier_BM), dtype=np.float32)
        return Decisions(self.tier_BM[:, inputs.module], nothing_B, nothing_B)


def main() -> None:
    """Measure the runs that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--histories", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_memory_run(chosen.runs[0]).recipe
    own = recipe.data.histories.test
    more = {"test": own + chosen.histories}
    histories = recipe.data.histories.model_copy(update=more)
    data = recipe.data.model_copy(update={"histories": histories})
    measure(recipe, recipe.model_copy(update={"data": data}), own, chosen.runs)


def measure(recipe: MemoryRecipe, wider: MemoryRecipe, own: int, folders: list[Path]) -> None:
    """Play all on the fresh histories and print the levels."""
    reference = read_cost_facts(folders[0]).reference_usd
    with open_memory_stage(recipe, folders[0]) as stage:
        train = make_table(stage.open_tree("train"))
    with open_memory_stage(wider, folders[0]) as stage:
        old = {f"test{number}" for number in range(own)}
        fresh = tuple(one for one in stage.questions["test"] if one.history_id not in old)
        kind_Q = np.array(list_kinds(fresh))
        print(f"{len(fresh)} questions of {len(set(list_histories(fresh)))} fresh histories")
        live = LiveOutcomes(stage.pipeline, fresh, stage.encoder, stage.data.grade)
        started = time.perf_counter()

        def give(leaf_Q: IntArray) -> TierPlayed:
            return play(GivenTiers(train.leaf_tier_LM[leaf_Q]), live, 0.0, reference)

        rivals = play_rivals(
            give, BestStatic(train, reference), KindStatic(train, reference), kind_Q
        )
        for one in list_level_statics(train.leaf_tier_LM, train.modules):
            everyone_Q = np.full(len(fresh), one.leaf)
            rivals.append(MemoryPlays(one.name, "static", (give(everyone_Q),) * len(WEIGHTS)))
        frame = MemoryFrame(
            stage.data.name,
            describe_modules(live.facts),
            tuple(kind_Q.tolist()),
            list_histories(fresh),
            WEIGHTS,
            reference,
        )
        for folder in folders:
            scorer, _ = load_best_scorer(folder, read_memory_run(folder).recipe, stage)
            policy = TierScorerPolicy(scorer, greedy=True)
            plays = tuple(play(policy, live, weight, reference) for weight in WEIGHTS)
            print(f"\n{folder}, after {time.perf_counter() - started:.0f} s")
            show(MemoryPlays("policy", "policy", plays), rivals, frame)


def play_rivals(
    give: Callable[[IntArray], TierPlayed],
    static: BestStatic,
    by_kind: KindStatic,
    kind_Q: np.ndarray,
) -> list[MemoryPlays]:
    """Return the best static assignments of train, for all and told the kind."""
    everyone_Q = np.zeros(len(kind_Q), dtype=np.int64)
    best = [give(everyone_Q + static.choose(weight)) for weight in WEIGHTS]
    frontier = [give(everyone_Q + leaf) for leaf in static.list_frontier()]
    told = [
        give(np.array([by_kind.by_kind[kind].choose(weight) for kind in kind_Q]))
        for weight in WEIGHTS
    ]
    return [
        MemoryPlays(static.name, "best_static", tuple(best), tuple(frontier)),
        MemoryPlays(by_kind.name, "kind_static", tuple(told)),
    ]


def show(subject: MemoryPlays, rivals: list[MemoryPlays], frame: MemoryFrame) -> None:
    """Print points, frontiers and levels."""
    result = measure_memory([subject, *rivals], frame)
    for one in result.contenders:
        points = ", ".join(
            f"{point.quality.value:.3f} for {1000 * point.cost_usd.value:.2f}"
            for point in one.points
            if point.quality is not None and point.cost_usd is not None
        )
        lead = "" if one.aiq_lead is None else f", AIQ lead {format_estimate(one.aiq_lead)}"
        print(f"{one.name}: {points}{lead}")
    for level in result.levels:
        print(
            f"{1000 * level.cost_usd:.2f} USD: {level.quality:.3f}, static "
            f"{level.static_quality:.3f}, {format_estimate(level.gain, sign=True)}"
        )


if __name__ == "__main__":
    main()
