"""Binary codes beside their peers: Hamming scans, radius search, inverted lists, two-stage search, recurrent codes.

    python scripts/bench_binary.py            # 100,000 and 1,000,000 codes of 256 and 768 bits
    python scripts/bench_binary.py --only lists --plot recall.png
    python scripts/bench_binary.py --quick

Peers: faiss's IndexBinaryFlat, IndexBinaryMultiHash, IndexBinaryHash and IndexBinaryIVF, and for codes of float vectors
the same codes decoded to float32, in registers (a numba kernel, below) or by blocks with a product of BLAS. Ours and
peer take turns; times are medians, and so is the ratio, of the turns: above 1, ours is faster. `same` is whether both
gave the same answers (distances, scores, or the number within the radius), or the recall@10 of ours where it is a
number. Inverted lists, as many and learned from the same codes, race where the fewest of them that are visited reach a
recall@10; codes as near as the 10th nearest count as found.
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

import faiss
import numpy as np
from common import finish, parser
from numba import njit

from indexes import BinaryIVFIndex, FlatIndex, HammingIndex, MultiIndexHashing, RecurrentBinaryIndex, TwoStageIndex
from indexes.binary.recurrent import recurrent_codes

COLUMNS = ("task", "data", "ours", "peer", "threads", "ours us/query", "peer us/query", "peer / ours", "same")
BATCH = 64
TARGETS = (0.8, 0.9, 0.95, 0.99)  # of recall, by lists
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
Row = list[Any]
Curve = list[tuple[float, float]]  # recall, queries per second


def clustered_codes(n: int, nq: int, nbytes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes 5% of whose bits differ from one of n / 20 centres, and queries 2% of whose bits differ from a code."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (n // 20, nbytes), np.uint8)

    def flipped(codes: np.ndarray, share: float) -> np.ndarray:
        parts = np.array_split(codes, max(1, len(codes) // 50_000))
        flips = [np.packbits(rng.random((len(part), nbytes * 8)) < share, axis=1) for part in parts]
        return codes ^ np.concatenate(flips)

    codes = flipped(centres[rng.integers(0, len(centres), n)], 0.05)
    return codes, flipped(codes[rng.integers(0, n, nq)], 0.02)


def clustered_vectors(n: int, nq: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float vectors and queries, normal around n / 50 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 50), d), dtype=np.float32)

    def draw(count: int) -> np.ndarray:
        noise = rng.standard_normal((count, d), dtype=np.float32)
        return centres[rng.integers(0, len(centres), count)] + np.float32(0.8) * noise

    return draw(n), draw(nq)


def race(ours: Callable[[], Any], peer: Callable[[], Any], nq: int, rounds: int) -> tuple[float, float, float]:
    """Microseconds per query of each, and the median ratio, over alternating turns."""
    ours(), peer()
    times: list[tuple[float, float]] = []
    for turn in range(rounds):
        taken = {}
        for run in (ours, peer) if turn % 2 else (peer, ours):
            started = time.perf_counter()
            run()
            taken[run] = time.perf_counter() - started
        times.append((taken[ours], taken[peer]))
    ratio = statistics.median(b / a for a, b in times)
    return *(round(statistics.median(column) / nq * 1e6, 2) for column in zip(*times, strict=True)), ratio  # type: ignore[return-value]


def with_threads(threads: int, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` with faiss on so many threads."""

    def timed() -> Any:
        faiss.omp_set_num_threads(threads)
        return run()

    return timed


def one_by_one(search: Callable[[np.ndarray], Any], queries: np.ndarray) -> Callable[[], Any]:
    rows = [queries[i : i + 1] for i in range(len(queries))]
    return lambda: [search(row) for row in rows]


