"""Policy gradients over subsets and skip are unbiased: all actions enumerated, holes masked."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlroute.config import parse_config
from rlroute.data.actions import build_actions
from rlroute.data.prepare import PreparedTable, prepare_table
from rlroute.data.table import OutcomeTable
from rlroute.envs.single_turn import compute_outcome_terms
from rlroute.policies.decision import sample_actions
from rlroute.policies.mlp import Scores
from rlroute.seeding import draw_uniform
from rlroute.trainers.decision import make_learner
from rlroute.trainers.learner import Learner, MinibatchPart
from rlroute.trainers.recipe import Recipe
from rlroute.trainers.targets import compute_targets
from rlroute.trainers.update import compute_loss
from rlroute.types import Batch, Candidate, Prices, Query

CANDIDATES = ("a", "b", "c")
TEXTS = (
    *("river moon verse", "add two numbers", "moon rhyme song", "count three digits"),
    *("song of the river", "numbers minus digits", "verse and rhyme", "add and count"),
    *("moon verse song", "digits plus numbers", "rhyme of the moon", "count numbers"),
)
HOLED, WHOLE = 1, 2  # positions in the train split: 'b' has no outcome for the first one
WEIGHT = 0.7
ACTIONS = [
    {"kind": "subsets", "sizes": [1, 2], "combine": "best_of"},
    {"kind": "skip", "cost_usd": 0, "score": 0.1},
]


def build_table() -> OutcomeTable:
    """Return a table with random outcomes and one hole."""
    draw = np.random.default_rng(3)
    shape = (len(TEXTS), len(CANDIDATES))
    score_QK = draw.uniform(size=shape).astype(np.float32)
    cost_QK = draw.uniform(0.001, 0.01, size=shape).astype(np.float32)
    present_QK = np.ones(shape, dtype=np.bool_)
    present_QK[HOLED, 1] = False
    score_QK[~present_QK] = cost_QK[~present_QK] = np.nan
    unknown_QK = np.full(shape, np.nan, dtype=np.float32)
    return OutcomeTable(
        name="small",
        queries=tuple(Query(f"q{q:02}", text) for q, text in enumerate(TEXTS)),
        candidates=tuple(Candidate(name, Prices(k + 1.0, 2.0)) for k, name in enumerate("abc")),
        score_QK=score_QK,
        cost_usd_QK=cost_QK,
        present_QK=present_QK,
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array(["train"] * 8 + ["val"] * 2 + ["test"] * 2),
    )


def make_recipe(algorithm: dict[str, Any]) -> Recipe:
    """Return a recipe over subsets and skip, without dropout."""
    data = {
        "table": "small",
        "actions": ACTIONS,
        "encoder": {"kind": "tfidf", "dimension": 4},
        "profile": {"clusters": 2},
        "policy": {"hidden": 8, "dropout": 0.0},
        "algorithm": algorithm,
    }
    return parse_config(Recipe, data, "recipe")


@pytest.fixture(scope="module")
def prepared() -> PreparedTable:
    """The table with its actions, encoded and profiled."""
    recipe = make_recipe({"kind": "ppo"})
    table = build_actions(build_table(), recipe.actions)
    return prepare_table(table, recipe.encoder, recipe.profile, recipe.seed)


def build_learner(prepared: PreparedTable, algorithm: dict[str, Any]) -> Learner:
    """Return a learner whose policy is far from where it starts, the same for all algorithms."""
    learner = make_learner(make_recipe(algorithm), prepared, Accelerator(cpu=True))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in learner.scorer.named_parameters():
            if name != "log_sharpness":
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        learner.scorer.log_sharpness.fill_(1.0)
    return learner


def make_batch(
    learner: Learner, prepared: PreparedTable, query: int, actions: tuple[int, ...]
) -> Batch:
    """Return episodes of one query, as the policy would have made them with these actions."""
    data, count = prepared.splits["train"], len(actions)
    query_index_B = np.full(count, query)
    terms = compute_outcome_terms(data, query_index_B)
    weight_B = np.full(count, WEIGHT, dtype=np.float32)
    scores = decide(learner, prepared, query)
    action_B, row_B = np.array(actions), np.arange(count)
    return Batch(
        features_BTF=data.features_QF[query_index_B][:, None],
        candidate_features_KD=data.candidate_features_KD,
        mask_BTK=data.table.present_QK[query_index_B][:, None],
        cost_weight_B=weight_B,
        action_BT=action_B[:, None],
        logp_BT=scores.logp_BK.numpy()[0, action_B][:, None],
        value_BT=scores.value_B.numpy()[[0] * count][:, None],
        valid_BT=np.ones((count, 1), dtype=np.bool_),
        terminated_B=np.ones(count, dtype=np.bool_),
        reward_terms_BT={
            name: term_BK[row_B, action_B][:, None] for name, term_BK in terms.items()
        },
        query_index_B=query_index_B,
        group_B=np.zeros(count, dtype=np.int64),
        outcome_terms_BK=terms,
    )


def compute_gradient(learner: Learner, batch: Batch) -> np.ndarray:
    """Return the gradient of the update's loss per episode, of all the policy's weights."""
    rows_B = np.arange(len(batch.group_B))
    part = MinibatchPart(rows_B, rows_B, len(rows_B), (0, 0, 0))
    targets = compute_targets(learner, batch)
    scores = learner.score_rows(learner, batch, part)
    loss, _ = compute_loss(learner, batch, targets, scores, torch.as_tensor(rows_B))
    return read_gradient(learner, loss / len(rows_B))


def read_gradient(learner: Learner, loss: torch.Tensor) -> np.ndarray:
    """Return the gradient of a loss of the policy's weights, those of the critic left out."""
    named = [
        (name, parameter)
        for name, parameter in learner.scorer.named_parameters()
        if not name.startswith("value_head")
    ]
    found = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    return np.concatenate(
        [
            (torch.zeros_like(parameter) if gradient is None else gradient).flatten().numpy()
            for (_, parameter), gradient in zip(named, found, strict=True)
        ]
    ).astype(np.float64)


