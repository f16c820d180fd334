"""The priced policy: a single-turn router at a price of money that follows the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.policies.money_price import PriceCurve
from rlroute.policies.priced_scorer import (
    CAPPED_COLUMN,
    DEAREST_COLUMN,
    PER_STEP_COLUMN,
    SHARE_COLUMN,
    STEPS_LEFT_COLUMN,
    PricedScorer,
    PricedScorerConfig,
)

WIDTH, CLUSTERS, CANDIDATES = 3, 2, 4
CURVE = PriceCurve(np.log([0.01, 0.1, 1.0, 1.0]), np.log([20.0, 4.0, 0.5, 0.1]))


def make_scorer(seed: int = 0, **fields) -> PricedScorer:
    torch.manual_seed(seed)
    config = PricedScorerConfig(
        features=WIDTH, clusters=CLUSTERS, hidden=8, knots=len(CURVE.log_money_N), **fields
    )
    scorer = PricedScorer(config)
    scorer.set_curve(CURVE)
    scorer.router.centroids_CF.copy_(torch.eye(WIDTH)[:CLUSTERS])
    return scorer


def make_features(per_step, *, steps_left=0.5, capped=1.0, dearest=1.0) -> torch.Tensor:
    rows = [[1.0, 0.0, 0.2, np.log(dearest), steps_left, 0.3, capped, 0.5, one] for one in per_step]
    return torch.tensor(rows, dtype=torch.float32)


def make_candidates() -> torch.Tensor:
    """Three common columns, then 2 + 3 + 2 C of a single-turn router, C scores and C costs."""
    generator = np.random.default_rng(0)
    rows = generator.random((CANDIDATES, 3 + 5 + 2 * CLUSTERS))
    score_KC = np.linspace(0.2, 0.8, CANDIDATES)[:, None] + np.zeros((1, CLUSTERS))
    cost_KC = np.linspace(0.01, 1.0, CANDIDATES)[:, None] + np.zeros((1, CLUSTERS))
    table_KD = np.concatenate([rows, score_KC, cost_KC], axis=1)
    return torch.tensor(table_KD, dtype=torch.float32)


def score(scorer, features_BF, mask_BK=None, weight=0.0):
    if mask_BK is None:
        mask_BK = torch.ones(len(features_BF), CANDIDATES, dtype=torch.bool)
    weight_B = torch.full((len(features_BF),), weight)
    return scorer(features_BF, make_candidates(), mask_BK, weight_B)


def test_it_reads_the_budgets_features_where_they_stand():
    columns = {
        "steps_left": STEPS_LEFT_COLUMN,
        "capped": CAPPED_COLUMN,
        "budget_left": SHARE_COLUMN,
        "budget_per_step": PER_STEP_COLUMN,
    }
    for name, column in columns.items():
        assert BUDGET_FEATURES[column] == name
    assert len(BUDGET_FEATURES) + 1 == -DEAREST_COLUMN


def test_the_curve_is_read_as_numpy_does():
    log_money_B = np.linspace(-7, 1, 60)
    found = make_scorer().read_curve(torch.tensor(log_money_B, dtype=torch.float32))
    expected_B = np.interp(log_money_B, CURVE.log_money_N, CURVE.log_price_N)
    away_B = np.abs(log_money_B) > 0.05  # at the jump either end will do
    np.testing.assert_allclose(found.numpy()[away_B], expected_B[away_B], atol=1e-5)


def test_without_a_cap_it_is_the_single_turn_router_at_the_cost_weight():
    scorer = make_scorer()
    torch.nn.init.normal_(scorer.router.quality_tower.weight)
    features_BF = make_features([1.0, 0.2], capped=0.0)
    mask_BK = torch.ones(2, CANDIDATES, dtype=torch.bool)
    weight_B = torch.tensor([0.7, 0.7])
    plain = scorer.router(features_BF[:, :WIDTH], make_candidates()[:, 3:], mask_BK, weight_B)
    found = score(scorer, features_BF, weight=0.7)
    torch.testing.assert_close(found.logits_BK, plain.logits_BK)


def test_with_little_money_it_takes_the_cheap_and_with_much_the_good():
    scores = score(make_scorer(), make_features([0.005, 0.1, 1.0]))
    assert scores.logits_BK.argmax(dim=1).tolist()[0] == 0
    assert scores.logits_BK.argmax(dim=1).tolist()[2] == CANDIDATES - 1
    # money is counted in the reference's unit: a tenth of a bound ten times as high is as much
    same = score(make_scorer(), make_features([0.01], dearest=10.0))
    torch.testing.assert_close(
        same.logits_BK, score(make_scorer(), make_features([0.1])).logits_BK, atol=1e-5, rtol=1e-5
    )


def test_before_learning_the_price_is_the_curves_and_the_value_is_0():
    scorer = make_scorer()
    log_money_B = torch.tensor(np.log([0.02, 0.3]), dtype=torch.float32)
    price_B = scorer.price(log_money_B, torch.tensor([0.1, 0.9]))
    assert price_B.detach().numpy() == pytest.approx(CURVE.find_price(np.array([0.02, 0.3])))
    assert score(scorer, make_features([0.1])).value_B.tolist() == [0.0]


def test_masked_candidates_have_no_chance_and_every_part_learns_finitely():
    scorer = make_scorer()
    mask_BK = torch.tensor([[True, False, True, True], [False, True, True, False]])
    scores = score(scorer, make_features([0.03, 0.3]), mask_BK)
    assert torch.equal(scores.logits_BK.isinf(), ~mask_BK)
    (scores.logp_BK[mask_BK].square().sum() + (scores.value_B - 1).square().sum()).backward()
    for name in ("price_net.2.weight", "value_head.2.weight", "router.quality_tower.weight"):
        gradient = dict(scorer.named_parameters())[name].grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    critic = scorer.router.value_head.parameters()
    assert all(parameter.grad is None for parameter in critic)  # it has a critic of its own