def scans(n: int, nbytes: int, rounds: int) -> list[Row]:
    """HammingIndex against IndexBinaryFlat."""
    codes, queries = clustered_codes(n, BATCH, nbytes)
    ours, peer = HammingIndex().add(codes), faiss.IndexBinaryFlat(nbytes * 8)
    peer.add(codes)
    rows = []
    for k in (10, 100, 1000):
        same = bool((peer.search(queries, k)[0] == -ours.search(queries, k).scores).all())
        for threads, batched in ((1, False), (1, True), (2, True)):
            few = queries if batched or n < 500_000 else queries[:16]

            def run(some: np.ndarray, k: int = k, threads: int = threads) -> Any:
                return ours.search(some, k, threads=threads)

            def run_peer(some: np.ndarray, k: int = k) -> Any:
                return peer.search(some, k)

            pair = [(lambda f=f: f(queries)) if batched else one_by_one(f, few) for f in (run, run_peer)]
            times = race(pair[0], with_threads(threads, pair[1]), len(few), rounds)
            what = f"scan k={k}, {f'batch of {BATCH}' if batched else 'one query'}"
            rows.append([what, f"{n:,} x {nbytes * 8}", "HammingIndex", "IndexBinaryFlat", threads, *times, same])
    return rows


def radius_searches(n: int, nbytes: int, rounds: int) -> list[Row]:
    """MultiIndexHashing against faiss's hashes, set so that they too find everything within the radius."""
    codes, queries = clustered_codes(n, 200, nbytes)
    bits, rows = nbytes * 8, []
    ours, scan = MultiIndexHashing().add(codes), HammingIndex().add(codes)
    flat, tables = faiss.IndexBinaryFlat(bits), faiss.IndexBinaryMultiHash(bits, bits // 16, 16)
    prefix = faiss.IndexBinaryHash(bits, 24)
    for index in (flat, tables, prefix):
        index.add(codes)
    for radius in (2, bits // 32, bits // 16, bits // 10):
        peers: dict[str, Callable[[np.ndarray], Any]] = {
            "HammingIndex": lambda some, r=radius: scan.search_radius(some, r, threads=1).starts,
            "IndexBinaryFlat": lambda some, r=radius: flat.range_search(some, r + 1)[0],
        }
        flips = radius // (bits // 16)  # pigeonhole: some substring of the bits / 16 differs in no more
        if flips <= 2:
            tables.nflip = flips
            peers[f"IndexBinaryMultiHash nflip={flips}"] = lambda some, r=radius: tables.range_search(some, r + 1)[0]
        if radius <= 2:
            prefix.nflip = radius
            peers[f"IndexBinaryHash nflip={radius}"] = lambda some, r=radius: prefix.range_search(some, r + 1)[0]
        for name, run in peers.items():
            some = queries[:20] if "Flat" in name or "Hamming" in name else queries
            found = ours.search_radius(some, radius, threads=1)
            same = bool((np.diff(np.asarray(run(some)).astype(np.int64)) == np.diff(found.starts)).all())
            times = race(
                lambda some=some, r=radius: ours.search_radius(some, r, threads=1),
                with_threads(1, lambda run=run, some=some: run(some)), len(some), rounds,
            )  # fmt: skip
            what = f"radius {radius} ({found.starts[-1] / len(some):.1f} found)"
            rows.append([what, f"{n:,} x {bits}", "MultiIndexHashing", name, 1, *times, same])
    for k in (1, 10, 100):
        same = bool((ours.search(queries, k).scores == scan.search(queries, k).scores).all())
        times = race(
            lambda k=k: ours.search(queries, k, threads=1), lambda k=k: scan.search(queries, k, threads=1),
            len(queries), rounds,
        )  # fmt: skip
        rows.append([f"k={k}, batch", f"{n:,} x {bits}", "MultiIndexHashing", "HammingIndex", 1, *times, same])
    return rows


def lists(n: int, nbytes: int, rounds: int) -> tuple[list[Row], dict[str, Curve]]:
    """BinaryIVFIndex against IndexBinaryIVF, and the curve of each: recall and queries per second of a batch."""
    bits, nlist = nbytes * 8, int(4 * n**0.5)
    codes, queries = signs_of_groups(n, 1000, bits)
    sample = codes[: 64 * nlist]
    faiss.omp_set_num_threads(1)
    ours = BinaryIVFIndex(nlist=nlist).fit(sample).add(codes)
    quantizer = faiss.IndexBinaryFlat(bits)
    peer = faiss.IndexBinaryIVF(quantizer, bits, nlist)
    peer.train(sample)
    peer.add(codes)
    kth = -HammingIndex().add(codes).search(queries, 10).scores[:, -1:]

    def run_ours(some: np.ndarray, nprobe: int) -> Any:
        return ours.search(some, 10, threads=1, nprobe=nprobe)

    def run_peer(some: np.ndarray, nprobe: int) -> Any:
        peer.nprobe = nprobe
        return peer.search(some, 10)

    found: dict[int, Curve] = {}  # by nprobe: recall and queries per second of ours, then of the peer
    for nprobe in (probes for probes in PROBES if probes <= nlist):
        near, labels = run_peer(queries, nprobe)
        recalls = (-run_ours(queries, nprobe).scores <= kth).mean(), ((near <= kth) & (labels >= 0)).mean()
        pair = [lambda p=nprobe: run_ours(queries, p), lambda p=nprobe: run_peer(queries, p)]
        times = race(*pair, len(queries), min(rounds, 5))
        found[nprobe] = [(float(recall), 1e6 / time) for recall, time in zip(recalls, times[:2], strict=True)]
        if min(recalls) > max(TARGETS):
            break
    rows = []
    for target in TARGETS:
        a, b = (next((p for p, both in found.items() if both[side][0] >= target), 0) for side in (0, 1))
        for batched in (False, True) if a and b else ():
            few = queries if batched else queries[:100]
            runs = (lambda some, a=a: run_ours(some, a)), (lambda some, b=b: run_peer(some, b))
            pair = [(lambda f=f: f(queries)) if batched else one_by_one(f, few) for f in runs]
            times = race(*pair, len(few), rounds)
            what = f"{a} and {b} of {nlist} lists, {f'batch of {len(few)}' if batched else 'one query'}"
            what += f", peer's recall {found[b][1][0]:.3f}"
            ours_found = round(found[a][0][0], 3)
            rows.append([what, f"{n:,} x {bits}", "BinaryIVFIndex", "IndexBinaryIVF", 1, *times, ours_found])
    names = "BinaryIVFIndex", "IndexBinaryIVF"
    return rows, {f"{name}, {bits} bits": [both[side] for both in found.values()] for side, name in enumerate(names)}


def signs_of_groups(n: int, nq: int, bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signs of float vectors around n / 100 centres, as codes, and of queries around the same."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 100), bits), dtype=np.float32)

    def draw(count: int) -> np.ndarray:
        sizes = [min(20_000, count - start) for start in range(0, count, 20_000)]
        return np.concatenate([
            np.packbits(
                centres[rng.integers(0, len(centres), size)] + rng.standard_normal((size, bits), np.float32) > 0, axis=1
            )
            for size in sizes
        ])  # fmt: skip

    return draw(n), draw(nq)


def draw(path: Path, curves: dict[str, Curve]) -> None:
    """Queries per second of a batch against recall."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 6))
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-" if name.startswith("Binary") else "s--", label=name)
    axes.set(yscale="log", xlabel="recall@10", ylabel="queries per second, a batch, one thread")
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def two_stages(n: int, d: int, rounds: int) -> list[Row]:
    """TwoStageIndex against scoring all its codes as floats, and against all vectors as floats."""
    vectors, queries = clustered_vectors(n, 16, d)
    ours = TwoStageIndex(metric="cosine").add(vectors)
    kept = TwoStageIndex(metric="cosine", rescore="float16").add(vectors)
    exact = FlatIndex(metric="cosine").add(vectors)
    signs = np.packbits(vectors >= 0, axis=1, bitorder="little")

    def decode(some: np.ndarray) -> np.ndarray:
        """Blocks of codes to float32, and a product."""
        best = []
        for start in range(0, n, 8192):
            bits = np.unpackbits(signs[start : start + 8192], axis=1, count=d, bitorder="little")
            scores = (2 * bits.astype(np.float32) - 1) @ some.T
            best.append(np.partition(scores, len(scores) - 10, axis=0)[-10:])
        return np.sort(np.concatenate(best), axis=0)[-10:][::-1].T

    rows, truth = [], exact.search(queries, 10).ids
    for index, name in ((ours, "TwoStageIndex"), (kept, "TwoStageIndex float16")):
        found = index.search(queries, 10).ids
        recall = statistics.mean(len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True))
        peers: dict[str, Callable[[np.ndarray], Any]] = {"codes decoded, BLAS": decode}
        peers["FlatIndex float32, BLAS"] = lambda some: exact.search(some, 10, threads=1)
        for peer, run in peers.items():
            for batched in (False, True):
                some = queries if batched or peer.startswith("Flat") else queries[:4]

                def run_ours(some: np.ndarray, index: Any = index) -> Any:
                    return index.search(some, 10, threads=1)

                pair = [(lambda f=f, s=some: f(s)) if batched else one_by_one(f, some) for f in (run_ours, run)]
                times = race(*pair, len(some), rounds)
                what = f"two stages k=10, {f'batch of {len(some)}' if batched else 'one query'}"
                rows.append([what, f"{n:,} x {d}", name, peer, 1, *times, round(recall, 3)])
    return rows


@njit(nogil=True, fastmath=True)
def decoded_products(codes, query, bits, scores):
    """Products of a query with packed numbers of 2 or 4 bits, decoded in registers: the peer of recurrent codes.

    A byte of `codes` uint8 (n, nbytes) holds 8 / bits numbers: of dimensions j, j + nbytes, j + 2 nbytes, ...
    """
    mask, nbytes = np.uint8((1 << bits) - 1), codes.shape[1]
    for row in range(codes.shape[0]):
        code, total = codes[row], np.float32(0)
        for part in range(8 // bits):
            shift, numbers = np.uint8(part * bits), query[part * nbytes : (part + 1) * nbytes]
            for j in range(nbytes):
                total += np.float32((code[j] >> shift) & mask) * numbers[j]
        scores[row] = total


def recurrent(n: int, d: int, levels: int, rounds: int) -> list[Row]:
    """RecurrentBinaryIndex against the same codes as floats."""
    vectors, queries = clustered_vectors(n, BATCH, d)
    index = RecurrentBinaryIndex(levels=levels).add(vectors)

    def integers(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each number as 0 to 2^levels - 1, and the lengths of the codes."""
        planes, _, lengths = recurrent_codes(part, levels)
        bits = np.unpackbits(planes.reshape(len(part), levels, -1), axis=2, count=d, bitorder="little")
        return sum(bits[:, i] << np.uint8(levels - 1 - i) for i in range(levels)), lengths.astype(np.float32)  # type: ignore[return-value]

    parts = [integers(vectors[a : a + 20_000]) for a in range(0, n, 20_000)]
    whole, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
    asked, query_lengths = integers(queries)
    most, per_byte = np.float32(2**levels - 1), 8 // levels
    unit = (2 * asked.astype(np.float32) - most) / query_lengths[:, None]
    split = whole.reshape(n, per_byte, d // per_byte)
    packed = np.bitwise_or.reduce([split[:, i] << np.uint8(levels * i) for i in range(per_byte)])
    out = np.empty(n, np.float32)

    def best(scores: np.ndarray) -> np.ndarray:
        return np.sort(np.partition(scores, n - 10)[n - 10 :])[::-1]

    def in_registers(which: np.ndarray) -> list[np.ndarray]:
        found = []
        for i in which:
            decoded_products(packed, unit[i], levels, out)
            found.append(best((2 * out - most * unit[i].sum()) / lengths))
        return found

    def by_blocks(which: np.ndarray) -> list[np.ndarray]:
        columns = []
        for start in range(0, n, 4096):
            block = packed[start : start + 4096]
            numbers = np.concatenate(
                [(block >> np.uint8(levels * i)) & np.uint8(most) for i in range(per_byte)], axis=1
            ).astype(np.float32)
            columns.append(2 * (unit[which] @ numbers.T) - most * unit[which].sum(axis=1, keepdims=True))
        return [best(row / lengths) for row in np.concatenate(columns, axis=1)]

    rows, everything = [], np.arange(BATCH)
    ours = index.search(queries, 10).scores
    for name, run in (("floats in registers", in_registers), ("floats by blocks, BLAS", by_blocks)):
        for batched in (False, True):
            which = everything if batched else everything[:8]
            same = bool(np.allclose(ours[which], run(which), atol=1e-4))
            pair: list[Callable[[], Any]] = [
                lambda w=which: index.search(queries[w], 10, threads=1), lambda w=which, run=run: run(w),
            ]  # fmt: skip
            if not batched:
                pair = [lambda w=which, f=f: [f(w[i : i + 1]) for i in range(len(w))] for f in (
                    lambda w: index.search(queries[w], 10, threads=1), run)]  # fmt: skip
            times = race(*pair, len(which), rounds)
            what = f"{levels} levels k=10, {f'batch of {BATCH}' if batched else 'one query'}"
            rows.append([what, f"{n:,} x {d}", "RecurrentBinaryIndex", name, 1, *times, same])
    return rows


PARTS = ("scans", "radius", "lists", "two-stages", "recurrent")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, help="turns of each pair (default: 15; 5 with --quick)")
    arguments.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=", ".join(PARTS))
    arguments.add_argument("--plot", type=Path, metavar="FILE", help="a picture of speed against recall, of the lists")
    options = arguments.parse_args()
    if options.plot and find_spec("matplotlib") is None:
        arguments.error("--plot needs: pip install matplotlib")
    if options.plot and "lists" not in options.only:
        arguments.error("--plot shows the lists; --only leaves them out")
    rounds = options.rounds or (5 if options.quick else 15)
    rows: list[Row] = []
    curves: dict[str, Curve] = {}

    def sizes(part: str, quick: Sequence[tuple[int, int]], usual: Sequence[tuple[int, int]]) -> Sequence[Any]:
        return () if part not in options.only else quick if options.quick else usual

    large = ((100_000, 32), (100_000, 96), (1_000_000, 32), (1_000_000, 96))
    for n, nbytes in sizes("scans", ((20_000, 32), (20_000, 96)), large):
        rows += scans(n, nbytes, rounds)
    for n, nbytes in sizes("radius", ((50_000, 16),), ((1_000_000, 8), (1_000_000, 16), (1_000_000, 32))):
        rows += radius_searches(n, nbytes, rounds)
    for n, nbytes in sizes("lists", ((20_000, 16),), ((200_000, 8), (200_000, 16), (200_000, 32), (200_000, 64))):
        more, curve = lists(n, nbytes, rounds)
        rows, curves = rows + more, curves | curve
    for n, d in sizes("two-stages", ((10_000, 768),), ((100_000, 768),)):
        rows += two_stages(n, d, rounds)
    for n, d in sizes("recurrent", ((10_000, 768),), ((100_000, 768),)):
        for levels in (2, 4):
            rows += recurrent(n, d, levels, rounds)
    notes = [f"{rounds} alternating turns a pair; faiss {faiss.__version__} ({faiss.get_compile_options().strip()})."]
    finish(COLUMNS, rows, notes, options.json)
    if options.plot:
        draw(options.plot, curves)


if __name__ == "__main__":
    main()
