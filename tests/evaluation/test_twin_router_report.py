"""`rlroute score-twin-router`: the worked example of the benchmark, from files to the table."""

from __future__ import annotations

import json

import pytest
from twin_router_examples import make_toy_rows, write_bank
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.evaluation.twin_router_report import run_score
from rlroute.types import RLRouteError


@pytest.fixture
def files(tmp_path):
    rows = make_toy_rows()
    bank = write_bank(tmp_path / "bank.jsonl", rows)
    predictions = tmp_path / "predictions.jsonl"
    lines = [json.dumps({"id": row["id"], "tier": row["target_tier"]}) for row in rows]
    predictions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return bank, predictions


def test_the_labels_themselves_score_as_the_sheet_says(files):
    score = run_score(*files, "words")
    assert score.combined == pytest.approx(90.1162, abs=5e-5)
    assert score.cost_save == pytest.approx(60.4648, abs=5e-5)


def test_the_command_prints_the_table(files):
    bank, predictions = map(str, files)
    done = CliRunner().invoke(app, ["score-twin-router", bank, predictions, "--tokens", "words"])
    assert done.exit_code == 0
    assert "90.12" in done.stdout
    assert "tokens: words" in done.stdout


def test_unknown_tokens_are_refused_in_one_line(files, tmp_path):
    with pytest.raises(RLRouteError, match=r"allowed are approximate, words, or a folder"):
        run_score(*files, str(tmp_path / "none"))
