"""kill -9 at ten random moments of a collection: the same table, and what was paid twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_collection import (
    assert_same_table,
    make_http,
    run_fault_server,
    write_pool,
    write_queries,
)

from rlroute.data.table import read_table

pytest.importorskip("httpx", reason="the extra `http` is absent")
pytestmark = pytest.mark.slow

KILLS = 10
QUERIES = 300
COMMAND = [
    *("collect", "--queries", "q.jsonl", "--pool", "pool.yaml", "--grade", "f1"),
    *("--out", "table", "--max-usd", "5"),
]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the collection in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rlroute", *COMMAND],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_collection_killed_at_ten_random_moments_gives_the_same_table(tmp_path: Path) -> None:
    rng = random.Random(20)
    script = {
        "prices": {"input": 2.0, "output": 3.0},
        "latency": {"median": 0.04, "sigma": 0.5},
        "faults": {"rate_limited": 0.03, "server_500": 0.02},
        "retry_after": 0.01,
    }
    folders = [tmp_path / "killed", tmp_path / "whole"]
    reports = []
    for folder, kills in zip(folders, (KILLS, 0), strict=True):
        folder.mkdir()
        write_queries(folder, QUERIES)
        with run_fault_server(**script) as server:
            write_pool(
                folder, {name: make_http(server.url, model=name, concurrency=8) for name in "ab"}
            )
            journal = folder / "table.journal.jsonl"
            for _ in range(kills):
                goal = count_lines(journal) + rng.randint(1, 2 * 2 * QUERIES // (KILLS + 2))
                process = start(folder)
                while count_lines(journal) < goal and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.random() * 0.02)
                assert process.poll() is None, "it ended before it was killed"
                process.kill()
                process.wait()
            assert not (folder / "table").exists()
            assert start(folder).wait() == 0
            reports.append(server.read_report())
    killed, whole = (read_table(folder / "table") for folder in folders)
    assert_same_table(killed, whole)
    assert killed.present_QK.all()

    provenance = json.loads((folders[0] / "table" / "provenance.json").read_text())
    paid_twice = reports[0]["requests"]["ok"] - reports[1]["requests"]["ok"]
    in_flight = provenance["lost_in_flight"]
    sys.stdout.write(
        f"\n{2 * QUERIES} calls, {KILLS} kills, {in_flight} calls in flight when killed, "
        f"{paid_twice} of them paid twice\n"
    )
    assert reports[1]["requests"]["ok"] == 2 * QUERIES
    assert 0 <= paid_twice <= in_flight <= KILLS * 16
    billed, known = (
        sum(reports[0]["billed_picodollars"].values()) / 1e12,
        provenance["paid_usd"],
    )
    assert known <= billed + 1e-12
    assert billed <= known + provenance["unknown_usd"]
