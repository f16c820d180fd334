"""Groups of unequal size as rectangles: rows of a batch <-> [N, G], padded with NaN.

Every formula of `rlroute.algorithms.advantages` leaves NaN out of its statistics, so a padded place
is nobody: it moves no mean, no deviation and no count. Groups of equal size are not padded at all.

What it leaves out: which episodes form a group (`rlroute.rollout.plan`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def locate_in_groups(group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of each row's group, from 0, and its place in the group, each [B].

    The rows of a group stand together.

    Raises:
        ValueError: they do not.
    """
    _, number_B, size_N = torch.unique_consecutive(group_B, return_inverse=True, return_counts=True)
    if len(size_N) != len(torch.unique(group_B)):
        raise ValueError("the rows of a group must stand together")
    first_N = size_N.cumsum(0) - size_N
    place_B = torch.arange(len(group_B), device=group_B.device) - first_N[number_B]
    return number_B, place_B


def spread_groups(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Return the values as [N, G], one row for each group, NaN behind the shorter ones."""
    number_B, place_B = locate_in_groups(group_B)
    shape = (int(number_B[-1]) + 1, int(place_B.max()) + 1)
    value_NG = torch.full(shape, torch.nan, dtype=value_B.dtype, device=value_B.device)
    value_NG[number_B, place_B] = value_B
    return value_NG


def gather_groups(value_NG: Tensor, group_B: Tensor) -> Tensor:
    """Return what stands at each row's place [B]: the inverse of `spread_groups`."""
    number_B, place_B = locate_in_groups(group_B)
    return value_NG[number_B, place_B]