def compute_expectation(
    learner: Learner, prepared: PreparedTable, query: int, group: int
) -> np.ndarray:
    """Return the mean gradient over all groups of actions, weighted by their probability."""
    probability_K = list_probabilities(learner, prepared, query)
    total = np.zeros(1)
    for actions in itertools.product(np.flatnonzero(probability_K).tolist(), repeat=group):
        batch = make_batch(learner, prepared, query, actions)
        total = total + np.prod(probability_K[list(actions)]) * compute_gradient(learner, batch)
    return total


def list_probabilities(learner: Learner, prepared: PreparedTable, query: int) -> np.ndarray:
    """Return the policy's probabilities of all actions for a query [K]."""
    return decide(learner, prepared, query).logp_BK.double().exp().numpy()[0]


def decide(learner: Learner, prepared: PreparedTable, query: int) -> Scores:
    """Return what the policy says of a train query, one row."""
    data = prepared.splits["train"]
    with torch.no_grad():
        scores: Scores = learner.scorer(
            torch.as_tensor(data.features_QF[[query]]),
            torch.as_tensor(data.candidate_features_KD),
            torch.as_tensor(data.table.present_QK[[query]]),
            torch.tensor([WEIGHT]),
        )
    return scores


def compute_exact(learner: Learner, prepared: PreparedTable, query: int) -> np.ndarray:
    """Return the gradient of minus the expected reward, summed over actions by hand."""
    data = prepared.splits["train"]
    batch = make_batch(learner, prepared, query, (0,))
    part = MinibatchPart(np.array([0]), np.array([0]), 1, (0, 0, 0))
    logp_K = learner.score_rows(learner, batch, part).logp_BK[0]
    present_K = data.table.present_QK[query]
    cost_K = data.table.cost_usd_QK[query] / data.cost_reference_usd
    reward_K = (data.table.score_QK[query] - WEIGHT * cost_K)[present_K]
    return read_gradient(learner, -(logp_K[present_K].exp() * torch.as_tensor(reward_K)).sum())


# kind, episodes that are compared with each other, and the part of the exact gradient that the
# estimator has: a member of a pair is half of its own baseline in GRPO
ESTIMATORS = [
    ({"kind": "rloo", "episodes": 2, "group_size": 2}, 2, 1.0),
    ({"kind": "grpo", "episodes": 2, "group_size": 2}, 2, 0.5),
    ({"kind": "ppo", "normalise_advantages": False, "value_weight": 0.0}, 1, 1.0),
    ({"kind": "reinforce", "baseline": "none"}, 1, 1.0),
    ({"kind": "expected_gradient"}, 1, 1.0),
]


@pytest.mark.parametrize("query", [HOLED, WHOLE])
@pytest.mark.parametrize(("algorithm", "group", "part"), ESTIMATORS)
def test_the_mean_over_all_actions_is_the_exact_gradient(prepared, algorithm, group, part, query):
    learner = build_learner(prepared, algorithm)
    exact = compute_exact(learner, prepared, query)
    assert np.linalg.norm(exact) > 0.05
    found = compute_expectation(learner, prepared, query, group)
    np.testing.assert_allclose(found, part * exact, atol=1e-6)


def test_a_masked_compound_has_probability_exactly_zero_and_is_never_drawn(prepared):
    learner = build_learner(prepared, {"kind": "ppo"})
    data = prepared.splits["train"]
    ids = [candidate.id for candidate in data.table.candidates]
    assert ids == ["a", "b", "c", "a+b", "a+c", "b+c", "skip"]
    probability_K = list_probabilities(learner, prepared, HOLED)
    masked = [ids.index(name) for name in ("b", "a+b", "b+c")]
    assert (probability_K[masked] == 0).all()
    assert probability_K.sum() == pytest.approx(1, abs=1e-6)
    assert (np.delete(probability_K, masked) > 0.001).all()
    logp_BK = np.log(
        np.maximum(probability_K, 0), where=probability_K > 0, out=np.full(len(ids), -np.inf)
    )[None].repeat(20_000, 0)
    drawn_B = sample_actions(logp_BK, draw_uniform("test", np.arange(20_000)))
    share_K = np.bincount(drawn_B, minlength=len(ids)) / len(drawn_B)
    assert (share_K[masked] == 0).all()
    np.testing.assert_allclose(share_K, probability_K, atol=0.02)
