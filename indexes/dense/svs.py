"""Vamana (Subramanya et al., "DiskANN", NeurIPS 2019) by Intel's Scalable Vector Search, over LVQ or LeanVec codes."""

from __future__ import annotations

import math
import re
import tarfile
import tempfile
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from uuid import UUID

import numpy as np

from indexes.dense.library_base import LibraryIndex
from indexes.errors import InvalidParameter

COMPRESSIONS = ("lvq4", "lvq8", "lvq4x4", "lvq4x8", "leanvec")
UNLINKED = 1000, 10  # so many vectors, or one of so many if that is more, are scanned by every search, not linked
NAME = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MEMBER = re.compile(r"[cdg]/\w+\.(svs|toml)")


class SVSIndex(LibraryIndex):
    """Approximate search by SVS (pip install scalable-vs: Linux on x86-64); the exact twin is `FlatIndex`.

    `metric`: "ip", "cosine" or "l2".
    `R`: neighbours per vector, at most. `window`: candidates kept while a vector is linked. `alpha`: 1 or more for
    "l2", 1 or less for the others, it keeps long links; None chooses 1.2 and 0.95.
    `compression`: what the graph holds: None for vectors as `dtype`; "lvq4" and "lvq8", locally-adaptive codes of 4 or
    8 bits a number; "lvq4x4" and "lvq4x8", the first 4 bits of which walk (Aguerrebere et al., VLDB 2023); "leanvec",
    8-bit codes of half of the dimensions, then of all (Tepper et al., 2023).
    `search_window`: candidates kept while searching, all of which are ranked again; also a parameter of `search`; never
    less than k. None chooses 64.
    `dtype`: "float16" or "float32", of the vectors kept beside the graph, for which scores are exact.

    The graph is built at once, on one thread (on more it depends on their timing): vectors added later, and up to 1,000
    at first, are scanned by every search until they are a tenth, when it is built anew. So it is when half of the
    vectors were removed. Searches of several callers take turns: threads are a setting of SVS's graph.
    """

    kind = "svs"
    library = "svs"
    package = "scalable-vs"
    search_knobs: ClassVar = {"search_window": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"search_window": (1024, 512, 256, 192, 128, 96, 64, 48, 40, 32, 24, 20, 16, 12, 10)}

    def __init__(
        self,
        *,
        metric: str = "ip",
        R: int = 32,
        window: int = 128,
        alpha: float | None = None,
        compression: str | None = None,
        search_window: int | None = None,
        dtype: str = "float16",
    ) -> None:
        super().__init__(metric=metric, dtype=dtype)
        for name, value, least in (("R", R, 2), ("window", window, 1)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InvalidParameter(f"{name} is {value!r}; it must be an integer of at least {least}")
        allowed, least, most = ("at least 1", 1, math.inf) if metric == "l2" else ("above 0, at most 1", 0, 1)
        if alpha is not None and not (
            isinstance(alpha, int | float) and least <= alpha <= most and 0 < alpha < math.inf
        ):  # fmt: skip
            raise InvalidParameter(f"alpha is {alpha!r}; for {metric!r} it must be {allowed}, or None")
        if compression is not None and compression not in COMPRESSIONS:
            raise InvalidParameter(
                f"compression is {compression!r}; it must be one of {', '.join(COMPRESSIONS)}, or None"
            )
        if not self.search_knobs["search_window"](search_window):
            raise InvalidParameter(f"search_window is {search_window!r}; it must be an integer of at least 1, or None")
        self.R, self.window, self.alpha, self.compression = R, window, alpha, compression
        self.search_window = search_window
        self._size: int | None = None
        self._turn = threading.Lock()  # threads are a setting of the graph

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "R": self.R, "window": self.window, "alpha": self.alpha,
            "compression": self.compression, "search_window": self.search_window, "dtype": self.dtype,
        }  # fmt: skip

    def _beam(self, **knobs: Any) -> int:
        return knobs["search_window"] or 64

    def _extend(self, library: ModuleType, vectors: np.ndarray) -> None:
        n, d = vectors.shape
        if n - self._linked <= max(UNLINKED[0], self._linked // UNLINKED[1]):
            return
        alpha = self.alpha if self.alpha is not None else (1.2 if self.metric == "l2" else 0.95)
        options = library.VamanaBuildParameters(graph_max_degree=self.R, window_size=self.window, alpha=alpha)
        scaled, distance = self._scaled(vectors), self._distance(library)
        if self.compression is None:
            data = scaled.astype(self.dtype)
            self._graph = library.Vamana.build(options, data, distance, num_threads=1)
        else:
            with tempfile.TemporaryDirectory() as folder:
                vecs, converted = f"{folder}/v.fvecs", f"{folder}/v.svs"
                library.write_vecs(scaled, vecs)
                library.convert_vecs_to_svs(vecs, converted)
                data = self._codes(library, library.VectorDataLoader(converted, library.float32, dims=d), d)
                self._graph = library.Vamana.build(options, data, distance, num_threads=1)
        self._linked, self._size = n, None

    def _distance(self, library: ModuleType) -> Any:
        return library.L2 if self.metric == "l2" else library.MIP

    def _codes(self, library: ModuleType, vectors: Any, d: int) -> Any:
        if self.compression == "leanvec":
            eight = library.LeanVecKind.lvq8
            return library.LeanVecLoader(vectors, max(1, d // 2), eight, eight)
        assert self.compression is not None
        first, _, second = self.compression.removeprefix("lvq").partition("x")
        return library.LVQLoader(vectors, int(first), int(second or 0))

    def _candidates(self, queries: np.ndarray, count: int, threads: int) -> np.ndarray:
        with self._turn:
            if len(queries) > 1 and self._graph.num_threads != threads:  # a single one takes one thread anyway
                self._graph.num_threads = threads
            found: np.ndarray = self._graph.search(queries, count)[0].astype(np.int64)
        zeros = found == 0  # also where nothing was found
        if zeros[:, 1:].any():
            found[zeros & (np.cumsum(zeros, axis=1) > 1)] = -1
        return found

    # -- files ---------------------------------------------------------------------------------------------------------

    def _write(self, path: str) -> None:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as packed:
            files = self._files(folder)
            _numbered(files)
            for file in files:
                entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
                entry.size = file.stat().st_size
                with open(file, "rb") as content:
                    packed.addfile(entry, content)

    def _files(self, folder: str) -> list[Path]:
        """What SVS saves: parameters, the graph, and the data."""
        self._graph.save(*(f"{folder}/{part}" for part in "cgd"))
        return sorted(Path(folder).glob("*/*"))

    def _bytes(self) -> int:
        if self._size is None:
            with tempfile.TemporaryDirectory() as folder:
                blocks = sum(1 + -(-file.stat().st_size // tarfile.BLOCKSIZE) for file in self._files(folder))
            self._size = -(-(blocks + 2) * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        return self._size

    def _read(self, library: ModuleType, path: str) -> tuple[int, int]:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "r:") as packed:
            for entry in packed:
                if not (entry.isfile() and MEMBER.fullmatch(entry.name)):
                    raise ValueError(f"{entry.name!r} is no file of SVS")
                target, content = Path(folder, entry.name), packed.extractfile(entry)
                assert content is not None
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content.read())
            config, graph, data = (f"{folder}/{part}" for part in "cgd")
            self._graph = library.Vamana(
                config, library.GraphLoader(graph), library.SerializedObject(data), self._distance(library),
                num_threads=1,
            )  # fmt: skip
        self._size = None
        return self._graph.dimensions, self._graph.size


def _numbered(files: list[Path]) -> None:
    """Give the files the names 1, 2, ... by which they know each other, instead of random ones: UUIDs, those of data in
    their bytes 8 to 24, so that the same build is the same bytes.
    """
    names: dict[bytes, bytes] = {}
    for file in files:
        if file.suffix == ".svs":
            with open(file, "r+b") as data:
                data.seek(8)
                given, name = UUID(bytes=data.read(16)[::-1]), UUID(int=len(names) + 1)
                names[str(given).encode()] = str(name).encode()
                data.seek(8)
                data.write(name.bytes[::-1])
    for file in files:
        if file.suffix == ".toml":
            file.write_bytes(NAME.sub(lambda found: names[found[0]], file.read_bytes()))
