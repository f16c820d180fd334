from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data.splits import assign_splits, find_leak, normalise_text
from rlroute.types import RLRouteError


@given(texts=st.lists(st.text()), seed=st.integers(0, 1000))
def test_a_split_depends_on_text_and_seed_alone(texts, seed):
    together = assign_splits(texts, seed=seed).tolist()
    assert together == [assign_splits([text], seed=seed).item() for text in texts]


def test_shares_come_close_to_the_fractions():
    splits = assign_splits([f"query {i}" for i in range(20_000)], (0.7, 0.1, 0.2))
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        assert np.mean(splits == split) == pytest.approx(share, abs=0.02)


def test_another_seed_gives_another_division():
    texts = [f"query {i}" for i in range(200)]
    assert assign_splits(texts, seed=1).tolist() != assign_splits(texts, seed=2).tolist()


@given(texts=st.lists(st.text()))
def test_assigned_splits_never_leak(texts):
    doubled = [*texts, *(f"  {text}\n" for text in texts)]
    assert find_leak(doubled, assign_splits(doubled).tolist()) is None


def test_a_fraction_of_zero_leaves_a_split_empty():
    splits = assign_splits([f"query {i}" for i in range(500)], (0.875, 0.125, 0.0))
    assert set(splits.tolist()) == {"train", "val"}


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.1), (1.1, -0.1, 0.0)])
def test_fractions_that_are_no_division_are_refused(fractions):
    with pytest.raises(RLRouteError, match="must be at least 0 and sum to 1"):
        assign_splits(["x"], fractions)


def test_a_text_in_two_splits_is_found_despite_blanks_and_case():
    assert normalise_text(" Straße\tNo  1\n") == "strasse no 1"
    assert find_leak(["a", "b", " A "], ["train", "val", "test"]) == (0, 2)
    assert find_leak(["a", "b", " A "], ["train", "val", "train"]) is None
