"""Dense indexes beside their peers: recall, queries per second, bytes and build time, against the number of vectors.

    python scripts/bench_dense.py                                        # clustered vectors, 20,000 to 200,000 x 384
    python scripts/bench_dense.py --vectors docs.npy --queries q.npy     # real embeddings, (n, d) and (nq, d)
    python scripts/bench_dense.py --sizes 100000 1000000 --without hnsw  # graphs take long to build
    python scripts/bench_dense.py --plot pictures                        # recall_qps.png and growth.png (matplotlib)
    python scripts/bench_dense.py --quick

Ours: FlatIndex, ScanIndex, IVFIndex and GraphIndex with several codecs, HNSWIndex and IVFPQIndex (both of which are
faiss's inside). Peers: faiss's flat, 4-bit product, scalar and RaBitQ quantisers with exact re-ranking (RFlat), flat
and in lists, and its HNSW; hnswlib, usearch, SVS and turbovec when they are installed. See dense_peers.py.

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
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # by turbovec

import faiss
import numpy as np
from common import finish, parser
from dense_peers import K, Search, systems

from indexes import FlatIndex
from indexes.dense.base import normalize

DRAWN_FROM = 0.8  # recall
COLUMNS = ("n x d", "recall@10 of", "queries", "system", "setting", "recall@10", "QPS", "time / first", "MB", "build s")


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


def measured(
    vectors: np.ndarray, queries: np.ndarray, learned_from: np.ndarray, args: Any
) -> tuple[list[list[Any]], dict[str, list[tuple[float, float]]]]:
    """The rows of one collection; and of each system (recall, queries per second in the batch) at each setting."""
    faiss.omp_set_num_threads(1)
    kth = FlatIndex().add(vectors).search(queries, K).scores[:, -1]
    all_systems = list(systems(vectors, learned_from, args.without, args.only))
    recalls: dict[tuple[str, Any], float] = {}
    first: dict[tuple[str, Any], float] = {}  # seconds of a pass, which choose among settings
    for system in all_systems:
        for setting in system.settings:
            run = system.search(setting)
            start = time.perf_counter()
            found = run(queries)
            first[system.name, setting] = time.perf_counter() - start
            recalls[system.name, setting] = recall(found, vectors, queries, kth)
    curves: dict[str, list[tuple[float, float]]] = {}
    for (name, setting), seconds in first.items():
        curves.setdefault(name, []).append((recalls[name, setting], len(queries) / seconds))
    rows = []
    singles = [queries[i : i + 1] for i in range(min(len(queries), args.singles))]
    for target in args.targets:
        racers = []
        for system in all_systems:
            reach = [setting for setting in system.settings if recalls[system.name, setting] >= target]
            if reach:
                racers.append((system, min(reach, key=lambda setting: first[system.name, setting])))
        for batched in (False, True):
            asked = [queries] if batched else singles
            count = sum(len(some) for some in asked)
            runs = [over(system.search(setting), asked) for system, setting in racers]
            times = race(runs, args.rounds)
            for (system, setting), mine in zip(racers, times, strict=True):
                ratio = statistics.median(a / b for a, b in zip(mine, times[0], strict=True))
                rows.append([
                    f"{len(vectors):,} x {vectors.shape[1]}", target, f"batch of {count}" if batched else "one by one",
                    system.name, _shown(setting), recalls[system.name, setting],
                    round(count / statistics.median(mine)), round(ratio, 2), round(system.megabytes, 1),
                    system.build_seconds,
                ])  # fmt: skip
    return rows, curves


def _shown(setting: Any) -> str:
    return "/".join(map(str, setting)) or "-" if isinstance(setting, tuple) else str(setting)


def grown(rows: Sequence[Sequence[Any]], target: float) -> dict[str, list[tuple[float, float]]]:
    """Of each system the number of vectors and queries per second, one at a time, at one target: where a scan stops."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for size, reached, queries, name, _, _, speed, *_ in rows:
        if queries == "one by one" and reached == target:
            lines.setdefault(name, []).append((int(size.split(" ")[0].replace(",", "")), speed))
    return lines


