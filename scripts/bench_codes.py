"""Codes of equal bytes: what they lose of the vectors, and how long fitting, coding and scanning them takes.

    python scripts/bench_codes.py                                        # clustered vectors, 100,000 x 384
    python scripts/bench_codes.py --vectors docs.npy --queries q.npy     # real embeddings, (n, d) and (nq, d)
    python scripts/bench_codes.py --bytes 24 --threads 2
    python scripts/bench_codes.py --quick

Ours: binary autoencoders, OPQ and sign bits behind a rotation (where d / 8 is as many bytes), in a ScanIndex without
re-ranking; RQ with --rq, which takes minutes. Peers: faiss's IndexPQ behind the same OPQ, and its IndexPQFastScan of
twice as many sub-spaces of 16 centroids, of as many bytes. All are fitted on 16,384 vectors, drawn at random.

error: the squared error of 16,384 vectors, in units of their variance. recall@10: of the exact nearest, without
re-ranking. Searches take turns, one query at a time (us / query) and in a batch of all (us, batch); times are medians,
and `time / first` and `batch / first` are medians over the turns of the time to that of the first line.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # by faiss: else its threads spin on while it is not its turn

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench_dense import clustered, over, race
from common import finish, parser

from indexes import ScanIndex
from indexes.codecs import OPQ, PQ, RQ, BinaryAutoencoder, Chain, Codec, RandomRotation, SignBits
from indexes.dense.base import normalize
from indexes.dense.faiss_files import write_faiss

SAMPLE, K = 16_384, 10
Search = Callable[[np.ndarray], np.ndarray]


def codecs(size: int, d: int, rq: bool) -> dict[str, Codec]:
    """Our codecs of `size` bytes, by name."""
    found: dict[str, Codec] = {
        "binary autoencoder": BinaryAutoencoder(bytes=size),
        "OPQ": Chain(OPQ(M=size), PQ(M=size)),
    }
    if rq:
        found["RQ"] = RQ(M=size)
    if 8 * size == d:
        found["sign bits"] = Chain(RandomRotation(), SignBits())
    return found


def ours(codec: Codec, vectors: np.ndarray) -> tuple[ScanIndex, list[float]]:
    """The index, and what it took: to fit (s), to code (us a vector), and the error."""
    started = time.perf_counter()
    codec.fit(sampled(vectors))
    fitted = time.perf_counter()
    index = ScanIndex(codec=codec, rerank=None).add(vectors)
    coded = (time.perf_counter() - fitted) / len(vectors) * 1e6
    return index, [fitted - started, coded, relative(vectors, codec)]


def of_faiss(factory: str, vectors: np.ndarray) -> tuple[faiss.Index, list[float]]:
    """As `ours`, of a faiss index; the error is not read back from its blocks of codes."""
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    started = time.perf_counter()
    index.train(sampled(vectors))
    fitted = time.perf_counter()
    index.add(vectors)
    coded = (time.perf_counter() - fitted) / len(vectors) * 1e6
    return index, [fitted - started, coded, float("nan")]


def sampled(vectors: np.ndarray, seed: int = 0) -> np.ndarray:
    """At most `SAMPLE` of the vectors, which need not lie in any order."""
    return vectors[np.random.default_rng(seed).permutation(len(vectors))[:SAMPLE]]


def relative(vectors: np.ndarray, codec: Codec) -> float:
    """The squared error of some vectors, in units of their variance."""
    part = sampled(vectors, seed=1)
    lost = np.square(part - codec.decode(codec.encode(part))).sum(dtype=np.float64)
    return float(lost / np.square(part - part.mean(axis=0)).sum(dtype=np.float64))


def rows(vectors: np.ndarray, queries: np.ndarray, size: int, args: Any) -> list[list[Any]]:
    """One row for each system, ours first."""
    exact = faiss.knn(queries, vectors, K, faiss.METRIC_INNER_PRODUCT)[1]
    d = vectors.shape[1]
    searches: dict[str, Search] = {}
    figures: dict[str, list[float]] = {}
    for name, codec in codecs(size, d, args.rq).items():
        index, figures[name] = ours(codec, vectors)
        searches[name] = lambda queries, index=index: index.search(queries, K, threads=args.threads).ids
        if name == "OPQ":
            with tempfile.TemporaryDirectory() as folder:
                write_faiss(index, Path(folder) / "opq")
                theirs = faiss.read_index(str(Path(folder) / "opq"))
            searches["OPQ, by faiss"] = lambda queries, index=theirs: index.search(queries, K)[1]
            figures["OPQ, by faiss"] = figures[name]
    if d % (2 * size) == 0:
        fast, figures["faiss fast scan"] = of_faiss(f"PQ{2 * size}x4fs", vectors)
        searches["faiss fast scan"] = lambda queries: fast.search(queries, K)[1]
    single = race([over(search, list(queries[: args.asked, None])) for search in searches.values()], args.rounds)
    batch = race([over(search, [queries]) for search in searches.values()], args.rounds)
    found = []
    for (name, search), one, many in zip(searches.items(), single, batch, strict=True):
        recall = np.mean([len(np.intersect1d(a, b)) for a, b in zip(search(queries), exact, strict=True)]) / K
        turns = ((one, single[0]), (many, batch[0]))
        ratios = [float(np.median(np.array(mine) / np.array(first))) for mine, first in turns]
        fit, coded, error = figures[name]
        found.append([size, name, error, float(recall), round(fit, 1), round(coded, 1),
                      float(np.median(one)) / args.asked * 1e6, float(np.median(many)) / len(queries) * 1e6,
                      *ratios])  # fmt: skip
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--vectors", type=Path, help="float32 (n, d) as .npy")
    options.add_argument("--queries", type=Path, help="float32 (nq, d) as .npy")
    options.add_argument("--size", type=int, default=100_000, help="number of clustered vectors")
    options.add_argument("--bytes", type=int, nargs="+", default=[48], help="of a code")
    options.add_argument("--asked", type=int, default=100, help="single queries in a turn")
    options.add_argument("--rounds", type=int, default=7, help="turns")
    options.add_argument("--rq", action="store_true", help="residual quantisation too")
    options.add_argument("--threads", type=int, default=1)
    args = options.parse_args()
    if args.quick:
        args.size, args.rounds, args.asked = 5000, 3, 20
    faiss.omp_set_num_threads(args.threads)
    if args.vectors:
        vectors, queries = (normalize(np.load(path).astype(np.float32)) for path in (args.vectors, args.queries))
    else:
        vectors, queries = clustered(args.size, 500, 384)
    table = [row for size in args.bytes for row in rows(vectors, queries[:500], size, args)]
    columns = ["bytes", "codes", "error", "recall@10", "fit s", "code us", "us / query", "us, batch",
               "time / first", "batch / first"]  # fmt: skip
    notes = [f"{len(vectors):,} x {vectors.shape[1]}, {args.threads} threads, {args.rounds} rounds; inner products."]
    finish(columns, table, notes, args.json)


if __name__ == "__main__":
    main()
