"""The policies that take steps, as the decision trainer trains them: small networks, an LLM.

Each is a model, a way to run it on rows of a batch (`score_rows`), a way to act with it, and a way
to keep and load its weights. What differs between them stands here and nowhere else.

It leaves out the update (`rlroute.trainers.update`) and the loop.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

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
from rlroute.policies.kernel_start import fit_kernel_start
from rlroute.policies.money_price import Float64Array, solve_prices
from rlroute.policies.priced_scorer import COMMON_COLUMNS, PricedScorer, PricedScorerConfig
from rlroute.policies.step_scorer import EstimateColumns, ScorerPolicy, StepScorer, StepScorerConfig
from rlroute.policies.stepwise import StepPolicy
from rlroute.policies.value_to_go import solve_value_to_go
from rlroute.policies.weights import load_weights
from rlroute.rollout.steps import Moment
from rlroute.seeding import derive_seed
from rlroute.trainers.checkpoint import WEIGHTS_FILE
from rlroute.trainers.learner import (
    DecisionScores,
    Learner,
    MinibatchPart,
    ScoreRows,
    score_candidates,
)
from rlroute.trainers.run_folder import BEST_FILE, BEST_FOLDER, read_json
from rlroute.trainers.step_recipe import (
    StepMLPConfig,
    StepPPOConfig,
    StepPricedConfig,
    StepRecipe,
)
from rlroute.types import Batch, RLRouteError
from rlroute.worlds.base import World
from rlroute.worlds.query_session import QuerySessionWorld
from rlroute.worlds.query_session_tasks import SessionData

VALUE_BIAS = "value_head.2.bias"


@dataclass(frozen=True)
class StepModel:
    """A policy's network, and for a language model what turns texts into tokens."""

    config: StepMLPConfig | StepPricedConfig | ChoiceConfig
    network: StepScorer | PricedScorer | ChoiceModel
    encoder: ChoiceEncoder | None = None


def build_model(recipe: StepRecipe, world: World, features: int) -> StepModel:
    """Make the policy that a recipe starts from; equal seeds give equal weights.

    Raises:
        RLRouteError: the policy does not fit the world.
    """
    config = recipe.policy
    if isinstance(config, ChoiceConfig):
        critic = recipe.algorithm.kind == "ppo"
        network, encoder = build_choice(
            config, world.executors, value_head=critic, seed=recipe.seed
        )
        return StepModel(config, network, encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "weights"))
        scorer = make_network(config, world, features, count_value_heads(recipe))
    if isinstance(scorer, PricedScorer):
        assert isinstance(config, StepPricedConfig)
        start_priced(scorer, config, find_session_world(world).data, recipe.seed)
    scorer.value_head.requires_grad_(recipe.algorithm.kind == "ppo")  # the others have no critic
    return StepModel(config, scorer)


def count_value_heads(recipe: StepRecipe) -> int:
    """Return how many horizons the recipe's critic has."""
    algorithm = recipe.algorithm
    if not isinstance(algorithm, StepPPOConfig) or algorithm.critic is None:
        return 1
    return len(algorithm.critic.heads)


def make_network(
    config: StepMLPConfig | StepPricedConfig, world: World, features: int, value_heads: int = 1
) -> StepScorer | PricedScorer:
    """Return a small network for a world, with fresh weights."""
    if isinstance(config, StepMLPConfig):
        return StepScorer(make_scorer_shape(config, world, features, value_heads))
    if value_heads > 1:
        raise RLRouteError("algorithm.critic: policy.kind 'priced' has a critic of one horizon")
    world = find_session_world(world)
    train, kernel = world.data.splits["train"], config.kernel
    return PricedScorer(
        PricedScorerConfig(
            features=train.features_QF.shape[1],
            clusters=len(world.data.prepared.centroids_CF),
            hidden=config.hidden,
            dropout=config.dropout,
            sharpness=config.sharpness,
            anchors=min(kernel.anchors, len(train.features_QF)) if kernel else 0,
            decay=kernel.decay if kernel else 1.0,
            queries=world.horizon if config.money == "value_to_go" else 0,
        )
    )


def find_session_world(world: World) -> QuerySessionWorld:
    """Return the world as one of query sessions.

    Raises:
        RLRouteError: it is none.
    """
    if isinstance(world, QuerySessionWorld):
        return world
    raise RLRouteError(
        f"policy.kind 'priced' reads sessions of queries; world '{world.name}' has none (allowed "
        "there: mlp, choice)"
    )


