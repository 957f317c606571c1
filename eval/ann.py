"""How far approximate nearest neighbours are from the exact ones, how fast they came, and what the difference costs.

    recall = knn_recall(hits.ids, exact.ids, exact.scores, k=10)      # one value per query
    print(comparison_table(approximation_effect(exact_run, {"hnsw": hnsw_run}, dataset.qrels)).to_text())

Arrays in, one float64 value per query out, so that two indexes can be told apart by the paired tests of
`eval.significance`; the mean over queries is `numpy.nanmean`, for a query without any exact answer has NaN.
Scores are higher for better answers, as indexes give them; distances are lower, 0 or more, as ann-benchmarks gives
them. Places without an answer hold the id -1, the score -inf, the distance inf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.measures import DEFAULT_MEASURES, evaluate
from eval.significance import Comparison, Correction, Test, compare

Floats = NDArray[np.float64]

EXACT = "exact"
"""The name of the exact system in what `approximation_effect` returns."""


def knn_recall(
    ids: ArrayLike,
    exact_ids: ArrayLike,
    exact_scores: ArrayLike,
    k: int = 10,
    *,
    scores: ArrayLike | None = None,
    tolerance: float = 1e-6,
) -> Floats:
    """Recall at k of each query (nq,): the share of the k nearest that were found. Not R@k, which needs judgements.

    An answer counts if its true score reaches the k-th exact score less `tolerance`, a share of that score: of several
    documents that tie there, any is right. The default is some roundings of float32.

    `ids`: what was found, integers (nq, k or more), best first; the first k count, an id twice counts once.
    `exact_ids`, `exact_scores`: the exact answers (nq, k or more), best first. Ties at place k are seen as far as these
    columns go, so ask the exact search for a few more than k; or give `scores`, the true scores of `ids` (of the same
    shape), which show them all. Scores that an index only estimates, as by product quantisation, are not true ones.

    Where fewer than k exact answers exist the share is of those; NaN where there are none. Raises ValueError for shapes
    that do not fit, ids that are not integers, NaN, scores that do not descend, k below 1, a negative tolerance.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
    found = _answers("ids", ids, k, integers=True)[:, :k]
    right = _answers("exact_ids", exact_ids, k, integers=True)
    truth = _answers("exact_scores", exact_scores, k)
    _same_shape("exact_scores", truth.shape, "exact_ids", right.shape)
    _same_shape("ids", found.shape[:1], "exact_ids", right.shape[:1])
    exist = (right[:, :k] >= 0).sum(axis=1)
    slack = tolerance * np.abs(truth, where=np.isfinite(truth), out=np.zeros_like(truth))
    if ((truth[:, 1:] > truth[:, :-1] + slack[:, :-1]) & (right[:, 1:] >= 0)).any():
        raise ValueError("exact_scores must descend in each row, best first; for distances give their negatives")
    last = (np.arange(len(truth)), np.maximum(exist - 1, 0))
    threshold = truth[last] - slack[last]
    reaches = (truth >= threshold[:, None]) & (right >= 0)
    known = np.zeros(found.shape, dtype=bool)
    if scores is not None:
        own = _answers("scores", scores, k)
        _same_shape("scores", own.shape, "ids", np.shape(ids))
        known = own[:, :k] >= threshold[:, None]

    hits = np.zeros(len(found))
    for i, row in enumerate(found):
        unique, first = np.unique(row, return_index=True)
        good = np.isin(unique, right[i, reaches[i]]) | known[i, first]
        hits[i] = np.count_nonzero(good & (unique >= 0))
    # more than exist can reach the threshold only where `exist` is below k, and a filter is the reason
    return _share(np.minimum(hits, exist), exist)


