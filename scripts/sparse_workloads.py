"""What bench_sparse.py searches: synthetic vectors, vectors from files, or real texts as counts of terms."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy import sparse

from eval.files import read_lines
from indexes.sparse.base import stacked
from retrieval.documents import read_documents
from retrieval.encoders.bag_of_words import BagOfWords

VOCABULARY = 30_522


@dataclass
class Workload:
    """Documents and queries, scipy CSR. With texts, counts of terms for BM25, and sets of terms."""

    documents: sparse.csr_matrix
    queries: sparse.csr_matrix
    texts: Sequence[str] = ()
    analysis_seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """documents.npz, queries.npz and, of texts, texts/texts.jsonl (id, contents)."""
        sparse.save_npz(folder / "documents.npz", self.documents, compressed=False)
        sparse.save_npz(folder / "queries.npz", self.queries, compressed=False)
        if self.texts:
            (folder / "texts").mkdir()
            with open(folder / "texts" / "texts.jsonl", "w", encoding="utf-8") as out:
                for number, text in enumerate(self.texts):
                    out.write(json.dumps({"id": str(number), "contents": text}) + "\n")

    def describe(self) -> str:
        n, nq = self.documents.shape[0], self.queries.shape[0]
        return (
            f"{n:,} documents of {self.documents.nnz / n:.0f} terms, "
            f"{nq:,} queries of {self.queries.nnz / nq:.1f}, all distinct terms."
        )


def splade_like(n: int, nq: int, seed: int = 0) -> Workload:
    """Vectors with the published statistics of SPLADE on MS MARCO: 119 terms per document, 43 per query, Zipfian.

    Documents mix the terms of two topics with terms of the whole vocabulary; queries keep heavy terms of a document.
    """
    rng = np.random.default_rng(seed)
    topics = max(100, min(4000, n // 60))
    popularity = 1 / (np.arange(VOCABULARY) + 18.0) ** 0.95
    popularity /= popularity.sum()
    own = np.stack([rng.choice(VOCABULARY, 320, replace=False, p=popularity) for _ in range(topics)])
    profile = np.cumsum(rng.gamma(0.6, 1.0, (topics, 320)) + 0.03, axis=1)
    profile /= profile[:, -1:]
    everywhere = np.cumsum(popularity)

    def draw(topic: np.ndarray, lengths: np.ndarray, share: float) -> sparse.csr_matrix:
        rows = np.repeat(np.arange(len(lengths)), lengths)
        of_topic = rng.random(len(rows)) < share
        place = np.searchsorted((profile + np.arange(topics)[:, None]).ravel(), topic[rows] + rng.random(len(rows)))
        place = np.minimum(place, topics * 320 - 1)
        background = np.minimum(np.searchsorted(everywhere, rng.random(len(rows))), VOCABULARY - 1)
        terms = np.where(of_topic, own.ravel()[place], background)
        weights = np.log1p(rng.lognormal(-0.6, 0.9, len(rows)) * (0.45 + 0.75 * (terms / VOCABULARY) ** 0.25))
        drawn = sparse.csr_matrix((weights.astype(np.float32), (rows, terms)), shape=(len(lengths), VOCABULARY))
        drawn.sum_duplicates()
        return drawn

    topic = rng.integers(0, topics, n)
    lengths = np.clip(rng.lognormal(np.log(125), 0.33, n), 8, 420).astype(np.int64)
    documents = sparse.vstack(
        [draw(topic[a : a + 50_000], lengths[a : a + 50_000], 0.62) for a in range(0, n, 50_000)], format="csr"
    )
    sources = rng.choice(n, nq, replace=n < nq)
    kept = documents[sources].copy()
    kept.data = np.where(rng.random(kept.nnz) < 0.2 * kept.data / kept.data.mean(), kept.data**1.6, 0)
    expansion = draw(topic[sources], np.full(nq, 22), 0.65)
    expansion.data *= 0.2
    queries = sparse.csr_matrix(kept + expansion, dtype=np.float32)
    queries.eliminate_zeros()
    return Workload(documents, queries)


def real_texts(source: str, query_file: Path | None, n: int, nq: int) -> Workload:
    """The first n texts of a source as counts of the terms of the English analyzer, and nq queries.

    Queries have 2 to 10 distinct terms that occur; they are drawn from the lines of a file, or else cut from the texts.
    Raises ValueError when there is none.
    """
    plain = re.search(r"\.(tsv|txt)(\.gz|\.zst)?$", source)
    texts = list(islice(lines(Path(source)) if plain else (d.contents for d in read_documents(source)), n))
    bag = BagOfWords("english")
    started = time.perf_counter()
    parts = [bag.encode_documents(texts[a : a + 10_000]) for a in range(0, len(texts), 10_000)]
    counts = stacked(parts, len(bag.vocabulary))
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(0)
    asked = list(lines(query_file)) if query_file else cut(texts, 3 * nq, rng)
    queries = bag.encode_queries(asked)
    count = np.diff(queries.indptr)
    fitting = rng.permutation(np.flatnonzero((count >= 2) & (count <= 10)))[:nq]
    if not len(fitting):
        raise ValueError(f"none of {len(asked)} queries has 2 to 10 terms that occur in {source}")
    queries = queries[np.sort(fitting)]
    queries.data[:] = 1
    return Workload(counts, queries, texts, seconds)


def lines(path: Path) -> Iterator[str]:
    """Texts or queries, one a line, also .gz or .zst. A number and a colon or tab before it are its id."""
    for _, line in read_lines(path):
        yield re.sub(r"^[0-9]+[:\t]", "", line).replace("\t", " ")


def cut(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """2 to 10 words of a text each, from `count` random texts."""
    chosen = [texts[i].split() for i in rng.permutation(len(texts))[:count]]
    return [
        " ".join(rng.choice(words, min(len(words), int(rng.integers(2, 11))), replace=False))
        for words in chosen
        if len(words) > 3
    ]
