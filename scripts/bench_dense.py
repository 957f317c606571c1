"""Dense indexes beside their peers: recall, queries per second, bytes and build time, against the number of vectors.

    python scripts/bench_dense.py                                        # clustered vectors, 20,000 to 200,000 x 384
    python scripts/bench_dense.py --vectors docs.npy --queries q.npy     # real embeddings, (n, d) and (nq, d)
    python scripts/bench_dense.py --sizes 100000 1000000 --without hnsw  # graphs take long to build
    python scripts/bench_dense.py --quick

Ours: FlatIndex, ScanIndex with several codecs, HNSWIndex, IVFPQIndex (both of which are faiss's inside). Peers: faiss's
IndexFlatIP, and its 4-bit product quantiser, scalar quantisers and RaBitQ with exact re-ranking (RFlat); hnswlib and
usearch when they are installed. All of them rank by inner products of normalised vectors, on one thread.

For each target of recall@10 (against exact search, ties counted as found), each system runs at the fastest setting of
its ladder that reaches it, one query at a time and in a batch; systems that do not reach it are left out. They take
turns; times are medians, and `time / first` is the median over the turns of its time to that of the first line.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # by faiss: else its threads spin on while it is not its turn

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from common import finish, parser

from indexes import FlatIndex, HNSWIndex, Index, IVFPQIndex, ScanIndex
from indexes.codecs import SQ, RaBitQ
from indexes.dense.base import normalize

COLUMNS = ("n x d", "recall@10 of", "queries", "system", "setting", "recall@10", "QPS", "time / first", "MB", "build s")
K = 10
SAMPLE = 50_000  # vectors to learn codes from
CANDIDATES = (10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000)
BEAMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class System:
    """One built system. `search(setting)` is a function from queries to ids (nq, K); settings go from fast to safe."""

    name: str
    settings: Sequence[Any]
    search: Callable[[Any], Search]
    megabytes: float
    build_seconds: float


def clustered(n: int, nq: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around n / 100 centres, the spread of direction i falling as 1 / sqrt(i), as in embeddings, all rotated.

    A query is a vector moved by 0.7 of what sets it apart from its centre.
    """
    rng = np.random.default_rng(seed)
    spread = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    centres = rng.standard_normal((max(1, n // 100), d), dtype=np.float32)
    vectors = centres[rng.integers(0, len(centres), n)] + rng.standard_normal((n, d), dtype=np.float32)
    queries = vectors[rng.integers(0, n, nq)] + np.float32(0.7) * rng.standard_normal((nq, d), dtype=np.float32)
    return normalize(vectors * spread @ rotation), normalize(queries * spread @ rotation)


# -- systems -----------------------------------------------------------------------------------------------------------


def built(name: str, settings: Sequence[Any], make: Callable[[], Any], search: Any, size: Any) -> System:
    """Time `make()`; `search(index, setting)` then gives a function, and `size(index)` bytes."""
    start = time.perf_counter()
    index = make()
    seconds = round(time.perf_counter() - start, 1)
    return System(name, settings, lambda setting: search(index, setting), size(index) / 1e6, seconds)


def ours(
    name: str, index: Index, vectors: np.ndarray, knob: str | None = None, values: Sequence[Any] = (None,)
) -> System:
    def make() -> Index:
        return (index.fit(vectors[:SAMPLE]) if index.needs_fit else index).add(vectors)

    def search(index: Index, value: Any) -> Search:
        knobs = {} if knob is None else {knob: value}
        return lambda queries: index.search(queries, K, threads=1, **knobs).ids

    return built(name, values, make, search, lambda index: index.describe()["bytes"])


def of_faiss(factory: str, vectors: np.ndarray) -> System:
    refined = factory.endswith("RFlat")

    def make() -> faiss.Index:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:SAMPLE])
        index.add(vectors)
        return index

    def search(index: faiss.Index, candidates: int) -> Search:
        parameters = faiss.IndexRefineSearchParameters(k_factor=candidates / K) if refined else None
        return lambda queries: index.search(queries, K, params=parameters)[1]

    def size(index: faiss.Index) -> int:
        parts: list[int] = []
        faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: parts.append(len(part))))
        return sum(parts)

    return built(f"faiss {factory}", CANDIDATES if refined else (None,), make, search, size)


