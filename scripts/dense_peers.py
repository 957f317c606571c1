"""The systems that bench_dense.py compares: ours and their peers, each built and searched alike, on one thread.

All of them rank by inner products of normalised vectors.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from indexes import FlatIndex, GraphIndex, HNSWIndex, Index, IVFIndex, IVFPQIndex, ScanIndex
from indexes.codecs import LVQ, SQ, Chain, LeanVec, RaBitQ

K = 10
SAMPLE = 50_000  # vectors to learn codes from
CANDIDATES = (10, 15, 20, 30, 50, 100, 200, 500, 1000, 2000, 5000)
BEAMS = (10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
PROBES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
Search = Callable[[np.ndarray], np.ndarray]


@dataclass
class System:
    """One built system. `search(setting)` is a function from queries to ids (nq, K); settings go from fast to safe."""

    name: str
    settings: Sequence[Any]
    search: Callable[[Any], Search]
    megabytes: float
    build_seconds: float


def built(name: str, settings: Sequence[Any], make: Callable[[], Any], search: Any, size: Any) -> System:
    """Time `make()`; `search(index, setting)` then gives a function, and `size(index)` bytes."""
    start = time.perf_counter()
    index = make()
    seconds = round(time.perf_counter() - start, 1)
    return System(name, settings, lambda setting: search(index, setting), size(index) / 1e6, seconds)


def ours(name: str, index: Index, vectors: np.ndarray, queries: np.ndarray, **ladders: Sequence[Any]) -> System:
    """`ladders`: search parameter -> values. `queries`: to learn from (LeanVec), none that are measured."""

    def make() -> Index:
        if isinstance(index, ScanIndex | GraphIndex):
            index.fit(vectors[:SAMPLE], queries)
        elif index.needs_fit:
            index.fit(vectors[:SAMPLE])
        return index.add(vectors)

    def search(index: Index, values: tuple[Any, ...]) -> Search:
        knobs = dict(zip(ladders, values, strict=True))
        return lambda queries: index.search(queries, K, threads=1, **knobs).ids

    return built(name, list(product(*ladders.values())), make, search, lambda index: index.describe()["bytes"])


def of_faiss(factory: str, vectors: np.ndarray) -> System:
    refined, lists = factory.endswith("RFlat"), factory.startswith("IVF")

    def make() -> faiss.Index:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[:SAMPLE])
        index.add(vectors)
        return index

    def search(index: faiss.Index, setting: tuple[int, ...]) -> Search:
        if factory.startswith("HNSW"):
            beam = faiss.SearchParametersHNSW(efSearch=setting[0])
            return lambda queries: index.search(queries, K, params=beam)[1]
        base = faiss.SearchParametersIVF(nprobe=setting[0]) if lists else None
        if not refined:
            return lambda queries: index.search(queries, K)[1]
        refine = faiss.IndexRefineSearchParameters(k_factor=setting[-1] / K, base_index_params=base)
        return lambda queries: index.search(queries, K, params=refine)[1]

    def size(index: faiss.Index) -> int:
        parts: list[int] = []
        faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: parts.append(len(part))))
        return sum(parts)

    settings: list[tuple[int, ...]] = [(count,) for count in CANDIDATES] if refined else [()]
    if lists:
        settings = list(product(PROBES, (15, 30, 50, 100)))
    if factory.startswith("HNSW"):
        settings = [(beam,) for beam in BEAMS]
    return built(f"faiss {factory}", settings, make, search, size)


def of_hnswlib(vectors: np.ndarray) -> System:
    import hnswlib

    def make() -> Any:
        index = hnswlib.Index("ip", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=200, M=16)
        index.add_items(vectors, num_threads=2)
        return index

    def search(index: Any, ef: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            index.set_ef(ef)
            return index.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return run

    return built("hnswlib M=16", BEAMS, make, search, lambda index: index.index_file_size())


def of_usearch(vectors: np.ndarray) -> System:
    from usearch.index import Index as USearch

    def make() -> Any:
        index = USearch(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=128)
        index.add(np.arange(len(vectors)), vectors, threads=2)
        return index

    def search(index: Any, beam: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            index.expansion_search = beam
            return np.atleast_2d(index.search(queries, K, threads=1).keys).astype(np.int64)

        return run

    return built("usearch float16", BEAMS, make, search, lambda index: index.memory_usage)


def of_svs(vectors: np.ndarray, kind: str) -> System:
    """Intel's Scalable Vector Search: Vamana over float16, LVQ 4x8 or LeanVec (half of the dimensions, 8 bits)."""
    import svs

    folder = Path(tempfile.mkdtemp(prefix="svs-"))

    def make() -> Any:
        options = svs.VamanaBuildParameters(graph_max_degree=32, window_size=150, alpha=0.95)
        if kind == "float16":
            return svs.Vamana.build(options, vectors.astype(np.float16), svs.MIP, num_threads=2)
        svs.write_vecs(vectors, str(folder / "v.fvecs"))
        svs.convert_vecs_to_svs(str(folder / "v.fvecs"), str(folder / "v.svs"))
        loader = svs.VectorDataLoader(str(folder / "v.svs"), svs.float32, dims=vectors.shape[1])
        if kind == "LVQ 4x8":
            return svs.Vamana.build(options, svs.LVQLoader(loader, 4, 8), svs.MIP, num_threads=2)
        reduced = svs.LeanVecLoader(loader, vectors.shape[1] // 2, svs.LeanVecKind.lvq8, svs.LeanVecKind.lvq8)
        return svs.Vamana.build(options, reduced, svs.MIP, num_threads=2)

    def search(index: Any, window: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            index.num_threads = 1
            index.search_window_size = window
            return index.search(queries, K)[0].astype(np.int64)

        return run

    def size(index: Any) -> int:
        index.save(str(folder / "c"), str(folder / "g"), str(folder / "d"))
        return sum(path.stat().st_size for part in "cgd" for path in (folder / part).rglob("*") if path.is_file())

    return built(f"SVS {kind}", BEAMS, make, search, size)


def of_turbovec(vectors: np.ndarray) -> System:
    """4-bit scan; the candidates are ranked again here, by a kernel of ours, since it has no vectors."""
    import turbovec

    from indexes.kernels import exact

    def make() -> Any:
        index = turbovec.TurboQuantIndex(dim=vectors.shape[1], bit_width=4)
        index.add(vectors)
        return index

    def search(index: Any, candidates: int) -> Search:
        def run(queries: np.ndarray) -> np.ndarray:
            rows = np.ascontiguousarray(index.search(queries, candidates)[1], dtype=np.int64)
            scores = np.empty(rows.shape, np.float32)
            exact.chosen(vectors, queries, rows, False, scores)
            return np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], axis=1)

        return run

    size = vectors.nbytes + (vectors.shape[1] // 2 + 4) * len(vectors)
    return built("turbovec 4 bits + rerank", CANDIDATES[:7], make, search, lambda _: size)


def systems(vectors: np.ndarray, queries: np.ndarray, without: Sequence[str], only: Sequence[str]) -> Iterator[System]:
    """All systems but those whose name contains a word of `without`, built one after the other.

    `only`: those whose name contains one of its words, if there are any. `queries`: for codecs that learn from some.
    """
    d = vectors.shape[1]
    nlist = int(4 * len(vectors) ** 0.5)

    def mine(index: Callable[[], Index], **ladders: Sequence[Any]) -> Callable[[str], System]:
        return lambda name: ours(name, index(), vectors, queries, **ladders)

    makers: dict[str, Callable[[str], System]] = {
        "ScanIndex SQ 4 bits": mine(ScanIndex, candidates=CANDIDATES),
        "ScanIndex SQ 2 bits": mine(lambda: ScanIndex(codec=SQ(bits=2)), candidates=CANDIDATES),
        "ScanIndex SQ 8 bits": mine(
            lambda: ScanIndex(codec=SQ(bits=8), rerank="float16"), candidates=CANDIDATES),
        "ScanIndex RaBitQ": mine(lambda: ScanIndex(codec=RaBitQ()), candidates=CANDIDATES),
        "FlatIndex float32": mine(FlatIndex),
        "FlatIndex float16": mine(lambda: FlatIndex(dtype="float16")),
        "IVFPQIndex": mine(lambda: IVFPQIndex(bytes=d // 4), nprobe=PROBES),
        "IVFIndex SQ 4 bits": mine(IVFIndex, nprobe=PROBES, candidates=(15, 30, 50)),
        "IVFIndex SQ 2 bits": mine(
            lambda: IVFIndex(codec=SQ(bits=2), rerank="float16"), nprobe=PROBES, candidates=(30, 50, 100)),
        "GraphIndex SQ 8 bits": mine(GraphIndex, search_window=BEAMS),
        "GraphIndex LVQ 4 bits": mine(lambda: GraphIndex(codec=LVQ(bits=4)), search_window=BEAMS),
        "GraphIndex LVQ 4 bits, lvq8": mine(
            lambda: GraphIndex(codec=LVQ(bits=4), rerank="lvq8"), search_window=BEAMS),
        "GraphIndex LeanVec": mine(
            lambda: GraphIndex(codec=Chain(LeanVec(dimensions=d // 2), LVQ(bits=8))), search_window=BEAMS),
        "HNSWIndex": mine(HNSWIndex, ef_search=BEAMS),
    }  # fmt: skip
    for factory in ("Flat", f"PQ{d // 2}x4fs,RFlat", "SQ4,RFlat", "SQ8,RFlat", "RaBitQfs,RFlat",
                    f"IVF{nlist},PQ{d // 2}x4fs,RFlat", "HNSW32"):  # fmt: skip
        makers[f"faiss {factory}"] = lambda name: of_faiss(name.removeprefix("faiss "), vectors)
    if find_spec("hnswlib"):
        makers["hnswlib"] = lambda name: of_hnswlib(vectors)
    if find_spec("usearch"):
        makers["usearch"] = lambda name: of_usearch(vectors)
    if find_spec("svs"):
        for kind in ("float16", "LVQ 4x8", "LeanVec"):
            makers[f"SVS {kind}"] = lambda name: of_svs(vectors, name.removeprefix("SVS "))
    if find_spec("turbovec") and d % 8 == 0:  # it takes no other
        makers["turbovec"] = lambda name: of_turbovec(vectors)
    for name, make in makers.items():
        wanted = not only or any(word.lower() in name.lower() for word in only)
        if wanted and not any(word.lower() in name.lower() for word in without):
            yield make(name)
