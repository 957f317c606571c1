"""What trainers learn from: embeddings of documents and queries, made once, and which documents answer which query.

    encoder --> documents float32 (n, d), on disk --+
    queries --> float32 (nq, d) --------------------+--> TrainingData --> part(rows): a train and a dev share
    qrels, or none ---------------------------------+

Rows are positions in `documents` and `queries`. Without positives a query still teaches: the order in which its float
vector ranks the documents is what compressed vectors are to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from eval.measures import evaluate
from indexes.dense.flat import similarities
from retrieval.errors import TrainingError

BLOCK = 16_384  # documents scored at once
QUERY_BATCH = 512
MEASURE = "nDCG@10"


class Rows(Protocol):
    """What is read a block at a time: an array (n, d), in memory or on disk, or codes, decoded as they go by."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class TrainingData:
    """Embeddings of both sides, of length 1 where the encoder compares by cosine, and labels if there are any.

    `documents` float32 (n, d), which may be mapped from disk; `queries` float32 (nq, d). `positives`: for each query
    the rows of its relevant documents, int64, or None: no labels. `texts`: the queries themselves, which only a trained
    encoder needs. `negatives`: for each query rows int64 (nq, m) of documents to be told from its positives, -1 for
    none (see `retrieval.training.negatives`). `teacher`: float32 (nq, 1 + m), what a teacher scores the first positive
    of each query and its negatives, -inf for none (see `retrieval.training.teachers`). `contents`: the texts of the
    documents, which only an encoder needs that is trained for them too.
    """

    documents: np.ndarray
    queries: np.ndarray
    positives: Sequence[np.ndarray] | None = None
    texts: Sequence[str] | None = None
    negatives: np.ndarray | None = None
    teacher: np.ndarray | None = None
    contents: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in ("documents", "queries"):
            array = getattr(self, name)
            if array.ndim != 2 or array.dtype != np.float32 or not len(array):
                raise TrainingError(f"{name} are {array.dtype} {array.shape}; they must be float32 (n, d), n >= 1")
        if self.documents.shape[1] != self.queries.shape[1]:
            raise TrainingError(f"documents are {self.documents.shape}, queries {self.queries.shape}: other widths")
        if not np.isfinite(self.queries).all():
            raise TrainingError("a query vector holds NaN or infinity")
        if self.positives is not None:
            if len(self.positives) != len(self.queries):
                raise TrainingError(f"{len(self.positives)} lists of positives for {len(self.queries)} queries")
            for query, rows in enumerate(self.positives):
                if len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(self.documents):
                    n = len(self.documents)
                    raise TrainingError(f"positives of query {query} name rows beyond the {n} documents")
        if self.texts is not None and len(self.texts) != len(self.queries):
            raise TrainingError(f"{len(self.texts)} texts for {len(self.queries)} queries")
        if self.contents is not None and len(self.contents) != len(self.documents):
            raise TrainingError(f"{len(self.contents)} contents for {len(self.documents)} documents")
        if self.negatives is not None:
            _check_negatives(self.negatives, len(self.queries), len(self.documents))
        if self.teacher is not None:
            if self.positives is None or self.negatives is None:
                raise TrainingError("teacher scores are of positives and negatives, and one of these is missing")
            wanted = (len(self.queries), 1 + self.negatives.shape[1])
            if self.teacher.shape != wanted or self.teacher.dtype != np.float32:
                raise TrainingError(f"teacher is {self.teacher.dtype} {self.teacher.shape}, not float32 {wanted}")

    def part(self, rows: np.ndarray) -> TrainingData:
        """The same documents with some of the queries, by their rows int64 (m,)."""
        positives = None if self.positives is None else [self.positives[row] for row in rows]
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        negatives = None if self.negatives is None else self.negatives[rows]
        teacher = None if self.teacher is None else self.teacher[rows]
        return replace(
            self, queries=self.queries[rows], positives=positives, texts=texts, negatives=negatives, teacher=teacher
        )

    def without_labels(self) -> TrainingData:
        """The same without positives, negatives and teacher."""
        return replace(self, positives=None, negatives=None, teacher=None)

    def split(self, dev: float = 0.1, *, seed: int = 0) -> tuple[TrainingData, TrainingData]:
        """Two shares of the queries, the second of about `dev` (at least one query, at most 500)."""
        if len(self.queries) < 2 or not 0 < dev < 1:
            raise TrainingError(f"{len(self.queries)} queries cannot be split with dev={dev}; needs 2, and 0 < dev < 1")
        order = np.random.default_rng(seed).permutation(len(self.queries))
        held = max(1, min(500, round(dev * len(order))))
        return self.part(np.sort(order[held:])), self.part(np.sort(order[:held]))

    def fingerprint(self) -> str:
        """What a checkpoint belongs to: a digest of shapes, labels, and of some of the vectors."""
        digest = hashlib.sha256(repr((self.documents.shape, self.queries.shape)).encode())
        for array in (self.documents, self.queries):
            digest.update(np.ascontiguousarray(array[:: max(1, len(array) // 1000)]).tobytes())
        for rows in self.positives or ():
            digest.update(np.asarray(rows, np.int64).tobytes() + b"|")
        for more in (self.negatives, self.teacher):
            digest.update(b"" if more is None else repr(more.shape).encode() + np.ascontiguousarray(more).tobytes())
        return digest.hexdigest()


def _check_negatives(negatives: np.ndarray, nq: int, n: int) -> None:
    if negatives.ndim != 2 or negatives.dtype != np.int64 or len(negatives) != nq:
        raise TrainingError(f"negatives are {negatives.dtype} {negatives.shape}; they must be int64 ({nq}, m)")
    if negatives.size and not -1 <= negatives.min() <= negatives.max() < n:
        raise TrainingError(f"negatives name rows beyond the {n} documents; -1 is the only other number allowed")


def labelled(
    qrels: Mapping[str, Mapping[str, int]], queries: Mapping[str, str], rows: Mapping[str, int]
) -> tuple[list[str], list[np.ndarray]]:
    """Texts of the queries that have a relevant document, and its rows. `rows`: document id -> row.

    Judged documents that are not in the corpus are left out, and so are queries with none left.
    Raises `TrainingError` when nothing is left.
    """
    texts, positives = [], []
    for query, grades in qrels.items():
        relevant = sorted(rows[name] for name, grade in grades.items() if grade > 0 and name in rows)
        if relevant and query in queries:
            texts.append(queries[query])
            positives.append(np.array(relevant, np.int64))
    if not texts:
        raise TrainingError(f"of {len(qrels)} judged queries, none has a text and a relevant document in the corpus")
    return texts, positives


def nearest(
    queries: np.ndarray, documents: Rows, k: int, allowed: Callable[[slice, slice], np.ndarray] | None = None
) -> np.ndarray:
    """Rows int64 (nq, k) of the documents with the largest inner products, best first, ties by the smaller row.

    `allowed`: which documents count for which queries, bool, of some queries and some documents; then -1 is for none.
    """
    from indexes.kernels import topk

    k = min(k, len(documents))
    scores, rows = topk.empty_heaps(len(queries), k)
    for start in range(0, len(documents), BLOCK):
        block = np.ascontiguousarray(documents[start : start + BLOCK])
        labels = np.arange(start, start + len(block))
        for first in range(0, len(queries), QUERY_BATCH):
            batch = slice(first, first + QUERY_BATCH)
            found = similarities(queries[batch], block, "ip")
            if allowed is not None:
                found[~allowed(batch, slice(start, start + BLOCK))] = -np.inf
            topk.push_rows(found, labels, scores[batch], rows[batch])
    topk.sort_heaps(scores, rows)
    return rows if allowed is None else np.where(scores > -np.inf, rows, -1)


def quality(found: np.ndarray, data: TrainingData, exact: np.ndarray | None = None) -> float:
    """How good rankings, rows int64 (nq, 10 or more), are for the queries of `data`.

    With labels nDCG@10, every positive counting alike; without, the share of the 10 documents nearest by the float
    vectors that are among the first 10. `exact`: those, int64 (nq, 10), if they are known.
    """
    if data.positives is None:
        truth = nearest(data.queries, data.documents, 10) if exact is None else exact
        return float(np.mean([len(np.intersect1d(a[:10], b)) / len(b) for a, b in zip(found, truth, strict=True)]))
    run = {str(q): {str(row): -float(i) for i, row in enumerate(rows[:10])} for q, rows in enumerate(found)}
    qrels = {str(q): {str(row): 1 for row in rows} for q, rows in enumerate(data.positives)}
    return float(np.mean(evaluate(run, qrels, [MEASURE]).values(MEASURE)))
