"""The cost-quality frontier: non-decreasing upper convex hull, its height, and the area below it.

What it is: a router with a knob gives points (cost, quality); mixing two of them at random gives
every point on the line between, so what is attainable is the upper convex hull of the points. The
definitions are RouterBench's.

What it leaves out: where the points come from (`rlroute.evaluation.evaluate`) and their
uncertainty (`rlroute.evaluation.intervals`).

How to use: `hull = compute_hull(cost_N, quality_N)`, then `compute_quality_at(hull, budget)`.
Everything is float64; a cost may have any unit as long as it is one unit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlroute.types import RLRouteError

Float64Array = npt.NDArray[np.float64]
# Two means of the same numbers, summed in another order, differ by less than this.
ROUNDING = 1e-9
Hull = tuple[Float64Array, Float64Array]


def compute_hull(cost_N: npt.ArrayLike, quality_N: npt.ArrayLike) -> Hull:
    """Return the non-decreasing upper convex hull of N points as (cost_H, quality_H).

    Costs and qualities of the hull rise strictly. Right of its last point a frontier is level, left
    of its first there is nothing (RouterBench). One point gives a hull of one point.

    Raises:
        RLRouteError: no points, lengths that differ, or a value that is not finite.
    """
    cost_N, quality_N = check_points(cost_N, quality_N)
    # Cheapest first, at equal cost the best first; a point no better than a cheaper one is dropped.
    order_N = np.lexsort((-quality_N, cost_N))
    hull: list[tuple[float, float]] = []
    for point in zip(cost_N[order_N].tolist(), quality_N[order_N].tolist(), strict=True):
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and not lies_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    cost_H, quality_H = np.array(hull, dtype=np.float64).T
    return cost_H, quality_H


def lies_above(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    """Say whether `middle` lies strictly above the line from `left` to `right`."""
    rise = (middle[1] - left[1]) * (right[0] - left[0])
    return rise > (right[1] - left[1]) * (middle[0] - left[0])


def compute_quality_at(hull: Hull, budget: float) -> float | None:
    """Return the height of the hull at a mean cost of `budget`, or None left of its first point."""
    cost_H, quality_H = hull
    if budget < cost_H[0]:
        return None
    return float(np.interp(budget, cost_H, quality_H))


def compute_cost_at(hull: Hull, quality: float) -> float | None:
    """Return the least cost at which the hull reaches `quality`, or None if it never does.

    Reaching means >=, but for the rounding of means (1e-9).
    """
    cost_H, quality_H = hull
    if quality > quality_H[-1] + ROUNDING:
        return None
    return float(np.interp(quality, quality_H, cost_H))


def compute_aiq(
    cost_N: npt.ArrayLike, quality_N: npt.ArrayLike, cost_min: float, cost_max: float
) -> float:
    """Return AIQ on a range of cost common to all routers compared (RouterBench, as published).

    The area below the non-decreasing hull from `cost_min` to `cost_max`, divided by the length of
    that range: the mean quality over it. Left of the first hull point nothing is attainable, so
    that part of the area is 0. Where the range has no length, the height at it.

    Raises:
        RLRouteError: bad points (see `compute_hull`) or `cost_max` below `cost_min`.
    """
    if not cost_min <= cost_max:
        raise RLRouteError(f"AIQ: the range of cost [{cost_min}, {cost_max}] must not be reversed")
    return average_hull(compute_hull(cost_N, quality_N), cost_min, cost_max)


def average_hull(hull: Hull, cost_min: float, cost_max: float) -> float:
    """Return the mean height of a hull from `cost_min` to `cost_max`, 0 left of its first point."""
    if cost_min == cost_max:
        return compute_quality_at(hull, cost_min) or 0.0
    return compute_area(*hull, cost_min, cost_max) / (cost_max - cost_min)


def compute_aiq_released_code(
    cost_N: npt.ArrayLike, quality_N: npt.ArrayLike, cost_max: float
) -> float:
    """Return AIQ as RouterBench's released code has it: for comparison with numbers printed by it.

    The area below the hull starts at the router's own first point and is divided by `cost_max`
    alone, which must be above 0.
    """
    cost_H, quality_H = compute_hull(cost_N, quality_N)
    return compute_area(cost_H, quality_H, float(cost_H[0]), cost_max) / cost_max


def compute_area(
    cost_N: Float64Array, quality_N: Float64Array, cost_min: float, cost_max: float
) -> float:
    """Return the area below a curve (sorted by cost) from `cost_min` to `cost_max`.

    The curve is linear between its points, level right of the last, and 0 left of the first.
    """
    start = max(cost_min, float(cost_N[0]))
    if start >= cost_max:
        return 0.0
    inner_N = cost_N[(cost_N > start) & (cost_N < cost_max)]
    corner_N = np.concatenate(([start], inner_N, [cost_max]))
    return float(np.trapezoid(np.interp(corner_N, cost_N, quality_N), corner_N))


def check_points(cost_N: npt.ArrayLike, quality_N: npt.ArrayLike) -> Hull:
    """Return both as float64 arrays of one axis.

    Raises:
        RLRouteError: no points, lengths that differ, or a value that is not finite.
    """
    cost_N, quality_N = np.asarray(cost_N, np.float64), np.asarray(quality_N, np.float64)
    if cost_N.ndim != 1 or cost_N.shape != quality_N.shape or cost_N.size == 0:
        raise RLRouteError(
            f"frontier: needs at least one cost and as many qualities, "
            f"got shapes {cost_N.shape} and {quality_N.shape}"
        )
    if not (np.isfinite(cost_N).all() and np.isfinite(quality_N).all()):
        raise RLRouteError("frontier: a cost or quality is not finite (NaN or infinite)")
    return cost_N, quality_N
