"""Tiny choice policies, and scripted lanes to decide in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import save_tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("peft", reason="the extra `text` is absent")

from rlroute.config import parse_config  # noqa: E402
from rlroute.policies.choice import (  # noqa: E402
    ChoiceConfig,
    ChoiceModel,
    ChoiceScores,
    build_choice,
)
from rlroute.policies.choice_cache import ChoicePolicy  # noqa: E402
from rlroute.policies.choice_tokens import ChoiceEncoder  # noqa: E402
from rlroute.policies.decision import Decisions  # noqa: E402
from rlroute.policies.stepwise import StepInputs  # noqa: E402
from rlroute.seeding import draw_uniform  # noqa: E402
from rlroute.types import Candidate, Conversations, Prices  # noqa: E402

EXECUTORS = (
    Candidate("small", Prices(0.4, 1.6)),
    Candidate("medium", Prices(1.0, 4.0)),
    Candidate("large", Prices(2.0, 8.0, per_call=0.001)),
)
LABELS = {"small": "SMALL", "medium": "MEDIUM", "large": "LARGE"}
CONTEXT = 400
TASKS = ("Sort the words: apple, pear, fig", "1 + 2", "Sort the words: pear", "7 * 8 = ?")
NEWS = ("one word is left", "the tool failed, 3 calls left", "ok")


def save_checkpoint(folder: Path) -> Path:
    """Save a tiny Llama whose labels differ in probability, and return its folder."""
    save_tiny_llama(folder, max_position_embeddings=512, initializer_range=0.15)
    return folder


def make_config(model: Path, **changes: Any) -> ChoiceConfig:
    stated = {"kind": "choice", "model": str(model), "precision": "float32", "context_tokens": 512}
    return parse_config(ChoiceConfig, stated | changes, "policy")


def build(
    checkpoint: Path, *, value_head: bool = False, **changes: Any
) -> tuple[ChoiceModel, ChoiceEncoder]:
    return build_choice(make_config(checkpoint, **changes), EXECUTORS, value_head=value_head)


def wake(model: ChoiceModel) -> None:
    """Give the value head, which starts at zero, weights of its own."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.value_head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


def make_policy(model: ChoiceModel, encoder: ChoiceEncoder, **changes: Any) -> ChoicePolicy:
    return ChoicePolicy(model, encoder, **({"context_tokens": CONTEXT, "max_lanes": 64} | changes))


def make_inputs(lanes: list[int], texts: list[str], mask_BK: Any, uniform_B: Any) -> StepInputs:
    nothing_BF = np.zeros((len(lanes), 0), dtype=np.float32)
    return StepInputs(
        lane_B=np.array(lanes, dtype=np.int64),
        row_B=np.array(lanes, dtype=np.int64),
        task_index_B=np.zeros(len(lanes), dtype=np.int64),
        features_BF=nothing_BF,
        candidate_features_KD=np.zeros((len(EXECUTORS), 0), dtype=np.float32),
        mask_BK=np.array(mask_BK, dtype=np.bool_),
        cost_weight_B=np.full(len(lanes), 0.3, dtype=np.float32),
        uniform_B=np.array(uniform_B, dtype=np.float64),
        texts=texts,
    )


def make_script(lengths: tuple[int, ...]) -> list[tuple[list[int], list[str], Any, Any]]:
    """Return the steps of lanes that end after so many steps: lanes, texts, masks and chance."""
    steps = []
    for turn in range(max(lengths)):
        lanes = [lane for lane, length in enumerate(lengths) if turn < length]
        texts = [
            NEWS[(lane + turn) % len(NEWS)] + " !" * lane if turn else TASKS[lane % len(TASKS)]
            for lane in lanes
        ]
        uniform_BK = draw_uniform("mask", turn, np.array(lanes)[:, None], np.arange(3)[None])
        mask_BK = uniform_BK < 0.7
        mask_BK[~mask_BK.any(axis=1), 0] = True
        steps.append((lanes, texts, mask_BK, draw_uniform("uniform", turn, np.array(lanes))))
    return steps


def play(
    policy: ChoicePolicy, lengths: tuple[int, ...], only: int | None = None
) -> list[tuple[list[int], Decisions]]:
    """Play lanes to their ends, or only one of them; return lanes and decisions of each step."""
    policy.start(len(lengths))
    decided = []
    for lanes, texts, mask_BK, uniform_B in make_script(lengths):
        rows = [row for row, lane in enumerate(lanes) if only is None or lane == only]
        if rows:
            lanes_here, texts_here = [lanes[row] for row in rows], [texts[row] for row in rows]
            inputs = make_inputs(lanes_here, texts_here, mask_BK[rows], uniform_B[rows])
            decided.append((lanes_here, policy.decide(inputs)))
    return decided


def stack(decided: list[tuple[list[int], Decisions]], lanes: int, name: str) -> np.ndarray:
    """Return an array of the decisions as [lanes, steps], NaN where a lane has ended."""
    value_BT = np.full((lanes, len(decided)), np.nan)
    for turn, (here, decisions) in enumerate(decided):
        value_BT[here, turn] = getattr(decisions, name)
    return value_BT


def stack_masks(lengths: tuple[int, ...]) -> torch.Tensor:
    mask_BTK = torch.zeros(len(lengths), max(lengths), len(EXECUTORS), dtype=torch.bool)
    for turn, (lanes, _, mask_BK, _) in enumerate(make_script(lengths)):
        mask_BTK[lanes, turn] = torch.as_tensor(mask_BK)
    return mask_BTK


def score_episodes(
    model: ChoiceModel, episodes: Conversations, mask_BTK: torch.Tensor
) -> ChoiceScores:
    scores: ChoiceScores = model(
        torch.as_tensor(episodes.ids_BL),
        torch.as_tensor(episodes.length_B),
        torch.as_tensor(episodes.position_BT),
        mask_BTK,
    )
    return scores


class CountingTokenizer:
    """A tokenizer that remembers what it was asked to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.texts = tokenizer, []

    def encode(self, text: str, **options: Any) -> list[int]:
        self.texts.append(text)
        ids: list[int] = self.tokenizer.encode(text, **options)
        return ids
