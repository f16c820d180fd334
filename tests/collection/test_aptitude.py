"""`rlroute profile`: an aptitude test looked up in a table or asked of a live pool."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_collection import PRICES, make_http, run_fault_server, write_pool
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.data.table import OutcomeTable, read_results, write_table
from rlroute.types import RLRouteError

SIMULATED = {"type": "simulated", "skill": 1.0, "prices": {"input": 1.0, "output": 2.0}}
CAP = 0.0006  # USD; all calls cost a little more
FAILING = {**SIMULATED, "failures": {"bad_request": 0.5}}


def run(*words: Any) -> str:
    result = CliRunner().invoke(app, ["profile", *map(str, words)])
    if isinstance(result.exception, RLRouteError):
        raise result.exception
    assert result.exception is None, result.output
    return result.stdout


def write_task_queries(folder: Path, per_task: int = 8, tasks: int = 3) -> Path:
    path = folder / "q.jsonl"
    splits = ("train", "train", "val", "test")
    rows = [
        {
            **{"id": f"q{i:03d}", "text": f"question {i}", "references": [f"answer {i}"]},
            **{"task": f"task {i % tasks}", "split": splits[i // tasks % 4]},
        }
        for i in range(per_task * tasks)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask_live(folder: Path, *words: Any, per_task: int = 8, **candidates: Any) -> OutcomeTable:
    write_pool(folder, {"old": SIMULATED, "new": SIMULATED, **candidates})
    queries = write_task_queries(folder, per_task)
    places = ("--queries", queries, "--pool", folder / "pool.yaml", "--grade", "exact")
    run("new", "--out", folder / "new", *places, *words)
    return read_results(folder / "new")


def test_a_table_gives_the_outcomes_of_train_queries_task_by_task(
    tiny_table: OutcomeTable, tmp_path: Path
) -> None:
    write_table(tiny_table, tmp_path / "whole")
    said = run("large", "--table", tmp_path / "whole", "--out", tmp_path / "large", "--shots", 2)
    found = read_results(tmp_path / "large")
    train = tiny_table.select_split("train")
    assert [one.id for one in found.candidates] == ["large"]
    assert set(found.split_Q.tolist()) == {"train"}
    counts = Counter(query.task for query in found.queries)
    held = Counter(query.task for query in train.queries)
    assert counts == {task: min(2, held[task]) for task in held}
    scores = dict(zip([q.id for q in train.queries], train.score_QK[:, 0].tolist(), strict=True))
    assert {q.id: s for q, s in zip(found.queries, found.score_QK[:, 0], strict=True)} == {
        q.id: scores[q.id] for q in found.queries
    }
    assert f"{len(found.queries)} outcomes" in said
    assert f"{found.cost_usd_QK.sum(dtype=np.float64):.6f} USD" in said


def test_a_live_candidate_is_asked_train_queries_alone_and_nobody_else_is(tmp_path: Path) -> None:
    table = ask_live(tmp_path, "--max-usd", 1, "--tasks", 2, "--shots", 3)
    assert [one.id for one in table.candidates] == ["new"]
    assert set(table.split_Q.tolist()) == {"train"}
    assert sorted(Counter(query.task for query in table.queries).values()) == [3, 3]
    journal = (tmp_path / "new.journal.jsonl").read_text()
    assert '"old"' not in journal


def test_a_failed_call_is_a_hole_and_no_score(tmp_path: Path) -> None:
    whole = ask_live(tmp_path, "--max-usd", 1)
    (tmp_path / "failing").mkdir()
    table = ask_live(tmp_path / "failing", "--max-usd", 1, new=FAILING)
    assert len(whole.queries) == 12
    assert 0 < len(table.queries) < 12
    assert table.present_QK.all()


def test_the_cap_in_usd_is_hard_and_the_test_goes_on_from_there(tmp_path: Path) -> None:
    pytest.importorskip("httpx", reason="the extra `http` is absent")
    with run_fault_server(prices=PRICES) as server:
        new = make_http(server.url, retries=0, concurrency=1)
        with pytest.raises(RLRouteError, match="the cap in USD is reached"):
            ask_live(tmp_path, "--max-usd", CAP, per_task=24, new=new)
        assert not (tmp_path / "new").exists()
        assert 0 < sum(server.read_report()["billed_picodollars"].values()) <= CAP * 1e12
        table = ask_live(tmp_path, "--max-usd", 1, per_task=24, new=new)
        assert len(table.queries) == 36
        assert sum(server.read_report()["requests"].values()) == 36  # none is paid twice


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name --table, or --queries, --pool, --grade and --max-usd"),
        (("--table", "pocket", "--max-usd", 1), "--table looks outcomes up"),
        (("--table", "pocket", "--shots", 0), "--shots 0: must be at least 1"),
        (("--table", "pocket"), "no candidate 'new'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[Any, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RLRouteError, match=said):
        run("new", "--out", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_live_test_without_a_cap_or_of_a_stranger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RLRouteError, match="max-usd"):
        ask_live(tmp_path)
    places = ("--queries", tmp_path / "q.jsonl", "--pool", tmp_path / "pool.yaml")
    with pytest.raises(RLRouteError, match=r"no candidate 'gpt' to ask \(it has: new, old\)"):
        run("gpt", "--out", tmp_path / "x", *places, "--grade", "exact", "--max-usd", 1)
