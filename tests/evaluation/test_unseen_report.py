"""Candidates never trained on, as a table and a picture: with a run beside and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlroute.evaluation.figures_unseen import draw_unseen
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.unseen import UnseenReport, UnseenResult, dump_unseen, render_unseen

pytest.importorskip("matplotlib", reason="the extra `train` is absent")


def make_report(beside: bool) -> UnseenReport:
    """Regret falls with the calls; what all are compared with stands last, or first."""
    named = [("without them", 0), ("0 calls", 0), ("200 calls", 200), ("all train queries", 5000)]
    if beside:
        named.append(("trained with them (b)", None))
    compared = len(named) - 1 if beside else 0
    results = []
    for place, (name, calls) in enumerate(named):
        regret = 0.25 - 0.01 * place
        value = regret - (0.25 - 0.01 * compared)
        gap = None if place == compared else Estimate(value, value - 0.004, value + 0.004)
        results.append(UnseenResult(name, calls, 0.1 * place, 0.7, regret, 0.8, 0.1 * place, gap))
    return UnseenReport(("new",), tuple(results))


@pytest.mark.parametrize("beside", [False, True])
def test_all_are_compared_with_the_run_beside_or_with_doing_without(beside: bool) -> None:
    report = make_report(beside)
    name = "trained with them (b)" if beside else "without them"
    assert report.compared_with.name == name
    assert [one.calls for one in report.curve] == [0, 200, 5000]
    assert draw_unseen(report).startswith(b"\x89PNG")
    stream = io.StringIO()
    Console(file=stream, width=120).print(render_unseen(report))
    said = stream.getvalue()
    assert "never trained on: new" in said
    assert f"minus that of {name}" in said
    gap = report.results[2].regret_gap
    assert gap is not None
    assert f"[{gap.low:+.4f}, {gap.high:+.4f}]".replace("-", "\N{MINUS SIGN}") in said
    rows = dump_unseen(report.results)
    assert sum(row["regret_gap"] is None for row in rows) == 1
    assert rows[2]["regret_gap"]["value"] == gap.value
