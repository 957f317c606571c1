"""How counts of terms become scores: five BM25s and TF-IDF, exact to each definition.

For a term with document frequency `df` among `n` documents, occurring `tf` times in a document of length L (L-bar the
mean length), B = 1 - b + b L / L-bar. The five are those of Kamphuis, de Vries, Boytsov and Lin, "Which BM25 do you
mean?" (ECIR 2020), the variants of BM25S (Lu, 2024):

    robertson  ln((n - df + 0.5) / (df + 0.5))      * tf / (k1 B + tf)          negative for terms in most documents
    lucene     ln(1 + (n - df + 0.5) / (df + 0.5))  * tf / (k1 B + tf)
    atire      ln(n / df)                           * (k1 + 1) tf / (k1 B + tf)
    bm25l      ln((n + 1) / (df + 0.5))             * (k1 + 1) (c + delta) / (k1 + c + delta),  c = tf / B
    bm25+      ln((n + 1) / df)                     * ((k1 + 1) tf / (k1 B + tf) + delta)

BM25L and BM25+ give a term a score even where it does not occur; `nonoccurrence` is that score, which the eager
matrix leaves out and adds back at query time (BM25S, section 2.2).

n, df and L-bar are those of the documents in an index, or `Statistics` over several: shards that share them score as
one index over all their documents would, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from indexes.errors import InvalidParameter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK = 1 << 16  # entries weighted at once: their float64 temporaries stay in cache
METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a weighting knows of a whole collection: `n` documents, `df` int64 (V,) of each term, `total_length`.

    For shards, `total = Statistics.of(counts_1) + Statistics.of(counts_2)`, then each shard is indexed with
    `BM25(statistics=total)`. Sums are exact for whole counts, and a df narrower than the other has 0 for the rest.
    Raises `InvalidParameter` for numbers that no collection has.
    """

    n: int
    df: np.ndarray
    total_length: float

    def __post_init__(self) -> None:
        df = np.array(self.df)
        if not isinstance(self.n, int | np.integer) or self.n < 0:
            raise InvalidParameter(f"n is {self.n!r}; it must be an integer of at least 0")
        if df.ndim != 1 or (len(df) and df.dtype.kind not in "iu"):
            raise InvalidParameter(f"df is {df.dtype} {df.shape}; it must hold an integer for each term, (V,)")
        df = df.astype(np.int64)
        if df.min(initial=0) < 0 or df.max(initial=0) > self.n:
            raise InvalidParameter(f"df reaches from {df.min()} to {df.max()}; it must lie between 0 and n = {self.n}")
        if not (np.isfinite(self.total_length) and self.total_length >= 0):
            raise InvalidParameter(f"total_length is {self.total_length!r}; it must be a number of at least 0")
        df.setflags(write=False)
        for name, value in (("n", int(self.n)), ("df", df), ("total_length", float(self.total_length))):
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, counts: csr_matrix) -> Statistics:
        """Those of counts (n, V)."""
        df = np.bincount(counts.indices, minlength=counts.shape[1])
        return cls(counts.shape[0], df, float(row_lengths(counts).sum(dtype=np.float64)))

    def __add__(self, other: Statistics) -> Statistics:
        """Of both collections together."""
        df = np.add(*_as_wide(self.df, other.df))
        return Statistics(self.n + other.n, df, self.total_length + other.total_length)

    def covering(self, own: Statistics) -> Statistics:
        """These, or what an index has itself where that is more: documents may have come since these were counted."""
        df = np.maximum(*_as_wide(self.df, own.df))
        return Statistics(max(self.n, own.n), df, max(self.total_length, own.total_length))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Statistics):
            return NotImplemented
        same = (self.n, self.total_length) == (other.n, other.total_length)
        return same and np.array_equal(self.df, other.df)

    def __hash__(self) -> int:
        return hash((self.n, self.total_length))

    def settings(self) -> dict[str, Any]:
        """JSON values, the constructor's arguments."""
        return {"n": self.n, "df": self.df.tolist(), "total_length": self.total_length}


