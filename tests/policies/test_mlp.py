from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data.routing_data import count_candidate_features
from rlroute.policies.mlp import CandidateScorer, ScorerConfig, draw_dropout_mask

FEATURES, CLUSTERS = 4, 2
COLUMNS = count_candidate_features(CLUSTERS)
SCORE, COST = COLUMNS - 2 * CLUSTERS, COLUMNS - CLUSTERS  # the columns of cluster 0


def make_model(seed: int = 0, *, trained: bool = False) -> CandidateScorer:
    torch.manual_seed(seed)
    model = CandidateScorer(
        ScorerConfig(features=FEATURES, clusters=CLUSTERS, hidden=16, dropout=0.5)
    )
    if trained:  # as if: random towers
        for tower in (model.quality_tower, model.cost_tower):
            torch.nn.init.normal_(tower.weight)
    return model


def make_inputs(queries: int = 5, candidates: int = 4, cost_weight: float = 0.5):
    generator = torch.Generator().manual_seed(queries)
    features_BF = torch.nn.functional.normalize(
        torch.randn(queries, FEATURES, generator=generator), dim=1
    )
    candidate_features_KD = torch.randn(candidates, COLUMNS, generator=generator)
    candidate_features_KD[:, SCORE] = torch.tensor([0.6, 0.9, 0.3, 0.7, 0.2])[:candidates]
    candidate_features_KD[:, COST] = torch.tensor([0.2, 1.0, 0.0, 0.4, 0.1])[:candidates]
    mask_BK = torch.ones(queries, candidates, dtype=torch.bool)
    return features_BF, candidate_features_KD, mask_BK, torch.full((queries,), cost_weight)


def test_an_untrained_policy_prefers_the_best_profile_at_each_cost_weight():
    model = make_model()
    for cost_weight, best in ((0.0, 1), (0.5, 0), (5.0, 2)):
        scores = model(*make_inputs(cost_weight=cost_weight))
        assert scores.logits_BK.argmax(dim=1).tolist() == [best] * 5