def start_priced(
    scorer: PricedScorer, config: StepPricedConfig, data: SessionData, seed: int
) -> None:
    """Put in what a priced policy starts from: a router, and what money is worth to it.

    Raises:
        RLRouteError: the run to start from is no such run, or of other queries.
    """
    router, centroids_CF = scorer.router, torch.as_tensor(data.prepared.centroids_CF)
    if config.start is None:
        router.centroids_CF.copy_(centroids_CF)
        if config.kernel is not None:
            start = fit_kernel_start(data.prepared.splits["train"], config.kernel, seed)
            router.anchors_MF.copy_(torch.as_tensor(start.anchors_MF))
            router.start_MD.copy_(torch.as_tensor(start.weight_MD))
    else:
        path = config.start / BEST_FOLDER / WEIGHTS_FILE
        weights = read_weights(path)
        weights.pop("margin", None)  # it guards against tasks never seen, whatever the budget
        load_weights(router, weights, path)
        if not torch.allclose(router.centroids_CF, centroids_CF, atol=1e-4):
            raise RLRouteError(
                f"policy.start: {config.start} was trained on other queries (another table, "
                "encoder, profile or seed than the world's)"
            )
        router.log_sharpness.data.fill_(math.log(config.sharpness))
        if scorer.config.queries:  # a reward tells costs only up to a factor, and V needs dollars
            torch.nn.init.zeros_(router.cost_tower.weight)
    train = data.splits["train"]
    expected = expect_outcomes(scorer, data)
    if scorer.config.queries:
        bound_QK = train.bound_usd_QK / data.cost_reference_usd
        scorer.set_values(
            solve_value_to_go(*expected, bound_QK, train.legal_QK, scorer.config.queries)
        )
    else:
        scorer.set_curve(solve_prices(*expected, train.legal_QK))


def expect_outcomes(scorer: PricedScorer, data: SessionData) -> tuple[Float64Array, Float64Array]:
    """Return score and cost [Q, K] of the train queries, as the router at its start expects them.

    Costs are in units of the reference.
    """
    train = data.splits["train"]
    with torch.no_grad():
        found = scorer.router(
            torch.as_tensor(train.features_QF),
            torch.as_tensor(data.executor_features_KD[:, COMMON_COLUMNS:]),
            torch.as_tensor(train.legal_QK),
            torch.zeros(len(train.features_QF)),
        )
    return found.quality_BK.double().numpy(), found.cost_BK.double().numpy()


def make_scorer_shape(
    config: StepMLPConfig, world: World, features: int, value_heads: int = 1
) -> StepScorerConfig:
    """Return the shape of the small network for a world."""
    return StepScorerConfig(
        features=features,
        described=world.executor_features_KD.shape[1],
        hidden=config.hidden,
        price_bias=config.price_bias,
        start=locate_estimates(world, config.start) if config.start else None,
        value_heads=value_heads,
    )


def locate_estimates(world: World, sharpness: float) -> EstimateColumns:
    """Return where the world shows what each executor's step is expected to earn and to cost.

    Raises:
        RLRouteError: it does not.
    """
    names, first = world.feature_names, []
    for what in ("expected", "charge"):
        columns = [f"{what}:{one.id}" for one in world.executors]
        start = names.index(columns[0]) if columns[0] in names else len(names)
        if list(names[start : start + len(columns)]) != columns:
            raise RLRouteError(
                f"policy.start: world '{world.name}' shows no estimates to start from; leave it out"
            )
        first.append(start)
    return EstimateColumns(expected=first[0], charge=first[1], sharpness=sharpness)


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


def choose_score_rows(config: StepMLPConfig | StepPricedConfig | ChoiceConfig) -> ScoreRows:
    """Return what runs a policy on rows of a batch."""
    if isinstance(config, ChoiceConfig):
        return score_conversations
    return score_candidates if isinstance(config, StepPricedConfig) else score_steps


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file.

    Raises:
        RLRouteError: it is missing or torn.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RLRouteError(f"{path}: cannot be read ({error})") from None


def load_policy(
    folder: Path,
    config: StepMLPConfig | StepPricedConfig | ChoiceConfig,
    world: World,
    features: int,
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
    weights = read_weights(path)
    heads = len(weights.get(VALUE_BIAS, (0,)))  # the critic's, which no setting of the policy says
    scorer = make_network(config, world, features, heads)
    load_weights(scorer, weights, path)
    return StepModel(config, scorer.eval().requires_grad_(False)), facts
