"""IVF-PQ (Jegou, Douze and Schmid, 2011) with an OPQ rotation (Ge et al., 2013), by faiss."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from indexes.dense.faiss_base import FaissIndex, faiss_metric, faiss_threads
from indexes.errors import InvalidParameter, NotFitted

if TYPE_CHECKING:
    import faiss

logger = logging.getLogger(__name__)


class IVFPQIndex(FaissIndex):
    """Vectors as short codes in inverted lists; approximate. The exact twin is `FlatIndex`.

    `bytes`: code size, the number M of sub-quantisers of 256 centroids each (at most d). If it does not divide d, the
    rotation also drops d mod M dimensions.
    `nlist`: number of lists; None chooses from the size of the training sample: its square root times 4, at least 39
    training vectors per list (faiss's own floor), at most 65,536.
    `nprobe`: lists visited, also a parameter of `search`; None chooses an eighth of nlist, at least 8.
    `opq`: learn a rotation first (True; without it, codes of real embeddings lose much more). Needs a sample of d
    vectors or more, and is left out below.
    `seed`: of the k-means runs.
    `fit` needs a sample of 2 vectors or more, best 40 per list; with fewer than 256 the codes get fewer centroids.
    A search that finds fewer than k allowed rows is repeated over all lists.
    """

    kind = "ivfpq"
    needs_fit = True
    search_knobs: ClassVar = {"nprobe": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"nprobe": (4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)}

    def __init__(
        self,
        *,
        metric: str = "ip",
        bytes: int = 32,
        nlist: int | None = None,
        nprobe: int | None = None,
        opq: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric)
        if bytes < 1 or (nlist is not None and nlist < 1):
            raise InvalidParameter(f"bytes is {bytes}, nlist {nlist}; both must be at least 1 (nlist may be None)")
        if not self.search_knobs["nprobe"](nprobe):
            raise InvalidParameter(f"nprobe is {nprobe!r}; it must be an integer of at least 1, or None")
        self.bytes, self.nlist, self.nprobe, self.opq, self.seed = bytes, nlist, nprobe, opq, seed

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "bytes": self.bytes, "nlist": self.nlist,
            "nprobe": self.nprobe, "opq": self.opq, "seed": self.seed,
        }  # fmt: skip

    def _chosen(self) -> dict[str, Any]:
        if self._faiss is None:
            return {}
        nlist = self._ivf().nlist
        return {"nlist": nlist, "nprobe": self._probes(self.nprobe), "code_bytes": self._ivf().code_size}

    def fit(self, vectors: Any) -> IVFPQIndex:
        """Learn rotation, lists and codes from a sample (n, d). Only an empty index can be fitted."""
        sample = self._check_vectors(vectors)
        if len(self) or len(sample) < 2:
            raise InvalidParameter(
                f"fit needs an empty index (it holds {len(self)}) and a sample of 2 vectors or more (got {len(sample)})"
            )
        index = self._untrained(len(sample), sample.shape[1])
        with faiss_threads(1):  # sums of k-means on several threads differ in their last bits
            index.train(sample)
        self._faiss, self._mapped, self.d = index, False, sample.shape[1]
        logger.info("IVF-PQ fitted on %d vectors: %s", len(sample), self._chosen())
        return self

    def _untrained(self, n: int, d: int) -> faiss.Index:
        import faiss

        nlist = self.nlist or max(1, min(int(4 * np.sqrt(n)), n // 39, 65_536))
        nlist = min(nlist, n)
        M = min(self.bytes, d)
        bits = int(min(8, np.log2(n)))
        width = d - d % M
        quantizer = faiss.IndexFlat(width, faiss_metric(self.metric))
        ivf = faiss.IndexIVFPQ(quantizer, width, nlist, M, bits, faiss_metric(self.metric))
        ivf.own_fields = True
        quantizer.this.disown()
        ivf.cp.seed = ivf.pq.cp.seed = self.seed + 1234
        ivf.cp.min_points_per_centroid = ivf.pq.cp.min_points_per_centroid = 1  # we say what is small, not stderr
        opq = self.opq and n >= d  # with fewer vectors faiss's training writes beyond its buffers
        if not opq and width == d:
            return ivf
        rotation = faiss.OPQMatrix(d, M, width) if opq else faiss.RandomRotationMatrix(d, width)
        if opq:
            trainer = faiss.ProductQuantizer(width, M, bits)
            trainer.cp.seed, trainer.cp.min_points_per_centroid = self.seed + 1234, 1
            rotation.niter = 10  # faiss's 50 take five times as long and change the error by under 1%
            rotation.pq = trainer
            trainer.this.disown()
        index = faiss.IndexPreTransform(rotation, ivf)
        rotation.this.disown()
        ivf.this.disown()
        index.own_fields = True
        return index

    def _ivf(self) -> faiss.IndexIVFPQ:
        import faiss

        return faiss.downcast_index(faiss.extract_index_ivf(self._faiss))

    def _probes(self, nprobe: int | None) -> int:
        nlist = self._ivf().nlist
        return min(nlist, nprobe if nprobe is not None else max(8, nlist // 8))

    def _make(self, d: int) -> faiss.Index:
        raise NotFitted("IVFPQIndex must learn its codes first: call fit(sample) before add")

    def _search_parameters(self, selector: faiss.IDSelector | None, **knobs: Any) -> faiss.SearchParameters:
        import faiss

        lists = faiss.SearchParametersIVF(nprobe=knobs["nprobe"], sel=selector)
        if isinstance(self._faiss, faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=lists)
        return lists

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = None if allow is None else np.flatnonzero(allow)
        exist = min(k, len(self) if rows is None else len(rows))
        scores, ids = self._search_slots(queries, k, rows, threads, nprobe=self._probes(knobs["nprobe"]))
        short = np.flatnonzero((ids >= 0).sum(axis=1) < exist)
        if len(short):
            everywhere = self._ivf().nlist
            scores[short], ids[short] = self._search_slots(queries[short], k, rows, threads, nprobe=everywhere)
        return scores, ids
