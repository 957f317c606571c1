"""Filters, tenants, and batches of queries with filters of their own: our dense indexes beside their peers.

    python scripts/bench_filters.py                      # clustered vectors, 50,000 x 384; graphs take minutes to build
    python scripts/bench_filters.py --parts tenants batches --size 100000
    python scripts/bench_filters.py --quick

filters: rows are allowed at random, or where they point the same way ("one side": far from most queries). Each system
runs one query at a time at the fastest setting of its ladder that reaches the target of recall@10, or at its safest.
Peers (faiss's graph and inverted lists with a bitmap, hnswlib with its callback) get their filters ready-made;
HnswlibIndex is the same graph of hnswlib with our filters.
tenants: their sizes fall as 1 / rank, a tenth of the vectors is seen by several. Each query comes from a tenant, large
ones asking more often. `insert` is one vector for one tenant, `revoke` takes one away from it.
batches: 1,000 queries, with few filters or one each, which are ranges of a column.

One thread. Systems take turns; times are medians, `time / first` is the median over the turns of the ratio.
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
from typing import Any

import faiss
import numpy as np
from bench_dense import clustered, race
from common import finish, parser

from indexes import (
    FlatIndex,
    GraphIndex,
    HNSWIndex,
    HnswlibIndex,
    Index,
    IVFIndex,
    ScanIndex,
    TenantIndex,
    search_groups,
)

K = 10
BEAMS = (16, 32, 64, 128, 256, 512, 1024, 2048)
Filtered = Callable[[np.ndarray], np.ndarray]  # queries (nq, d) -> ids (nq, K)


@dataclass
class System:
    """One built system. `under(setting, allow)` is a search; settings go from fast to safe."""

    name: str
    settings: Sequence[Any]
    under: Callable[[Any, np.ndarray], Filtered]


# -- filters -----------------------------------------------------------------------------------------------------------


def ours(index: Index, vectors: np.ndarray, sample: int = 50_000) -> System:
    """An index of ours, with the first ladder that it has."""
    knob, ladder = next(iter(index.search_ladders.items()), ("", (None,)))
    index = (index.fit(vectors[:sample]) if index.needs_fit else index).add(vectors)

    def under(value: Any, allow: np.ndarray) -> Filtered:
        knobs = {knob: value} if knob else {}
        return lambda queries: index.search(queries, K, allow=allow, threads=1, **knobs).ids

    return System(type(index).__name__, ladder[::-1], under)


def of_faiss(name: str, index: faiss.Index, vectors: np.ndarray, parameters: Callable[..., Any]) -> System:
    index.train(vectors)
    index.add(vectors)

    def under(value: int, allow: np.ndarray) -> Filtered:
        bitmap = np.packbits(allow, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(bitmap), faiss.swig_ptr(bitmap))

        def run(queries: np.ndarray) -> np.ndarray:
            assert len(bitmap)  # keeps it alive: the selector holds an address
            return index.search(queries, K, params=parameters(value, selector))[1]

        return run

    return System(name, BEAMS, under)


def of_hnswlib(vectors: np.ndarray) -> System:
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=200, M=16)
    index.add_items(vectors, num_threads=2)

    def under(ef: int, allow: np.ndarray) -> Filtered:
        listed = allow.tolist()

        def run(queries: np.ndarray) -> np.ndarray:
            index.set_ef(ef)
            try:
                found = index.knn_query(queries, K, num_threads=1, filter=lambda row: listed[row])
            except RuntimeError:  # fewer than K were met
                return np.full((len(queries), K), -1)
            return found[0].astype(np.int64)

        return run

    return System("hnswlib, filter=", BEAMS, under)


def systems(vectors: np.ndarray, without: Sequence[str]) -> Iterator[System]:
    """All systems but those whose name contains a word of `without`, built one after the other."""
    d, product = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    nlist = int(4 * len(vectors) ** 0.5)

    def beam(ef: int, selector: Any) -> Any:
        return faiss.SearchParametersHNSW(efSearch=ef, sel=selector)

    def probes(nprobe: int, selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=min(nprobe, nlist), sel=selector)

    def graph() -> faiss.Index:
        made = faiss.IndexHNSWFlat(d, 32, product)
        made.hnsw.efConstruction = 200
        return made

    makers: dict[str, Callable[[], System]] = {
        "FlatIndex": lambda: ours(FlatIndex(), vectors),
        "ScanIndex": lambda: ours(ScanIndex(), vectors),
        "TenantIndex": lambda: ours(TenantIndex(), vectors),
        "HNSWIndex": lambda: ours(HNSWIndex(), vectors),
        "GraphIndex": lambda: ours(GraphIndex(), vectors),
        "IVFIndex": lambda: ours(IVFIndex(), vectors),
    }
    makers["faiss IndexHNSWFlat"] = lambda: of_faiss("faiss IndexHNSWFlat", graph(), vectors, beam)
    makers["faiss IVF,Flat"] = lambda: of_faiss(
        "faiss IVF,Flat", faiss.index_factory(d, f"IVF{nlist},Flat", product), vectors, probes)  # fmt: skip
    if find_spec("hnswlib"):
        makers["HnswlibIndex (hnsw)"] = lambda: ours(HnswlibIndex(M=16), vectors)
        makers["hnswlib (hnsw)"] = lambda: of_hnswlib(vectors)
    for name, make in makers.items():
        if not any(word.lower() in name.lower() for word in without):
            yield make()


def filters(n: int, vectors: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, np.ndarray]]:
    side = np.argsort(vectors @ rng.standard_normal(vectors.shape[1], dtype=np.float32))
    for share in (0.1, 0.01, 0.001):
        for name, order in (("random", rng.permutation(n)), ("one side", side)):
            allow = np.zeros(n, bool)
            allow[order[: int(share * n)]] = True
            yield f"{share:.1%} {name}", allow


def of_filters(vectors: np.ndarray, queries: np.ndarray, args: Any) -> list[list[Any]]:
    flat, built, rows = FlatIndex().add(vectors), list(systems(vectors, args.without)), []
    queries = queries[: args.singles]
    singles = [queries[i : i + 1] for i in range(len(queries))]
    for name, allow in filters(len(vectors), vectors, np.random.default_rng(0)):
        kth = flat.search(queries, K, allow=allow).scores[:, -1]
        racers = []
        for system in built:
            for setting in system.settings:
                run = system.under(setting, allow)
                found = recall(run(queries), vectors, queries, kth)
                if found >= args.target:
                    break
            racers.append((system, setting, found, run))
        times = race([over(run, singles) for *_, run in racers], args.rounds)
        for (system, setting, found, _), mine in zip(racers, times, strict=True):
            rows.append([name, system.name, "-" if setting is None else str(setting), found, *rates(mine, times[0],
                                                                                                   len(singles))])
    return rows


def recall(found: np.ndarray, vectors: np.ndarray, queries: np.ndarray, kth: np.ndarray) -> float:
    """The share of ids that score as much as the K-th best of exact search, or more."""
    scores = np.einsum("qkd,qd->qk", vectors[np.maximum(found, 0)], queries)
    return round(float(((scores >= kth[:, None] - 1e-5) & (found >= 0)).mean()), 4)


def over(search: Filtered, asked: Sequence[np.ndarray]) -> Callable[[], Any]:
    return lambda: [search(queries) for queries in asked]


def rates(mine: Sequence[float], first: Sequence[float], count: int) -> tuple[int, float]:
    ratio = statistics.median(a / b for a, b in zip(mine, first, strict=True))
    return round(count / statistics.median(mine)), round(ratio, 2)


# -- tenants -----------------------------------------------------------------------------------------------------------


def zipf(n: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Who sees each of n vectors: one of `count` tenants, or with one in ten up to three more."""
    weights = 1 / np.arange(1, count + 1)
    owners = rng.choice(count, n, p=weights / weights.sum())
    guests = rng.integers(0, count, (n, 3))
    some = rng.integers(1, 4, n) * (rng.random(n) < 0.1)
    return [sorted({int(o), *g[:s].tolist()}) for o, g, s in zip(owners, guests, some, strict=True)]


