"""Importance weights: one where sampler and trainer agree, bounded where they do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlroute.algorithms.corrections import compute_importance_weights
from rlroute.types import RLRouteError

NAN = math.nan
LOGP = arrays(np.float32, (3, 5), elements=st.floats(-8, 0, width=32))
MASK = arrays(np.bool_, (3, 5))
LEVELS = ("token", "sequence")
MODES = ("truncate", "mask")


def weigh(trainer, sampler, mask=None, *, level="token", cap=2.0, mode="truncate"):
    trainer_logp_BT = torch.tensor([trainer]).log()
    mask_BT = torch.tensor([mask or [True] * len(trainer)])
    return compute_importance_weights(
        trainer_logp_BT, torch.tensor([sampler]).log(), mask_BT, level=level, cap=cap, mode=mode
    )


@pytest.mark.parametrize(
    ("level", "mode", "weight"),
    [
        ("token", "truncate", [0.5, 2.0, 1.5]),
        ("token", "mask", [0.5, 0.0, 1.5]),
        ("sequence", "truncate", [2.0, 2.0, 2.0]),
        ("sequence", "mask", [0.0, 0.0, 0.0]),
    ],
)
def test_weights_in_numbers(level, mode, weight):
    # ratios .5, 4, 1.5; their product is 3
    found = weigh([0.2, 0.8, 0.3], [0.4, 0.2, 0.2], level=level, mode=mode)
    torch.testing.assert_close(found.weight_BT, torch.tensor([weight]))


def test_a_row_within_the_cap_has_the_product_of_its_ratios():
    for mode in MODES:
        found = weigh([0.2, 0.6], [0.4, 0.2], level="sequence", mode=mode)
        torch.testing.assert_close(found.weight_BT, torch.tensor([[1.5, 1.5]]))


def test_metrics_are_sums_with_their_count():
    # ratios .5 and 4 are known, the third token is the environment's
    found = weigh([0.2, 0.8, 0.9], [0.4, 0.2, 0.1], [True, True, False])
    expected = {
        "count": 2,
        "kl": (0.5 - 1 - math.log(0.5)) + (4 - 1 - math.log(4)),
        "abs_diff": math.log(2) + math.log(4),
        "kept": 1,
        "ratio_p95": 0.5 + 0.95 * 3.5,
    }
    assert {name: value.item() for name, value in found.metrics.items()} == pytest.approx(expected)
    assert found.weight_BT[0, 2] == 1
    rows = weigh([0.2, 0.8, 0.9], [0.4, 0.2, 0.1], [True, True, False], level="sequence")
    assert rows.metrics["ratio_p95"].item() == pytest.approx(2.0)
    assert rows.metrics["kl"].item() == pytest.approx(expected["kl"])


def test_an_unknown_sampler_probability_counts_as_a_ratio_of_one():
    for mode in MODES:
        token = weigh([0.2, 0.9], [0.4, NAN], mode=mode)
        torch.testing.assert_close(token.weight_BT, torch.tensor([[0.5, 1.0]]))
        assert token.metrics["count"] == 1
        row = weigh([0.2, 0.9], [0.4, NAN], level="sequence", mode=mode)
        torch.testing.assert_close(row.weight_BT, torch.tensor([[0.5, 0.5]]))
        for level in LEVELS:
            unknown = weigh([0.2, 0.9], [NAN, NAN], level=level, mode=mode)
            assert unknown.weight_BT.tolist() == [[1, 1]]
            assert unknown.metrics["ratio_p95"] == 1
            assert unknown.metrics["kl"] == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@given(trainer=LOGP, sampler=LOGP, mask=MASK, cap=st.floats(1, 5))
def test_weights_are_bounded_and_one_outside_the_mask(level, mode, trainer, sampler, mask, cap):
    trainer_logp_BT, sampler_logp_BT, mask_BT = map(torch.from_numpy, (trainer, sampler, mask))
    trainer_logp_BT.requires_grad_()
    found = compute_importance_weights(
        trainer_logp_BT, sampler_logp_BT, mask_BT, level=level, cap=cap, mode=mode
    )
    assert not found.weight_BT.requires_grad
    assert (found.weight_BT[~mask_BT] == 1).all()
    assert ((found.weight_BT >= 0) & (found.weight_BT <= cap * (1 + 1e-6))).all()
    assert found.metrics["kl"] >= -1e-4
    assert 0 <= found.metrics["kept"] <= found.metrics["count"] == mask_BT.sum()
    other = torch.where(mask_BT, sampler_logp_BT, NAN)
    again = compute_importance_weights(
        trainer_logp_BT, other, mask_BT, level=level, cap=cap, mode=mode
    )
    torch.testing.assert_close(again.weight_BT, found.weight_BT)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", MODES)
@given(logp=LOGP, mask=MASK)
def test_agreement_weighs_one_and_measures_nothing(level, mode, logp, mask):
    logp_BT, mask_BT = torch.from_numpy(logp), torch.from_numpy(mask)
    found = compute_importance_weights(logp_BT, logp_BT, mask_BT, level=level, cap=1.0, mode=mode)
    assert (found.weight_BT == 1).all()
    assert found.metrics["kl"] == found.metrics["abs_diff"] == 0
    assert found.metrics["kept"] == found.metrics["count"]


def test_a_long_row_far_off_overflows_nothing():
    trainer, sampler = torch.full((1, 4000), -0.1), torch.full((1, 4000), -5.0)
    for mode, expected in (("truncate", 3.0), ("mask", 0.0)):
        found = compute_importance_weights(
            trainer, sampler, torch.ones(1, 4000), level="sequence", cap=3.0, mode=mode
        )
        torch.testing.assert_close(found.weight_BT, torch.full((1, 4000), expected))
        assert all(value.isfinite() for value in found.metrics.values())


def test_a_token_that_the_trainer_rules_out_weighs_nothing_and_its_metrics_are_finite():
    for mode in MODES:
        found = weigh([0.0, 0.5], [0.4, 0.5], mode=mode)
        assert found.weight_BT.tolist() == [[0, 1]]
        assert all(value.isfinite() for value in found.metrics.values())


@pytest.mark.parametrize("cap", [0.5, 0.0, NAN])
def test_a_cap_below_one_is_refused(cap):
    with pytest.raises(RLRouteError, match="at least 1"):
        weigh([0.5], [0.5], cap=cap)
