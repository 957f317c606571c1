"""The peers of bench_sparse.py for learned sparse vectors. Run by peer_worker.py, in any Python with numpy:

    python sparse_peers.py NAME FOLDER

FOLDER holds documents.npz and queries.npz (scipy CSR). Each peer is driven as its own documentation does. What it is
given is made beforehand, and ids are looked up afterwards: only the peer itself is timed. Where weights have 8 bits,
255 is the largest weight of the collection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peer_worker import Peer, Setting, serve

BUILD_THREADS = 2


@dataclass(frozen=True)
class Rows:
    """Sparse vectors, row by row."""

    starts: np.ndarray
    terms: np.ndarray
    weights: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Rows:
        with np.load(path) as arrays:
            return cls(arrays["indptr"].astype(np.int64), arrays["indices"], arrays["data"])

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield self.terms[start:stop], self.weights[start:stop]

    def by_name(self) -> Iterator[dict[str, float]]:
        """Each row as its weights by the names of the terms."""
        names = self._names()
        for terms, weights in self:
            yield dict(zip(names[terms].tolist(), weights.tolist(), strict=True))

    def texts(self) -> list[str]:
        """A row's terms as words, each as often as its count says."""
        names = self._names()
        return [" ".join(names[np.repeat(terms, counts.astype(np.int64))]) for terms, counts in self]

    def in_8_bits(self) -> Rows:
        unit = self.weights.max() / 255
        return replace(self, weights=np.maximum(1, np.rint(self.weights / unit)).astype(np.int64))

    def _names(self) -> np.ndarray:
        return np.array([f"t{term}" for term in range(int(self.terms.max(initial=0)) + 1)], dtype=object)


def megabytes(paths: Iterable[Path]) -> float:
    """The bytes of files, in millions."""
    return sum(path.stat().st_size for path in paths) / 1e6


