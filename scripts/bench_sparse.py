"""Sparse indexes beside their peers: build time, bytes, recall, queries per second, tails and growth.

    python scripts/bench_sparse.py                        # 200,000 synthetic SPLADE-like vectors
    python scripts/bench_sparse.py --vectors docs.npz --queries queries.npz
    python scripts/bench_sparse.py --texts corpus.jsonl   # BM25 over real texts, queries cut from them
    python scripts/bench_sparse.py --growth               # exact search against n, 10,000 to 1,000,000

Peers run when they are installed: pip install pyseismic-lsr bmp bm25s. One query a call, one thread; the systems take
turns, chunk by chunk, and the ratio to the first exact system is the median over the turns, since these are what a
noisy machine leaves intact. Recall is against exhaustive scoring of the given weights, ties counted as found.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser
from scipy import sparse

from indexes import BM25, BlockMaxIndex, EagerIndex, Index, SeismicIndex
from indexes.sparse.base import stacked

VOCABULARY = 30_522
COLUMNS = (
    "system", "setting", "build s", "MB", "recall@10", "QPS k=10", "k=100", "k=1000",
    "p50 us", "p95 us", "p99 us", "QPS 2 threads", "time / first",
)  # fmt: skip


def splade_like(n: int, nq: int, seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
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
    return documents, queries


@dataclass
class System:
    """One built system with one setting. `search(query number, k)` returns ids."""

    name: str
    setting: str
    build_seconds: float
    megabytes: float
    search: Callable[[int, int], Sequence[int]]
    batch: Callable[[int], Any] | None = None  # all queries on two threads
    times: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)


def ours(name: str, index: Index, vectors: Any, queries: Any, settings: Sequence[dict[str, Any]]) -> list[System]:
    """An index of ours with several search settings."""
    started = time.perf_counter()
    index.add(vectors)
    index.search(queries[0], 1)
    seconds = time.perf_counter() - started
    rows = [queries[i] for i in range(queries.shape[0])]
    size = index.describe()["bytes"] / 1e6

    def make(setting: dict[str, Any]) -> System:
        plain = "default" if isinstance(index, SeismicIndex) else "exact"
        told = ", ".join(f"{knob} {value}" for knob, value in setting.items()) or plain
        return System(
            name, told, seconds, size,
            lambda i, k: index.search(rows[i], k, threads=1, **setting).ids[0],
            lambda k: index.search(queries, k, threads=2, **setting),
        )  # fmt: skip

    return [make(setting) for setting in settings]


def seismic_peer(vectors: Any, queries: Any, postings: int) -> list[System]:
    """pyseismic-lsr over component numbers (its raw index)."""
    import seismic

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "docs.bin")
        with open(path, "wb") as out:
            out.write(np.uint32(vectors.shape[0]).tobytes())
            for row in range(vectors.shape[0]):
                part = slice(vectors.indptr[row], vectors.indptr[row + 1])
                out.write(np.uint32(part.stop - part.start).tobytes())
                out.write(vectors.indices[part].astype(np.uint32).tobytes())
                out.write(vectors.data[part].astype(np.float32).tobytes())
        started = time.perf_counter()
        index = seismic.SeismicIndexRaw.build(path, n_postings=postings)
        seconds = time.perf_counter() - started
        index.save(str(Path(folder) / "saved"))
        size = sum(file.stat().st_size for file in Path(folder).glob("saved*")) / 1e6
    rows = [(part.indices.astype(np.int32), part.data.astype(np.float32)) for part in queries]

    def make(cut: int, heap: float) -> System:
        def search(i: int, k: int) -> list[int]:
            return [hit[1] for hit in index.search(*rows[i], k, cut, heap, 0, True)]

        return System(f"Seismic p{postings} (peer)", f"cut {cut}, heap {heap}", seconds, size, search)

    return [make(cut, heap) for cut, heap in ((5, 0.9), (8, 0.9), (10, 0.8), (20, 0.8), (43, 0.9))]


def bmp_peer(vectors: Any, queries: Any) -> list[System]:
    """The package of the block-max pruning paper, blocks of 32, over weights of 8 bits."""
    import bmp

    unit = float(vectors.data.max()) / 255
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "index.bmp")
        started = time.perf_counter()
        indexer = bmp.Indexer(path, bsize=32, compress_range=False)
        names = [str(term) for term in range(vectors.shape[1])]
        for row in range(vectors.shape[0]):
            part = slice(vectors.indptr[row], vectors.indptr[row + 1])
            weights = np.maximum(1, np.rint(vectors.data[part] / unit)).astype(int).tolist()
            terms = [names[term] for term in vectors.indices[part].tolist()]
            indexer.add_document(str(row), dict(zip(terms, weights, strict=True)))
        indexer.finish()
        seconds, size = time.perf_counter() - started, Path(path).stat().st_size / 1e6
        searcher = bmp.Searcher(path)
    rows = [{str(t): float(w) for t, w in zip(part.indices, part.data, strict=True)} for part in queries]

    def make(alpha: float) -> System:
        def search(i: int, k: int) -> list[int]:
            return [int(id) for id in searcher.search(rows[i], k, alpha, 1.0)[0]]

        return System("BMP b32 (peer)", f"alpha {alpha}", seconds, size, search)

    return [make(1.0), make(0.85)]


def bm25s_peer(texts: Sequence[list[str]], queries: Sequence[list[str]]) -> list[System]:
    """bm25s with its numba backend, over the terms of our analyzer."""
    import bm25s

    started = time.perf_counter()
    index = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numba")
    index.index(texts, show_progress=False)
    seconds = time.perf_counter() - started
    size = sum(array.nbytes for array in index.scores.values() if hasattr(array, "nbytes")) / 1e6

    def search(i: int, k: int) -> list[int]:
        found, _ = index.retrieve([queries[i]], k=k, show_progress=False, n_threads=1)
        return found[0].tolist()

    return [System("bm25s numba (peer)", "exact", seconds, size, search)]


def measure(systems: list[System], exact: Index, queries: Any, rounds: int) -> list[list[Any]]:
    """Let the systems take turns; one row each."""
    nq = queries.shape[0]
    truth = exact.search(queries, 10)
    by_id = [_scorer(exact, queries[i]) for i in range(nq)]
    chunks = np.array_split(np.arange(nq), rounds)
    found: list[dict[int, Sequence[int]]] = [{} for _ in systems]
    for system in systems:
        for i in range(min(20, nq)):
            system.search(i, 10)
    for chunk in chunks:
        for system, kept in zip(systems, found, strict=True):
            started = time.perf_counter()
            for i in chunk:
                before = time.perf_counter()
                kept[i] = system.search(int(i), 10)
                system.times.append(time.perf_counter() - before)
            system.turns.append((time.perf_counter() - started) / len(chunk))
    rows = []
    for system, kept in zip(systems, found, strict=True):
        recall = statistics.mean(_recall(kept[i], truth.scores[i], by_id[i]) for i in range(nq))
        deep = [_queries_per_second(system, k, min(nq, 200)) for k in (100, 1000)]
        micro = np.percentile(np.array(system.times) * 1e6, [50, 95, 99])
        ratio = statistics.median(a / b for a, b in zip(system.turns, systems[0].turns, strict=True))
        rows.append([
            system.name, system.setting, round(system.build_seconds, 1), round(system.megabytes), recall,
            round(1 / statistics.median(system.turns)), *deep, *np.rint(micro).astype(int).tolist(),
            _batched(system, nq), ratio,
        ])  # fmt: skip
    return rows


def _scorer(exact: Index, query: Any) -> dict[int, float]:
    return dict(next(iter(exact.search(query, 200))))


def _recall(ids: Sequence[int], truth: np.ndarray, scores: dict[int, float]) -> float:
    real = truth[np.isfinite(truth)]
    if not len(real):
        return 1.0
    least = real[-1] * (1 - 1e-6)
    return min(len(real), sum(scores.get(int(id), -np.inf) >= least for id in ids)) / len(real)


def _queries_per_second(system: System, k: int, count: int) -> int:
    started = time.perf_counter()
    for i in range(count):
        system.search(i, k)
    return round(count / (time.perf_counter() - started))


def _batched(system: System, nq: int) -> int | None:
    if system.batch is None:
        return None
    times = []
    for _ in range(3):
        started = time.perf_counter()
        system.batch(10)
        times.append(time.perf_counter() - started)
    return round(nq / statistics.median(times))


def learned(vectors: Any, queries: Any, rounds: int, peers: bool) -> list[list[Any]]:
    """Learned sparse vectors: ours and the peers that are installed."""
    exact = EagerIndex()
    eager = ours("EagerIndex", exact, vectors, queries, [{}])
    cuts = [{}, {"alpha": 0.9}, {"query_cut": 10}, {"query_cut": 10, "alpha": 0.85}, {"query_cut": 6, "alpha": 0.8}]
    systems = ours("BlockMaxIndex", BlockMaxIndex(), vectors, queries, cuts)
    systems += ours("BlockMaxIndex uint8", BlockMaxIndex(precision="uint8"), vectors, queries, [{}, {"alpha": 0.9}])
    systems += eager
    systems += ours("SeismicIndex", SeismicIndex(), vectors, queries, [{}, {"query_cut": 20, "heap_factor": 0.8}])
    if peers and importlib.util.find_spec("seismic"):
        systems += seismic_peer(vectors, queries, 1000 if vectors.shape[0] >= 1_000_000 else 300)
    if peers and importlib.util.find_spec("bmp"):
        systems += bmp_peer(vectors, queries)
    return measure(systems, exact, queries, rounds)


def lexical(source: str, n: int, nq: int, rounds: int, peers: bool) -> list[list[Any]]:
    """BM25 over real texts; queries of 2 to 10 words are cut from documents."""
    from retrieval.documents import read_documents
    from retrieval.encoders.bag_of_words import BagOfWords

    texts = [document.contents for document in islice(read_documents(source), n)]
    bag = BagOfWords("english")
    rng = np.random.default_rng(0)
    chosen = [texts[i].split() for i in rng.permutation(len(texts))[: 3 * nq]]
    words = [
        rng.choice(text, min(len(text), int(rng.integers(2, 11))), replace=False) for text in chosen if len(text) > 3
    ]
    questions = [" ".join(some) for some in words[:nq]]
    parts = [bag.encode_documents(texts[a : a + 10_000]) for a in range(0, len(texts), 10_000)]
    counts = stacked(parts, len(bag.vocabulary))
    queries = bag.encode_queries(questions)
    weighting = BM25()
    exact = EagerIndex(weighting=weighting)
    eager = ours("EagerIndex", exact, counts, queries, [{}])
    systems = ours("BlockMaxIndex", BlockMaxIndex(weighting=weighting), counts, queries, [{}, {"alpha": 0.9}]) + eager
    if peers and importlib.util.find_spec("bm25s"):
        systems += bm25s_peer([bag.analyzer(text) for text in texts], [bag.analyzer(text) for text in questions])
    return measure(systems, exact, queries, rounds)


def growth(sizes: Sequence[int], plot: Path | None) -> tuple[list[list[Any]], list[str]]:
    """Exact search against n: microseconds per query, and the exponent e of time ~ n^e."""
    rows: list[list[Any]] = []
    for n in sizes:
        vectors, queries = splade_like(n, 300)
        systems = ours("BlockMaxIndex", BlockMaxIndex(), vectors, queries, [{}])
        for _ in range(3):
            systems[0].turns.append(1 / _queries_per_second(systems[0], 10, queries.shape[0]))
        rows.append([n, round(statistics.median(systems[0].turns) * 1e6), round(systems[0].megabytes)])
    exponent = np.polyfit(np.log([row[0] for row in rows]), np.log([row[1] for row in rows]), 1)[0]
    if plot:
        draw([row[0] for row in rows], [1e6 / row[1] for row in rows], "documents", "queries per second", plot)
    return rows, [f"time grows as n^{exponent:.2f}"]


def draw(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str, path: Path) -> None:
    """A picture of points on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.figure(figsize=(6, 4))
    pyplot.loglog(x, y, "o-")
    pyplot.xlabel(x_label)
    pyplot.ylabel(y_label)
    pyplot.grid(True, which="both", alpha=0.3)
    pyplot.savefig(path, dpi=120, bbox_inches="tight")


