"""Costs at other prices: by tokens, by a common factor, of subsets; what cannot be known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlroute.data.repricing import reprice_candidate, reprice_candidates
from rlroute.types import Candidate, Member, Prices, Profile, RLRouteError, TokenProfile

# 1000 prompt and 500 completion tokens on average; 1000 and 1000, 2000 and 0 by cluster
TOKENS = TokenProfile(
    1000.0, 500.0, np.array([1000, 2000], np.float32), np.array([1000, 0], np.float32)
)
# measured costs are a tenth above what the tokens cost at 1 and 2 USD per million
PROFILE = Profile(
    0.5,
    0.0022,
    np.array([0.4, 0.6], np.float32),
    np.array([0.0033, 0.0022], np.float32),
    tokens=TOKENS,
)
MODEL = Candidate("model", Prices(1.0, 2.0), profile=PROFILE)


def test_costs_move_by_what_the_mean_tokens_cost():
    profile = reprice_candidate(MODEL, Prices(3.0, 2.0)).profile
    assert profile is not None
    assert profile.mean_cost_usd == pytest.approx(0.0044)  # tokens: 0.002 -> 0.004
    assert profile.cost_usd_C == pytest.approx([0.0033 * 5 / 3, 0.0066])  # 0.003 -> 0.005, x 3
    assert profile.score_C.tolist() == PROFILE.score_C.tolist()
    assert profile.mean_score == 0.5


def test_a_candidate_that_was_free_costs_its_tokens_and_one_that_becomes_free_costs_nothing():
    free = replace(PROFILE, mean_cost_usd=0.0, cost_usd_C=np.zeros(2, np.float32))
    charged = reprice_candidate(Candidate("a", Prices(0, 0), profile=free), Prices(1.0, 2.0, 0.01))
    assert charged.profile is not None
    assert charged.profile.mean_cost_usd == pytest.approx(0.012)
    assert charged.profile.cost_usd_C == pytest.approx([0.013, 0.012])
    given = reprice_candidate(MODEL, Prices(0.0, 0.0)).profile
    assert given is not None
    assert given.mean_cost_usd == 0
    assert given.cost_usd_C.tolist() == [0, 0]


def test_without_tokens_only_a_common_factor_is_known():
    model = replace(MODEL, profile=replace(PROFILE, tokens=None))
    moved = reprice_candidate(model, Prices(10.0, 20.0)).profile
    assert moved is not None
    assert moved.mean_cost_usd == pytest.approx(0.022)
    assert moved.cost_usd_C == pytest.approx([0.033, 0.022])
    for prices in (Prices(10.0, 2.0), Prices(1.0, 2.0, 0.1)):
        with pytest.raises(RLRouteError, match="'model': its tokens were not counted"):
            reprice_candidate(model, prices)


def test_a_subset_costs_what_its_members_cost_together():
    cheap = replace(MODEL, id="cheap", profile=replace(PROFILE, mean_cost_usd=0.0011))
    both = Candidate(
        "both",
        Prices(0, 0),
        kind="subset",
        profile=replace(PROFILE, mean_cost_usd=0.0033, tokens=None),
        members=(Member("model", "model"), Member("cheap", "cheap")),
    )
    found = reprice_candidates([MODEL, cheap, both], {"model": Prices(2.0, 4.0)})
    assert [one.profile.mean_cost_usd for one in found if one.profile] == pytest.approx(
        [0.0044, 0.0011, 0.0055]
    )
    with pytest.raises(RLRouteError, match="'both' is a subset: name new prices of those it asks"):
        reprice_candidates([MODEL, cheap, both], {"both": Prices(1, 1)})
    with pytest.raises(RLRouteError, match="asks 'cheap', which is no candidate by itself"):
        reprice_candidates([MODEL, both], {"model": Prices(2.0, 4.0)})


@pytest.mark.parametrize(
    ("name", "prices", "said"),
    [
        ("gpt", Prices(1, 1), "no candidate 'gpt' .known: model"),
        ("model", Prices(-1, 1), "input of 'model' is -1"),
        ("model", Prices(1, float("nan")), "output of 'model' is nan"),
        ("model", (1, 2), "of 'model' is a tuple"),
    ],
)
def test_what_is_no_price_is_refused(name, prices, said):
    with pytest.raises(RLRouteError, match=said):
        reprice_candidates([MODEL], {name: prices})
