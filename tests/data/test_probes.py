"""Stored probes: sigma by ACAR's worked examples, what is read, what is refused."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "policies"))

from table_examples import build

from rlroute.data.probes import CALLS_FILE, COLUMNS, Probe, compute_sigma, read_probes
from rlroute.types import RLRouteError

TRAIN = build([[1, 0, 1], [0, 1, 1]], [[1.0, 4.0, 10.0]] * 2, [[1, 0], [0, 1]]).table


def write_calls(folder: Path, rows: list[tuple[object, ...]]) -> None:
    with gzip.open(folder / CALLS_FILE, "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


@pytest.mark.parametrize(("answers", "sigma"), [("AAA", 0.0), ("AAB", 0.5), ("ABC", 1.0)])
def test_sigma_is_that_of_the_worked_examples(answers: str, sigma: float) -> None:
    assert compute_sigma(list(answers)) == sigma


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=8), st.randoms())
def test_sigma_lies_between_0_and_1_and_ignores_the_order(answers: list[str], chance) -> None:
    shuffled = answers.copy()
    chance.shuffle(shuffled)
    assert 0 <= compute_sigma(answers) == compute_sigma(shuffled) <= 1
    assert (compute_sigma(answers) == 0) == (len(set(answers)) == 1)


def test_one_answer_cannot_disagree() -> None:
    with pytest.raises(ValueError, match="two answers"):
        compute_sigma(["a"])


def test_the_cheapest_candidate_that_was_asked_repeatedly_is_the_probe(tmp_path: Path) -> None:
    rows = [("q0", "b", n, "", 2.0, "x") for n in range(3)]
    rows += [("q0", "a", 0, "", 0.5, "x"), ("q0", "a", 1, "", 0.5, "y")]
    rows += [("q0", "a", 2, "timeout", 0.25, "")]  # billed, and no answer
    rows += [("q1", "a", 0, "", 0.5, "z")]  # one answer: no probe
    rows += [("other split", "a", n, "", 1.0, "w") for n in range(2)]
    write_calls(tmp_path, rows)
    probes = read_probes(tmp_path, TRAIN)
    assert probes is not None
    assert probes.candidate_id == "a"
    assert probes.by_query == {"q0": Probe(1.0, 1.25), "other split": Probe(0.0, 2.0)}


def test_without_repeated_answers_there_are_no_probes(tmp_path: Path) -> None:
    assert read_probes(tmp_path, TRAIN) is None
    write_calls(tmp_path, [("q0", "a", 0, "", 1.0, "x"), ("q1", "a", 0, "", 1.0, "x")])
    assert read_probes(tmp_path, TRAIN) is None
    with gzip.open(tmp_path / CALLS_FILE, "wt") as file:  # collected before answers were kept
        file.write("query_id,model,sample\nq0,a,0\n")
    assert read_probes(tmp_path, TRAIN) is None


@pytest.mark.parametrize("cost", ["", "-1", "nan", "cheap"])
def test_an_answer_without_a_price_is_refused_with_its_line(tmp_path: Path, cost: str) -> None:
    write_calls(tmp_path, [("q0", "a", 0, "", 1.0, "x"), ("q0", "a", 1, "", cost, "x")])
    with pytest.raises(RLRouteError, match=rf"{CALLS_FILE}, line 3: cost_usd '{cost}'"):
        read_probes(tmp_path, TRAIN)


def test_half_of_the_train_queries_is_enough(tmp_path: Path) -> None:
    write_calls(tmp_path, [("q1", "c", n, "", 1.0, "x") for n in range(2)])
    probes = read_probes(tmp_path, TRAIN)
    assert probes is not None
    assert probes.candidate_id == "c"
    more = build([[1, 0, 1]] * 3, [[1.0, 4.0, 10.0]] * 3, [[1, 0]] * 3).table
    assert read_probes(tmp_path, more) is None
