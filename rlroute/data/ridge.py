"""Ridge regressions on few rows: what the descriptions of known candidates say of a new one.

The penalty is the one that predicts each row best from the others; that error is kept, since it
says how far a prediction may be off.

What it leaves out: what is described, and how calls move it (`rlroute.data.candidate_profiles`).

How to use: `fit_ridge(described_KE, mean_K1).predict(described_E)`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
PENALTIES = (1.0, 10.0, 100.0, np.inf)  # infinite: everybody is expected to be as the average


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge regression on few rows [K, E] -> [K, T], its penalty chosen by leaving one out.

    `error_T` is the mean squared error of each row predicted from the others.
    """

    center_E: Float64Array
    scale_E: Float64Array
    mean_T: Float64Array
    weight_ET: Float64Array
    error_T: Float64Array

    def predict(self, descriptor_E: npt.ArrayLike) -> Float64Array:
        """Return what a description [E] is expected to go with [T]; rows of them give rows."""
        scaled_E = (np.asarray(descriptor_E, np.float64) - self.center_E) / self.scale_E
        return np.asarray(self.mean_T + scaled_E @ self.weight_ET)


def solve_ridge(input_KE: Float64Array, target_KT: Float64Array, penalty: float) -> Ridge:
    """Fit with one penalty on standardised columns; an infinite one keeps the means alone."""
    center_E, spread_E = input_KE.mean(axis=0), input_KE.std(axis=0)
    scale_E = np.where(spread_E > 1e-9, spread_E, np.inf)  # a constant column says nothing
    scaled_KE, mean_T = (input_KE - center_E) / scale_E, target_KT.mean(axis=0)
    weight_ET = np.zeros((input_KE.shape[1], target_KT.shape[1]))
    if np.isfinite(penalty):
        gram_KK = scaled_KE @ scaled_KE.T + penalty * np.eye(len(input_KE))
        weight_ET = scaled_KE.T @ np.linalg.solve(gram_KK, target_KT - mean_T)
    return Ridge(center_E, scale_E, mean_T, weight_ET, np.full(len(mean_T), np.nan))


def fit_ridge(input_KE: Float64Array, target_KT: Float64Array) -> Ridge:
    """Fit with the penalty that predicts each row best from the others, ties to the largest."""
    errors = []
    for penalty in PENALTIES:
        missed_KT = np.empty_like(target_KT)
        for k in range(len(input_KE)):
            others = np.arange(len(input_KE)) != k
            fitted = solve_ridge(input_KE[others], target_KT[others], penalty)
            missed_KT[k] = target_KT[k] - fitted.predict(input_KE[k])
        errors.append((missed_KT**2).mean(axis=0))
    best = min(reversed(range(len(PENALTIES))), key=lambda place: float(errors[place].sum()))
    fitted = solve_ridge(input_KE, target_KT, PENALTIES[best])
    return dataclasses.replace(fitted, error_T=errors[best])
