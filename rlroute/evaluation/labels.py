"""Labels of points that do not overlap: each takes the first free place around its point.

What it is: a greedy placement in pixels, in the order given (most important first). A label that
has to move far gets a thin line to its point; one without a free place within reach is left out
rather than printed over another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FONT_SIZE = 8.5
POINT_RADIUS = 5.0  # pixels around a labelled point that no label may cover
LINE_RADIUS = 1.5  # pixels around a point of a line
# Directions to try, nearest to reading habit first: right, left, above, below, then the corners.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
DISTANCES = (7.0, 15.0, 26.0, 40.0, 58.0)
LEADER_FROM = 20.0

Box = tuple[float, float, float, float]


def place_labels(
    axes: Any,
    labelled: Sequence[tuple[float, float, str]],
    obstacles: Sequence[Sequence[float]] = (),
) -> None:
    """Label points (x, y, text) of an axes whose figure has its final layout and limits.

    `obstacles` are further points (x, y) that no label may cover, such as those of lines. All are
    in data coordinates.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    inside: Box = (frame.x0, frame.y0, frame.x1, frame.y1)
    points = axes.transData.transform([one[:2] for one in labelled]) if labelled else []
    taken: list[Box] = [pad_point(px, py, POINT_RADIUS) for px, py in points]
    if len(obstacles):
        pixels = axes.transData.transform(obstacles)
        taken += [pad_point(x, y, LINE_RADIUS) for x, y in pixels]
    for (px, py), (_, _, text) in zip(points, labelled, strict=True):
        label = axes.annotate(
            text,
            (px, py),
            xycoords="figure pixels",
            xytext=(0, 0),
            textcoords="offset pixels",
            fontsize=FONT_SIZE,
            color="#333333",
            annotation_clip=False,
        )
        extent = label.get_window_extent(renderer)
        found = find_place(px, py, extent.width, extent.height, taken, inside)
        label.remove()
        if found is not None:
            box, distance = found
            taken.append(box)
            draw_label(axes, text, (px, py), box, with_leader=distance >= LEADER_FROM)


def draw_label(
    axes: Any, text: str, point: tuple[float, float], box: Box, *, with_leader: bool
) -> None:
    """Write a label with its lower left corner at that of its box, both given in pixels."""
    to_data = axes.transData.inverted()
    axes.annotate(
        text,
        to_data.transform(point),
        xytext=to_data.transform(box[:2]),
        textcoords="data",
        fontsize=FONT_SIZE,
        color="#333333",
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.7, "shrinkB": 3}
        if with_leader
        else None,
    )


def find_place(
    px: float, py: float, width: float, height: float, taken: Sequence[Box], inside: Box
) -> tuple[Box, float] | None:
    """Return the first free box near a point with its distance, or None."""
    for distance in DISTANCES:
        for dx, dy in DIRECTIONS:
            centre_x = px + dx * (distance + width / 2)
            centre_y = py + dy * (distance + height / 2)
            box = (
                centre_x - width / 2,
                centre_y - height / 2,
                centre_x + width / 2,
                centre_y + height / 2,
            )
            if is_within(box, inside) and not any(overlaps(box, other) for other in taken):
                return box, distance
    return None


def pad_point(px: float, py: float, radius: float) -> Box:
    """Return the box around a point, in pixels."""
    return (px - radius, py - radius, px + radius, py + radius)


def is_within(box: Box, frame: Box) -> bool:
    """Say whether a box lies inside a frame."""
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def overlaps(one: Box, other: Box) -> bool:
    """Say whether two boxes share area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
