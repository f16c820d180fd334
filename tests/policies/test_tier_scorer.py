"""The network of memory tiers: the source's shape and arithmetic, first policies, masks, tiers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.policies.tier_scorer import (
    TierScorer,
    TierScorerConfig,
    TierScorerPolicy,
    describe_tiers,
)
from rlroute.policies.tierwise import TierInputs

SOURCE = {"head": "outputs", "read_extras": "none", "unit_variance": False}
COSTS = [[0.0, 0.0001, 0.002]] * 4 + [[0.0, 0.0005, 0.001]]  # USD by module and tier
MODULES, TIERS, WIDTH, EXTRAS = 5, 3, 6, 18


def make_scorer(*, trained: bool = True, **fields) -> TierScorer:
    """Return a small described scorer; `trained` gives it weights as training might."""
    shape = {"dimension": WIDTH, "extras": EXTRAS, "modules": MODULES, "tiers": TIERS}
    torch.manual_seed(0)
    scorer = TierScorer(
        TierScorerConfig.model_validate(shape | {"hidden": 16, "action_hidden": 8} | fields)
    )
    rng = np.random.default_rng(0)
    tiers_MKD = np.zeros(tuple(scorer.tier_features_MKD.shape), dtype=np.float32)
    tiers_MKD[:, :TIERS] = describe_tiers(COSTS, 0.009)
    scorer.describe(rng.normal(size=(MODULES, WIDTH)).astype(np.float32), tiers_MKD)
    if trained:
        for weight in (scorer.output.weight, scorer.value_output.weight):
            torch.nn.init.normal_(weight)
    return scorer.eval()


def make_features(rows: int, seed: int = 0, extras: int = EXTRAS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 2 * WIDTH + extras)).astype(np.float32)


def score(scorer: TierScorer, features_NF, module_N, mask_NK=None):
    shape = (len(features_NF), scorer.config.tiers)
    mask_NK = np.ones(shape, dtype=np.bool_) if mask_NK is None else mask_NK
    with torch.no_grad():
        return scorer(
            torch.as_tensor(features_NF), torch.as_tensor(module_N), torch.as_tensor(mask_NK)
        )


def compute_by_hand(scorer: TierScorer, features_NF, module_N):
    """Return logits [N, K] and values [N] in plain NumPy, from the weights by their names."""
    config = scorer.config
    weight = {name: value.numpy() for name, value in scorer.state_dict().items()}

    def layer(name: str, x_NI):
        return x_NI @ weight[f"{name}.weight"].T + weight.get(f"{name}.bias", 0.0)

    scale = math.sqrt(config.dimension) if config.unit_variance else 1.0
    read_NR = features_NF[:, : 2 * config.dimension] * scale
    if config.read_extras == "all":
        read_NR = np.concatenate([read_NR, features_NF[:, 2 * config.dimension :]], axis=1)
    vector_NE = weight["module_vectors_ME"][module_N] * scale
    joined_N = np.concatenate(
        [layer("text_layer", read_NR), layer("module_layer", vector_NE)], axis=1
    )
    hidden_NH = np.maximum(layer("body.2", np.maximum(layer("body.0", joined_N), 0)), 0)
    action_NA = np.maximum(layer("action_layer.0", hidden_NH), 0)
    value_N = layer("value_output", np.maximum(layer("value_layer.0", hidden_NH), 0))[:, 0]
    if config.head == "outputs":
        return layer("output", action_NA), value_N
    tier_NKA = layer("output", weight["tier_features_MKD"])[module_N]
    logits_NK = np.einsum("na,nka->nk", action_NA, tier_NKA) / math.sqrt(config.action_hidden)
    return logits_NK, value_N


# --- The source's network -------------------------------------------------------------------------


def test_the_sources_network_has_exactly_its_parameters():
    config = TierScorerConfig.model_validate(
        {"dimension": 768, "extras": EXTRAS, "modules": 5, "tiers": 3} | SOURCE
    )
    scorer = TierScorer(config)
    sizes = {name: value.numel() for name, value in scorer.named_parameters()}
    assert sum(sizes.values()) == 857_604
    assert sizes["module_vectors_ME"] == 5 * 768  # learnt
    assert scorer.text_layer.in_features == 1536


def test_all_layers_start_orthogonal_with_their_gains():
    scorer = make_scorer(trained=False, **SOURCE)
    for name, layer in scorer.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        gain = 0.01 if name == "value_output" else math.sqrt(2)
        singular = torch.linalg.svdvals(layer.weight.detach())
        torch.testing.assert_close(singular, torch.full_like(singular, gain), atol=1e-5, rtol=0)
        assert (layer.bias == 0).all()


def test_a_module_vector_starts_at_the_embedding_of_its_description():
    scorer = make_scorer(trained=False)
    description_ME = np.eye(MODULES, WIDTH, dtype=np.float32)
    scorer.describe(description_ME, describe_tiers(COSTS, 0.009))
    np.testing.assert_array_equal(scorer.module_vectors_ME.detach(), description_ME)
    assert scorer.module_vectors_ME.requires_grad


@pytest.mark.parametrize(
    "fields",
    [SOURCE, {}, {"head": "outputs"}, {"read_extras": "none"}, {"unit_variance": False}],
    ids=["source", "ours", "outputs", "no-extras", "plain-scale"],
)
def test_a_forward_pass_is_that_of_plain_numpy(fields):
    scorer = make_scorer(**fields)
    features_NF, module_N = make_features(20), np.arange(20) % MODULES
    found = score(scorer, features_NF, module_N)
    logits_NK, value_N = compute_by_hand(scorer, features_NF, module_N)
    np.testing.assert_allclose(found.logits_BK, logits_NK, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.value_B, value_N, rtol=1e-4, atol=1e-4)
    assert np.std(logits_NK, axis=1).min() > 1e-3  # the tiers are told apart
    assert np.std(value_N) > 1e-3


def test_extras_that_are_not_read_change_nothing_and_others_do():
    features_NF, module_N = make_features(10), np.arange(10) % MODULES
    other_NF = features_NF.copy()
    other_NF[:, 2 * WIDTH :] += 1
    for read, equal in (("none", True), ("all", False)):
        scorer = make_scorer(read_extras=read)
        one, two = (score(scorer, x, module_N).logits_BK for x in (features_NF, other_NF))
        assert torch.equal(one, two) == equal


# --- First policies, masks, tiers -----------------------------------------------------------------


def test_a_described_head_starts_uniform_and_the_sources_does_not():
    features_NF, module_N = make_features(30), np.arange(30) % MODULES
    found = score(make_scorer(trained=False), features_NF, module_N)
    np.testing.assert_allclose(found.logp_BK.exp(), 1 / 3, rtol=1e-6)
    found = score(make_scorer(trained=False, head="outputs"), features_NF, module_N)
    assert found.logp_BK.exp().std() > 0.05


def test_the_first_policy_learns_from_its_first_step():
    scorer = make_scorer(trained=False)
    found = scorer(
        torch.as_tensor(make_features(10)),
        torch.arange(10) % MODULES,
        torch.ones(10, TIERS, dtype=torch.bool),
    )
    found.logp_BK[:, 0].sum().backward()
    assert scorer.output.weight.grad.abs().max() > 1e-3


@given(st.integers(0, 2**32 - 1), st.sampled_from(["described", "outputs"]))
def test_a_masked_tier_has_no_probability_and_is_never_chosen(seed, head):
    rng = np.random.default_rng(seed)
    mask_BK = rng.random((30, TIERS)) < 0.5
    mask_BK[~mask_BK.any(axis=1), 1] = True
    scorer = make_scorer(head=head)
    inputs = TierInputs(make_features(30, seed), 2, mask_BK, np.zeros(30, dtype=np.float32))
    probability_BK = score(scorer, inputs.features_BF, np.full(30, 2), mask_BK).logp_BK.exp()
    assert (probability_BK.numpy()[~mask_BK] == 0).all()
    np.testing.assert_allclose(probability_BK.sum(axis=1), 1, rtol=1e-5)
    for greedy in (False, True):
        taken = TierScorerPolicy(scorer, greedy=greedy).decide(inputs, rng.random(30))
        assert mask_BK[np.arange(30), taken.action_B].all()
        chosen_B = probability_BK.numpy()[np.arange(30), taken.action_B]
        np.testing.assert_allclose(np.exp(taken.logp_B), chosen_B, rtol=1e-5)


def test_masked_tiers_put_no_nan_into_gradients():
    scorer = make_scorer()
    mask_NK = torch.tensor([[True, False, False], [True, True, False]])
    found = scorer(torch.as_tensor(make_features(2)), torch.tensor([0, 4]), mask_NK)
    found.logp_BK[:, 0].sum().backward()
    for name, parameter in scorer.named_parameters():
        if not name.startswith("value"):
            assert parameter.grad.isfinite().all(), name


def test_actions_are_sampled_by_their_probabilities_and_greedily_the_likeliest():
    scorer, count = make_scorer(), 20_000
    features_BF = np.repeat(make_features(1, seed=3), count, axis=0)
    everything_BK = np.ones((count, TIERS), dtype=np.bool_)
    inputs = TierInputs(features_BF, 1, everything_BK, np.zeros(count, dtype=np.float32))
    probability_K = score(scorer, features_BF[:1], np.array([1])).logp_BK.exp().numpy()[0]
    assert probability_K.min() > 0.001
    uniform_B = np.random.default_rng(0).random(count)
    drawn = TierScorerPolicy(scorer, version=4)
    share_K = np.bincount(drawn.decide(inputs, uniform_B).action_B, minlength=TIERS) / count
    error_K = np.sqrt(probability_K * (1 - probability_K) / count)
    assert (np.abs(share_K - probability_K) < 4 * error_K).all()
    assert drawn.version == 4
    greedy_B = TierScorerPolicy(scorer, greedy=True).decide(inputs, uniform_B).action_B
    assert (greedy_B == probability_K.argmax()).all()


def test_one_lane_is_decided_as_it_is_among_many():
    scorer, features_BF = make_scorer(), make_features(20)
    weight_B, uniform_B = np.zeros(20, dtype=np.float32), np.random.default_rng(1).random(20)
    mask_BK = np.ones((20, TIERS), dtype=np.bool_)
    policy = TierScorerPolicy(scorer)
    together = policy.decide(TierInputs(features_BF, 3, mask_BK, weight_B), uniform_B)
    assert len(set(together.action_B.tolist())) > 1
    for lane in range(20):
        only = slice(lane, lane + 1)
        inputs = TierInputs(features_BF[only], 3, mask_BK[only], weight_B[only])
        alone = policy.decide(inputs, uniform_B[only])
        assert alone.action_B[0] == together.action_B[lane]
        assert alone.logp_B[0] == pytest.approx(together.logp_B[lane], abs=1e-5)
        assert alone.value_B[0] == pytest.approx(together.value_B[lane], abs=1e-5)


def test_a_tier_is_added_to_a_described_head_without_new_weights():
    fields = {"read_extras": "none"}  # extras hold a place for each tier of each module
    small, large = make_scorer(**fields), make_scorer(tiers=4, **fields)
    weights = dict(small.named_parameters())
    sizes = {name: value.shape for name, value in large.named_parameters()}
    assert sizes == {name: value.shape for name, value in weights.items()}
    with torch.no_grad():
        for name, value in large.named_parameters():
            value.copy_(weights[name])
    features_NF, module_N = make_features(9), np.arange(9) % MODULES
    before = score(small, features_NF, module_N).logits_BK
    after = score(large, features_NF, module_N).logits_BK
    torch.testing.assert_close(after[:, :TIERS], before)
    large.tier_features_MKD[:, 3] = torch.tensor([1.0, 0.8, 0.64, 0.1])
    added = score(large, features_NF, module_N).logits_BK
    torch.testing.assert_close(added[:, :TIERS], before)
    assert (added[:, 3] - after[:, 3]).abs().min() > 1e-3


def test_tiers_are_described_by_place_and_share_of_the_cost():
    found_MKD = describe_tiers([[0.0, 0.001, 0.003], [0.0, 0.002]], reference_usd=0.005)
    expected = [
        [[1, 0, 0, 0], [1, 0.5, 0.25, 0.2], [1, 1, 1, 0.6]],
        [[1, 0, 0, 0], [1, 1, 1, 0.4], [0, 0, 0, 0]],
    ]
    np.testing.assert_allclose(found_MKD, expected, rtol=1e-6)
    assert found_MKD.dtype == np.float32


def test_a_repriced_tier_changes_the_policy_without_training():
    scorer = make_scorer()
    features_NF, module_N = make_features(5), np.full(5, 1)
    before = score(scorer, features_NF, module_N).logits_BK
    scorer.tier_features_MKD[1, 2, 3] *= 2
    after = score(scorer, features_NF, module_N).logits_BK
    assert (after[:, 2] - before[:, 2]).abs().min() > 1e-4
    torch.testing.assert_close(after[:, :2], before[:, :2])
