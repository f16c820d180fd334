"""Random numbers from coordinates: (run seed, purpose, update, lane) -> the same number, always.

Every draw of a training run is a pure function of where it happens, so there is no generator state
to carry: a resumed run, a run on two processes and a run whose lanes come in another order draw the
same numbers. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014),
applied to one coordinate after the other; it is vectorised, so thousands of lanes cost one call.

What it leaves out: seeding of libraries. Where a library draws by itself (k-means, SVD) it is
handed `derive_seed(...)`; where torch draws many numbers it gets `make_torch_generator(...)`.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

UIntArray = npt.NDArray[np.uint64]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


def mix(*coordinates: int | str | npt.NDArray[Any]) -> UIntArray:
    """Hash coordinates (whole numbers, names, or arrays that broadcast) to 64 bits each."""
    state: UIntArray = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        for coordinate in coordinates:
            state = finalise((state ^ convert_coordinate(coordinate)) + GOLDEN_GAMMA)
    return state


def convert_coordinate(coordinate: int | str | npt.NDArray[Any]) -> UIntArray:
    """Turn one coordinate into 64-bit words: names by checksum, numbers modulo 2**64."""
    if isinstance(coordinate, str):
        return np.asarray(zlib.crc32(coordinate.encode("utf-8")), dtype=np.uint64)
    if isinstance(coordinate, np.ndarray):
        return coordinate.astype(np.uint64)
    return np.asarray(int(coordinate) % 2**64, dtype=np.uint64)


def finalise(word: UIntArray) -> UIntArray:
    """Spread each input bit over all 64 output bits (SplitMix64's finaliser)."""
    word = (word ^ (word >> np.uint64(30))) * MULTIPLIER_1
    word = (word ^ (word >> np.uint64(27))) * MULTIPLIER_2
    return word ^ (word >> np.uint64(31))


def draw_uniform(*coordinates: int | str | npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) with 53 random bits, in the broadcast shape of the coordinates."""
    return (mix(*coordinates) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_permutation(size: int, *coordinates: int | str) -> npt.NDArray[np.int64]:
    """Return a permutation of range(size)."""
    return np.argsort(mix(*coordinates, np.arange(size)), kind="stable")


def derive_seed(*coordinates: int | str) -> int:
    """Return a 31-bit seed for a library that seeds itself."""
    return int(mix(*coordinates)) >> 33


def make_torch_generator(*coordinates: int | str) -> torch.Generator:
    """Return a torch generator on the CPU that starts from these coordinates."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*coordinates))