def of_hnswlib(vectors: np.ndarray) -> System:
    import hnswlib

    def make() -> Any:
        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=200, M=32)
        index.add_items(vectors, num_threads=1)
        return index

    def search(index: Any, ef: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            index.set_ef(ef)
            return index.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return run

    return built("hnswlib M=32", BEAMS, make, search, lambda index: index.index_file_size())


def of_usearch(vectors: np.ndarray) -> System:
    from usearch.index import Index as USearch

    def make() -> Any:
        index = USearch(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=32, expansion_add=200)
        index.add(np.arange(len(vectors)), vectors, threads=1)
        return index

    def search(index: Any, beam: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            index.expansion_search = beam
            return np.atleast_2d(index.search(queries, K, threads=1).keys).astype(np.int64)

        return run

    return built("usearch M=32", BEAMS, make, search, lambda index: index.memory_usage)


def systems(vectors: np.ndarray, without: Sequence[str]) -> Iterator[System]:
    """All systems but those whose name contains a word of `without`, built one after the other."""
    d = vectors.shape[1]
    makers: dict[str, Callable[[str], System]] = {
        "ScanIndex SQ 4 bits": lambda name: ours(name, ScanIndex(), vectors, "candidates", CANDIDATES),
        "ScanIndex SQ 8 bits": lambda name: ours(
            name, ScanIndex(codec=SQ(bits=8), rerank="float16"), vectors, "candidates", CANDIDATES),
        "ScanIndex RaBitQ": lambda name: ours(name, ScanIndex(codec=RaBitQ()), vectors, "candidates", CANDIDATES),
        "FlatIndex float32": lambda name: ours(name, FlatIndex(), vectors),
        "FlatIndex float16": lambda name: ours(name, FlatIndex(dtype="float16"), vectors),
        "IVFPQIndex": lambda name: ours(name, IVFPQIndex(bytes=d // 4), vectors, "nprobe", BEAMS),
        "HNSWIndex": lambda name: ours(name, HNSWIndex(), vectors, "ef_search", BEAMS),
    }  # fmt: skip
    for factory in ("Flat", f"PQ{d // 2}x4fs,RFlat", "SQ4,RFlat", "SQ8,RFlat", "RaBitQfs,RFlat"):
        makers[f"faiss {factory}"] = lambda name: of_faiss(name.removeprefix("faiss "), vectors)
    if find_spec("hnswlib"):
        makers["hnswlib (hnsw)"] = lambda name: of_hnswlib(vectors)
    if find_spec("usearch"):
        makers["usearch (hnsw)"] = lambda name: of_usearch(vectors)
    for name, make in makers.items():
        if not any(word.lower() in name.lower() for word in without):
            yield make(name)


# -- measuring ---------------------------------------------------------------------------------------------------------


def recall(found: np.ndarray, vectors: np.ndarray, queries: np.ndarray, kth: np.ndarray) -> float:
    """The share of ids that score as much as the K-th best of exact search, or more."""
    scores = np.einsum("qkd,qd->qk", vectors[np.maximum(found, 0)], queries)
    return round(float(((scores >= kth[:, None] - 1e-5) & (found >= 0)).mean()), 5)


def race(runs: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each, over alternating turns."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        order = range(len(runs)) if turn % 2 else reversed(range(len(runs)))
        for i in order:
            start = time.perf_counter()
            runs[i]()
            times[i].append(time.perf_counter() - start)
    return times


def over(search: Search, asked: Sequence[np.ndarray]) -> Callable[[], Any]:
    return lambda: [search(queries) for queries in asked]


def measured(vectors: np.ndarray, queries: np.ndarray, args: Any) -> list[list[Any]]:
    faiss.omp_set_num_threads(1)
    kth = FlatIndex().add(vectors).search(queries, K).scores[:, -1]
    all_systems = list(systems(vectors, args.without))
    recalls = {
        (system.name, setting): recall(system.search(setting)(queries), vectors, queries, kth)
        for system in all_systems for setting in system.settings
    }  # fmt: skip
    rows = []
    singles = [queries[i : i + 1] for i in range(min(len(queries), args.singles))]
    for target in args.targets:
        racers = []
        for system in all_systems:
            reach = [setting for setting in system.settings if recalls[system.name, setting] >= target]
            racers += [(system, reach[0])] if reach else []
        for batched in (False, True):
            asked = [queries] if batched else singles
            count = sum(len(some) for some in asked)
            runs = [over(system.search(setting), asked) for system, setting in racers]
            times = race(runs, args.rounds)
            for (system, setting), mine in zip(racers, times, strict=True):
                ratio = statistics.median(a / b for a, b in zip(mine, times[0], strict=True))
                rows.append([
                    f"{len(vectors):,} x {vectors.shape[1]}", target, f"batch of {count}" if batched else "one by one",
                    system.name, "-" if setting is None else str(setting), recalls[system.name, setting],
                    round(count / statistics.median(mine)), round(ratio, 2), round(system.megabytes, 1),
                    system.build_seconds,
                ])  # fmt: skip
    return rows


def draw(path: Path, rows: Sequence[Sequence[Any]], target: float) -> None:
    """Queries per second against the number of vectors, one query at a time, at one target: where a scan stops."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6))
    lines: dict[str, list[tuple[int, int]]] = {}
    for size, reached, queries, name, _, _, speed, *_ in rows:
        if queries == "one by one" and reached == target:
            lines.setdefault(name, []).append((int(size.split(" ")[0].replace(",", "")), speed))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-" if name[0].isupper() else "s--", label=name)
    axes.set(xscale="log", yscale="log", xlabel="vectors", ylabel="queries per second, one by one, one thread")
    axes.set_title(f"recall@{K} of at least {target}")
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--vectors", type=Path, metavar="NPY", help="vectors (n, d); they are normalised")
    made.add_argument("--queries", type=Path, metavar="NPY", help="queries (nq, d)")
    made.add_argument("--sizes", type=int, nargs="+", help="numbers of vectors (default: 20,000 to 200,000, or all)")
    made.add_argument("--dimensions", type=int, default=384, help="of clustered vectors")
    made.add_argument("--targets", type=float, nargs="+", default=[0.95, 0.99, 1.0], help="of recall@10")
    made.add_argument("--without", nargs="+", default=[], metavar="WORD", help="leave out systems named so")
    made.add_argument("--batch", type=int, default=256, help="queries")
    made.add_argument("--singles", type=int, default=32, help="queries that are asked one by one")
    made.add_argument("--rounds", type=int, help="turns of each system (default: 7; 3 with --quick)")
    made.add_argument("--plot", type=Path, metavar="FILE", help="a picture of speed against n, at the highest target")
    args = made.parse_args()
    if args.plot and find_spec("matplotlib") is None:
        made.error("--plot needs: pip install matplotlib")
    if (args.vectors is None) != (args.queries is None):
        made.error("--vectors and --queries come together")
    args.rounds = args.rounds or (3 if args.quick else 7)
    if args.quick:
        args.batch, args.singles = min(args.batch, 64), min(args.singles, 8)
        args.without = [*args.without, "hnsw", "ivfpq"]  # they take long to build
    whole: tuple[np.ndarray, np.ndarray] | None = None
    if args.vectors:
        whole = normalize(np.load(args.vectors).astype(np.float32)), normalize(np.load(args.queries).astype(np.float32))
    usual = [20_000] if args.quick else [20_000, 50_000, 100_000, 200_000]
    sizes = args.sizes or ([len(whole[0])] if whole else usual)
    rows: list[list[Any]] = []
    for n in sizes:
        vectors, queries = whole or clustered(n, args.batch, args.dimensions)
        rows += measured(np.ascontiguousarray(vectors[:n]), np.ascontiguousarray(queries[: args.batch]), args)
    source = f"{args.vectors.name}" if args.vectors else "clustered vectors"
    options = faiss.get_compile_options().strip()
    notes = [f"{source}; one thread; {args.rounds} turns; faiss {faiss.__version__} ({options})."]
    finish(COLUMNS, rows, notes, args.json)
    if args.plot:
        draw(args.plot, rows, max(args.targets))


if __name__ == "__main__":
    main()