def of_tenants(vectors: np.ndarray, args: Any) -> list[list[Any]]:
    n, rng = len(vectors), np.random.default_rng(0)
    seen_by = zipf(n, 200, rng)
    pairs = np.array([(tenant, row) for row, some in enumerate(seen_by) for tenant in some])
    rows_of = {tenant: pairs[pairs[:, 0] == tenant, 1] for tenant in range(200)}
    seeds = rng.choice(n, args.batch)
    asked = [int(rng.choice(seen_by[i])) for i in seeds]
    moved = vectors[seeds] + 0.3 / vectors.shape[1] ** 0.5 * rng.standard_normal((args.batch, vectors.shape[1]))
    queries = np.ascontiguousarray(moved, np.float32)
    extra = vectors[:1] + np.float32(0.01)

    shared = TenantIndex().fit(vectors[:50_000]).add(vectors, tenants=seen_by)
    own = {tenant: FlatIndex().add(vectors[rows], rows) for tenant, rows in rows_of.items()}
    fitted = {t: TenantIndex().fit(vectors[rows]).add(vectors[rows], rows) for t, rows in rows_of.items()}
    masks = {tenant: np.isin(np.arange(n), rows) for tenant, rows in rows_of.items()}
    compared: dict[str, tuple[Callable[[int, int], np.ndarray], Sequence[Index]]] = {
        "TenantIndex": (lambda q, t: shared.search(queries[q], K, tenant=t, threads=1).ids, [shared]),
        "a FlatIndex for each": (lambda q, t: own[t].search(queries[q], K, threads=1).ids, list(own.values())),
        "a TenantIndex for each": (lambda q, t: fitted[t].search(queries[q], K, threads=1).ids, list(fitted.values())),
    }
    for index in [FlatIndex(), HNSWIndex()]:
        if not any(word.lower() in type(index).__name__.lower() for word in args.without):
            index.add(vectors)

            def search(q: int, t: int, index: Index = index) -> np.ndarray:
                return index.search(queries[q], K, allow=masks[t], threads=1).ids

            compared[f"one {type(index).__name__}, allow"] = (search, [index])

    def every(search: Callable[[int, int], np.ndarray]) -> Callable[[], Any]:
        return lambda: np.concatenate([search(q, t) for q, t in enumerate(asked)])

    runs = [every(search) for search, _ in compared.values()]
    truth = runs[1]()
    kth = np.einsum("qd,qd->q", vectors[truth[:, -1]], queries)
    found = [recall(run(), vectors, queries, kth) for run in runs]
    times = race(runs, args.rounds)
    rows = []
    for (name, (_, parts)), mine, right in zip(compared.items(), times, found, strict=True):
        size = round(sum(part.describe()["bytes"] for part in parts) / 1e6, 1)
        part = parts[0]  # of the largest tenant
        wanted = {"tenants": 0} if part is shared else {}
        insert = best(lambda i, part=part, wanted=wanted: part.add(extra, [n + i], **wanted))  # type: ignore[misc]
        if part is shared:
            revoke = best(lambda i: shared.revoke([n + i], 0))
        else:
            revoke = best(lambda i, part=part: part.remove([n + i]))  # type: ignore[misc]
        rows.append([name, right, *rates(mine, times[0], len(asked)), size, insert, revoke])
    return rows


