"""Pictures of single decisions: expected against realised, and who was picked during training.

What it leaves out: numbers (`decisions`) and the page (`report`). Needs the extra `train`.

How to use: `draw_calibration(report)`; `draw_shares_over_training(history)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlroute.evaluation.comparison import QUERIES_PER_PRICE
from rlroute.evaluation.decisions import Calibration, DecisionReport
from rlroute.evaluation.figures import (
    COST_LABEL,
    GREY,
    INK,
    POLICY_COLOURS,
    format_percent,
    make_figure,
    save_png,
    style_axes,
)
from rlroute.evaluation.figures_selection import (
    CANDIDATE_COLOURS,
    add_band_legend,
)

SHARE = "selection/share/"
BANDS = len(CANDIDATE_COLOURS)
SLICES = 80  # points along the training; more cannot be told apart


def draw_calibration(report: DecisionReport) -> bytes:
    """Draw expected against realised score and cost, with the bins' intervals and counts."""
    figure = make_figure(10.5, 4.6)
    left, right = figure.subplots(1, 2)
    draw_bins(left, report.quality, 1.0, "score")
    draw_bins(right, report.cost, QUERIES_PER_PRICE, COST_LABEL)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return save_png(figure)


def draw_bins(axes: Any, calibration: Calibration, scale: float, unit: str) -> None:
    """Draw the bins of one quantity and the line on which forecasts would be right."""
    style_axes(axes)
    expected = np.array([one.expected for one in calibration.bins]) * scale
    realised = np.array([one.realised for one in calibration.bins]) * scale
    low = realised - np.array([one.low for one in calibration.bins]) * scale
    high = np.array([one.high for one in calibration.bins]) * scale - realised
    ends = [min(expected.min(), realised.min()), max(expected.max(), realised.max())]
    axes.plot(ends, ends, "--", color=GREY, linewidth=1.2, label="expected = realised")
    axes.errorbar(
        expected,
        realised,
        yerr=np.stack([low, high]),
        fmt="o",
        markersize=5,
        capsize=2.5,
        color=POLICY_COLOURS[1],
        label=f"mean of a bin of about {calibration.bins[0].count} queries, 95% interval",
    )
    axes.set_xlabel(f"expected {unit}", color=INK)
    axes.set_ylabel(f"realised {unit}", color=INK)
    error = calibration.error * scale
    axes.set_title(f"mean distance {error:.3g}", loc="left", fontsize=10, color=INK)


def draw_shares_over_training(history: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Draw the candidates' shares of the picks of each update; None where the run has no shares.

    Candidates beyond the colours are drawn together, those with the largest share apart.
    """
    rows = [row for row in history if any(key.startswith(SHARE) for key in row)]
    if len(rows) < 2:
        return None
    ids = sorted({key for row in rows for key in row if key.startswith(SHARE)})
    share_UK = np.array([[row.get(key, 0.0) for key in ids] for row in rows])
    step_U = np.array([row["step"] for row in rows])
    size = math.ceil(len(rows) / SLICES)  # means of neighbouring updates are easier to read
    starts = range(0, len(rows), size)
    share_SK = np.array([share_UK[start : start + size].mean(0) for start in starts])
    step_S = np.array([step_U[start : start + size].mean() for start in starts])
    order_K = np.argsort(-share_SK.max(axis=0), kind="stable")
    shown = order_K[: BANDS - 1] if len(ids) > BANDS else order_K
    bands = [share_SK[:, k] for k in shown]
    labels = [ids[k].removeprefix(SHARE) for k in shown]
    if len(shown) < len(ids):
        bands.append(share_SK[:, order_K[len(shown) :]].sum(axis=1))
        labels.append(f"{len(ids) - len(shown)} others")
    figure = make_figure(9.5, 4.4)
    axes = figure.subplots()
    style_axes(axes)
    axes.stackplot(step_S, bands, labels=labels, colors=CANDIDATE_COLOURS)
    axes.set_xlim(step_S[0], step_S[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(format_percent())
    axes.set_xlabel("update", color=INK)
    axes.set_ylabel("share of picks while learning", color=INK)
    add_band_legend(figure, axes)
    return save_png(figure)