def epsilon_recall(
    distances: ArrayLike, exact_distances: ArrayLike, k: int = 10, *, epsilon: float = 0.01
) -> Floats:
    """Share of k answers of each query (nq,) within (1 + epsilon) times the k-th exact distance.

    The epsilon-recall of ann-benchmarks (Aumüller, Bernhardsson, Faithfull: "ANN-Benchmarks", 2018, section 3), which
    reports it for 0.01 and 0.1. Both arrays: (nq, k or more), see `true_distances`; the exact ones in any order, of the
    found the first k. Without ids an answer that is given twice counts twice. Share of fewer, NaN: as `knn_recall`.
    Raises ValueError for a negative epsilon or distance, NaN, shapes that do not fit.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")
    found, exact = _distances(distances, exact_distances, k)
    exist = np.isfinite(exact).sum(axis=1)
    kth = exact[np.arange(len(exact)), np.maximum(exist - 1, 0)]
    hits = (found <= (1 + epsilon) * kth[:, None]).sum(axis=1)
    return _share(np.minimum(hits, exist), exist)


def distance_ratio(distances: ArrayLike, exact_distances: ArrayLike, k: int = 10) -> Floats:
    """Mean over places 1 to k of the distance found there over the exact one, (nq,): 1 is exact, 1.1 is 10% farther.

    The overall ratio of Tao et al. ("Quality and efficiency in high dimensional nearest neighbor search", SIGMOD 2009).
    0 over 0 is 1, anything else over 0 is infinite: where queries are documents, `relative_distance_error` says more.
    Places without an answer are left out (recall shows them); NaN where nothing was found. Arrays: as `epsilon_recall`.
    """
    found, exact = _distances(distances, exact_distances, k)
    both = np.isfinite(found) & np.isfinite(exact)
    ratios = np.full(found.shape, np.inf)
    np.divide(found, exact, out=ratios, where=both & (exact > 0))
    ratios[both & (exact == 0) & (found == 0)] = 1.0
    return _share(ratios.sum(axis=1, where=both), both.sum(axis=1))


def relative_distance_error(distances: ArrayLike, exact_distances: ArrayLike, k: int = 10) -> Floats:
    """Sum of the distances found over the sum of the exact ones, less 1, (nq,): 0 is exact, 0.1 is 10% farther.

    ann-benchmarks prints the same ratio of sums as "rel", without subtracting 1. As `distance_ratio` in all else, but
    infinite only if all exact distances are 0, and then 0 where the found ones are too.
    """
    found, exact = _distances(distances, exact_distances, k)
    both = np.isfinite(found) & np.isfinite(exact)
    total, least = found.sum(axis=1, where=both), exact.sum(axis=1, where=both)
    errors = np.where(total > 0, np.inf, 0.0)
    np.divide(total - least, least, out=errors, where=least > 0)
    errors[~both.any(axis=1)] = np.nan
    return errors


def true_distances(queries: ArrayLike, documents: ArrayLike, ids: ArrayLike, *, metric: str = "l2") -> Floats:
    """Distances (nq, k) of the queries (nq, d) to the documents (n, d) in the rows `ids` (nq, k); inf where -1.

    For what an index found by estimates, and for `eval.dimensionality`: computed from differences in float64, so that
    close vectors keep a distance that is neither 0 nor noise. `metric`: "l2" (Euclidean, not squared) or "cosine"
    (1 less the cosine; 1 for a zero vector). Raises ValueError for another metric, ids that are no rows, other shapes.
    """
    if metric not in ("l2", "cosine"):
        raise ValueError(f"metric must be 'l2' or 'cosine', got {metric!r}")
    points, rows = np.asarray(documents), _answers("ids", ids, 1, integers=True)
    centres = np.asarray(queries, dtype=np.float64)
    if points.ndim != 2 or centres.shape != (len(rows), points.shape[1]):
        shapes = f"{centres.shape}, {points.shape}, {rows.shape}"
        raise ValueError(f"queries, documents and ids must be (nq, d), (n, d) and (nq, k), got {shapes}")
    if rows.size and not (rows.min() >= -1 and rows.max() < len(points)):
        raise ValueError(f"ids must be rows from 0 to {len(points) - 1}, or -1, got {rows.min()} to {rows.max()}")
    found = np.full(rows.shape, np.inf)
    for i, (centre, row) in enumerate(zip(centres, rows, strict=True)):
        answered = row >= 0
        near = points[row[answered]].astype(np.float64)
        if metric == "cosine":  # of unit vectors, half the squared distance: exact where 1 - cos cancels
            lengths = np.linalg.norm(near, axis=1) * np.linalg.norm(centre)
            near, centre = _unit(near), _unit(centre[None])[0]
            found[i, answered] = np.where(lengths > 0, np.square(near - centre).sum(axis=1) / 2, 1.0)
        else:
            found[i, answered] = np.sqrt(np.square(near - centre).sum(axis=1))
    return found


@dataclass(frozen=True)
class Latency:
    """What `latency` found. `qps`: queries per second. All else is milliseconds per query.

    A percentile is a time that was measured: the least that p% of the queries do not exceed.
    """

    queries: int
    qps: float
    mean: float
    p50: float
    p95: float
    p99: float
    longest: float


def latency(seconds: ArrayLike, *, elapsed: float | None = None) -> Latency:
    """Summarise measured times (nq,), one per query, in seconds.

    `elapsed`: seconds from the first query's start to the last one's end, for queries that ran at the same time; None:
    one ran after the other, and elapsed is their sum. Raises ValueError for no times, and times that are not finite
    and at least 0, or an elapsed time that is not above 0.
    """
    times = np.asarray(seconds, dtype=np.float64)
    if times.ndim != 1 or not len(times) or not (np.isfinite(times) & (times >= 0)).all():
        raise ValueError(f"seconds must be times (nq,), one or more, finite and not negative, got shape {times.shape}")
    total = float(times.sum()) if elapsed is None else float(elapsed)
    if not 0 < total < np.inf:
        raise ValueError(f"the queries must have taken some time together, got {total} seconds")
    p50, p95, p99 = (1000 * float(p) for p in np.percentile(times, (50, 95, 99), method="inverted_cdf"))
    mean, longest = 1000 * float(times.mean()), 1000 * float(times.max())
    return Latency(len(times), len(times) / total, mean, p50, p95, p99, longest)


def approximation_effect(
    exact: Mapping[str, Mapping[str, float]],
    approximate: Mapping[str, Mapping[str, Mapping[str, float]]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    exclude_self: bool = False,
    test: Test = "t-test",
    correction: Correction = "holm",
) -> list[Comparison]:
    """What approximation costs in effectiveness: each run of `approximate` against the exact run, by each measure.

    Recall says how many exact answers were lost, this whether they mattered: a lost document that is not relevant
    changes no measure. `difference` is approximate less exact. `exact`: the run of an exact search by the same vectors;
    `approximate`: name -> run. The rest is as in `evaluate` and `compare`, which also say what is raised; the
    correction is over the runs, for each measure by itself. ValueError for a run named "exact". To print what is
    returned: `eval.comparison_table`.
    """
    if EXACT in approximate:
        raise ValueError(f"a run of approximate is named {EXACT!r}, the name of the one it is compared with")
    runs = {EXACT: exact, **approximate}
    found = {name: evaluate(run, qrels, measures, exclude_self=exclude_self) for name, run in runs.items()}
    return [
        comparison
        for measure in measures
        for comparison in compare(found, measure, baseline=EXACT, test=test, correction=correction)
    ]


# -- checks ------------------------------------------------------------------------------------------------------------


def _answers(name: str, values: ArrayLike, k: int, *, integers: bool = False) -> NDArray[Any]:
    """The array, if it has a row per query and k columns or more, and no NaN; scores as float64."""
    array = np.asarray(values)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if array.ndim != 2 or array.shape[1] < k:
        raise ValueError(f"{name} must be (nq, {k} or more), padded where fewer exist, got shape {array.shape}")
    if integers:
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} must be integers, got {array.dtype}")
        return array.astype(np.int64)
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} must not be NaN, got one in row {int(np.argmax(np.isnan(array).any(axis=1)))}")
    return array


def _same_shape(name: str, shape: tuple[int, ...], other: str, wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ValueError(f"{name} and {other} must pair up, got {shape} and {wanted}")


def _distances(distances: ArrayLike, exact_distances: ArrayLike, k: int) -> tuple[Floats, Floats]:
    """Both (nq, k) ascending: the first k of those found, the k least of the exact ones."""
    found, exact = _answers("distances", distances, k)[:, :k], _answers("exact_distances", exact_distances, k)
    _same_shape("distances", found.shape[:1], "exact_distances", exact.shape[:1])
    for name, array in (("distances", found), ("exact_distances", exact)):
        if array.size and array.min() < 0:
            raise ValueError(f"{name} must be 0 or more, got {array.min()}; scores are not distances")
    return np.sort(found, axis=1), np.sort(exact, axis=1)[:, :k]


def _share(part: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1.0)
