"""The worked example with four queries and three models, holes, and the shared tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rlroute.data.table import OutcomeTable, read_table, write_table
from rlroute.evaluation.table_summary import (
    pick_best_single,
    pick_oracle,
    render_summary,
    run_validate,
    summarise_table,
)
from rlroute.types import Candidate, Prices, Query, RLRouteError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def make_table(
    scores: list[list[float]], costs: list[float], splits: list[str] | None = None
) -> OutcomeTable:
    """Return a table of candidates L, M, S; NaN is a hole."""
    score_QK = np.array(scores, dtype=np.float32)
    present_QK = ~np.isnan(score_QK)
    unknown_QK = np.full_like(score_QK, np.nan)
    return OutcomeTable(
        name="example",
        queries=tuple(Query(f"q{q}", f"text {q}", "t") for q in range(len(scores))),
        candidates=tuple(Candidate(name, Prices(1, 1)) for name in "LMS"),
        score_QK=score_QK,
        cost_usd_QK=np.where(present_QK, np.float32(costs), np.nan).astype(np.float32),
        present_QK=present_QK,
        prompt_tokens_QK=unknown_QK,
        completion_tokens_QK=unknown_QK,
        latency_seconds_QK=unknown_QK,
        split_Q=np.array(splits or ["train"] * len(scores)),
    )


def make_example() -> OutcomeTable:
    return make_table([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 1]], [10, 4, 1])


def test_the_worked_example_gives_its_numbers():
    summary = summarise_table(make_example())
    assert (summary.best_single, summary.best_single_quality) == ("L", 0.75)
    assert summary.best_single_cost_usd == 10
    assert (summary.oracle_quality, summary.oracle_cost_usd) == (1.0, 4.0)
    assert summary.random_quality == pytest.approx(7 / 12)
    assert summary.random_cost_usd == pytest.approx(5)
    assert summary.headroom == 0.25
    assert summary.share_alike == 0.25
    assert summary.share_tied == 0.5
    assert summary.share_unsolved == 0
    assert summary.completeness == 1
    by_id = {candidate.id: candidate for candidate in summary.candidates}
    assert [candidate.id for candidate in summary.candidates] == ["S", "M", "L"]
    assert [by_id[name].on_hull for name in "SML"] == [True, False, True]
    assert [by_id[name].oracle_share for name in "SML"] == [0.5, 0.25, 0.25]
    assert by_id["S"].is_cheapest
    assert by_id["L"].is_best_single
    assert (by_id["M"].mean_score, by_id["M"].mean_cost_usd) == (0.5, 4)


def test_the_oracle_picks_the_cheapest_also_where_all_fail():
    table = make_table([[0, 0, 0], [0.5, 0.5, 0]], [10, 4, 1])
    assert [table.candidates[k].id for k in pick_oracle(table)] == ["S", "M"]


def test_the_best_single_is_chosen_on_train_and_ties_go_to_the_cheapest():
    table = make_table([[0, 1, 1], [1, 0, 0], [1, 0, 0]], [10, 4, 1], ["train", "val", "test"])
    assert table.candidates[pick_best_single(table)].id == "S"
    assert summarise_table(table).best_single == "S"
    assert table.candidates[pick_best_single(table.select_split("test"))].id == "L"


def test_holes_are_neither_picked_nor_counted():
    hole = float("nan")
    table = make_table([[hole, 1, 0], [1, hole, hole], [0.5, hole, 0.5]], [10, 4, 1])
    summary = summarise_table(table)
    assert [table.candidates[k].id for k in pick_oracle(table)] == ["M", "L", "S"]
    assert summary.completeness == pytest.approx(5 / 9)
    assert summary.oracle_quality == pytest.approx(2.5 / 3)
    assert summary.best_single == "M"
    assert summary.headroom == 0  # over the one query that M was asked
    assert summary.random_quality == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert summary.share_tied == pytest.approx(1 / 3)
    means = {candidate.id: candidate.mean_score for candidate in summary.candidates}
    assert means == {"S": 0.25, "M": 1.0, "L": 0.75}


def test_a_candidate_without_outcomes_on_train_is_never_the_best_single():
    hole = float("nan")
    table = make_table([[hole, 0, 0.5], [1, 0, 0]], [10, 4, 1], ["train", "test"])
    assert table.candidates[pick_best_single(table)].id == "S"
    empty = make_table([[hole] * 3, [1, 0, 0]], [10, 4, 1], ["train", "test"])
    with pytest.raises(RLRouteError, match="train split holds no outcome"):
        pick_best_single(empty)


def test_validate_prints_what_a_user_needs(tmp_path, capsys):
    table = replace(make_example(), split_Q=np.array(["train", "val", "test", "train"]))
    write_table(table, tmp_path / "example")
    run_validate(str(tmp_path / "example"))
    printed = capsys.readouterr().out
    for phrase in ("headroom", "2 on the hull", "score alike", "oracle", "100.0%", "train 2"):
        assert phrase in printed


def test_the_summary_shows_coverage_where_there_are_holes():
    console = Console(width=100)
    for first, shown in ((float("nan"), True), (0.0, False)):
        table = make_table([[first, 1, 0], [1, 1, 1]], [10, 4, 1])
        with console.capture() as capture:
            console.print(render_summary(summarise_table(table)))
        assert ("oracle   present" in capture.get()) == shown


@pytest.mark.skipif(not SHARED.exists(), reason="the shared tables are not here")
@pytest.mark.parametrize(
    ("name", "oracle", "oracle_cost", "best", "random", "alike"),
    [
        ("mmlu_pro", 0.9230, 0.0649, 0.7327, 0.5220, 0.177),
        ("routellm_evals", 0.8647, 0.3735, 0.8102, 0.7433, 0.757),
        ("llmrouter_example", 0.8166, 0.0601, 0.6902, 0.4668, 0.198),
        ("zeroeval_gsm8k", 0.9924, 0.0784, 0.9560, 0.8302, 0.279),
    ],
)
def test_the_shared_tables_give_their_published_figures(
    name, oracle, oracle_cost, best, random, alike
):
    summary = summarise_table(read_table(SHARED / "data" / name))
    assert summary.oracle_quality == pytest.approx(oracle, abs=6e-5)
    assert 1000 * summary.oracle_cost_usd == pytest.approx(oracle_cost, abs=6e-5)
    assert max(c.mean_score for c in summary.candidates) == pytest.approx(best, abs=6e-5)
    assert summary.random_quality == pytest.approx(random, abs=6e-5)
    assert summary.share_alike == pytest.approx(alike, abs=6e-4)
