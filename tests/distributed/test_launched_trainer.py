"""The files of launch/accelerate make as many processes as they say, on the CPU too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import launch
from safetensors.numpy import load_file
from tiny_llama import save_tiny_llama

PROBE = Path(__file__).with_name("launch_probe.py")
pytestmark = pytest.mark.slow


def run_probe(config: str, folder: Path) -> list[dict[str, Any]]:
    """Launch two processes; return what each found."""
    pytest.importorskip("trl", reason="the extra `text` is absent")
    save_tiny_llama(folder / "tiny")
    launch(config, [str(PROBE), str(folder / "tiny"), str(folder)])
    weights = sum(weight.size for weight in load_file(folder / "tiny/model.safetensors").values())
    paths = sorted(folder.glob("rank-*.json"))
    return [json.loads(path.read_text("utf-8")) | {"weights": weights} for path in paths]


def test_ddp_makes_two_processes_that_hold_the_same_weights(tmp_path: Path) -> None:
    facts = run_probe("ddp", tmp_path)
    assert [fact["processes"] for fact in facts] == [2, 2]
    assert {fact["distributed_type"] for fact in facts} == {"MULTI_CPU"}
    assert {fact["steps"] for fact in facts} == {2}
    assert all(fact["held"] == fact["weights"] for fact in facts)
    assert facts[0]["checksum"] == facts[1]["checksum"]


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_zero_makes_two_processes_of_deepspeed(config: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is absent")
    facts = run_probe(config, tmp_path)
    assert [fact["processes"] for fact in facts] == [2, 2]
    assert {fact["distributed_type"] for fact in facts} == {"DEEPSPEED"}
    assert {fact["device"] for fact in facts} == {"cpu"}
    assert {fact["steps"] for fact in facts} == {2}
    share = 0.5 if config == "zero3" else 1.0
    assert all(fact["held"] == pytest.approx(share * fact["weights"], rel=0.1) for fact in facts)
