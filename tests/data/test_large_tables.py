"""What keeps large tables cheap changes nothing about small ones: parts, samples, views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlroute.data import routing_data, tfidf_encoder
from rlroute.data.encoders import TfidfConfig
from rlroute.data.irt_table import IrtTableConfig, make_irt_outcomes, make_irt_table
from rlroute.data.prepare import prepare_table
from rlroute.data.routing_data import ProfileConfig, assign_clusters, find_split, fit_clusters
from rlroute.data.splits import sample_texts
from rlroute.data.tfidf_encoder import TfidfEncoder
from rlroute.policies.decision import GreedyPolicy
from rlroute.policies.mlp import CandidateScorer, ScorerConfig
from rlroute.rollout.plan import draw_pass, plan_episodes
from rlroute.seeding import draw_permutation

TEXTS = [f"word{i % 7} other{i % 5} third{i}" for i in range(60)]


@given(texts=st.sets(st.text(), max_size=30), count=st.integers(1, 30), seed=st.integers(0, 9))
def test_a_sample_of_texts_depends_on_texts_and_seed_alone(texts, count, seed):
    chosen = set(sample_texts(texts, count, seed))
    assert len(chosen) == min(count, len(texts))
    assert chosen <= texts
    assert chosen == set(sample_texts(sorted(texts, reverse=True), count, seed))
    if chosen != texts:  # taking away one that was not chosen changes nothing
        left = texts - {sorted(texts - chosen)[0]}
        assert chosen == set(sample_texts(left, count, seed))


def test_tfidf_learns_from_no_more_texts_than_it_may(monkeypatch):
    seen = []
    monkeypatch.setattr(
        tfidf_encoder, "split_terms", lambda text, *_: seen.append(text) or text.split()
    )
    config = TfidfConfig(dimension=4, fit_texts=20)
    first = TfidfEncoder.fit(config, TEXTS, seed=0)
    assert len(set(seen)) == 20
    again = TfidfEncoder.fit(config, TEXTS[::-1] * 2, seed=0)
    assert first.fingerprint() == again.fingerprint()
    whole = TfidfEncoder.fit(TfidfConfig(dimension=4), TEXTS, seed=0)
    exactly = TfidfEncoder.fit(TfidfConfig(dimension=4, fit_texts=60), TEXTS, seed=0)
    assert whole.fingerprint() == exactly.fingerprint() != first.fingerprint()


def test_clusters_are_found_on_a_sample_of_a_large_split():
    features_QF = np.eye(12, dtype=np.float32)
    few_CF = fit_clusters(features_QF, ProfileConfig(clusters=9, fit_queries=3), seed=0)
    assert len(few_CF) == 3
    whole_CF = fit_clusters(features_QF, ProfileConfig(clusters=4), seed=0)
    equal_CF = fit_clusters(features_QF, ProfileConfig(clusters=4, fit_queries=12), seed=0)
    np.testing.assert_array_equal(whole_CF, equal_CF)


def test_clusters_are_assigned_part_by_part(monkeypatch):
    random = np.random.default_rng(0)
    features_QF = random.normal(size=(50, 6)).astype(np.float32)
    centroids_CF = random.normal(size=(5, 6)).astype(np.float32)
    whole_Q = assign_clusters(features_QF, centroids_CF)
    distance_QC = ((features_QF[:, None] - centroids_CF) ** 2).sum(2)
    assert whole_Q.tolist() == distance_QC.argmin(1).tolist()
    monkeypatch.setattr(routing_data, "ROWS_AT_ONCE", 7)
    assert assign_clusters(features_QF, centroids_CF).tolist() == whole_Q.tolist()


def test_a_greedy_policy_picks_the_same_part_by_part(tiny_data, monkeypatch):
    torch.manual_seed(0)
    scorer = CandidateScorer(ScorerConfig(features=4, clusters=2, hidden=16)).eval()
    torch.nn.init.normal_(scorer.quality_tower.weight)
    policy = GreedyPolicy(scorer)
    whole_QK = policy.compute_probabilities(tiny_data, 0.1)
    monkeypatch.setattr(routing_data, "ROWS_AT_ONCE", 2)
    np.testing.assert_array_equal(policy.compute_probabilities(tiny_data, 0.1), whole_QK)
    assert whole_QK.sum(1).tolist() == [1.0] * len(whole_QK)


def test_prepared_splits_share_one_array_of_features_and_hold_what_the_table_holds():
    table = make_irt_table(IrtTableConfig(queries=300, candidates=4), seed=0).table
    config = TfidfConfig(dimension=8)
    splits = prepare_table(table, config, ProfileConfig(clusters=3), 0).splits
    bases = {id(data.features_QF.base) for data in splits.values()}
    assert len(bases) == 1
    for name, data in splits.items():
        expected = table.select_split(name)
        assert [query.id for query in data.table.queries] == [q.id for q in expected.queries]
        np.testing.assert_array_equal(data.table.score_QK, expected.score_QK)
        assert len(data.features_QF) == len(expected.queries)
    train = splits["train"]
    encoder = TfidfEncoder.fit(config, train.table.texts, seed=0)
    np.testing.assert_array_equal(train.features_QF, encoder.encode(train.table.texts))


def test_a_split_that_is_scattered_has_no_slice():
    table = make_irt_table(IrtTableConfig(queries=300, candidates=4), seed=0).table
    with pytest.raises(ValueError, match="not side by side"):
        find_split(table, "train")
    grouped = table.group_splits()
    found = [find_split(grouped, split) for split in ("train", "val", "test")]
    assert [part.start for part in found] == [0, found[0].stop, found[1].stop]
    assert found[-1].stop == 300


def test_parts_of_a_made_table_are_rows_of_the_whole():
    config = IrtTableConfig(queries=90, candidates=4)
    whole = make_irt_table(config, seed=5).table
    part = make_irt_outcomes(config, 5, np.arange(30, 60))
    assert part.queries == whole.queries[30:60]
    np.testing.assert_array_equal(part.score_QK, whole.score_QK[30:60])
    np.testing.assert_array_equal(part.cost_usd_QK, whole.cost_usd_QK[30:60])
    assert part.split_Q.tolist() == whole.split_Q[30:60].tolist()


def test_the_kept_order_of_a_pass_is_the_one_that_is_drawn():
    draw_pass.cache_clear()
    plans = [plan_episodes(3, u, queries=40, groups=25, group_size=2) for u in (0, 1, 2, 0)]
    np.testing.assert_array_equal(plans[0].query_index_B, plans[3].query_index_B)
    order_Q = draw_pass(40, 3, 1)
    np.testing.assert_array_equal(order_Q, draw_permutation(40, 3, "queries", 1))
    assert not order_Q.flags.writeable
    assert plans[1].query_index_B[::2][15:].tolist() == order_Q[:10].tolist()
