"""`rlroute pool check`: what it prints of servers that work and of servers that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_server import run_fault_server
from typer.testing import CliRunner

from rlroute.cli import app
from rlroute.pool.check import holds_logprobs

pytest.importorskip("httpx", reason="the extra `http` is absent")

KEY = "canary-5c1e8a90d2"
PRICES = {"input": 1.0, "output": 1.0}


def write_pool(folder: Path, url: str, **changes: Any) -> Path:
    entry = {"endpoint": url, "model": "m", "prices": PRICES, "api_key_env": "RLROUTE_TEST_KEY"}
    entry |= {"timeout_seconds": 1.0} | changes
    tool = {"type": "tool", "program": "calculator", "prices": {"per_call": 1e-6}}
    recorded = {"type": "recorded", "table": "pocket", "candidate": "word-tool"}
    path = folder / "pool.yaml"
    path.write_text(
        yaml.safe_dump({"candidates": {"live": entry, "calc": tool, "words": recorded}})
    )
    return path


@pytest.mark.parametrize(
    ("fault", "code", "expected"),
    [
        ("ok", 0, "answered"),
        ("no_usage", 0, "answered"),
        ("server_500", 1, "server"),
        ("unauthorized", 1, "auth (is the key right?)"),
        ("wrong_model", 1, "malformed"),
        ("hang", 1, "timeout"),
    ],
)
def test_the_exit_code_says_whether_every_candidate_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, code: int, expected: str
) -> None:
    monkeypatch.setenv("RLROUTE_TEST_KEY", KEY)
    with run_fault_server(faults={fault: 1.0}) as server:
        done = CliRunner().invoke(app, ["pool", "check", str(write_pool(tmp_path, server.url))])
    row = next(line for line in done.output.splitlines() if " live " in line)
    assert done.exit_code == code, done.output
    assert expected in row
    assert KEY not in done.output
    if code == 0:
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[3:5] == ["no" if fault == "no_usage" else "yes", "no"]
        assert float(cells[5]) > 0
    assert any("words" in line and "recorded" in line for line in done.output.splitlines())


def test_a_server_that_is_not_there_is_a_failed_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLROUTE_TEST_KEY", KEY)
    path = write_pool(tmp_path, "http://127.0.0.1:9/v1")
    assert CliRunner().invoke(app, ["pool", "check", str(path)]).exit_code == 1


def test_log_probabilities_are_seen_in_the_format_of_chat_servers() -> None:
    content = [{"token": "yes", "logprob": -0.1}]
    assert holds_logprobs({"choices": [{"logprobs": {"content": content}}]})
    for body in ({}, [], {"choices": []}, {"choices": [{"logprobs": None}]}, {"choices": [None]}):
        assert not holds_logprobs(body)
