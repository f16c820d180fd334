"""Tokens per second of the choice policy: rollouts with and without prefix reuse, and training.

`--lanes` episodes of `--steps` decisions: a task of `--task-words` words, then `--news-words` words
before every further decision. Side by side in one process, in turns, the best of `--rounds`:

- rollout, reuse: the cache of conversations (`rlroute.policies.choice_cache`);
- rollout, no reuse: the whole conversation is read at each step;
- forward: all decisions of `--train-lanes` episodes in one pass;
- forward and backward: the same with gradients, of all weights or (`--lora`) of adapters.

A rate is tokens of conversations (each token counted once) per second: by the clock, and of the
processor, which other programs of the machine disturb less (with one thread). How far log-probs of
the two rollouts, and of rollout and forward pass, are apart is printed beside.

The model is a checkpoint folder, or a random Llama (`--hidden`, `--layers`).

    PYTHONPATH=.:tests python tests/benchmarks/choice_policy_tokens.py
    PYTHONPATH=.:tests python tests/benchmarks/choice_policy_tokens.py \
        --checkpoint build/checkpoints/smollm2-135m --precision bfloat16
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tiny_llama import save_tiny_llama

from rlroute.policies.choice import ChoiceConfig, ChoiceModel, build_choice
from rlroute.policies.choice_cache import ChoicePolicy
from rlroute.policies.choice_tokens import ChoiceEncoder
from rlroute.policies.language_model import LoraConfig
from rlroute.policies.stepwise import StepInputs
from rlroute.seeding import draw_uniform
from rlroute.types import Candidate, Conversations, Prices

EXECUTORS = (Candidate("small", Prices(0.4, 1.6)), Candidate("large", Prices(2.0, 8.0)))
WORDS = ("door", "key", "red", "open", "take", "room", "north", "table", "failed", "you", "left")
CONTEXT = 8192
Result = TypeVar("Result")
Seconds = tuple[float, float]  # by the clock, of the processor


@dataclass(frozen=True)
class Rollout:
    """What was decided in the lanes."""

    episodes: Conversations
    action_BT: np.ndarray
    logp_BT: np.ndarray


def main() -> None:
    """Print the rates and the ratio of the two rollouts."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        source = options.checkpoint or Path(folder) / "model"
        if options.checkpoint is None:
            save_tiny_llama(
                source,
                texts=[" ".join(WORDS)] * 4,
                hidden_size=options.hidden,
                layers=options.layers,
                max_position_embeddings=CONTEXT,
                initializer_range=0.05,
            )
        config = ChoiceConfig(
            kind="choice",
            model=str(source),
            precision=options.precision,
            lora=LoraConfig(rank=options.lora) if options.lora else None,
            context_tokens=CONTEXT,
            max_lanes=options.max_lanes,
        )
        model, encoder = build_choice(config, EXECUTORS, value_head=False)
    parameters = sum(one.numel() for one in model.parameters())
    print(
        f"{parameters / 1e6:.1f}M parameters, {options.precision}, {options.threads} thread(s), "
        f"{options.lanes} lanes of {options.steps} steps, {options.max_lanes} lanes in a pass"
    )
    episodes = measure_rollouts(options, model, encoder)
    measure_training(options, model, episodes)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--max-lanes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--task-words", type=int, default=60)
    parser.add_argument("--news-words", type=int, default=15)
    parser.add_argument("--train-lanes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def write_words(count: int, *where: int | str) -> str:
    """Return about `count` words, as many more or fewer as the place says."""
    length = max(1, round(count * (0.75 + 0.5 * float(draw_uniform("length", *where)))))
    chosen_N = (draw_uniform("word", *where, np.arange(length)) * len(WORDS)).astype(int)
    return " ".join(WORDS[number] for number in chosen_N)


def run_rollout(options: argparse.Namespace, policy: ChoicePolicy) -> Rollout:
    """Play the episodes."""
    lanes = np.arange(options.lanes)
    policy.start(options.lanes)
    decided = []
    for step in range(options.steps):
        count = options.news_words if step else options.task_words
        inputs = StepInputs(
            lane_B=lanes,
            row_B=lanes,
            task_index_B=lanes,
            features_BF=np.zeros((options.lanes, 0), dtype=np.float32),
            candidate_features_KD=np.zeros((len(EXECUTORS), 0), dtype=np.float32),
            mask_BK=np.ones((options.lanes, len(EXECUTORS)), dtype=np.bool_),
            cost_weight_B=np.zeros(options.lanes, dtype=np.float32),
            uniform_B=draw_uniform("action", lanes, step),
            texts=[write_words(count, lane, step) for lane in lanes.tolist()],
        )
        decided.append(policy.decide(inputs))
    action_BT = np.stack([decisions.action_B for decisions in decided], axis=1)
    logp_BT = np.stack([decisions.logp_B for decisions in decided], axis=1)
    return Rollout(policy.read_episodes(), action_BT, logp_BT)


def measure(work: Callable[[], Result]) -> tuple[Seconds, Result]:
    """Return the seconds that a piece of work takes, and what it returns."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    return (time.perf_counter() - began, time.process_time() - cpu_began), result


def take_least(measured: Sequence[Seconds]) -> Seconds:
    """Return the least of each kind of seconds."""
    return min(one[0] for one in measured), min(one[1] for one in measured)


def print_rate(name: str, tokens: int, seconds: Seconds) -> None:
    """Print a line of rates."""
    print(f"{name:<44}{tokens / seconds[0]:>9.0f}{tokens / seconds[1]:>9.0f}")


def measure_rollouts(
    options: argparse.Namespace, model: ChoiceModel, encoder: ChoiceEncoder
) -> Conversations:
    """Print the rates of rollouts; return the episodes."""
    measured: dict[bool, list[Seconds]] = {True: [], False: []}
    rollouts: dict[bool, Rollout] = {}
    for _ in range(options.rounds):
        for reuse in (True, False):
            policy = ChoicePolicy(
                model,
                encoder,
                context_tokens=CONTEXT,
                max_lanes=options.max_lanes,
                reuse_prefix=reuse,
            )
            seconds, rollouts[reuse] = measure(lambda policy=policy: run_rollout(options, policy))
            measured[reuse].append(seconds)
    reused, read_anew = rollouts[True], rollouts[False]
    tokens = int(reused.episodes.length_B.sum())
    print(f"{tokens / options.lanes:.0f} tokens an episode")
    print(f"{'tokens/s':<44}{'clock':>9}{'CPU':>9}")
    least = {reuse: take_least(times) for reuse, times in measured.items()}
    print_rate("rollout, reuse", tokens, least[True])
    print_rate("rollout, no reuse", tokens, least[False])
    ratios = [slow / fast for slow, fast in zip(least[False], least[True], strict=True)]
    print(f"{'ratio':<44}{ratios[0]:>9.2f}{ratios[1]:>9.2f}")
    same_B = (reused.action_BT == read_anew.action_BT).all(axis=1)
    gap = np.abs(reused.logp_BT - read_anew.logp_BT)[same_B].max(initial=0)
    print(f"log-probs of the two differ by {gap:.1e} at most ({same_B.sum()} equal episodes)")
    print_gap(model, reused)
    return reused.episodes


def make_arguments(episodes: Conversations, lanes: int) -> tuple[torch.Tensor, ...]:
    """Return what the forward pass takes, for the first lanes."""
    position_BT = torch.as_tensor(episodes.position_BT[:lanes])
    mask_BTK = torch.ones(*position_BT.shape, len(EXECUTORS), dtype=torch.bool)
    ids_BL = torch.as_tensor(episodes.ids_BL[:lanes])
    return ids_BL, torch.as_tensor(episodes.length_B[:lanes]), position_BT, mask_BTK


def print_gap(model: ChoiceModel, rollout: Rollout) -> None:
    """Print how far the log-probs of rollout and forward pass are apart, for a few lanes."""
    lanes = min(4, len(rollout.logp_BT))
    with torch.no_grad():
        scores = model(*make_arguments(rollout.episodes, lanes))
    logp_BT = rollout.logp_BT[:lanes]
    logp_BTK = scores.logp_BK.reshape(*logp_BT.shape, -1).numpy()
    action_BT1 = rollout.action_BT[:lanes, :, None]
    gap_BT = np.abs(np.take_along_axis(logp_BTK, action_BT1, axis=2)[..., 0] - logp_BT)
    print(f"rollout and forward pass: {gap_BT.max():.1e} at most, {gap_BT.mean():.1e} on average")


def measure_training(
    options: argparse.Namespace, model: ChoiceModel, episodes: Conversations
) -> None:
    """Print the rates of the forward pass, and of forward and backward."""
    arguments = make_arguments(episodes, options.train_lanes)
    tokens = int(arguments[1].sum())

    def run_forward() -> None:
        with torch.no_grad():
            model(*arguments)

    def run_both() -> None:
        model.zero_grad(set_to_none=True)
        model(*arguments).logp_BK[:, 0].mean().backward()

    trained = f"adapters of rank {options.lora}" if options.lora else "all weights"
    print(f"{len(arguments[0])} episodes in one pass:")
    for name, work in (("forward", run_forward), (f"forward and backward, {trained}", run_both)):
        print_rate(name, tokens, take_least([measure(work)[0] for _ in range(options.rounds)]))


if __name__ == "__main__":
    main()