class Base:
    """What the peers share; see `peer_worker.Peer`."""

    settings: Sequence[Setting] = [{}]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents, self.queries = Rows.load(folder / "documents.npz"), Rows.load(folder / "queries.npz")
        self.nq = len(self.queries.starts) - 1

    def build_from_text(self) -> bool:
        return False

    def warm_up(self) -> None:
        for i in range(min(20, self.nq)):
            self.search(i, 10, self.settings[0])

    def build(self) -> None:
        raise NotImplementedError

    def megabytes(self) -> float:
        raise NotImplementedError

    def search(self, i: int, k: int, setting: Setting) -> Any:
        raise NotImplementedError

    def ids(self, answer: Any) -> list[int]:
        return [int(id) for id in answer]

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        """Python threads, for peers without a batch call of their own."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda i: self.search(i, k, setting), range(self.nq)))


class Seismic(Base):
    """pyseismic-lsr, its raw index over component numbers (Bruch et al., SIGIR 2024)."""

    settings: Sequence[Setting] = [
        {"query_cut": cut, "heap_factor": heap}
        for cut, heap in ((4, 0.9), (5, 0.9), (7, 0.9), (8, 0.9), (10, 0.8), (20, 0.8))
    ]

    def __init__(self, folder: Path) -> None:
        import seismic

        super().__init__(folder)
        self.module = seismic
        self.rows = [(terms.astype(np.int32), weights.astype(np.float32)) for terms, weights in self.queries]
        self.files = [str(folder / f"seismic-{name}.bin") for name in ("documents", "queries")]
        for path, rows in zip(self.files, (self.documents, self.queries), strict=True):
            with open(path, "wb") as out:
                out.write(np.uint32(len(rows.starts) - 1).tobytes())
                for terms, weights in rows:
                    out.write(np.uint32(len(terms)).tobytes())
                    out.write(terms.astype(np.uint32).tobytes() + weights.astype(np.float32).tobytes())

    def build(self) -> None:
        postings = 1000 if len(self.documents.starts) > 1_000_000 else 300
        self.index = self.module.SeismicIndexRaw.build(self.files[0], n_postings=postings)

    def megabytes(self) -> float:
        self.index.save(str(self.folder / "seismic-saved"))
        return megabytes(self.folder.glob("seismic-saved*"))

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.index.search(*self.rows[i], k, setting["query_cut"], setting["heap_factor"], 0, True)

    def ids(self, answer: Any) -> list[int]:
        return [hit[1] for hit in answer]

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        knobs = setting["query_cut"], setting["heap_factor"], 0, True
        self.index.batch_search(self.files[1], k, *knobs, num_threads=threads)


class BMP(Base):
    """The package of block-max pruning (Mallia et al., SIGIR 2024): blocks of 32, weights of 8 bits."""

    settings: Sequence[Setting] = [{"alpha": alpha} for alpha in (1.0, 0.95, 0.9, 0.85, 0.8)]

    def __init__(self, folder: Path) -> None:
        import bmp

        super().__init__(folder)
        self.module, self.path = bmp, folder / "index.bmp"
        self.rows = list(self.queries.by_name())

    def build(self) -> None:
        indexer = self.module.Indexer(str(self.path), bsize=32, compress_range=False)
        for number, weights in enumerate(self.documents.in_8_bits().by_name()):
            indexer.add_document(str(number), weights)
        indexer.finish()
        self.index = self.module.Searcher(str(self.path))

    def megabytes(self) -> float:
        return megabytes([self.path])

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.index.search(self.rows[i], k, setting["alpha"], 1.0)[0]


class Kannolo(Base):
    """kANNolo, HNSW over sparse vectors (Delfino et al., ECIR 2025): M = 16, efConstruction = 150."""

    settings: Sequence[Setting] = [{"ef": ef} for ef in (20, 40, 80, 160, 320)]

    def __init__(self, folder: Path) -> None:
        import kannolo

        super().__init__(folder)
        self.module = kannolo
        self.rows = [(terms.astype(np.int32), weights.astype(np.float32)) for terms, weights in self.queries]
        self.together = [np.concatenate(column) for column in zip(*self.rows, strict=True)]

    def build(self) -> None:
        rows = self.documents
        arrays = rows.terms.astype(np.int32), rows.weights.astype(np.float32), rows.starts
        self.index = self.module.SparsePlainHNSW.build_from_arrays(*arrays, m=16, ef_construction=150)

    def megabytes(self) -> float:
        self.index.save(str(self.folder / "kannolo-saved"))
        return megabytes(self.folder.glob("kannolo-saved*"))

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.index.search(*self.rows[i], k, ef_search=max(setting["ef"], k))[1]

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        ef = max(setting["ef"], k)
        self.index.batch_search(*self.together, self.queries.starts, k, ef_search=ef, num_threads=threads)


class Pisa(Base):
    """PISA by pyterrier-pisa (Mallia et al., 2019; SIMD-BP128 blocks), below its layer of data frames."""

    settings: Sequence[Setting] = [
        {"algorithm": name} for name in ("block_max_maxscore", "maxscore", "block_max_wand", "wand")
    ]
    pretokenised: bool
    rows: Sequence[Any]
    retriever: Any

    def __init__(self, folder: Path) -> None:
        from pyterrier_pisa import PisaIndex, _pisathon

        super().__init__(folder)
        self.native = _pisathon
        self.empty = PisaIndex(
            str(folder / "pisa"), text_field="text", stemmer="none", stops="none", threads=BUILD_THREADS
        )

    def megabytes(self) -> float:
        names = ("*.bmw.*", "*.block_simdbp", "fwd.doclex", "fwd.termlex")
        return megabytes({path for name in names for path in (self.folder / "pisa").glob(name)})

    def _retrieve(self, queries: Sequence[tuple[int, Any]], k: int, threads: int, algorithm: str) -> Any:
        count = len(queries) * k
        numbers, names = np.empty(count, np.int32), np.empty(count, object)
        ranks, scores = np.empty(count, np.int32), np.empty(count, np.float32)
        found = self.native.retrieve(
            self.retriever._ctxt, algorithm, queries, k=k, threads=threads, query_weighted=int(self.pretokenised),
            pretokenised=self.pretokenised, result_qidxs=numbers, result_docnos=names, result_ranks=ranks,
            result_scores=scores,
        )  # fmt: skip
        return names[:found]

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self._retrieve([(0, self.rows[i])], k, 1, setting["algorithm"])

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        self._retrieve(list(enumerate(self.rows)), k, threads, setting["algorithm"])


class PisaImpacts(Pisa):
    """Impacts of 8 bits, and weights of queries in hundredths, since its scores are whole numbers."""

    pretokenised = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        hundredths = replace(self.queries, weights=np.rint(self.queries.weights * 100))
        self.rows = list(hundredths.by_name())

    def build(self) -> None:
        impacts = self.documents.in_8_bits().by_name()
        self.empty.toks_indexer("toks", scale=1.0).index(
            {"docno": str(number), "toks": weights} for number, weights in enumerate(impacts)
        )
        self.retriever = self.empty.quantized(threads=1, toks_scale=1.0)


PEERS: dict[str, Callable[[Path], Peer]] = {"seismic": Seismic, "bmp": BMP, "kannolo": Kannolo, "pisa": PisaImpacts}

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    serve(lambda: PEERS[name](Path(folder)))
