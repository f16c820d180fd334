"""From charges to cost rewards: Router-R1's window number by number (K), and a fixed reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from rlroute.rewards.charge import (
    FixedReference,
    FixedReferenceConfig,
    NormaliserConfig,
    PercentileWindow,
    PercentileWindowConfig,
    build_normaliser,
)
from rlroute.types import RLRouteError

NAN = float("nan")
CHARGES = st.lists(st.integers(0, 100_000).map(lambda cents: cents / 10), min_size=1, max_size=40)


def usd(micro_usd: list[float]) -> np.ndarray:
    return np.array(micro_usd, dtype=np.float64) * 1e-6


def window(**options: object) -> PercentileWindow:
    return PercentileWindow(PercentileWindowConfig.model_validate(options))


@pytest.mark.parametrize(
    ("charges", "rewards"),
    [
        ([100], [0.5]),
        ([100, 100], [0.5, 0.5]),
        ([0, 100], [0.5, 0.0]),
        ([100, 0], [0.5, 1.0]),
        ([0, 100, 25], [0.5, 0.0, 0.5]),
        ([0, 0, 0, 90], [0.5, 0.5, 0.5, 0.0]),
        ([30, 120, 270, 480], [0.5, 0.0, 0.0, 0.0]),
        ([480, 270, 120, 30], [0.5, 1.0, 1.0, 1.0]),
        ([36, 105.6, 144, 146.4], [0.5, 0.0, 0.0, 0.0]),
        ([146.4, 144, 105.6, 36], [0.5, 1.0, 1.0, 1.0]),
        ([0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]),
        ([9, 9, 9, 16, 9, 25, 9], [0.5, 0.5, 0.5, 0.0, 1.0, 0.0, 1.0]),
        ([21.6, 35.2, 0, 96, 30], [0.5, 0.0, 1.0, 0.0, 0.4382]),
        ([1, 4, 9, 16, 25, 36, 49, 64, 81, 100], [0.5, *[0.0] * 9]),
    ],
    ids=[f"K{number}" for number in range(1, 15)],
)
def test_the_window_gives_what_the_original_gives(
    charges: list[float], rewards: list[float]
) -> None:
    np.testing.assert_allclose(window().normalise(usd(charges)), rewards, atol=5e-5)
    one_by_one = window()
    singly = [one_by_one.normalise(usd([charge]))[0] for charge in charges]
    np.testing.assert_allclose(singly, rewards, atol=5e-5)


def test_a_full_window_keeps_the_last_thousand_k15() -> None:
    full = window()
    full.normalise(usd(list(range(1000))))
    last = full.normalise(usd([5000, 0, 250]))
    np.testing.assert_allclose(last, [0.0, 1.0, 0.6357], atol=5e-5)
    assert len(full) == 1000


def test_the_whole_examples_charge_lies_between_the_percentiles() -> None:
    filled = window()
    filled.normalise(usd([0, 30, 60, 90, 120]))
    assert filled.normalise(usd([44]))[0] == pytest.approx(0.4289, abs=1e-4)


def test_other_transforms_and_percentiles_are_the_originals_variants() -> None:
    def last(**options: object) -> float:
        filled = window(**options)
        filled.normalise(usd([0, 100]))
        return float(filled.normalise(usd([25]))[0])

    assert last(low=0, high=100, transform="linear") == pytest.approx(0.75)
    assert last(low=0, high=100, transform="sqrt") == pytest.approx(0.5)
    assert last(low=0, high=100, transform="log") == pytest.approx(1 - np.log(1.25) / np.log(2))


@given(charges=CHARGES, size=st.integers(2, 12), factor=st.sampled_from([0.125, 0.5, 3.0, 64.0]))
def test_window_rewards_lie_in_the_unit_interval_and_have_no_unit(
    charges: list[float], size: int, factor: float
) -> None:
    plain, scaled = window(size=size), window(size=size)
    reward_N = plain.normalise(usd(charges))
    assert ((reward_N >= 0) & (reward_N <= 1)).all()
    assert len(plain) == min(size, len(charges))
    scaled_N = scaled.normalise(usd(charges) * factor)
    np.testing.assert_allclose(scaled_N, reward_N, atol=1e-3)


@given(charges=CHARGES, later=CHARGES, size=st.integers(2, 12))
def test_a_saved_window_goes_on_as_if_nothing_had_happened(
    charges: list[float], later: list[float], size: int
) -> None:
    whole, saved, restored = window(size=size), window(size=size), window(size=size)
    whole.normalise(usd(charges))
    saved.normalise(usd(charges))
    restored.set_state(json.loads(json.dumps(saved.get_state())))
    np.testing.assert_array_equal(restored.normalise(usd(later)), whole.normalise(usd(later)))
    assert restored.get_state() == whole.get_state()


@given(charges=CHARGES, evaluated=CHARGES)
def test_a_frozen_window_is_left_untouched_and_falls_with_the_charge(
    charges: list[float], evaluated: list[float]
) -> None:
    training = window()
    training.normalise(usd(charges))
    before = training.get_state()
    reward_N = training.normalise(usd(sorted(evaluated)), frozen=True)
    assert training.get_state() == before
    assert (np.diff(reward_N) <= 0).all()
    assert ((reward_N >= 0) & (reward_N <= 1)).all()
    order = np.random.default_rng(0).permutation(len(evaluated))
    shuffled = training.normalise(usd(sorted(evaluated))[order], frozen=True)
    np.testing.assert_array_equal(shuffled, reward_N[order])


def test_an_undefined_charge_stays_undefined_and_enters_no_window() -> None:
    holed, whole = window(), window()
    np.testing.assert_allclose(holed.normalise(usd([0, NAN, 100])), [0.5, NAN, 0.0])
    whole.normalise(usd([0, 100]))
    assert holed.get_state() == whole.get_state()
    np.testing.assert_allclose(holed.normalise(usd([NAN, 100]), frozen=True), [NAN, 0.0])
    np.testing.assert_allclose(window().normalise(usd([NAN, 1]), frozen=True), [NAN, 0.5])


@pytest.mark.parametrize(
    ("transform", "rewards"), [("linear", [1.0, 0.75, 0.0, 0.0]), ("sqrt", [1.0, 0.5, 0.0, 0.0])]
)
def test_a_fixed_reference_earns_zero_and_nothing_spent_earns_one(
    transform: str, rewards: list[float]
) -> None:
    config = FixedReferenceConfig.model_validate({"reference_usd": 0.004, "transform": transform})
    fixed = FixedReference(config)
    charges = np.array([0, 0.001, 0.004, 9, NAN])
    for frozen in (False, True):
        np.testing.assert_allclose(fixed.normalise(charges, frozen), [*rewards, NAN], atol=1e-6)
    fixed.set_state(fixed.get_state())


@given(charges=CHARGES, reference=st.floats(1e-6, 1e-2))
def test_a_fixed_reference_ignores_the_order_and_falls_with_the_charge(
    charges: list[float], reference: float
) -> None:
    fixed = FixedReference(FixedReferenceConfig(reference_usd=reference, transform="sqrt"))
    reward_N = fixed.normalise(usd(sorted(charges)))
    assert (np.diff(reward_N) <= 0).all()
    np.testing.assert_array_equal(fixed.normalise(usd(sorted(charges))[::-1]), reward_N[::-1])


@given(cheap=st.floats(0, 1e-2), dear=st.floats(0, 1e-2))
def test_a_dearer_trajectory_never_earns_more_by_a_window_that_counts_it(
    cheap: float, dear: float
) -> None:
    assume(cheap <= dear)
    rewards = []
    for charge in (cheap, dear):
        filled = window()
        filled.normalise(usd([0, 30, 60, 90, 120]))
        rewards += [filled.normalise(np.array([charge]))[0]]
    assert rewards[0] >= rewards[1] - 1e-6


def test_a_recipe_chooses_the_normaliser_by_its_kind() -> None:
    adapter: TypeAdapter[NormaliserConfig] = TypeAdapter(NormaliserConfig)
    fixed = adapter.validate_python({"kind": "fixed", "reference_usd": 0.01})
    assert isinstance(build_normaliser(fixed), FixedReference)
    assert isinstance(
        build_normaliser(adapter.validate_python({"kind": "window"})), PercentileWindow
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "window", "low": 95, "high": 5}, "must be below high"),
        ({"kind": "window", "low": 50, "high": 50}, "must be below high"),
        ({"kind": "window", "high": 101}, "less than or equal to 100"),
        ({"kind": "window", "size": 1}, "greater than or equal to 2"),
        ({"kind": "fixed", "reference_usd": 0}, "greater than 0"),
        ({"kind": "fixed", "reference_usd": NAN}, "finite number"),
        ({"kind": "fixed", "reference_usd": 1, "transform": "log"}, "'linear' or 'sqrt'"),
    ],
)
def test_settings_without_a_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(NormaliserConfig).validate_python(options)


@pytest.mark.parametrize("charge", [-1e-9, float("inf")])
def test_a_charge_that_cannot_be_is_refused_and_enters_no_window(charge: float) -> None:
    normalisers = (window(), FixedReference(FixedReferenceConfig(reference_usd=1)))
    for normaliser in normalisers:
        with pytest.raises(RLRouteError, match="0 USD or more"):
            normaliser.normalise(np.array([1.0, charge]))
    assert len(normalisers[0]) == 0


def test_a_foreign_state_is_refused() -> None:
    big = window(size=3)
    big.normalise(usd([1, 2, 3]))
    with pytest.raises(RLRouteError, match="holds 3 charges, this one 2"):
        window(size=2).set_state(big.get_state())
    with pytest.raises(RLRouteError, match="not the state of a charge window"):
        window().set_state({})
    with pytest.raises(RLRouteError, match="fixed reference has no state"):
        FixedReference(FixedReferenceConfig(reference_usd=1)).set_state(big.get_state())
