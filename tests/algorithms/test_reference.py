"""Anchored and blended advantages against the worked numbers of bopo.md, section 6."""

from __future__ import annotations

import pytest
import torch

from rlroute.algorithms.losses import (
    compute_imitation_loss,
    compute_k3,
    compute_reference_loss,
)
from rlroute.algorithms.reference import (
    compute_anchored_baseline,
    compute_blend_baseline,
    compute_moments,
    forbid_rewarded_failures,
)

HARD_FAILURES = [0.0, -0.03, -0.09, -0.18]
CASES = [
    (
        HARD_FAILURES,
        [1.0911, 0.6546, -0.2182, -1.5275],
        [0, 0.9],
        [-0.2753, -0.3579, -0.5232, -0.7710],
    ),
    ([0.0] * 4, [0.0] * 4, [0, 0.9], [-0.4472] * 4),
    (
        [1.425, 1.23, 0, 0],
        [1.1408, 0.8485, -0.9946, -0.9946],
        [0, 0.9],
        [1.3603, 1.0417, -0.9682, -0.9682],
    ),
    (
        [1, 0.94, 0.82, 0.70],
        [1.1717, 0.6509, -0.3906, -1.4321],
        [1.0, 0.7],
        [1.0932, 0.6247, -0.3123, -1.2494],
    ),
    (
        [0, -0.06, -0.18, -0.30],
        [1.1717, 0.6509, -0.3906, -1.4321],
        [0, -0.3],
        [1.0932, 0.6247, -0.3123, -1.2494],
    ),
    (
        [0.94, 0.88, 0, 1],
        [0.5742, 0.4276, -1.7227, 0.7209],
        [0.8, 0.7],
        [0.6547, 0.4761, -2.1425, 0.8332],
    ),
]
MOMENTS = [
    (0.1, 0.36318),
    (0.15, 0.33541),
    (0.5925, 0.61199),
    (0.86, 0.12806),
    (-0.14, None),
    (0.72, 0.33606),
]


def compute_anchored_advantages(reward_NG, reference_NR, **how):
    return compute_anchored_baseline(reward_NG, reference_NR).measure(reward_NG, **how)


def compute_blend_advantages(reward_NG, reference_NR, *, weight, **how):
    return compute_blend_baseline(reward_NG, reference_NR, weight=weight).measure(reward_NG, **how)


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("rewards", "plain", "references", "anchored"), CASES)
def test_the_advantages_of_the_sheet(rewards, plain, references, anchored):
    without, _ = compute_anchored_advantages(
        tensor(rewards), torch.empty(1, 0, dtype=torch.float64), scale_by_std=True
    )
    assert without[0].tolist() == pytest.approx(plain, abs=6e-5)
    found, valid = compute_anchored_advantages(
        tensor(rewards), tensor(references), scale_by_std=True
    )
    assert found[0].tolist() == pytest.approx(anchored, abs=6e-5)
    assert valid.all()


@pytest.mark.parametrize(("case", "moments"), list(zip(CASES, MOMENTS, strict=True)))
def test_the_statistics_of_the_sheet(case, moments):
    mean_N1, std_N1, count_N1 = compute_moments(tensor([*case[0], *case[2]]))
    assert mean_N1.item() == pytest.approx(moments[0], abs=1e-9)
    if moments[1] is not None:
        assert std_N1.item() == pytest.approx(moments[1], abs=6e-6)
    assert count_N1.item() == 6


def test_the_blend_of_the_sheet():
    rewards = tensor([1.425, 1.23, 0, 0])
    found, _ = compute_blend_advantages(rewards, tensor([0, 0.9]), weight=0.5, scale_by_std=False)
    assert found[0].tolist() == pytest.approx([0.6431, 0.4481, -0.7819, -0.7819], abs=6e-5)
    scaled, _ = compute_blend_advantages(rewards, tensor([0, 0.9]), weight=0.5, scale_by_std=True)
    torch.testing.assert_close(scaled, found / (rewards.std(correction=0) + 1e-6))


def test_a_blend_without_references_is_the_plain_group_advantage():
    rewards, missing = tensor([1.0, 0.0, 0.5]), tensor([float("nan"), float("nan")])
    blend, _ = compute_blend_advantages(rewards, missing, weight=0.5, scale_by_std=True)
    plain, _ = compute_anchored_advantages(rewards, missing, scale_by_std=True)
    torch.testing.assert_close(blend, plain)


def test_plain_advantages_praise_the_cheapest_failure_and_anchored_ones_do_not():
    plain, _ = compute_anchored_advantages(
        tensor(HARD_FAILURES), torch.empty(1, 0, dtype=torch.float64), scale_by_std=True
    )
    anchored, _ = compute_anchored_advantages(
        tensor(HARD_FAILURES), tensor([0, 0.9]), scale_by_std=True
    )
    assert plain.max() > 1
    assert anchored.max() < 0


def test_an_undefined_reward_leaves_mean_and_standard_deviation():
    whole, _ = compute_anchored_advantages(
        tensor([1.0, 0.0]), tensor([0.2, 0.9]), scale_by_std=True
    )
    holed, valid = compute_anchored_advantages(
        tensor([1.0, float("nan"), 0.0]), tensor([0.2, 0.9]), scale_by_std=True
    )
    torch.testing.assert_close(holed[:, [0, 2]], whole)
    assert valid.tolist() == [[True, False, True]]
    assert holed[0, 1] == 0


def test_no_failure_is_praised_on_a_solvable_task():
    adv, failed = (
        tensor([0.5, -0.2, 0.3], [0.5, -0.2, 0.3]),
        torch.tensor([[True, True, False]] * 2),
    )
    held = forbid_rewarded_failures(adv, failed, torch.tensor([True, False]))
    assert held.tolist() == [[0.0, -0.2, 0.3], [0.5, -0.2, 0.3]]


def test_a_reference_decision_counts_by_its_shaped_probability():
    logp = torch.tensor([0.1, 0.9, 0.5]).log().requires_grad_()
    adv, valid = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([True, True, False])
    loss = compute_reference_loss(logp, adv, valid)
    assert loss.item() == pytest.approx(-(0.1 / 0.2 + 2 * 0.9 / 1.0), abs=1e-6)
    loss.backward()
    assert logp.grad[2] == 0
    # d/dlogp of r / (r + s) is r * s / (r + s)^2: 0.25 at r = 0.1, where a plain ratio gives 0.1
    assert logp.grad[0].item() == pytest.approx(-0.25, abs=1e-6)


def test_imitation_weighs_each_decision_and_skips_those_of_weight_zero():
    logp = torch.tensor([-1.0, -2.0, -float("inf")])
    assert compute_imitation_loss(logp, torch.tensor([1.0, 0.5, 0.0])).item() == 2.0


def test_k3_is_zero_at_the_reference_and_positive_elsewhere():
    logp, valid = torch.tensor([0.5, 0.25]).log(), torch.tensor([True, True])
    assert compute_k3(logp, logp, valid).item() == 0
    assert compute_k3(logp, torch.tensor([0.25, 0.5]).log(), valid).item() == pytest.approx(
        (0.5 - 1 - torch.tensor(0.5).log().item()) + (2 - 1 - torch.tensor(2.0).log().item()),
        abs=1e-6,
    )