def test_an_untrained_policy_starts_at_the_profiles():
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs()
    scores = make_model()(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    mean_score_K, mean_cost_K = candidate_features_KD[:, SCORE], candidate_features_KD[:, COST]
    torch.testing.assert_close(scores.quality_BK, mean_score_K.expand(5, 4))
    torch.testing.assert_close(scores.cost_BK, mean_cost_K.expand(5, 4))
    utility_K = mean_score_K - 0.5 * mean_cost_K
    torch.testing.assert_close(scores.logits_BK, (10 * utility_K).expand(5, 4))
    torch.testing.assert_close(scores.logp_BK.exp().sum(dim=1), torch.ones(5))


def test_a_query_is_given_the_profiles_of_its_own_cluster():
    model = make_model()
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs(queries=2)
    model.centroids_CF.copy_(features_BF.flip(0))  # the first query lies in cluster 1
    scores = model(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    expected_BK = candidate_features_KD[:, [SCORE + 1, SCORE]].T
    torch.testing.assert_close(scores.quality_BK, expected_BK)
    torch.testing.assert_close(scores.cost_BK, candidate_features_KD[:, [COST + 1, COST]].T)


def test_the_order_of_candidates_permutes_the_scores_and_nothing_else():
    model = make_model(trained=True)
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs()
    mask_BK[0, 2] = False
    order = torch.tensor([2, 0, 3, 1])
    scores = model(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    moved = model(features_BF, candidate_features_KD[order], mask_BK[:, order], cost_weight_B)
    torch.testing.assert_close(moved.logits_BK, scores.logits_BK[:, order])
    torch.testing.assert_close(moved.value_B, scores.value_B)


def test_a_new_candidate_needs_no_new_weights_and_leaves_the_other_scores():
    model = make_model(trained=True)
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs(candidates=5)
    wide = model(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    narrow = model(features_BF, candidate_features_KD[:4], mask_BK[:, :4], cost_weight_B)
    torch.testing.assert_close(wide.logits_BK[:, :4], narrow.logits_BK)


def test_a_query_is_scored_alike_alone_and_in_a_batch():
    model = make_model(trained=True)
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs()
    batch = model(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    alone = model(features_BF[3:4], candidate_features_KD, mask_BK[3:4], cost_weight_B[3:4])
    torch.testing.assert_close(alone.logits_BK[0], batch.logits_BK[3])


@given(mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any), seed=st.integers(0, 9))
def test_a_masked_candidate_has_probability_zero_and_the_others_sum_to_one(mask, seed):
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs()
    mask_BK[:] = torch.tensor(mask)
    scores = make_model(seed, trained=True)(
        features_BF, candidate_features_KD, mask_BK, cost_weight_B
    )
    probability_BK = scores.logp_BK.exp()
    assert (probability_BK[~mask_BK] == 0).all()
    torch.testing.assert_close(probability_BK.sum(dim=1), torch.ones(5))
    assert scores.value_B.isfinite().all()


def test_masked_candidates_send_no_gradient_and_all_gradients_are_finite():
    model = make_model(trained=True)
    features_BF, candidate_features_KD, mask_BK, cost_weight_B = make_inputs()
    mask_BK[:, 1] = False
    candidate_features_KD.requires_grad_()
    scores = model(features_BF, candidate_features_KD, mask_BK, cost_weight_B)
    (scores.logp_BK[:, 0].sum() + scores.value_B.sum()).backward()
    assert (candidate_features_KD.grad[1] == 0).all()
    assert all(item.grad.isfinite().all() for item in model.parameters() if item.grad is not None)


def test_the_critic_sends_no_gradient_into_the_policy():
    model = make_model(trained=True)
    model(*make_inputs()).value_B.sum().backward()
    touched = {name for name, item in model.named_parameters() if item.grad is not None}
    assert touched
    assert all(name.startswith("value_head") for name in touched)


def test_the_critic_starts_from_the_expected_utility_of_the_policy():
    model = make_model(trained=True)
    scores = model(*make_inputs())
    utility_BK = scores.quality_BK - 0.5 * scores.cost_BK
    expected_B = (scores.logp_BK.exp() * utility_BK).sum(dim=1)
    correction_B = scores.value_B - expected_B
    assert correction_B.tolist() == pytest.approx([model.value_head[2].bias.item()] * 5, abs=1e-6)


def test_predicted_cost_stays_within_its_bounds_and_above_zero():
    model = make_model()
    torch.nn.init.constant_(model.cost_tower.weight, 1e3)
    scores = model(*make_inputs())
    mean_cost_K = make_inputs()[1][:, COST]
    assert (scores.cost_BK >= mean_cost_K * np.exp(-4) * 0.999).all()
    assert (scores.cost_BK <= mean_cost_K * np.exp(4) * 1.001).all()


def test_a_dropout_mask_keeps_its_mean_and_follows_from_its_generator():
    config = ScorerConfig(features=2, clusters=2, hidden=500, dropout=0.25)
    mask_BH = draw_dropout_mask(40, config, torch.Generator().manual_seed(1))
    assert mask_BH.shape == (40, 500)
    assert mask_BH.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert mask_BH.mean().item() == pytest.approx(1, abs=0.02)
    again = draw_dropout_mask(40, config, torch.Generator().manual_seed(1))
    torch.testing.assert_close(mask_BH, again)


def test_without_dropout_there_is_no_mask_and_a_mask_of_ones_changes_nothing():
    config = ScorerConfig(features=2, clusters=2, dropout=0)
    assert draw_dropout_mask(3, config, torch.Generator()) is None
    model = make_model(trained=True)
    plain, masked = model(*make_inputs()), model(*make_inputs(), torch.ones(5, 16))
    torch.testing.assert_close(plain.logits_BK, masked.logits_BK)
    dropped = model(*make_inputs(), torch.zeros(5, 16))
    torch.testing.assert_close(dropped.quality_BK, make_inputs()[1][:, SCORE].expand(5, 4))


@pytest.mark.parametrize("anchors", [0, 7])
def test_what_is_made_of_the_queries_once_scores_them_to_the_bit(anchors):
    torch.manual_seed(0)
    config = ScorerConfig(features=FEATURES, clusters=CLUSTERS, hidden=16, anchors=anchors)
    model = CandidateScorer(config)
    for value in (*model.parameters(), *model.buffers()):
        if value.dim() > 1:
            torch.nn.init.normal_(value)
    features_BF, features_KD, mask_BK, weight_B = make_inputs(queries=40)
    row_N = torch.tensor([3, 0, 39, 3])
    basis = model.prepare_queries(features_BF, features_KD).select_rows(row_N)
    again = model(basis, features_KD, mask_BK[row_N], weight_B[row_N])
    plain = model(features_BF, features_KD, mask_BK, weight_B)
    assert len(plain.quality_BK.unique()) > 40  # the queries do differ
    for name in ("logits_BK", "quality_BK", "cost_BK", "value_B"):
        torch.testing.assert_close(getattr(again, name), getattr(plain, name)[row_N])


def test_dropout_and_relu_in_place_send_the_gradient_of_the_plain_formula():
    model = make_model(trained=True)
    features_BF, features_KD, mask_BK, weight_B = make_inputs(queries=30)
    mask_BH = draw_dropout_mask(30, model.config, torch.Generator().manual_seed(0))
    assert mask_BH is not None
    kept_BH = mask_BH.clone()
    model(features_BF, features_KD, mask_BK, weight_B, mask_BH).quality_BK.sum().backward()
    found_HF = model.query_layer.weight.grad
    torch.testing.assert_close(mask_BH, kept_BH)  # the caller's mask is not written to
    weight_HF = model.query_layer.weight.detach().clone().requires_grad_()
    input_BH = features_BF * FEATURES**0.5 @ weight_HF.T + model.query_layer.bias.detach()
    shift_KH = model.quality_tower(features_KD[:, :SCORE]).detach() / 16**0.5
    (torch.relu(input_BH) * mask_BH @ shift_KH.T).sum().backward()
    torch.testing.assert_close(found_HF, weight_HF.grad)
