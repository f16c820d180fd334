"""The picture of a memory pipeline: its modules as boxes, left to right, with the tiers they get.

What it is: history and retriever, the filter, the extractors one above the other (they run side by
side), the summary and the answerer; inside each module one bar with the shares of its tiers.

What it leaves out: shares by kind of question (`memory_figures.draw_tier_shares`). Needs the extra
`train`.

How to use: `Path("pipeline.png").write_bytes(draw_pipeline(result, 0))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlroute.evaluation.comparison import format_share
from rlroute.evaluation.figures import GREY, INK, make_figure, save_png
from rlroute.evaluation.memory_figures import (
    choose_tier_colours,
    list_tier_names,
    make_tier_patches,
)
from rlroute.evaluation.memory_results import MemoryEvaluation, MemoryModule, MemoryPoint
from rlroute.extras import require

WIDTH, HEIGHT = 2.3, 1.05  # of a module's box, inches
NARROW = 1.25  # width of a box without tiers
GAP_X, GAP_Y = 0.55, 0.3
BELOW = 0.55  # room for the legend
SHOWN_SHARE = 0.16  # smaller parts of a bar have no room for their text


@dataclass(frozen=True)
class Box:
    """A rectangle in inches: its left end, the height of its middle, and its width."""

    left: float
    middle: float
    width: float

    @property
    def right(self) -> float:
        """Its right end."""
        return self.left + self.width


def draw_pipeline(result: MemoryEvaluation, place: int) -> bytes:
    """Draw the pipeline with the subject's shares of tiers at the cost weight of that place."""
    modules, point = result.modules, result.subject.points[place]
    extractors = [m for m, module in enumerate(modules) if module.role == "extract"]
    tall = max(1, len(extractors)) * (HEIGHT + GAP_Y) - GAP_Y
    middle = BELOW + tall / 2
    names = list_tier_names(modules)
    colours = choose_tier_colours(len(names))
    boxes, ends = lay_out(modules, extractors, middle)
    width, height = ends[-1].right + 0.25, BELOW + tall + 0.7
    figure = make_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    for box, text in zip(ends, ("history:\nretrieved\nchunks", "answer\nmodel"), strict=True):
        draw_box(axes, box, "#F4F4F4")
        axes.text(
            box.left + box.width / 2, middle, text, ha="center", va="center", fontsize=9, color=INK
        )
    for m, box in enumerate(boxes):
        draw_box(axes, box, "white")
        draw_module(axes, box, modules[m], point.shares[m], colours)
    for start, end in list_arrows(boxes, ends, extractors):
        draw_arrow(axes, start, end)
    axes.text(0.25, height - 0.35, describe_point(result, point), fontsize=10.5, color=INK)
    axes.legend(
        make_tier_patches(len(names)),
        names,
        loc="lower center",
        ncols=len(names),
        frameon=False,
        fontsize=9,
    )
    return save_png(figure)


def describe_point(result: MemoryEvaluation, point: MemoryPoint) -> str:
    """Return the title of the picture."""
    return (
        f"{result.subject.name}, cost weight {point.cost_weight:g}: "
        f"share of {result.questions:,} test questions by tier"
    )


def lay_out(
    modules: Sequence[MemoryModule], extractors: Sequence[int], middle: float
) -> tuple[list[Box], list[Box]]:
    """Return the boxes of the modules, and those of the retriever and the answer model."""
    left = 0.25 + NARROW + GAP_X
    boxes = []
    for m, module in enumerate(modules):
        column = ("filter", "extract", "summary").index(module.role)
        height = middle
        if module.role == "extract":
            above = (len(extractors) - 1) / 2 - extractors.index(m)
            height += above * (HEIGHT + GAP_Y)
        boxes.append(Box(left + column * (WIDTH + GAP_X), height, WIDTH))
    last = boxes[-1].right + GAP_X
    return boxes, [Box(0.25, middle, NARROW), Box(last, middle, NARROW)]


def list_arrows(
    boxes: Sequence[Box], ends: Sequence[Box], extractors: Sequence[int]
) -> list[tuple[Box, Box]]:
    """Return who feeds whom."""
    first, last = boxes[0], boxes[-1]
    found = [(ends[0], first), (last, ends[1])]
    for m in extractors:
        found += [(first, boxes[m]), (boxes[m], last)]
    return found


def draw_box(axes: Any, box: Box, colour: str) -> None:
    """Draw the frame of a box."""
    patches = require("matplotlib.patches", "train")
    axes.add_patch(
        patches.FancyBboxPatch(
            (box.left, box.middle - HEIGHT / 2),
            box.width,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=colour,
            edgecolor=GREY,
            linewidth=1.1,
        )
    )


def draw_module(
    axes: Any,
    box: Box,
    module: MemoryModule,
    share_K: Sequence[float],
    colours: Sequence[Any],
) -> None:
    """Draw a module's name and the bar of its tiers."""
    axes.text(
        box.left + 0.12, box.middle + 0.27, module.name, fontsize=10.5, color=INK, va="center"
    )
    whole, left = box.width - 0.24, box.left + 0.12
    for k, share in enumerate(share_K):
        axes.barh(
            box.middle - 0.16,
            whole * share,
            height=0.4,
            left=left,
            color=colours[k],
            edgecolor="white",
            linewidth=0.6,
        )
        if share >= SHOWN_SHARE:
            text = format_share(share)
            if share * whole > 0.085 * (len(module.tiers[k]) + 4):
                text = f"{module.tiers[k]} {text}"
            dark = sum(colours[k][:3]) < 1.5
            axes.text(
                left + whole * share / 2,
                box.middle - 0.16,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else INK,
            )
        left += whole * share


def draw_arrow(axes: Any, start: Box, end: Box) -> None:
    """Draw an arrow from the right side of a box to the left side of another."""
    axes.annotate(
        "",
        (end.left - 0.03, end.middle),
        (start.right + 0.03, start.middle),
        arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.2},
    )
