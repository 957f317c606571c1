"""Which dense index: candidates are built over a sample, tuned to the recall, timed, and extrapolated to all vectors.

    sample --> every candidate within the bytes --> `tune` to the recall --> microseconds per query on the sample
           --> at n: scans along the line through two sizes, graphs with log n, inverted lists with the root of n
           --> the fastest, as a constructor, with all rows beside it

What is measured is the sample's. Bytes per vector carry over to n well and times fairly; the recall of a graph or of
lists falls a little as n grows, so tune the index again once it is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from indexes.base import Index
from indexes.codecs import SQ, RaBitQ
from indexes.dense.base import DenseIndex
from indexes.dense.flat import FlatIndex
from indexes.dense.graph import GraphIndex
from indexes.dense.hnsw import HNSWIndex
from indexes.dense.ivf import IVFIndex
from indexes.dense.ivfpq import IVFPQIndex
from indexes.dense.scan import ScanIndex
from indexes.errors import InvalidParameter
from indexes.tuning import FEWEST, tune

SAMPLE = 10_000  # vectors, at most, that candidates are built over
LEAST = 2000  # ... and at least: times of fewer say nothing about many
REPEATS = 5


@dataclass(frozen=True)
class Candidate:
    """One index as measured on the sample. `microseconds`: per query among n vectors, extrapolated."""

    name: str
    recall: float
    bytes_per_vector: float
    sample_microseconds: float
    microseconds: float
    build_seconds: float
    knobs: dict[str, Any]
    verdict: str


@dataclass(frozen=True)
class Recommendation:
    """`make()` gives the recommended index, empty, with its tuned search parameters.

    `candidates`: all that were measured, the fastest first.
    """

    make: Callable[[], DenseIndex]
    chosen: Candidate
    candidates: list[Candidate]
    n: int

    def explain(self) -> str:
        """A line for each candidate: what it reaches, what it costs, and why it was taken or not."""
        lines = [f"{self.chosen.name} for {self.n:,} vectors:"]
        for one in self.candidates:
            cost = f"{one.bytes_per_vector:,.0f} bytes a vector"
            if math.isfinite(one.microseconds):  # otherwise it was too large to be measured
                cost += f", recall {one.recall:.4f}, {one.microseconds:,.0f} us a query"
                cost += f" ({one.sample_microseconds:,.0f} on the sample)"
            lines.append(f"  {one.name}: {cost}: {one.verdict}")
        return "\n".join(lines)


def recommend(
    vectors: Any, queries: Any, *, n: int | None = None, k: int = 10, recall: float = 0.95,
    bytes_per_vector: float | None = None, updates: bool = False, metric: str = "cosine", seed: int = 0,
) -> Recommendation:  # fmt: skip
    """The fastest dense index for `n` vectors that keeps `recall` at `k` in at most so many bytes per vector.

    `vectors` float32 (m, d): a sample of those to be indexed, 2,000 or more; at most 10,000 of them, drawn at random,
    are used. `queries` (nq, d), 20 or more, a few hundred better. `n`: how many vectors there will be; default m.
    `bytes_per_vector`: None is no limit. `updates`: vectors will be added and removed all the time, which leaves out
    indexes that learn from a sample. Times are those of batches, one thread. Takes a minute or two for 384 dimensions.
    Raises `InvalidParameter` when no candidate reaches both, with what each of them reaches.
    """
    rows = np.asarray(vectors)
    if rows.ndim != 2 or len(rows) < LEAST:
        raise InvalidParameter(f"vectors are {rows.shape}; give a sample of at least {LEAST}, (m, d)")
    if len(np.atleast_2d(queries)) < FEWEST:
        raise InvalidParameter(f"queries are {len(np.atleast_2d(queries))}; give at least {FEWEST}")
    n = len(rows) if n is None else n
    if n < 1:
        raise InvalidParameter(f"n is {n}; it must be at least 1")
    if len(rows) > SAMPLE:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), SAMPLE, replace=False))]
    exact = FlatIndex(metric=metric).add(rows)
    made = _makers(rows.shape[1], metric)
    measured: list[Candidate] = []
    for name, make in made.items():
        if not (updates and make().needs_fit):
            measured.append(_measure(name, make, rows, queries, exact, n, k, recall, bytes_per_vector))
    good = sorted((one for one in measured if not one.verdict), key=lambda one: one.microseconds)
    if not good:
        told = "; ".join(f"{one.name}: {one.verdict}" for one in measured)
        raise InvalidParameter(f"recall {recall} in {bytes_per_vector} bytes is out of reach: {told}")
    chosen = good[0]

    def constructor() -> DenseIndex:
        index = made[chosen.name]()
        for knob, value in chosen.knobs.items():
            setattr(index, knob, value)
        return index

    def judged(one: Candidate) -> Candidate:
        slower = f"{one.microseconds / chosen.microseconds:.1f} times as slow"
        return replace(one, verdict="recommended" if one is chosen else one.verdict or slower)

    ranked = [judged(one) for one in sorted(measured, key=lambda one: one.microseconds)]
    return Recommendation(constructor, judged(chosen), ranked, n)


def _makers(d: int, metric: str) -> dict[str, Callable[[], DenseIndex]]:
    """Constructors of empty candidates, by what a user would write."""
    made: dict[str, Callable[[], DenseIndex]] = {
        "FlatIndex()": lambda: FlatIndex(metric=metric),
        "FlatIndex(dtype='float16')": lambda: FlatIndex(metric=metric, dtype="float16"),
        "ScanIndex(codec=SQ(bits=4))": lambda: ScanIndex(metric=metric),
        "ScanIndex(codec=SQ(bits=4), rerank='float16')": lambda: ScanIndex(metric=metric, rerank="float16"),
        "ScanIndex(codec=SQ(bits=8), rerank=None)": lambda: ScanIndex(codec=SQ(bits=8), metric=metric, rerank=None),
        "ScanIndex(codec=SQ(bits=4), rerank=None)": lambda: ScanIndex(metric=metric, rerank=None),
        "ScanIndex(codec=RaBitQ(), rerank='float16')": lambda: ScanIndex(
            codec=RaBitQ(), metric=metric, rerank="float16"
        ),
        "IVFIndex()": lambda: IVFIndex(metric=metric),
        "GraphIndex()": lambda: GraphIndex(metric=metric),
        "HNSWIndex()": lambda: HNSWIndex(metric=metric),
    }
    if d % 4 == 0:
        made[f"IVFPQIndex(bytes={d // 4})"] = lambda: IVFPQIndex(metric=metric, bytes=d // 4)
    return made


def _measure(
    name: str, make: Callable[[], DenseIndex], rows: np.ndarray, queries: Any, exact: Index, n: int, k: int,
    recall: float, limit: float | None,
) -> Candidate:  # fmt: skip
    """Build over the sample, tune and time; why it is no answer, if so, is its `verdict`."""
    started = perf_counter()
    index = make()
    if index.needs_fit:
        index.fit(rows)
    index.add(rows)
    seconds = perf_counter() - started
    size = index.describe()["bytes"] / len(rows)
    if limit is not None and size > limit:
        return Candidate(name, math.nan, size, math.nan, math.inf, seconds, {}, f"more than {limit:g} bytes")
    tuned = tune(index, queries, k, target_recall=recall, exact=exact)
    reached, knobs = min(tuned.chosen.recall, tuned.held_out_recall), tuned.chosen.knobs
    now = _time(index, queries, k, knobs)
    if isinstance(index, HNSWIndex | GraphIndex):
        later = now * max(math.log(n) / math.log(len(rows)), 0.0)
    elif isinstance(index, IVFIndex | IVFPQIndex):
        later = now * math.sqrt(n / len(rows))
    else:
        later = _along_the_line(make(), rows[: len(rows) // 4], queries, k, knobs, now, len(rows), n)
    verdict = "" if tuned.reached else f"recall {reached:.4f} is below {recall:g}"
    return Candidate(name, reached, size, now, later, seconds, knobs, verdict)


def _along_the_line(
    part: DenseIndex, rows: np.ndarray, queries: Any, k: int, knobs: dict[str, Any], now: float, m: int, n: int
) -> float:
    """What a scan that takes `now` for m vectors takes for n: the time of fewer, `rows`, shows what does not grow.

    That which does not grow is taken to be at most half of `now`, which is what noise may feign.
    """
    if part.needs_fit:
        part.fit(rows)
    part.add(rows)
    slope = max((now - _time(part, queries, k, knobs)) / (m - len(rows)), now / (2 * m))
    return max(now + slope * (n - m), slope * n)


def _time(index: Index, queries: Any, k: int, knobs: dict[str, Any]) -> float:
    """Microseconds per query, one thread: the median of a few passes."""
    times = []
    for _ in range(REPEATS):
        started = perf_counter()
        index.search(queries, k, threads=1, **knobs)
        times.append(perf_counter() - started)
    return median(times) / len(np.atleast_2d(queries)) * 1e6
