"""Small question banks in TwinRouterBench's format: the toy rows, long prefixes, a whole bank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlroute.data.twin_router_bank import TIERS, LoggedTrajectory
from rlroute.seeding import draw_permutation, mix

# What the published bank holds by workload: trajectories, and rows by label (low to high).
PUBLISHED = {
    "swebench": (40, (94, 33, 41, 168)),
    "bfcl": (130, (239, 8, 1, 0)),
    "mtrag": (193, (183, 8, 1, 1)),
    "qmsum": (145, (132, 10, 3, 0)),
    "pinchbench": (12, (41, 3, 3, 1)),
}
NOUNS = ("file", "test", "class", "query", "meeting", "flight", "matrix", "error", "index", "date")


def write_words(count: int, start: int = 0) -> str:
    """Return so many words."""
    return " ".join(NOUNS[(start + place) % len(NOUNS)] for place in range(count))


def make_row(
    workload: str, instance: str, step: int, messages: list[dict[str, Any]], gold: int
) -> dict[str, Any]:
    """Return a row with all documented keys."""
    return {
        "id": f"{workload}_{instance}_step_{step}",
        "benchmark": workload,
        "scenario": "general_agent",
        "instance_id": instance,
        "step_index": step,
        "total_steps": 9,
        "messages": messages,
        "target_tier": TIERS[gold],
        "target_tier_id": gold,
        "benchmark_display": workload.upper(),
        "benchmark_subset": None,
        "benchmark_version": "v1",
        "pipeline_stage": "done",
        "collector": None,
        "collected_at": "2026-04-06",
        "notes": None,
    }


def write_bank(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_toy_rows() -> list[dict[str, Any]]:
    """Return the worked example: toy-1 (swebench, labels 0, 3, 1) and toy-2 (mtrag, label 0).

    The assistant's 6 words stand in a tool call beside null content, and the system message is a
    list of blocks from the second step on.
    """
    call = {"id": "c1", "type": "function", "function": {"name": "bash"}}
    call["function"]["arguments"] = write_words(5)
    system = {"role": "system", "content": write_words(4)}
    blocks = {"role": "system", "content": [{"type": "text", "text": write_words(4)}]}
    user = {"role": "user", "content": write_words(10)}
    act = {"role": "assistant", "content": None, "tool_calls": [call], "function_call": None}
    tool = {"role": "tool", "content": write_words(20), "tool_call_id": "c1"}
    answer = {"role": "assistant", "content": write_words(3)}
    more = {"role": "user", "content": write_words(5)}
    return [
        make_row("swebench", "toy-1", 1, [system, user], 0),
        make_row("swebench", "toy-1", 2, [blocks, user, act, tool], 3),
        make_row("swebench", "toy-1", 3, [blocks, user, act, tool, answer, more], 1),
        make_row("mtrag", "toy-2", 1, [{"role": "user", "content": write_words(100)}], 0),
    ]


def make_long_rows(golds: Sequence[int], instance: str = "long") -> list[dict[str, Any]]:
    """Return a trajectory of 10,000 tokens (words), then 500 more a step, 200 of them output."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": write_words(10_000 - 2 - 4)}]
    rows = []
    for place, gold in enumerate(golds):
        if place > 0:
            messages = [
                *messages,
                {"role": "assistant", "content": write_words(200 - 4)},
                {"role": "tool", "content": write_words(300 - 4), "tool_call_id": f"c{place}"},
            ]
        rows.append(make_row("swebench", instance, place + 1, messages, gold))
    return rows


def make_published_rows(share: int = 1) -> list[dict[str, Any]]:
    """Return a made-up bank with the published numbers of trajectories, rows and labels.

    With `share` = n there is about an n-th of it. Texts are drawn words; who has which label is
    drawn too.
    """
    rows = []
    for workload, (trajectories, labels) in PUBLISHED.items():
        golds = [gold for gold, count in enumerate(labels) for _ in range(max(count // share, 1))]
        if share == 1:
            golds = [gold for gold, count in enumerate(labels) for _ in range(count)]
        instances = max(trajectories // share, 1)
        order = draw_permutation(len(golds), "bank", workload)
        for number in range(instances):
            mine = [golds[place] for place in order[number::instances]]
            rows += make_drawn_trajectory(workload, f"{workload}-{number:03d}", mine)
    return rows


def make_drawn_trajectory(
    workload: str, instance: str, golds: Sequence[int]
) -> list[dict[str, Any]]:
    """Return a trajectory of drawn lengths: a task, then an action and its result at each step."""

    def draw(purpose: str, step: int, low: int, high: int) -> int:
        return low + int(mix("bank", instance, purpose, step)) % (high - low)

    start = draw("start", 0, 0, 10)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": write_words(draw("task", 0, 30, 300), start)},
    ]
    rows = []
    for step, gold in enumerate(golds):
        if step > 0:
            words = write_words(draw("act", step, 1, 30), start + step)
            function = {"name": "bash", "arguments": {"command": words}}
            call = {"id": f"c{step}", "type": "function", "function": function}
            result = write_words(draw("result", step, 2, 200), start - step)
            messages = [
                *messages,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": result, "tool_call_id": f"c{step}"},
            ]
        rows.append(make_row(workload, instance, step + 1, messages, gold))
    return rows


def choose_always(trajectories: Sequence[LoggedTrajectory], tier: int) -> dict[str, int | None]:
    """Return the predictions of a router that always names one tier."""
    return {row.id: tier for one in trajectories for row in one.rows}
