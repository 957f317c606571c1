"""Local intrinsic dimensionality: in how many directions the neighbours of a point spread, whatever `d` is.

Where it is high, distances are alike and an approximate search loses more. Estimated from distances alone: by maximum
likelihood, Levina and Bickel ("Maximum likelihood estimation of intrinsic dimension", NIPS 2004, equation 8), Amsaleg
et al. ("Estimating local intrinsic dimensionality", KDD 2015, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def lid(distances: ArrayLike) -> NDArray[np.float64]:
    """Local intrinsic dimensionality (n,) of points from the distances (n, k) to their k nearest neighbours.

    With r_k the largest of a point's distances: k - 1 over the sum of log(r_k / r_i). (Amsaleg et al. divide k by that
    sum.) k is usually 100: fewer give noise, a standard error of about LID / sqrt(k), and many more are not local.

    Distances of 0, to the point itself or a duplicate, are left out, as are infinite ones (places without a neighbour):
    then k is the number of those that remain. NaN where fewer than 2 remain, infinite where those are all equal.
    Any metric will do, not squared ones: squares halve the dimensionality. Of close vectors, take distances computed
    in float64 (`eval.ann.true_distances`): rounding errors in place of 0 pass for neighbours next to the point.
    Raises ValueError for another shape, negative distances, NaN.
    """
    array = np.asarray(distances, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"distances must be (n, k), got shape {array.shape}")
    if not (array >= 0).all():
        raise ValueError("distances must be 0 or more, got negative ones or NaN")
    used = (array > 0) & np.isfinite(array)
    logs = np.log(array, out=np.full(array.shape, -np.inf), where=used)
    largest = logs.max(axis=1, keepdims=True, initial=-np.inf)
    total = np.subtract(largest, logs, out=np.zeros(array.shape), where=used).sum(axis=1)
    count = used.sum(axis=1)
    found = np.where(count >= 2, np.inf, np.nan)
    return np.divide(count - 1, total, out=found, where=total > 0)


@dataclass(frozen=True)
class Dimensionality:
    """What `lid_summary` found, over the points with a finite LID; NaN if there are none.

    `points`: all; `undefined`: those left out. `harmonic_mean`: the estimate of one dimensionality for all points by
    maximum likelihood (MacKay and Ghahramani, 2005), which a few very high values move less than they do the mean.
    """

    points: int
    undefined: int
    mean: float
    harmonic_mean: float
    p10: float
    median: float
    p90: float


def lid_summary(lids: ArrayLike) -> Dimensionality:
    """Summarise the LIDs (n,) of the points of a dataset. Raises ValueError for another shape or negative values."""
    values = np.asarray(lids, dtype=np.float64)
    if values.ndim != 1 or (values < 0).any():
        raise ValueError(f"lids must be (n,) and not negative, got shape {values.shape}")
    finite = values[np.isfinite(values)]
    undefined = len(values) - len(finite)
    if not len(finite):
        return Dimensionality(len(values), undefined, *[float("nan")] * 5)
    p10, median, p90 = (float(p) for p in np.percentile(finite, (10, 50, 90)))
    # a LID of 0 does not come out of `lid`, and would make the harmonic mean 0
    harmonic = 0.0 if (finite == 0).any() else len(finite) / float(np.sum(1 / finite))
    return Dimensionality(len(values), undefined, float(finite.mean()), harmonic, p10, median, p90)
