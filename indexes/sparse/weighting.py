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
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from indexes.errors import InvalidParameter

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK = 1 << 22  # entries weighted at once: bounds the float64 temporaries to about 100 MB
METHODS = ("lucene", "robertson", "atire", "bm25l", "bm25+")


class Weighting(Protocol):
    """A scoring function of one term in one document."""

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
    """

    method: str = "lucene"
    k1: float = 0.9
    b: float = 0.4
    delta: float | None = None

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
        return {"name": "bm25", **asdict(self)}


@dataclass(frozen=True)
class TFIDF:
    """tf * ln(n / df), the plain tf-idf of Manning, Raghavan and Schuetze (2008), section 6.2.2, eq. 6.8 and 6.9."""

    def idf(self, df: np.ndarray, n: int) -> np.ndarray:
        return np.where(df > 0, np.log(n / np.maximum(df, 1)), 0.0)

    def score(self, tf: np.ndarray, idf: np.ndarray, relative_length: np.ndarray) -> np.ndarray:
        return tf * idf

    def nonoccurrence(self, idf: np.ndarray) -> np.ndarray:
        return np.zeros_like(idf)

    def settings(self) -> dict[str, Any]:
        return {"name": "tfidf"}


def from_settings(settings: dict[str, Any]) -> Weighting:
    """The weighting whose `settings()` these are."""
    rest = {name: value for name, value in settings.items() if name != "name"}
    if settings.get("name") == "bm25":
        return BM25(**rest)
    if settings.get("name") == "tfidf" and not rest:
        return TFIDF()
    raise InvalidParameter(f"weighting {settings!r} is not known; the names are bm25 and tfidf")


def relative_lengths(lengths: np.ndarray) -> np.ndarray:
    """L / L-bar, float64 (n,); 1 everywhere when all documents are empty."""
    exact = lengths.astype(np.float64)
    mean = exact.mean() if len(exact) else 0.0
    return exact / mean if mean > 0 else np.ones(len(exact))


def weigh(weighting: Weighting, counts: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The scores of the counts (n, V), entry by entry: float32; and `nonoccurrence`, already left out of them."""
    if not counts.shape[0]:
        return np.empty(0, np.float32), np.zeros(counts.shape[1])  # there is no idf among no documents
    df = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = weighting.idf(df, counts.shape[0])
    base = weighting.nonoccurrence(idf)
    lengths = relative_lengths(np.asarray(counts.sum(axis=1), np.float32).reshape(-1))
    scores = np.empty(counts.nnz, np.float32)
    for start in range(0, counts.nnz, CHUNK):
        stop = min(start + CHUNK, counts.nnz)
        terms = counts.indices[start:stop]
        rows = np.searchsorted(counts.indptr, np.arange(start, stop), side="right") - 1
        weights = weighting.score(counts.data[start:stop].astype(np.float64), idf[terms], lengths[rows])
        scores[start:stop] = weights - base[terms]
    return scores, base
