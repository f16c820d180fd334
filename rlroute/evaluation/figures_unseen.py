"""The picture of candidates never trained on: regret against the calls of their profiles.

What it leaves out: numbers (`unseen`) and the page (`report`). Needs the extra `train`.

How to use: `draw_unseen(report)`.
"""

from __future__ import annotations

import numpy as np

from rlroute.evaluation.figures import (
    GREY,
    INK,
    POLICY_COLOURS,
    make_figure,
    save_png,
    style_axes,
)
from rlroute.evaluation.intervals import Estimate
from rlroute.evaluation.unseen import UnseenReport

NOTHING = Estimate(0.0, 0.0, 0.0)


def draw_unseen(report: UnseenReport) -> bytes:
    """Draw the regret of each number of calls minus that of the result it is compared with.

    The axis of calls is linear to 10 and logarithmic from there, so that 0 has a place.
    """
    curve, compared = report.curve, report.compared_with
    gaps = [one.regret_gap or NOTHING for one in curve]
    value = np.array([gap.value for gap in gaps])
    low = value - np.array([gap.low for gap in gaps])
    high = np.array([gap.high for gap in gaps]) - value
    calls = [one.calls or 0 for one in curve]
    figure = make_figure(8.0, 4.2)
    axes = figure.subplots()
    style_axes(axes)
    axes.axhline(0, color=GREY, linewidth=1.2, label=compared.name)
    absent = report.results[0]
    if absent is not compared and absent.regret_gap is not None:
        axes.axhline(
            absent.regret_gap.value, color=GREY, linestyle="--", linewidth=1.2, label=absent.name
        )
    axes.errorbar(
        calls,
        value,
        yerr=np.stack([low, high]).clip(min=0),
        fmt="o-",
        markersize=5,
        capsize=3,
        color=POLICY_COLOURS[1],
        label="never trained on them, 95% interval",
    )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks(calls, [f"{one:,}" for one in calls])
    axes.minorticks_off()
    axes.set_xlabel("calls that each new candidate's profile is from", color=INK)
    axes.set_ylabel(f"regret minus that of\n{compared.name}", color=INK)
    axes.legend(frameon=False, fontsize=9)
    return save_png(figure)