def best(do: Callable[[int], Any]) -> int:
    """Microseconds, the median of five."""
    times = []
    for i in range(5):
        start = time.perf_counter()
        do(i)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e6)


# -- batches -----------------------------------------------------------------------------------------------------------


def of_batches(vectors: np.ndarray, queries: np.ndarray, args: Any) -> list[list[Any]]:
    n, nq, rng, rows = len(vectors), len(queries), np.random.default_rng(0), []
    column, flat = rng.random(n), FlatIndex().add(vectors)
    for share in (0.1, 0.01, 0.001):
        for count in (10, nq):
            starts = rng.random(count) * (1 - share)
            allow = (column >= starts[:, None]) & (column < starts[:, None] + share)
            group = rng.integers(0, count, nq)

            def one_by_one(allow: np.ndarray = allow, group: np.ndarray = group) -> Any:
                return [flat.search(queries[q], K, allow=allow[group[q]], threads=1) for q in range(nq)]

            def by_filter(allow: np.ndarray = allow, group: np.ndarray = group) -> Any:
                mine = [(one, np.flatnonzero(group == one)) for one in np.unique(group)]
                return [flat.search(queries[which], K, allow=allow[one], threads=1) for one, which in mine]

            def together(allow: np.ndarray = allow, group: np.ndarray = group) -> Any:
                return search_groups(flat, queries, K, allow, group, threads=1)

            runs = {"search_groups": together, "FlatIndex, filter by filter": by_filter,
                    "FlatIndex, query by query": one_by_one}  # fmt: skip
            times = race(list(runs.values()), min(3, args.rounds))
            rows += [
                [f"{share:.1%}", count, name, *rates(mine, times[0], nq)]
                for name, mine in zip(runs, times, strict=True)
            ]
    return rows


COLUMNS = {
    "filters": ("allowed", "system", "setting", "recall@10", "QPS", "time / first"),
    "tenants": ("system", "recall@10", "QPS", "time / first", "MB", "insert us", "revoke us"),
    "batches": ("allowed", "filters", "system", "QPS", "time / first"),
}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--parts", nargs="+", choices=list(COLUMNS), default=list(COLUMNS), help="what to measure")
    made.add_argument("--size", type=int, help="number of vectors (default: 50,000; 10,000 with --quick)")
    made.add_argument("--dimensions", type=int, default=384, help="of the vectors")
    made.add_argument("--target", type=float, default=0.95, help="of recall@10 under filters")
    made.add_argument("--without", nargs="+", default=[], metavar="WORD", help="leave out systems named so")
    made.add_argument("--batch", type=int, default=1000, help="queries")
    made.add_argument("--singles", type=int, default=50, help="queries under each filter")
    made.add_argument("--rounds", type=int, help="turns of each system (default: 5; 2 with --quick)")
    args = made.parse_args()
    args.size, args.rounds = args.size or (10_000 if args.quick else 50_000), args.rounds or (2 if args.quick else 5)
    if args.quick:
        args.batch, args.singles = min(args.batch, 200), min(args.singles, 20)
    faiss.omp_set_num_threads(1)
    vectors, queries = clustered(args.size, args.batch, args.dimensions)
    notes = [f"{args.size:,} clustered vectors x {args.dimensions}; one thread; {args.rounds} turns."]
    for part in args.parts:
        if part == "filters":
            rows = of_filters(vectors, queries, args)
        else:
            rows = of_tenants(vectors, args) if part == "tenants" else of_batches(vectors, queries, args)
        file = args.json and args.json.with_stem(f"{args.json.stem}-{part}")
        finish(COLUMNS[part], rows, [f"{part}: recall@10 of {args.target}.", *notes], file)


if __name__ == "__main__":
    main()
