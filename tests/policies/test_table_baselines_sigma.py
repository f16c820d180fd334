"""The sigma rule: levels, picks, and that every probe is paid."""

from __future__ import annotations

import numpy as np
import pytest
from table_examples import build, list_picks

from rlroute.data.probes import Probe, StoredProbes
from rlroute.evaluation.sampling import measure_cost
from rlroute.policies.baselines import fit_baselines
from rlroute.policies.table_baselines_sigma import SigmaRule

# a (1 USD) answers what it agrees on, b (4) the half-hard, c (10) all; the last has no probes
SCORES = [[1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]]
DATA = build(SCORES, [[1.0, 4.0, 10.0]] * 7, np.eye(7))
SIGMA = [0, 0, 0.5, 0.5, 1, 1]
PROBES = StoredProbes("a", {f"q{q}": Probe(sigma, 3.0) for q, sigma in enumerate(SIGMA)})


def test_each_level_of_disagreement_has_its_own_candidate() -> None:
    rule = SigmaRule(DATA, PROBES)
    assert list_picks(rule, DATA, 0.1) == [0, 0, 1, 1, 2, 2, 0]
    assert list_picks(rule, DATA, 100.0) == [0] * 7  # the answers in hand cost nothing more


def test_every_probe_is_paid_and_an_answer_in_hand_is_paid_once() -> None:
    rule = SigmaRule(DATA, PROBES)
    cost_Q, _ = measure_cost(rule, DATA, 0.1, rule.compute_probabilities(DATA, 0.1))
    assert cost_Q.tolist() == [3.0, 3.0, 7.0, 7.0, 13.0, 13.0, 1.0]


def test_a_hole_is_passed_over() -> None:
    holes = build([[1, 1, 1], [1, 1, 1], [np.nan, 1, 1]], [[1.0, 4.0, 10.0]] * 3, np.eye(3))
    probes = StoredProbes("a", {f"q{q}": Probe(0.0, 3.0) for q in range(3)})
    assert list_picks(SigmaRule(holes, probes), holes, 0.1) == [0, 0, 1]


def test_the_rule_stands_beside_the_other_baselines_where_probes_are_stored() -> None:
    names = [policy.name for policy in fit_baselines(DATA, DATA, PROBES)]
    assert "sigma rule (a)" in names
    assert not any("sigma" in policy.name for policy in fit_baselines(DATA, DATA))


def test_other_candidates_are_refused() -> None:
    other = build([[1, 0]], [[1.0, 4.0]], [[1.0]])
    with pytest.raises(Exception, match="fitted on candidates a, b, c"):
        SigmaRule(DATA, PROBES).compute_probabilities(other, 0.1)
