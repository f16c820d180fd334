"""TwinRouterBench's static scores: every worked number, published counts, missing predictions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_router_examples import (
    choose_always,
    make_published_rows,
    make_toy_rows,
    write_bank,
)

from rlroute.data.twin_router_bank import WORKLOADS, read_bank
from rlroute.data.twin_router_cost import (
    HIGH,
    PricedTrajectory,
    WordTokens,
    compute_path_costs,
    compute_reward,
    find_oracle,
    price_bank,
)
from rlroute.evaluation.twin_router_score import (
    TwinRouterScore,
    WorkloadScore,
    average_cost_saves,
    average_scores,
    read_predictions,
    score_file,
    score_predictions,
)
from rlroute.seeding import mix
from rlroute.types import RLRouteError

TOY_IDS = ("swebench_toy-1_step_1", "swebench_toy-1_step_2", "swebench_toy-1_step_3")
TOY_IDS += ("mtrag_toy-2_step_1",)

# predictions for toy-1 and toy-2; RowPass, RowExact, TrajPass, CostSave (swe, mtrag, all), Combined
TOY_SCORES = [
    ((0, 3, 1, 0), (100, 100, 100, 47.9894, 97.8913, 60.4648, 90.1162)),
    ((3, 3, 3, 3), (100, 25, 100, 0, 0, 0, 56.25)),
    ((0, 0, 0, 0), (50, 50, 25, -3.7572, 97.8913, 21.6549, 36.6637)),
    ((3, 3, 3, 0), (100, 50, 100, 0, 97.8913, 24.4728, 68.6182)),
    ((0, 3, 3, 0), (100, 75, 100, 22.2206, 97.8913, 41.1383, 79.0346)),
    ((0, 2, 1, 0), (75, 75, 25, -7.9108, 97.8913, 18.5397, 48.3849)),
    ((1, 3, 1, 1), (100, 50, 100, 46.5751, 92.1611, 57.9716, 76.9929)),
    ((0, None, 1, 0), (75, 75, 25, -6.7819, 97.8913, 19.3864, 48.5966)),
]
ACCOUNTING = (100, 33.3333, 65.2169, 81.9888, 82.6114, 65.1005, 64.7545)
SECTION_11 = (100, 0, 100, 34.0278, 68.0556, 100, 95.8333)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[PricedTrajectory, ...]:
    """The worked example, priced in words."""
    path = write_bank(tmp_path_factory.mktemp("toy") / "bank.jsonl", make_toy_rows())
    return price_bank(read_bank(path), WordTokens())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[PricedTrajectory, ...]:
    """A made-up bank with the published numbers of rows, labels and trajectories."""
    path = write_bank(tmp_path_factory.mktemp("bank") / "bank.jsonl", make_published_rows())
    return price_bank(read_bank(path), WordTokens())


def score_toy(toy: tuple[PricedTrajectory, ...], preds: Sequence[int | None]) -> TwinRouterScore:
    """Score predictions for the four toy rows."""
    return score_predictions(toy, dict(zip(TOY_IDS, preds, strict=True)))


@pytest.mark.parametrize(("preds", "expected"), TOY_SCORES, ids=str)
def test_the_worked_example_has_the_published_scores(
    toy: tuple[PricedTrajectory, ...],
    preds: tuple[int | None, ...],
    expected: tuple[float, ...],
) -> None:
    found = score_toy(toy, preds)
    columns = (
        found.row_pass,
        found.row_exact,
        found.traj_pass,
        found.workloads["swebench"].cost_save,
        found.workloads["mtrag"].cost_save,
        found.cost_save,
        found.combined,
    )
    assert columns == pytest.approx(expected, abs=5e-5)
    assert list(found.workloads) == ["swebench", "mtrag"]
    assert (found.rows, found.trajectories) == (4, 2)


@pytest.mark.parametrize(
    ("row", "accounting", "section_11"),
    [(row, *pair) for row, pair in enumerate(zip(ACCOUNTING, SECTION_11, strict=True))],
)
def test_the_worked_example_has_the_published_older_scores(
    toy: tuple[PricedTrajectory, ...], row: int, accounting: float, section_11: float
) -> None:
    found = score_toy(toy, TOY_SCORES[row][0])
    assert found.accounting.overall == pytest.approx(accounting, abs=5e-5)
    assert found.section_11 == pytest.approx(section_11, abs=5e-5)


def test_the_older_scores_leave_out_the_costs_of_missing_predictions(
    toy: tuple[PricedTrajectory, ...],
) -> None:
    found = score_toy(toy, (0, None, 1, 0)).accounting
    # by hand, in micro-USD: always high 400 + 329, the labels 11.24 + 38.2, the rest is toy-2
    possible = (729 - 49.44) + (13162.5 - 277.56)
    saved = -49.44 + (13162.5 - 277.56)
    assert found.saving == pytest.approx(100 * saved / possible)
    assert (found.traj_pass, found.traj_exact) == (50, 50)


def test_a_row_without_any_entry_is_a_missing_prediction(
    toy: tuple[PricedTrajectory, ...],
) -> None:
    preds = dict(zip(TOY_IDS, (0, None, 1, 0), strict=True))
    stated = score_predictions(toy, preds)
    del preds[TOY_IDS[1]]
    assert score_predictions(toy, preds) == stated
    assert stated.errors == 1


def test_a_workload_of_missing_predictions_alone_is_left_out_of_the_saving(
    toy: tuple[PricedTrajectory, ...],
) -> None:
    found = score_toy(toy, (None, None, None, 0))
    assert found.workloads["swebench"].cost_save is None
    assert found.cost_save == pytest.approx(97.8913 / 4, abs=5e-5)
    nothing = score_predictions(toy, {})
    assert (nothing.row_pass, nothing.traj_pass, nothing.errors) == (0, 0, 4)
    assert nothing.cost_save is nothing.combined is nothing.section_11 is None
    assert nothing.accounting.saving is nothing.accounting.overall is None


ALWAYS = {  # RowPass of always low, mid, mid_high, and of uniform random in expectation
    "bfcl": (96.37, 99.60, 100, 98.99),
    "mtrag": (94.82, 98.96, 99.48, 98.32),
    "qmsum": (91.03, 97.93, 100, 97.24),
    "pinchbench": (85.42, 91.67, 97.92, 93.75),
    "swebench": (27.98, 37.80, 50.00, 53.94),
}


def test_routers_that_always_name_one_tier_have_the_published_pass_and_exact_rates(
    published: tuple[PricedTrajectory, ...],
) -> None:
    logged = [one.logged for one in published]
    always = [score_predictions(published, choose_always(logged, tier)) for tier in range(4)]
    assert [round(one.row_pass, 2) for one in always] == [71.03, 77.42, 82.47, 100]
    assert [round(one.row_exact, 2) for one in always] == [71.03, 6.39, 5.05, 17.53]
    assert round(float(np.mean([one.row_pass for one in always])), 2) == 82.73  # uniform random
    assert round(float(np.mean([one.row_exact for one in always])), 2) == 25.00
    for workload, expected in ALWAYS.items():
        rates = [one.workloads[workload].row_pass for one in always]
        assert [round(rate, 2) for rate in (*rates[:3], float(np.mean(rates)))] == list(expected)
    for one in always:
        for workload in ("mtrag", "qmsum"):  # single steps
            assert one.workloads[workload].traj_pass == one.workloads[workload].row_pass
    assert (always[3].traj_pass, always[3].cost_save) == (100, 0)
    assert always[3].combined == pytest.approx(54.38, abs=5e-3)
    assert {name: one.rows for name, one in always[0].workloads.items()} == {
        "swebench": 336,
        "bfcl": 248,
        "mtrag": 193,
        "qmsum": 145,
        "pinchbench": 48,
    }


@pytest.mark.parametrize(
    ("passed", "exact", "row_pass", "row_exact"),
    [(891, 764, 91.86, 78.76), (784, 114, 80.82, 11.75), (857, 593, 88.35, 61.13)],
)
def test_the_published_counts_give_the_published_rates(
    published: tuple[PricedTrajectory, ...],
    passed: int,
    exact: int,
    row_pass: float,
    row_exact: float,
) -> None:
    gold = {row.id: row.gold for one in published for row in one.logged.rows}
    failing = [row_id for row_id, tier in gold.items() if tier > 0][: 970 - passed]
    preds: dict[str, int | None] = {row_id: gold[row_id] - 1 for row_id in failing}
    rest = sorted((row_id for row_id in gold if row_id not in preds), key=gold.__getitem__)
    for place, row_id in enumerate(rest):  # labels of high are last: they can only be met exactly
        preds[row_id] = min(gold[row_id] + (place < passed - exact), HIGH)
    found = score_predictions(published, preds)
    assert (round(found.row_pass, 2), round(found.row_exact, 2)) == (row_pass, row_exact)


@pytest.mark.parametrize(
    ("by_workload", "total"),
    [  # BFCL, mtRAG, QMSum, Pinch, SWE
        ((90.49, 92.35, 90.24, 35.36, -1.64), 56.18),
        ((89.87, 83.45, 92.12, 55.20, -6.55), 53.81),
        ((47.14, 91.93, 90.24, 39.80, -86.08), 15.99),
    ],
)
def test_published_savings_by_workload_average_to_the_published_total(
    by_workload: tuple[float, ...], total: float
) -> None:
    rows = (248, 193, 145, 48, 336)
    scores = [
        WorkloadScore(count, 0.0, 0.0, 0.0, saving)
        for count, saving in zip(rows, by_workload, strict=True)
    ]
    assert average_cost_saves(scores) == pytest.approx(total, abs=0.01)


@pytest.mark.parametrize(
    ("four", "combined"),
    [
        ((91.86, 78.76, 84.74, 56.18), 77.89),
        ((80.82, 11.75, 64.64, 53.82), 52.76),
        ((88.35, 61.13, 62.37, 15.99), 56.96),
        ((100.0, 17.53, 100.0, 0.0), 54.38),
        ((100.0, 100.0, 100.0, 93.09), 98.27),
        ((89.84, 89.84, 89.06, 87.13), 88.97),
    ],
)
def test_published_scores_average_to_the_published_combined_score(
    four: tuple[float, float, float, float], combined: float
) -> None:
    assert average_scores(*four) == pytest.approx(combined, abs=0.0051)


@given(seed=st.integers(0, 10_000), skill=st.floats(0, 1))
@settings(max_examples=20)
def test_rewards_weighted_by_the_cost_of_always_high_sum_to_the_saving(
    published: tuple[PricedTrajectory, ...], seed: int, skill: float
) -> None:
    preds: dict[str, int | None] = {}
    total = dict.fromkeys(WORKLOADS, 0.0)
    high = dict.fromkeys(WORKLOADS, 0.0)
    for one in published:
        drawn = mix(seed, one.logged.id, np.arange(len(one.gold_T)))
        safe = int(mix(seed, "safe", one.logged.id)) % 1000 < 1000 * skill
        tiers = [
            max(int(tier), gold) if safe else int(tier)
            for tier, gold in zip((drawn % np.uint64(4)).tolist(), one.gold_T.tolist(), strict=True)
        ]
        preds |= {row.id: tier for row, tier in zip(one.logged.rows, tiers, strict=True)}
        cost = sum(compute_path_costs(one, [HIGH] * len(tiers)))
        total[one.logged.workload] += cost * compute_reward(one, tiers)
        high[one.logged.workload] += cost
    found = score_predictions(published, preds)
    for workload, score in found.workloads.items():
        assert score.cost_save == pytest.approx(100 * total[workload] / high[workload])


def test_the_oracle_saves_at_least_what_the_labels_save_and_is_not_exact(
    published: tuple[PricedTrajectory, ...],
) -> None:
    labels: dict[str, int | None] = {
        row.id: row.gold for one in published for row in one.logged.rows
    }
    best: dict[str, int | None] = {}
    for one in published:
        tiers = find_oracle(one).tiers
        best |= {row.id: tier for row, tier in zip(one.logged.rows, tiers, strict=True)}
    gold, oracle = score_predictions(published, labels), score_predictions(published, best)
    assert gold.row_exact == gold.traj_pass == oracle.traj_pass == 100
    assert oracle.row_exact < 100
    for workload, score in gold.workloads.items():
        saved = oracle.workloads[workload].cost_save
        assert saved is not None
        assert score.cost_save is not None
        assert saved >= score.cost_save - 1e-9
    assert oracle.cost_save is not None
    assert gold.cost_save is not None
    assert oracle.cost_save > gold.cost_save


def write_lines(path: Path, lines: Sequence[object]) -> Path:
    """Write values as JSON lines."""
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_file_of_predictions_is_scored_against_a_bank(
    tmp_path: Path, toy: tuple[PricedTrajectory, ...]
) -> None:
    bank = write_bank(tmp_path / "bank.jsonl", make_toy_rows())
    lines = [
        {"id": TOY_IDS[0], "tier": "low"},
        {"id": TOY_IDS[1], "error": "timeout"},
        {"id": TOY_IDS[2], "tier": 1},
        {"id": TOY_IDS[3], "tier": 0},
    ]
    path = write_lines(tmp_path / "predictions.jsonl", lines)
    assert score_file(bank, path, WordTokens()) == score_toy(toy, (0, None, 1, 0))
    assert read_predictions(path)[TOY_IDS[1]] is None


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"id": "a", "tier": "large"}, "'tier' must be one of low, mid, mid_high, high, or 0 to 3"),
        ({"id": "a", "tier": 4}, "'tier' must be one of"),
        ({"id": "a", "tier": True}, "'tier' must be one of"),
        ({"id": "a", "tier": [0]}, "'tier' must be one of"),
        ({"id": "a"}, "must have 'id' and either 'tier' or 'error'"),
        ({"id": "a", "tier": 0, "error": "x"}, "must have 'id' and either 'tier' or 'error'"),
        ({"id": "a", "error": None}, "'error' must be a text that is not empty"),
        ({"tier": 0}, "'id' must be a text that is not empty"),
        ({"id": "first", "tier": 0}, "id 'first' stands in an earlier line too"),
        (3, "must be a JSON object"),
    ],
)
def test_a_damaged_prediction_is_named(tmp_path: Path, line: object, fault: str) -> None:
    path = write_lines(tmp_path / "predictions.jsonl", [{"id": "first", "tier": 0}, line])
    with pytest.raises(RLRouteError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert fault in str(caught.value)


def test_predictions_that_fit_no_row_and_an_empty_bank_are_refused(
    toy: tuple[PricedTrajectory, ...],
) -> None:
    with pytest.raises(RLRouteError, match="'elsewhere': the bank has no row of this id"):
        score_predictions(toy, {"elsewhere": 0})
    with pytest.raises(RLRouteError, match=f"'{TOY_IDS[0]}': tier 4 must be from 0 to 3"):
        score_predictions(toy, {TOY_IDS[0]: 4})
    with pytest.raises(RLRouteError, match="the bank holds no row"):
        score_predictions((), {})
