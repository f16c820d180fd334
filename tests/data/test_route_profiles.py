"""RouteProfile's switches: propagation on a small graph by hand, scaling, factors, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from rlroute.config import parse_config
from rlroute.data.route_profiles import (
    Factors,
    ProfileSwitches,
    draw_random_vectors,
    make_factors,
    propagate,
    scale_min_max,
    train_factors,
)
from rlroute.types import RLRouteError


def test_propagation_on_three_nodes_by_hand():
    # candidates a, b and one cluster, edges 1 and 0.25: degrees 1, 0.25 and 1.25;
    # A_norm(a) = 1 / sqrt(1.25), A_norm(b) = 0.25 / sqrt(0.25 * 1.25) = sqrt(0.2)
    start_KE, cluster_CE = [[2.0], [4.0]], [[10.0]]
    edge_KC = [[1.0], [0.25]]
    once = propagate(start_KE, cluster_CE, edge_KC, 1)
    assert once == pytest.approx(np.array([[8.944272], [4.472136]]))
    # the cluster became 2 * 0.894427 + 4 * 0.447214 = 3.577709, of which they take their parts
    twice = propagate(start_KE, cluster_CE, edge_KC, 2)
    assert twice == pytest.approx(np.array([[3.2], [1.6]]))
    assert propagate(start_KE, cluster_CE, edge_KC, 0).tolist() == start_KE


def test_who_has_no_link_gets_zeros():
    found = propagate([[1.0], [5.0]], [[3.0]], [[1.0], [0.0]], 1)
    assert found == pytest.approx(np.array([[3.0], [0.0]]))


def test_propagation_follows_the_order_of_candidates():
    draw = np.random.default_rng(0)
    start_KE, cluster_CE, edge_KC = draw.random((4, 3)), draw.random((5, 3)), draw.random((4, 5))
    order = [2, 0, 3, 1]
    moved = propagate(start_KE[order], cluster_CE, edge_KC[order], 2)
    assert moved == pytest.approx(propagate(start_KE, cluster_CE, edge_KC, 2)[order])


def test_scores_are_scaled_to_0_and_1():
    assert scale_min_max([[0.2, 0.4], [0.6, 0.3]]).ravel() == pytest.approx([0, 0.5, 1, 0.25])
    assert scale_min_max([[0.3, 0.3]]).tolist() == [[1, 1]]


def test_a_random_vector_follows_from_id_and_seed_alone():
    first = draw_random_vectors(["a", "b"], 0)
    assert first[1].tolist() == draw_random_vectors(["b"], 0)[0].tolist()
    assert first[0].tolist() != first[1].tolist()
    assert first[0].tolist() != draw_random_vectors(["a"], 1)[0].tolist()
    assert np.abs(first).max() <= 1


def test_a_call_on_one_cluster_fills_another_that_goes_with_it_by_hand():
    # pattern (1, 1) / sqrt 2, variance 2, no rest; one call of variance 0.5 found 0.6:
    # z = (0.6 / sqrt 2 / 0.5) / (1 / 2 / 0.5 + 1 / 2) = 0.565685; times 1 / sqrt 2: 0.4 for both
    factors = Factors(np.array([[1.0, 1.0]]) / np.sqrt(2), np.array([2.0]), 0.0)
    assert factors.fill([0.6], np.array([0]), 0.5) == pytest.approx([0.4, 0.4])


def test_factors_find_what_goes_together_and_none_in_noise():
    draw = np.random.default_rng(1)
    planted_KC = np.outer(draw.normal(size=12), np.repeat([1.0, -1.0], 8))
    factors = train_factors(planted_KC + draw.normal(0, 0.05, (12, 16)), seed=0)
    assert factors is not None
    assert len(factors.variance_R) == 1
    assert factors.rest_variance < 0.01
    filled_C = factors.fill([1.0], np.array([0]), 1e-6)
    assert filled_C[:8] == pytest.approx(1, abs=0.15)
    assert filled_C[8:] == pytest.approx(-1, abs=0.15)
    assert train_factors(draw.normal(size=(4, 16)) * 0, seed=0) is None
    assert make_factors(planted_KC, 1).variance_R[0] == pytest.approx(
        (planted_KC**2).sum() / 12, rel=1e-6
    )


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"form": "graph"}, "a graph takes at least 1"),
        ({"hops": 2}, "flat takes 0"),
        ({"form": "graph", "hops": 2}, "propagates 'embedding' or 'text', not 'prices'"),
        ({"form": "graph", "hops": 2, "representation": "random"}, "not 'random'"),
    ],
)
def test_a_switch_that_would_do_nothing_is_refused(switches, said):
    with pytest.raises(RLRouteError, match=said):
        parse_config(ProfileSwitches, switches, "recipe")
    kept = {"form": "graph", "hops": 2, "representation": "embedding"}
    assert parse_config(ProfileSwitches, kept, "recipe").hops == 2
