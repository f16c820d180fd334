"""The two policies that take steps, as the decision trainer trains them: a small network, an LLM.

Each is a model, a way to run it on rows of a batch (`score_rows`), a way to act with it, and a way
to keep and load its weights. What differs between them stands here and nowhere else.

It leaves out the update (`rlroute.trainers.update`) and the loop.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rlroute.files import atomic_folder, write_atomic
from rlroute.policies.choice import (
    ChoiceConfig,
    ChoiceModel,
    build_choice,
    load_choice,
    save_choice,
)
from rlroute.policies.choice_cache import ChoicePolicy
from rlroute.policies.choice_tokens import ChoiceEncoder, encode_episodes
from rlroute.policies.step_scorer import ScorerPolicy, StepScorer, StepScorerConfig
from rlroute.policies.stepwise import StepPolicy
from rlroute.policies.weights import load_weights
from rlroute.rollout.steps import Moment
from rlroute.seeding import derive_seed
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.learner import DecisionScores, Learner, MinibatchPart
from rlroute.trainers.run_folder import BEST_FILE, read_json
from rlroute.trainers.step_recipe import StepMLPConfig, StepRecipe
from rlroute.types import Batch, RLRouteError
from rlroute.worlds.base import World


@dataclass(frozen=True)
class StepModel:
    """A policy's network, and for a language model what turns texts into tokens."""

    config: StepMLPConfig | ChoiceConfig
    network: StepScorer | ChoiceModel
    encoder: ChoiceEncoder | None = None


def build_model(recipe: StepRecipe, world: World, features: int) -> StepModel:
    """Make the policy that a recipe starts from; equal seeds give equal weights."""
    config = recipe.policy
    if isinstance(config, ChoiceConfig):
        critic = recipe.algorithm.kind == "ppo"
        network, encoder = build_choice(
            config, world.executors, value_head=critic, seed=recipe.seed
        )
        return StepModel(config, network, encoder)
    shape = make_scorer_shape(config, world, features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        scorer = StepScorer(shape)
    scorer.value_head.requires_grad_(recipe.algorithm.kind == "ppo")  # the others have no critic
    return StepModel(config, scorer)


def make_scorer_shape(config: StepMLPConfig, world: World, features: int) -> StepScorerConfig:
    """Return the shape of the small network for a world."""
    return StepScorerConfig(
        features=features,
        described=world.executor_features_KD.shape[1],
        hidden=config.hidden,
        price_bias=config.price_bias,
    )


def make_policy(model: StepModel, network: Any, *, version: int, greedy: bool) -> StepPolicy:
    """Return what acts with a network (without the wrapper that exchanges gradients)."""
    if isinstance(model.config, ChoiceConfig):
        assert model.encoder is not None
        return ChoicePolicy(
            network,
            model.encoder,
            context_tokens=model.config.context_tokens,
            max_lanes=model.config.max_lanes,
            greedy=greedy,
            version=version,
        )
    return ScorerPolicy(network.eval(), version=version, greedy=greedy)


# --- In the update --------------------------------------------------------------------------------


def score_steps(learner: Learner, batch: Batch, part: MinibatchPart) -> DecisionScores:
    """Run a small network on rows of a batch."""
    device, steps, rows_B = learner.accelerator.device, batch.valid_BT.shape[1], part.rows_B
    scores: DecisionScores = learner.model(
        torch.as_tensor(batch.features_BTF[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.candidate_features_KD, device=device),
        torch.as_tensor(batch.mask_BTK[rows_B], device=device).flatten(0, 1),
        torch.as_tensor(batch.cost_weight_B[rows_B], device=device).repeat_interleave(steps),
    )
    return scores


def score_conversations(learner: Learner, batch: Batch, part: MinibatchPart) -> DecisionScores:
    """Run a language model on rows of a batch: each whole conversation in one pass."""
    device, read, rows_B = learner.accelerator.device, batch.conversations, part.rows_B
    assert read is not None
    scores: DecisionScores = learner.model(
        torch.as_tensor(read.ids_BL[rows_B], device=device),
        torch.as_tensor(read.length_B[rows_B], device=device),
        torch.as_tensor(read.position_BT[rows_B], device=device),
        torch.as_tensor(batch.mask_BTK[rows_B], device=device),
    )
    return scores


def add_conversations(model: StepModel, batch: Batch, moments: dict[int, list[Moment]]) -> Batch:
    """Add to played episodes what a language model would have read, from their texts."""
    assert isinstance(model.config, ChoiceConfig)
    assert model.encoder is not None
    rows = range(len(batch.group_B))
    read = encode_episodes(
        model.encoder,
        [[moment.text for moment in moments[row]] for row in rows],
        [batch.action_BT[row, batch.valid_BT[row]].tolist() for row in rows],
        model.config.context_tokens,
    )
    return replace(batch, conversations=read)


# --- On disk --------------------------------------------------------------------------------------


def save_policy(folder: Path, model: StepModel, network: Any, facts: dict[str, Any]) -> None:
    """Replace a kept policy; `facts` stand beside the weights."""
    if isinstance(model.config, ChoiceConfig):
        assert model.encoder is not None
        save_choice(folder, network, model.encoder)
        write_atomic(folder / BEST_FILE, json.dumps(facts, indent=2))
        return
    with atomic_folder(folder) as temporary:
        weights = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
        save_file(weights, temporary / WEIGHTS_FILE)
        write_atomic(temporary / BEST_FILE, json.dumps(facts, indent=2))


def load_policy(
    folder: Path, config: StepMLPConfig | ChoiceConfig, world: World, features: int
) -> tuple[StepModel, dict[str, Any]]:
    """Return a kept policy, to act with, and the facts beside it.

    Raises:
        RLRouteError: none was kept, or a file is torn or of another network.
    """
    facts = read_json(folder / BEST_FILE)
    if isinstance(config, ChoiceConfig):
        network, encoder = load_choice(folder, precision=config.precision)
        return StepModel(config, network, encoder), facts
    path = folder / WEIGHTS_FILE
    scorer = StepScorer(make_scorer_shape(config, world, features))
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None
    load_weights(scorer, weights, path)
    return StepModel(config, scorer.eval().requires_grad_(False)), facts