class Weighting(Protocol):
    """A scoring function of one term in one document."""

    @property
    def statistics(self) -> Statistics | None:
        """Of the whole collection; None for those of the documents in the index."""

    def score(self, tf: np.ndarray, idf: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
        """float64: scores for `tf` occurrences in documents of `relative_length` (L / L-bar), all of one shape."""

    def idf(self, df: np.ndarray, n: int) -> np.ndarray:
        """float64 (V,): the weight of terms that occur in `df` of `n` documents; 0 where df is 0."""

    def nonoccurrence(self, idf: np.ndarray) -> np.ndarray:
        """float64 (V,): the score of terms in documents without them."""

    def settings(self) -> dict[str, Any]:
        """JSON values from which `from_settings` makes it again."""


@dataclass(frozen=True, kw_only=True)
class BM25:
    """BM25 by `method` (see the module). k1=0.9, b=0.4 are the values tuned by Anserini's authors for passages.

    `delta` matters to bm25l and bm25+ only; None is each paper's value (0.5 and 1.0; Lv and Zhai, 2011).
    `statistics`: of a collection of which the index is a part; None for those of the documents in the index.
    """

    method: str = "lucene"
    k1: float = 0.9
    b: float = 0.4
    delta: float | None = None
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidParameter(f"method is {self.method!r}; it must be one of {', '.join(METHODS)}")
        if not (np.isfinite(self.k1) and self.k1 >= 0):
            raise InvalidParameter(f"k1 is {self.k1!r}; it must be a number of at least 0")
        if not 0 <= self.b <= 1:
            raise InvalidParameter(f"b is {self.b!r}; it must lie between 0 and 1")
        if self.delta is not None and not (np.isfinite(self.delta) and self.delta >= 0):
            raise InvalidParameter(f"delta is {self.delta!r}; it must be a number of at least 0, or None")

    @property
    def _delta(self) -> float:
        default = {"bm25l": 0.5, "bm25+": 1.0}.get(self.method)
        if default is None:
            return 0.0
        return default if self.delta is None else self.delta

    def idf(self, df: np.ndarray, n: int) -> np.ndarray:
        there = np.maximum(df, 1).astype(np.float64)
        odds = (n - there + 0.5) / (there + 0.5)
        values = {
            "robertson": lambda: np.log(odds),
            "lucene": lambda: np.log1p(odds),
            "atire": lambda: np.log(n / there),
            "bm25l": lambda: np.log((n + 1) / (there + 0.5)),
            "bm25+": lambda: np.log((n + 1) / there),
        }[self.method]()
        return np.where(df > 0, values, 0.0)

    def score(self, tf: np.ndarray, idf: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
        norm = 1 - self.b + self.b * relative_length
        if self.method == "bm25l":
            c = tf / norm + self._delta
            return idf * (self.k1 + 1) * c / (self.k1 + c)
        saturated = tf / (self.k1 * norm + tf)
        if self.method in ("robertson", "lucene"):
            return idf * saturated
        return idf * ((self.k1 + 1) * saturated + self._delta)

    def nonoccurrence(self, idf: np.ndarray) -> np.ndarray:
        if self.method == "bm25l" and self._delta:
            return idf * (self.k1 + 1) * self._delta / (self.k1 + self._delta)
        return idf * self._delta if self.method == "bm25+" else np.zeros_like(idf)

    def settings(self) -> dict[str, Any]:
        own = {"name": "bm25", "method": self.method, "k1": self.k1, "b": self.b, "delta": self.delta}
        return own | _statistics_settings(self.statistics)


@dataclass(frozen=True, kw_only=True)
class TFIDF:
    """tf * ln(n / df), the plain tf-idf of Manning, Raghavan and Schuetze (2008), section 6.2.2, eq. 6.8 and 6.9.

    `statistics`: as of `BM25`.
    """

    statistics: Statistics | None = None

    def idf(self, df: np.ndarray, n: int) -> np.ndarray:
        return np.where(df > 0, np.log(n / np.maximum(df, 1)), 0.0)

    def score(self, tf: np.ndarray, idf: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
        return tf * idf

    def nonoccurrence(self, idf: np.ndarray) -> np.ndarray:
        return np.zeros_like(idf)

    def settings(self) -> dict[str, Any]:
        return {"name": "tfidf"} | _statistics_settings(self.statistics)


def from_settings(settings: dict[str, Any]) -> Weighting:
    """The weighting whose `settings()` these are."""
    rest = {name: value for name, value in settings.items() if name != "name"}
    if "statistics" in rest:
        rest["statistics"] = Statistics(**rest["statistics"])
    if settings.get("name") == "bm25":
        return BM25(**rest)
    if settings.get("name") == "tfidf" and set(rest) <= {"statistics"}:
        return TFIDF(**rest)
    raise InvalidParameter(f"weighting {settings!r} is not known; the names are bm25 and tfidf")


def _statistics_settings(statistics: Statistics | None) -> dict[str, Any]:
    return {} if statistics is None else {"statistics": statistics.settings()}


def _as_wide(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Both, the narrower one with zeros at its end."""
    V = max(len(one), len(other))
    return [np.pad(df, (0, V - len(df))) for df in (one, other)]


def row_lengths(counts: csr_matrix) -> np.ndarray:
    """float32 (n,): the sum of each row."""
    return np.asarray(counts.sum(axis=1), np.float32).reshape(-1)


def relative_lengths(lengths: np.ndarray, statistics: Statistics) -> np.ndarray:
    """L / L-bar, float64 (n,); 1 everywhere when all documents are empty."""
    mean = statistics.total_length / max(statistics.n, 1)
    return lengths.astype(np.float64) / mean if mean > 0 else np.ones(len(lengths))


def scorer(
    weighting: Weighting, own: Statistics, lengths: np.ndarray
) -> tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], np.ndarray]:
    """A function (terms, rows, counts) -> float64 scores of such entries, and `nonoccurrence`, left out of them.

    `own`: the statistics of the documents in the index; `lengths` float32 (n,): theirs.
    """
    statistics = own if weighting.statistics is None else weighting.statistics.covering(own)
    n = max(statistics.n, 1)  # there is no idf among no documents
    idf = weighting.idf(statistics.df, n)[: len(own.df)]
    base = weighting.nonoccurrence(idf)
    relative = relative_lengths(lengths, statistics)

    def score(terms: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return weighting.score(counts.astype(np.float64), idf[terms], relative[rows]) - base[terms]

    return score, base


def holders(starts: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Of the entries `start` to `stop` of a compressed matrix, the row each is in (the column, if by column)."""
    first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
    sizes = np.diff(np.clip(starts[first : last + 2], start, stop))
    return np.repeat(np.arange(first, last + 1), sizes)


def weigh(weighting: Weighting, counts: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the counts (n, V), entry by entry: float32; and `nonoccurrence`, already left out of them."""
    score, base = scorer(weighting, Statistics.of(counts), row_lengths(counts))
    scores = np.empty(counts.nnz, np.float32)
    for start in range(0, counts.nnz, CHUNK):
        part = slice(start, min(start + CHUNK, counts.nnz))
        scores[part] = score(counts.indices[part], holders(counts.indptr, part.start, part.stop), counts.data[part])
    return scores, base
