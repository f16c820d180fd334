"""The priced policy: a single-turn router at a price of money that follows the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlroute.envs.budget import BUDGET_FEATURES
from rlroute.policies.mlp import CandidateScorer
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
from rlroute.policies.value_to_go import solve_value_to_go

WIDTH, CLUSTERS, CANDIDATES = 3, 2, 4
QUERIES = 4
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


def find_values():
    """Return what the candidates are measured to earn and cost, and a value to go of the like."""
    measured_KD = make_candidates().double().numpy()
    score_K, cost_K = measured_KD[:, -2 * CLUSTERS], measured_KD[:, -1]
    cost_QK = cost_K * np.exp(np.random.default_rng(1).normal(0, 0.3, (200, CANDIDATES)))
    score_QK, legal_QK = np.tile(score_K, (200, 1)), np.ones_like(cost_QK, dtype=bool)
    return score_K, cost_K, solve_value_to_go(score_QK, cost_QK, cost_QK, legal_QK, QUERIES)


def make_looking_ahead(seed: int = 0) -> PricedScorer:
    torch.manual_seed(seed)
    config = PricedScorerConfig(features=WIDTH, clusters=CLUSTERS, hidden=8, queries=QUERIES)
    scorer = PricedScorer(config)
    scorer.router.centroids_CF.copy_(torch.eye(WIDTH)[:CLUSTERS])
    scorer.set_values(find_values()[2])
    return scorer


def test_before_learning_it_picks_by_score_and_value_to_go():
    scorer = make_looking_ahead()
    score_K, cost_K, values = find_values()
    shares = [0.02, 0.1, 0.3, 0.6, 0.9]
    for left in (1, 2, 3, 4):
        features_BF = make_features(shares, steps_left=left / QUERIES)
        found = score(scorer, features_BF)
        rows, lefts = np.ones((len(shares), 1)), np.full(len(shares), left)
        expected_B = values.pick(
            *(rows * score_K, rows * cost_K, np.ones((len(shares), CANDIDATES), dtype=bool)),
            *(lefts, np.array(shares) * left),
        )
        assert found.logits_BK.argmax(dim=1).tolist() == expected_B.tolist()
        value_B = values.read(lefts, np.array(shares) * left) / QUERIES
        assert found.value_B.detach().numpy() == pytest.approx(value_B, abs=1e-4)


def test_the_value_to_go_is_read_as_numpy_does():
    scorer = make_looking_ahead()
    _, _, values = find_values()
    money_B = np.geomspace(1e-4, 20, 50)
    for left in range(QUERIES + 1):
        left_B = np.full(len(money_B), left)
        found_B = scorer.read_values(torch.tensor(left_B), torch.tensor(money_B))
        assert found_B.numpy() == pytest.approx(values.read(left_B, money_B), abs=1e-4)
    below = scorer.read_values(torch.tensor([2]), torch.tensor([-1.0]))
    assert below.item() == 0  # more was spent than there was: nothing is worth anything


def test_looking_ahead_or_not_it_is_the_single_turn_router_where_money_is_not_scarce():
    scorer = make_looking_ahead()
    torch.nn.init.normal_(scorer.router.quality_tower.weight)
    router: CandidateScorer = scorer.router
    mask_BK, weight_B = torch.ones(2, CANDIDATES, dtype=torch.bool), torch.tensor([0.7, 0.7])
    for features_BF in (make_features([1.0, 0.2], capped=0.0), make_features([1.0, 1.0])):
        plain = router(features_BF[:, :WIDTH], make_candidates()[:, 3:], mask_BK, weight_B)
        found = score(scorer, features_BF, weight=0.7)
        torch.testing.assert_close(found.logits_BK, plain.logits_BK)


def test_looking_ahead_every_part_learns_finitely_and_masked_ones_have_no_chance():
    scorer = make_looking_ahead()
    mask_BK = torch.tensor([[True, False, True, True], [False, True, True, False]])
    scores = score(scorer, make_features([0.03, 0.3]), mask_BK)
    assert torch.equal(scores.logits_BK.isinf(), ~mask_BK)
    (scores.logp_BK[mask_BK].square().sum() + (scores.value_B - 1).square().sum()).backward()
    parts = ("price_net.2.weight", "value_head.2.weight", "router.quality_tower.weight")
    for name in (*parts, "router.cost_tower.weight"):
        gradient = dict(scorer.named_parameters())[name].grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name


def test_a_policy_holds_either_a_curve_or_a_value_to_go():
    assert "value_TG" not in make_scorer().state_dict()
    names = make_looking_ahead().state_dict()
    assert "log_price_N" not in names
    assert names["value_TG"].shape == (QUERIES + 1, names["log_money_G"].shape[0])