def options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=200_000)
    made.add_argument("--nq", type=int, default=1000)
    made.add_argument("--vectors", type=Path, help="documents as scipy CSR .npz")
    made.add_argument("--queries", type=Path, help="queries as scipy CSR .npz")
    made.add_argument("--texts", help="BM25 over a source of documents")
    made.add_argument("--growth", action="store_true")
    made.add_argument("--no-peers", action="store_true")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--plot", type=Path, help="with --growth: a picture")
    return made.parse_args()


def main() -> None:
    args = options()
    n, nq = (10_000, 200) if args.quick else (args.n, args.nq)
    notes = ["One query a call, one thread, unless a column says otherwise; `time / first`: median of the turns."]
    if args.growth:
        sizes = (5_000, 10_000) if args.quick else (10_000, 30_000, 100_000, 300_000, 1_000_000)
        rows, more = growth(sizes, args.plot)
        finish(("n", "us per query", "MB"), rows, more, args.json)
        return
    if args.texts:
        rows = lexical(args.texts, n, nq, args.rounds, not args.no_peers)
    else:
        if args.vectors:
            vectors, queries = sparse.load_npz(args.vectors).tocsr(), sparse.load_npz(args.queries).tocsr()
        else:
            vectors, queries = splade_like(n, nq)
        notes.append(f"{vectors.shape[0]:,} documents of {vectors.nnz / vectors.shape[0]:.0f} terms, "
                     f"{queries.shape[0]:,} queries of {queries.nnz / queries.shape[0]:.0f}.")  # fmt: skip
        rows = learned(vectors, queries, args.rounds, not args.no_peers)
    finish(COLUMNS, rows, notes, args.json)


if __name__ == "__main__":
    main()
