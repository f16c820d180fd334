"""Step time of RoutingTrainer beside TRL's bare GRPOTrainer on the same rows of tokens.

Both train the same new Llama by GRPO with our extras off: the same recipe, the same arguments, and
in every update the same recorded episodes of the relations world (by a scripted policy), so nothing
is generated and only what surrounds the rollout is measured: rows and rewards, advantages, scoring,
loss, backward pass and optimiser. Ours starts from trajectories, TRL's from finished rows and
rewards; that is its head start.

The trainers take turns in one process, round by round, who is first changes; the first step of each
turn is left out. What is printed are seconds per optimiser step and their ratio, per round and over
all of them: by the clock, and of the processor, which other programs of the machine disturb less.

    PYTHONPATH=. python tests/benchmarks/text_trainer_step.py [--hidden 128] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import GRPOTrainer

from rlroute.config import parse_config
from rlroute.policies.language_model import load_tokenizer
from rlroute.rewards.multi_round import MultiRoundReward
from rlroute.rollout.batching import flatten_tokens
from rlroute.rollout.text_agent import encode_observation
from rlroute.trainers.text import (
    RoutingTrainer,
    make_mask,
)
from rlroute.trainers.text_arguments import make_arguments
from rlroute.trainers.text_model import KEY, load_model, make_new_model
from rlroute.trainers.text_problem import build_problem, write_episodes
from rlroute.trainers.text_recipe import NewModelConfig, TextRecipe
from rlroute.trainers.text_validation import stack_terms
from rlroute.types import TextTrajectory

CONTEXT = 320
REFERENCE_USD = 0.0027


class StepClock(TrainerCallback):
    """Keeps the seconds of every optimiser step, rollout included: clock and processor."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        clock, processor = self.began
        self.seconds.append((time.perf_counter() - clock, time.process_time() - processor))


def make_recipe(options: argparse.Namespace) -> TextRecipe:
    """Return a recipe of GRPO without extras."""
    base = {"kind": "new", "hidden": options.hidden, "layers": options.layers, "heads": 4}
    stated = {
        "environment": "multi_round",
        "updates": options.steps,
        "questions": {
            "kind": "relations",
            "train": 256,
            "val": 8,
            "test": 8,
            "world": {"reference_usd": REFERENCE_USD},
        },
        "episode": {
            "prompt": "short",
            "profile": "none",
            "prices": False,
            "latency": False,
            "ledger": False,
            "max_calls": 4,
            "max_turns": 6,
            "reply_tokens": 16,
            "cost_weights": [0.4],
        },
        "reward": {"normaliser": {"kind": "fixed", "reference_usd": REFERENCE_USD}},
        "policy": {"base": base | {"vocabulary": 400}, "precision": "float32"},
        "warm_start": {"planner": "random", "episodes": options.episodes},
        "rollout": {
            "sampler": {"kind": "transformers"},
            "max_new_tokens": 32,
            "context_tokens": CONTEXT,
        },
        "algorithm": {
            "kind": "grpo",
            "episodes": options.episodes,
            "group_size": 8,
            "micro_batch": options.micro_batch,
        },
        "optimiser": {"learning_rate": 1e-4},
        "checkpoint_every": 1000,
        "tracking": {"wandb": False},
    }
    return parse_config(TextRecipe, stated, "benchmark")


def record_episodes(episodes: Sequence[TextTrajectory], tokenizer: Any) -> list[TextTrajectory]:
    """Return scripted episodes with the tokens that a rollout of their texts would hold."""
    found = []
    for episode in episodes:
        steps = []
        for turn, step in enumerate(episode.transitions):
            ids = tuple(tokenizer.encode(step.decision.text, add_special_tokens=False))
            decision = replace(
                step.decision,
                environment_ids=encode_observation(
                    tokenizer, step.observation.text, first=turn == 0
                ),
                token_ids=ids,
                logps=(-1.0,) * len(ids),
            )
            steps.append(replace(step, decision=decision))
        found.append(replace(episode, transitions=tuple(steps)))
    return found


class Bench:
    """The model, the episodes, and what makes a trainer of either kind for a turn."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.recipe, self.folder = make_recipe(options), folder
        problem = build_problem(self.recipe)
        written = write_episodes(self.recipe, problem)
        texts = [
            text
            for episode in written
            for step in episode.transitions
            for text in (step.observation.text, step.decision.text)
        ]
        base = self.recipe.policy.base
        assert isinstance(base, NewModelConfig)
        make_new_model(base, texts, folder / "base", context=CONTEXT, seed=0)
        self.tokenizer = load_tokenizer(folder / "base", KEY)
        self.episodes = record_episodes(written, self.tokenizer)
        self.queries = len(problem.train)
        rows = [flatten_tokens(episode) for episode in self.episodes]
        self.rows = {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.completion_ids) for row in rows],
            "logprobs": [list(row.logps) for row in rows],
            "env_mask": [make_mask(row, True) for row in rows],
        }
        starts = [episode.transitions[0].observation for episode in self.episodes]
        weights = np.array([start.cost_weight for start in starts], dtype=np.float32)
        reward = MultiRoundReward(self.recipe.reward).score(
            stack_terms(self.episodes), weights, frozen=True
        )
        self.rewards = reward["reward"].tolist()

    def make_routing(self) -> Any:
        """Return ours."""
        return RoutingTrainer(
            self.recipe,
            make_arguments(self.recipe, str(self.folder / "ours"), 1, cpu=True),
            model=load_model(self.recipe.policy, self.folder / "base", value_head=False),
            tokenizer=self.tokenizer,
            queries=self.queries,
            reward=MultiRoundReward(self.recipe.reward),
            collect=lambda plan, update: self.episodes,
            report=lambda collected, metrics: None,
            callbacks=[],
        )

    def make_bare(self) -> Any:
        """Return TRL's."""
        return GRPOTrainer(
            model=load_model(self.recipe.policy, self.folder / "base", value_head=False),
            reward_funcs=[lambda **_: self.rewards],
            args=make_arguments(self.recipe, str(self.folder / "bare"), 1, cpu=True),
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(self.queries)]}),
            processing_class=self.tokenizer,
            rollout_func=lambda prompts, trainer: self.rows,
        )

    def measure(self, kind: str) -> list[tuple[float, float]]:
        """Train for a turn; return the seconds of its steps but the first."""
        trainer = self.make_routing() if kind == "ours" else self.make_bare()
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.args.save_strategy = "no"
        trainer.train()
        return clock.seconds[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        tokens = sum(map(len, bench.rows["prompt_ids"] + bench.rows["completion_ids"]))
        print(f"{options.episodes} episodes, {tokens} tokens per step")
        for kind in seconds:
            bench.measure(kind)  # whatever is done only once
        for number in range(options.rounds):
            order = ("ours", "bare") if number % 2 else ("bare", "ours")
            found = {kind: bench.measure(kind) for kind in order}
            for kind, values in found.items():
                seconds[kind] += values
            print(f"round {number}: {describe(found)}")
    print(f"all {len(seconds['ours'])} steps each: {describe(seconds)} (target: at most 1.1)")


def describe(seconds: dict[str, list[tuple[float, float]]]) -> str:
    """Return the medians of both trainers and their ratio, by the clock and of the processor."""
    parts = []
    for place, name in enumerate(("clock", "processor")):
        own, bare = (median(pair[place] for pair in seconds[kind]) for kind in ("ours", "bare"))
        parts.append(f"{name} ours {own:.4f} s, bare {bare:.4f} s, ratio {own / bare:.3f}")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