def envelope(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both recall and speed."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points, reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept


def draw(path: Path, lines: dict[str, list[tuple[float, float]]], title: str, **axis: str) -> None:
    """A picture of one line for each system: ours drawn through, peers dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 7))
    axes.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)
    for name, points in lines.items():
        ours = name.split(" ")[0].endswith("Index")
        axes.plot(*zip(*sorted(points), strict=True), "o-" if ours else "s--", label=name, markersize=4)
    axes.set(yscale="log", title=title, **axis)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--vectors", type=Path, metavar="NPY", help="vectors (n, d); they are normalised")
    made.add_argument("--queries", type=Path, metavar="NPY", help="queries (nq, d)")
    made.add_argument("--sizes", type=int, nargs="+", help="numbers of vectors (default: 20,000 to 200,000, or all)")
    made.add_argument("--dimensions", type=int, default=384, help="of clustered vectors")
    made.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.95, 0.99, 1.0], help="of recall@10")
    made.add_argument("--without", nargs="+", default=[], metavar="WORD", help="leave out systems named so")
    made.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only systems named so")
    made.add_argument("--batch", type=int, default=256, help="queries")
    made.add_argument("--singles", type=int, default=32, help="queries that are asked one by one")
    made.add_argument("--rounds", type=int, help="turns of each system (default: 7; 3 with --quick)")
    made.add_argument("--plot", type=Path, metavar="FOLDER", help="pictures: recall_qps.png, growth.png")
    args = made.parse_args()
    if args.plot and find_spec("matplotlib") is None:
        made.error("--plot needs: pip install matplotlib")
    if (args.vectors is None) != (args.queries is None):
        made.error("--vectors and --queries come together")
    args.rounds = args.rounds or (3 if args.quick else 7)
    if args.quick:
        args.batch, args.singles = min(args.batch, 64), min(args.singles, 8)
        args.without = [*args.without, "hnsw", "ivf", "svs", "usearch", "LVQ", "LeanVec"]  # they take long to build
    whole: tuple[np.ndarray, np.ndarray] | None = None
    if args.vectors:
        whole = normalize(np.load(args.vectors).astype(np.float32)), normalize(np.load(args.queries).astype(np.float32))
    usual = [20_000] if args.quick else [20_000, 50_000, 100_000, 200_000]
    sizes = args.sizes or ([len(whole[0])] if whole else usual)
    rows: list[list[Any]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for n in sizes:
        vectors, queries = whole or clustered(n, 2 * args.batch, args.dimensions)
        asked, others = queries[: args.batch], queries[args.batch :]  # what codecs learn from is not measured
        if not len(others):
            made.error(f"--queries holds {len(queries)}; more than --batch, {args.batch}, are needed")
        more, curves = measured(np.ascontiguousarray(vectors[:n]), np.ascontiguousarray(asked), others, args)
        rows += more
    source = f"{args.vectors.name}" if args.vectors else "clustered vectors"
    options = faiss.get_compile_options().strip()
    notes = [f"{source}; one thread; {args.rounds} turns; faiss {faiss.__version__} ({options})."]
    finish(COLUMNS, rows, notes, args.json)
    if args.plot:
        lines = {name: envelope([p for p in points if p[0] >= DRAWN_FROM]) for name, points in curves.items()}
        draw(args.plot / "recall_qps.png", {name: line for name, line in lines.items() if line},
             f"{source}, {rows[-1][0]}; a batch, one thread", xlabel=f"recall@{K}", ylabel="queries per second")
        target = max(args.targets)
        draw(args.plot / "growth.png", grown(rows, target), f"recall@{K} of at least {target}, one by one, one thread",
             xlabel="vectors", ylabel="queries per second", xscale="log")


if __name__ == "__main__":
    main()
