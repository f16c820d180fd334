"""Steps per second of memory-tier episodes on a tabulated pipeline of 3^5 leaves.

Run: python tests/benchmarks/memory_environment.py [--seconds 3] [--questions 500] [--width 384]

Random tiers, random numbers in the tree (speed does not depend on them). Lanes in lock-step, bare
and behind Gymnasium's vector interface; single environments stepped in a loop; and whole updates of
32 episodes as the rollout collects them, with a policy that costs nothing. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import gymnasium
import numpy as np

import rlroute.envs  # noqa: F401 - registers the environments
from rlroute.envs.memory_tiers import TierEpisodes
from rlroute.memory.base import MemoryQuestion
from rlroute.memory.outcomes import ModuleFacts, PipelineFacts
from rlroute.memory.tree import TierTree
from rlroute.policies.decision import Decisions
from rlroute.policies.tierwise import TierInputs
from rlroute.rewards.memory import MemoryReward, MemoryRewardConfig
from rlroute.rollout.plan import plan_episodes
from rlroute.rollout.tiers import collect_tier_batch
from rlroute.types import Query

ENVIRONMENT = "rlroute/MemoryTiers-v0"
LANES = (32, 1024, 4096)
TIERS = 3
NAMES = ("filter", "entity", "temporal", "topic", "summary")


def make_tree(questions: int, width: int) -> TierTree:
    """Return a tree of random numbers, shaped like that of the original's pipeline."""
    draw = np.random.default_rng(0)
    roles = ("filter", "extract", "extract", "extract", "summary")
    modules = tuple(
        ModuleFacts(name, role, "", ("Low", "Mid", "High"))
        for name, role in zip(NAMES, roles, strict=True)
    )
    leaves, runs = TIERS ** len(NAMES), (questions, TIERS, 3, TIERS)
    vectors = lambda *shape: draw.normal(size=(*shape, width)).astype(np.float32)  # noqa: E731
    return TierTree(
        facts=PipelineFacts(modules, "random"),
        questions=tuple(MemoryQuestion(Query(f"q{n}", ""), "h") for n in range(questions)),
        encoder_fingerprint="random",
        query_QE=vectors(questions),
        retrieved_QE=vectors(questions),
        filtered_QKE=vectors(questions, TIERS),
        notes_QKXNE=vectors(*runs),
        has_notes_QKXN=draw.random(runs) < 0.9,
        filter_cost_QK=draw.random((questions, TIERS)),
        extract_cost_QKXN=draw.random(runs),
        summary_cost_QL=draw.random((questions, leaves)),
        answer_cost_QL=draw.random((questions, leaves)),
        leaf_score_QL=draw.random((questions, leaves)).astype(np.float32),
    )


def count_rate(play: Callable[[], int], seconds: float) -> float:
    """Return how many steps a second are taken by calling `play`, which says how many it took."""
    play()
    started, taken = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        taken += play()
    return taken / (time.perf_counter() - started)


def measure_episodes(tree: TierTree, lanes: int, seconds: float) -> float:
    """Play lanes in lock-step: observe, act, end."""
    episodes = TierEpisodes(tree, reference_usd=1.0)
    draw = np.random.default_rng(0)
    index_B = draw.integers(len(tree.questions), size=lanes)
    tier_MB = draw.integers(TIERS, size=(len(NAMES), lanes))
    weight_B = np.full(lanes, 0.3, dtype=np.float32)

    def play() -> int:
        episodes.start(index_B, weight_B)
        for action_B in tier_MB:
            episodes.observe()
            episodes.act(action_B)
        episodes.end()
        return lanes * len(NAMES)

    return count_rate(play, seconds)


def measure_vector(tree: TierTree, lanes: int, seconds: float) -> float:
    """Step Gymnasium's vector form."""
    vector = gymnasium.make_vec(ENVIRONMENT, lanes, outcomes=tree)
    vector.reset(seed=0)
    action_B = np.random.default_rng(0).integers(TIERS, size=lanes)

    def play() -> int:
        vector.step(action_B)
        return lanes

    return count_rate(play, seconds)


def measure_single(tree: TierTree, seconds: float) -> float:
    """Step one environment, as Gymnasium's SyncVectorEnv would each of its own."""
    environment = gymnasium.make(ENVIRONMENT, outcomes=tree, disable_env_checker=True)

    def play() -> int:
        environment.reset(seed=0)
        for _ in NAMES:
            environment.step(1)
        return len(NAMES)

    return count_rate(play, seconds)


class UniformPolicy:
    """Any tier, as likely as the others."""

    version = 0

    def decide(self, inputs: TierInputs, uniform_B: np.ndarray) -> Decisions:
        """Take a tier without looking."""
        zero_B = np.zeros(len(uniform_B), dtype=np.float32)
        return Decisions((uniform_B * TIERS).astype(np.int64), zero_B - np.log(TIERS), zero_B)


def measure_rollout(tree: TierTree, lanes: int, seconds: float) -> float:
    """Collect whole batches."""
    episodes = TierEpisodes(tree, reference_usd=1.0)
    reward = MemoryReward(MemoryRewardConfig())
    plan = plan_episodes(0, 0, queries=len(tree.questions), groups=lanes, group_size=1)
    weight_B, none_KD = np.full(lanes, 0.3, dtype=np.float32), np.zeros((TIERS, 0), np.float32)

    def play() -> int:
        collect_tier_batch(
            UniformPolicy(), episodes, plan, weight_B, reward, candidate_features_KD=none_KD
        )
        return lanes * len(NAMES)

    return count_rate(play, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="to measure each number for")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--width", type=int, default=384, help="of the embeddings")
    arguments = parser.parse_args()
    tree, seconds = make_tree(arguments.questions, arguments.width), arguments.seconds
    single = measure_single(tree, seconds)
    print(f"single environment: {single:,.0f} steps/s\n")
    print("| lanes | lock-step, steps/s | vector environment | rollout | lock-step to single |")
    print("| --- | --- | --- | --- | --- |")
    for lanes in LANES:
        bare = measure_episodes(tree, lanes, seconds)
        vector, rollout = (
            measure(tree, lanes, seconds) for measure in (measure_vector, measure_rollout)
        )
        print(f"| {lanes} | {bare:,.0f} | {vector:,.0f} | {rollout:,.0f} | {bare / single:.0f}x |")


if __name__ == "__main__":
    main()
