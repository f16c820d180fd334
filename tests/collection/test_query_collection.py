"""`rlroute collect --queries`: tables from live candidates, money, holes, and no key anywhere."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_collection import (
    PRICES,
    RunningServer,
    assert_same_table,
    make_http,
    read_rows,
    run_fault_server,
    write_pool,
    write_queries,
)
from tiny_llama import save_tiny_llama
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.collection.grading import read_verdict
from rlroute.collection.journal import Journal
from rlroute.collection.queries import write_queries as write_query_file
from rlroute.collection.query_run import Collection, run_query_collection
from rlroute.data.probes import read_probes
from rlroute.data.reasoning_tasks import make_queries
from rlroute.data.table import OutcomeTable, read_table
from rlroute.pool.sealed_lines import read_lines
from rlroute.types import RLRouteError

pytest.importorskip("httpx", reason="the extra `http` is absent")

SERVER_PRICES = {"input": 2.0, "output": 3.0}
KEY = "canary-77f0d3c2b1a9"
SIMULATED = {"type": "simulated", "skill": 1.0, "prices": {"input": 1.0, "output": 2.0}}


def make_collection(folder: Path, **changes: Any) -> Collection:
    stated = Collection(folder / "q.jsonl", folder / "pool.yaml", "f1", folder / "table")
    return replace(stated, **changes)


def collect(folder: Path, **changes: Any) -> OutcomeTable:
    stated = make_collection(folder, **changes)
    run_query_collection(stated)
    return read_table(stated.out)


def read_provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "table" / "provenance.json").read_text())


def sum_bills(server: RunningServer) -> float:
    return sum(server.read_report()["billed_picodollars"].values()) / 1e12


def count_requests(server: RunningServer) -> int:
    return sum(server.read_report()["requests"].values())


def test_a_table_holds_what_the_servers_answered_and_a_second_start_pays_nothing(
    tmp_path: Path,
) -> None:
    write_queries(tmp_path, 30, task="t", dataset="d")
    with run_fault_server(prices=SERVER_PRICES) as server:
        write_pool(tmp_path, {"a": make_http(server.url), "b": make_http(server.url, model="n")})
        table = collect(tmp_path)
        asked, paid = count_requests(server), sum_bills(server)
        assert asked == 60
        again = collect(tmp_path)
        assert count_requests(server) == asked
    assert_same_table(table, again)
    assert table.present_QK.all()
    assert ((table.score_QK > 0) & (table.score_QK < 1)).all()
    assert (table.completion_tokens_QK == 5).all()
    assert float(table.cost_usd_QK.sum()) == pytest.approx(paid, rel=1e-6)
    assert read_provenance(tmp_path)["paid_usd"] == pytest.approx(paid, rel=1e-12)
    assert len(read_rows(tmp_path / "table" / "calls.csv.gz")) == 60


def test_failed_calls_are_holes_until_they_are_asked_again(tmp_path: Path) -> None:
    write_queries(tmp_path, 30)
    faults = {"question 3": ["filtered", "ok"], "question 4": ["bad_request", "ok"]}
    with run_fault_server(prices=SERVER_PRICES, faults_by_text=faults) as server:
        write_pool(tmp_path, {"a": make_http(server.url)})
        table = collect(tmp_path)
        assert len(table.queries) == 28  # nobody answered the two
        holes = read_provenance(tmp_path)["holes"]
        assert holes == {"a: bad_request": 1, "a: refused": 1}
        assert "a: 1 bad_request; a: 1 refused" in (tmp_path / "table/README.md").read_text()
        rows = {row["query_id"]: row for row in read_rows(tmp_path / "table/calls.csv.gz")}
        assert (rows["q0003"]["failure"], rows["q0003"]["score"]) == ("refused", "")
        assert len(collect(tmp_path).queries) == 28  # not asked again
        assert len(collect(tmp_path, retry_failed=True).queries) == 30
        assert count_requests(server) == 32


def test_a_cap_stops_the_collection_cleanly_and_holds_over_all_starts(tmp_path: Path) -> None:
    write_queries(tmp_path, 40)
    with run_fault_server(prices=SERVER_PRICES) as server:
        write_pool(tmp_path, {"a": make_http(server.url, retries=0, concurrency=4)})
        for _ in range(2):
            with pytest.raises(RLRouteError, match="the cap in USD is reached") as caught:
                collect(tmp_path, max_usd=0.0012)
            assert "calls are kept in" in str(caught.value)
            assert sum_bills(server) <= 0.0012
        assert not (tmp_path / "table").exists()
        kept = count_requests(server)
        assert 0 < kept < 40
        assert len(collect(tmp_path, max_usd=1.0).queries) == 40
        assert count_requests(server) == 40
        assert read_provenance(tmp_path)["paid_usd"] == pytest.approx(sum_bills(server))


def test_a_refused_key_stops_the_collection_and_is_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLROUTE_TEST_KEY", KEY)
    write_queries(tmp_path, 30)
    with run_fault_server(faults={"unauthorized": 1.0}) as server:
        entry = make_http(server.url, api_key_env="RLROUTE_TEST_KEY", concurrency=2)
        write_pool(tmp_path, {"a": entry})
        with pytest.raises(RLRouteError, match="refuses the key") as caught:
            collect(tmp_path)
        assert KEY not in str(caught.value)
        assert count_requests(server) <= 4
    journal = Journal(tmp_path / "table.journal.jsonl")
    assert not journal.replies
    journal.close()


def test_no_file_of_a_full_collection_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RLROUTE_TEST_KEY", KEY)
    write_queries(tmp_path, 30)
    faults = {"echo_key": 0.3, "bad_request": 0.1, "rate_limited": 0.05, "invalid_json": 0.05}
    with run_fault_server(faults=faults, retry_after=0.01) as server:
        entry = make_http(server.url, api_key_env="RLROUTE_TEST_KEY", max_output_tokens=50)
        write_pool(
            tmp_path,
            {"a": entry},
            cache={"path": str(tmp_path / "cache.sqlite")},
            cassette={"path": str(tmp_path / "c.jsonl"), "mode": "record", "keep_prompts": True},
        )
        collect(tmp_path)
        assert server.read_report()["requests"]["echo_key"] > 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"cache.sqlite", "c.jsonl", "table.journal.jsonl", "records.csv.gz"} <= {
        path.name for path in files
    }
    for path in files:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        assert KEY.encode() not in data, path
    assert KEY not in caplog.text


def test_what_a_cache_saved_is_no_discount_in_the_table(tmp_path: Path) -> None:
    write_queries(tmp_path, 30)
    with run_fault_server(prices=SERVER_PRICES) as server:
        cache = {"path": str(tmp_path / "cache.sqlite")}
        write_pool(tmp_path, {"a": make_http(server.url)}, cache=cache)
        table = collect(tmp_path)
        (tmp_path / "table.journal.jsonl").unlink()
        again = collect(tmp_path)
        assert count_requests(server) == 30
    assert_same_table(table, again)
    assert read_provenance(tmp_path)["paid_usd"] == 0.0


def test_a_sampled_design_states_its_propensities(tmp_path: Path) -> None:
    write_queries(tmp_path, 60)
    names = ("a", "b", "c", "d")
    write_pool(tmp_path, {name: SIMULATED | {"skill": i} for i, name in enumerate(names)})
    table = collect(tmp_path, per_query=2)
    assert table.present_QK.sum(axis=1).tolist() == [2] * 60
    rows = read_rows(tmp_path / "table" / "propensities.csv.gz")
    assert {row["propensity"] for row in rows} == {"0.5"}
    asked = {(row["query_id"], row["model"]) for row in rows if row["asked"] == "1"}
    held = {
        (table.queries[q].id, names[k]) for q, k in zip(*np.nonzero(table.present_QK), strict=True)
    }
    assert asked == held
    assert all(20 <= count <= 40 for count in table.present_QK.sum(axis=0))
    whole = collect(tmp_path)  # the full design afterwards asks only the rest, of the same answers
    shared = table.present_QK
    np.testing.assert_array_equal(table.score_QK[shared], whole.score_QK[shared])
    assert not (tmp_path / "table" / "propensities.csv.gz").exists()
    with pytest.raises(RLRouteError, match="--per-query 5: must be between 1 and 4"):
        collect(tmp_path, per_query=5)


def test_several_samples_become_their_mean(tmp_path: Path) -> None:
    write_queries(tmp_path, 30)
    write_pool(tmp_path, {"a": SIMULATED | {"failures": {"timeout": 0.2}}})
    table = collect(tmp_path, samples=4)
    rows = read_rows(tmp_path / "table" / "calls.csv.gz")
    assert len(rows) == 120
    for place, query in enumerate(table.queries):
        scores = [float(r["score"]) for r in rows if r["query_id"] == query.id and r["score"]]
        assert table.score_QK[place, 0] == pytest.approx(np.mean(scores))
    probes = read_probes(tmp_path / "table", table)
    assert probes is not None
    assert probes.candidate_id == "a"
    for query in table.queries:
        own = [row for row in rows if row["query_id"] == query.id]
        right = {row["score"] for row in own if row["score"]}  # right or wrong: two answers at most
        if query.id in probes.by_query:
            probe = probes.by_query[query.id]
            assert (probe.sigma > 0) == (len(right) == 2)
            assert probe.cost_usd == pytest.approx(sum(float(row["cost_usd"]) for row in own))
    with pytest.raises(RLRouteError, match="several samples need one above 0"):
        collect(tmp_path, samples=2, temperature=0.0)


def test_a_judge_grades_through_the_pool_and_what_it_mumbles_is_undefined(tmp_path: Path) -> None:
    write_queries(tmp_path, 30, references=["SCORE: 7"])
    write_pool(tmp_path, {"a": SIMULATED, "fair": SIMULATED | {"skill": 100.0}})
    table = collect(tmp_path, grade="judge", judge="fair")
    assert [candidate.id for candidate in table.candidates] == ["a"]  # judges judge
    assert np.allclose(table.score_QK, 0.7)
    write_pool(tmp_path, {"a": SIMULATED, "mumbler": SIMULATED | {"skill": -100.0}})
    with pytest.raises(RLRouteError, match="a: 30 ungraded"):
        collect(tmp_path, grade="judge", judge="mumbler")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("SCORE: 10", 1.0),
        (" SCORE: 0\n", 0.0),
        ("SCORE: 11", None),
        ("SCORE: 5 because", None),
        ("SCORE: 1\nSCORE: 9", None),
        ("score: 5", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_strictly(text: str, score: float | None) -> None:
    assert read_verdict(text) == score


def test_a_function_of_the_user_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "my_grades.py"
    module.write_text(
        "def half(query, answer): return 0.5\n"
        "def some(query, answer): return None if query.id < 'q0005' else 1\n"
        "def much(query, answer): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_queries(tmp_path, 30)
    with run_fault_server() as server:
        write_pool(tmp_path, {"a": make_http(server.url)})
        assert np.allclose(collect(tmp_path, grade="python:my_grades:half").score_QK, 0.5)
        assert len(collect(tmp_path, grade="python:my_grades:some").queries) == 25
        assert count_requests(server) == 30  # a new grade asks nothing again
        for grade, message in (
            ("python:my_grades:much", "returned 3 for query"),
            ("python:my_grades:none", "has no function 'none'"),
            ("python:no_such_module:x", "no module 'no_such_module'"),
            ("python:my_grades", "write python:module:function"),
        ):
            with pytest.raises(RLRouteError, match=message):
                collect(tmp_path, grade=grade)


def test_a_forecast_asks_nobody_and_encloses_what_is_paid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_queries(tmp_path, 30)
    with run_fault_server(prices=SERVER_PRICES) as server:
        entry = make_http(server.url, retries=0, max_output_tokens=300, api_key_env="NOT_SET_HERE")
        write_pool(tmp_path, {"a": entry})
        run_query_collection(make_collection(tmp_path, dry_run=True))
        line = next(row for row in capsys.readouterr().out.splitlines() if " all " in row)
        low, high = (float(part) for part in line.strip("│ ").split("│")[-1].split(" to "))
        assert count_requests(server) == 0
        assert {path.name for path in tmp_path.iterdir()} == {"q.jsonl", "pool.yaml"}
        write_pool(tmp_path, {"a": entry | {"api_key_env": None}})
        collect(tmp_path)
        assert 0 < low < sum_bills(server) < high


def start(folder: Path, *arguments: str, **process: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rlroute", "collect", "--queries", "q.jsonl", "--pool"]
    command += ["pool.yaml", "--grade", "f1", "--out", "table", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        **process,
    )


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal has so many lines."""
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_loses_nothing(tmp_path: Path, number: signal.Signals) -> None:
    write_queries(tmp_path, 60)
    latency = {"median": 0.05, "sigma": 0.3}
    with run_fault_server(prices=SERVER_PRICES, latency=latency) as server:
        write_pool(tmp_path, {"a": make_http(server.url, concurrency=2)})
        with start(tmp_path) as process:
            wait_for_lines(tmp_path / "table.journal.jsonl", 20, process)
            process.send_signal(number)
            output = process.communicate(timeout=60)[1]
        assert process.returncode == 2
        assert f"stopped: {number.name} received" in output
        assert "Traceback" not in output
        assert count_requests(server) < 60
        assert len(collect(tmp_path).queries) == 60
        assert count_requests(server) == 60  # those in flight were waited for
        assert read_provenance(tmp_path)["lost_in_flight"] == 0


def test_a_full_disk_stops_cleanly_and_the_next_start_goes_on(tmp_path: Path) -> None:
    write_queries(tmp_path, 60)
    with run_fault_server(prices=SERVER_PRICES) as server:
        write_pool(tmp_path, {"a": make_http(server.url, concurrency=2)})

        def limit_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))

        with start(tmp_path, preexec_fn=limit_files) as process:
            output = process.communicate(timeout=60)[1]
        assert process.returncode == 2
        assert "table.journal.jsonl: cannot write" in output
        assert "Traceback" not in output
        journal = (tmp_path / "table.journal.jsonl").read_bytes()
        assert len(journal) == 9_000  # with a torn last line
        assert not journal.endswith(b"\n")
        asked = count_requests(server)
        assert len(collect(tmp_path).queries) == 60
        assert count_requests(server) - 60 <= 2  # only those in flight were paid twice
        assert asked > 5


def test_tasks_of_reasoning_gym_are_graded_by_their_own_scorer(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is absent")
    settings = {"max_terms": 2, "max_digits": 2}
    queries = make_queries("chain_sum", 1, settings, count=30, seed=3)
    write_query_file(queries, tmp_path / "q.jsonl")
    write_pool(
        tmp_path,
        {
            name: {"type": "tool", "program": name, "prices": {"per_call": 1e-6}}
            for name in ("calculator", "word_tool")
        },
    )
    table = collect(tmp_path, grade="reasoning_gym")
    assert table.score_QK.tolist() == [[1.0, 0.0]] * 30
    assert np.allclose(table.cost_usd_QK, 1e-6)


def test_an_unfinished_block_of_a_local_model_is_asked_whole(tmp_path: Path) -> None:
    """The votes of a model depend on who else is in the batch."""
    save_tiny_llama(tmp_path / "tiny")
    write_queries(tmp_path, 30, task="t")
    example = {"task": "t", "question": "question", "answer": "answer"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(example))
    entry = {"type": "local", "model": "tiny", "mode": "self_consistency", "prices": PRICES}
    source = {"folder": str(tmp_path / "tiny"), "parameters": 37_344, "licence": "test"}
    write_pool(
        tmp_path,
        {"a": entry | {"samples": 3, "temperature": 1.0}},
        models={"tiny": source | {"dtype": "float32", "max_new_tokens": 4}},
        examples=str(tmp_path / "examples.jsonl"),
    )
    journal = tmp_path / "table.journal.jsonl"
    table = collect(tmp_path)
    texts = [record.get("reply") for record in read_lines(journal)[0]]
    journal.write_bytes(journal.read_bytes()[:-3000])  # torn somewhere in the block
    assert_same_table(table, collect(tmp_path))
    replies = {record["key"]: record["reply"]["text"] for record in read_lines(journal)[0][-30:]}
    assert list(replies.values()) == [reply["text"] for reply in texts if reply]


def test_an_option_is_never_ignored(tmp_path: Path) -> None:
    """The recipe form knows none of the other form's options, and says so."""
    for options in (["--max-usd", "1"], ["--samples", "2"], ["--dry-run"], ["--grade", "f1"]):
        command = ["collect", "recipe.yaml", "--out", str(tmp_path / "out"), *options]
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, RLRouteError)
        assert "without other options" in str(done.exception)


def test_two_collections_do_not_share_a_journal(tmp_path: Path) -> None:
    write_queries(tmp_path, 30)
    write_pool(tmp_path, {"a": SIMULATED})
    journal = Journal(tmp_path / "table.journal.jsonl")
    with pytest.raises(RLRouteError, match="another process is writing it"):
        collect(tmp_path)
    journal.close()
    assert len(collect(tmp_path).queries) == 30


def test_a_changed_model_is_asked_again_and_a_changed_price_is_not(tmp_path: Path) -> None:
    write_queries(tmp_path, 30)
    with run_fault_server(prices=SERVER_PRICES) as server:
        entry = make_http(server.url)
        write_pool(tmp_path, {"a": entry})
        table = collect(tmp_path)
        dear = entry | {"prices": {"input": 20.0, "output": 30.0}, "concurrency": 3}
        write_pool(tmp_path, {"a": dear})
        np.testing.assert_allclose(collect(tmp_path).cost_usd_QK, 10 * table.cost_usd_QK)
        assert count_requests(server) == 30
        write_pool(tmp_path, {"a": dear | {"model": "other"}})
        collect(tmp_path)
        assert count_requests(server) == 60
