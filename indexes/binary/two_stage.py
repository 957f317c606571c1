"""Signs first, floats second: Hamming candidates, re-scored with the float query (BPR, Yamada et al., ACL 2021)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from indexes.base import in_chunks
from indexes.binary.hamming import HammingIndex
from indexes.codecs.base import Fitted
from indexes.codecs.linear import RandomRotation
from indexes.codecs.packing import pack_signs
from indexes.dense.base import DenseIndex
from indexes.dense.store import VectorStore
from indexes.errors import CorruptIndex, InvalidParameter

RESCORE = ("code", "float16")


class TwoStageIndex(DenseIndex):
    """Vectors as their signs: a Hamming scan finds candidates, which are then ranked with the query as it is.

    Yamada, Asai and Hajishirzi, "Efficient Passage Retrieval with Hashing for Open-domain Question Answering", 2021,
    section 3. Without `fit`, signs are those of the vectors as given, which is what encoders trained for it want; `fit`
    learns the mean of a sample and draws a rotation from `seed`: signs are then of the centred and rotated vectors,
    which say more where vectors were not trained for signs.

    `metric`: "ip" or "cosine" (queries and vectors are normalised).
    `rescore`: "code" ranks candidates by the inner product of the (rotated) query with the signs, 1 or -1, and stores
    d / 8 bytes per vector; "float16" stores the vectors too (2 d bytes) and ranks by their exact scores.
    `candidates`: how many, also a parameter of `search`; never less than k. None chooses 10 k, at least 1,000: the
    paper's number for its top 100. Ranking them takes a small part of the time of the scan.
    """

    kind = "two-stage"
    search_knobs: ClassVar = {"candidates": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"candidates": (20_000, 10_000, 5000, 2000, 1000, 500, 200, 100, 50, 20, 10)}

    def __init__(
        self, *, metric: str = "ip", rescore: str = "code", candidates: int | None = None, seed: int = 0
    ) -> None:
        if metric not in ("ip", "cosine"):
            raise InvalidParameter(f"metric is {metric!r}; it must be 'ip' or 'cosine'")
        super().__init__(metric=metric)
        if rescore not in RESCORE:
            raise InvalidParameter(f"rescore is {rescore!r}; it must be one of {', '.join(RESCORE)}")
        if not self.search_knobs["candidates"](candidates):
            raise InvalidParameter(f"candidates is {candidates!r}; it must be an integer of at least 1, or None")
        self.rescore, self.candidates, self.seed = rescore, candidates, seed
        self._rotation = RandomRotation(seed=seed)
        self._signs = HammingIndex()
        self._store = VectorStore("float16", "rescore='code'")  # empty where codes are all that is kept

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "rescore": self.rescore, "candidates": self.candidates, "seed": self.seed,
        }  # fmt: skip

    @property
    def vectors(self) -> np.ndarray | None:
        """The stored vectors float16 (n, d) by row; None if `rescore` is "code"."""
        return self._store.stored(self.d or 1) if self.rescore == "float16" else None

    def _chosen(self) -> dict[str, Any]:
        return {"rotated": self._rotation.d is not None}

    def fit(self, vectors: Any) -> TwoStageIndex:
        """Learn the mean of a sample (n, d) and draw the rotation. Only an empty index can be fitted."""
        sample = self._check_vectors(vectors)
        if len(self) or not len(sample):
            raise InvalidParameter(f"fit needs an empty index (it holds {len(self)}) and a sample (got {len(sample)})")
        self._rotation.fit(sample)
        self.d = sample.shape[1]
        return self

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        if self.rescore == "float16":
            self._store.add(vectors)
        self.d = vectors.shape[1]
        self._signs.add(pack_signs(vectors if self._rotation.d is None else self._rotation.transform(vectors)), ids)

    def _remove(self, keep: np.ndarray) -> None:
        self._signs.remove(self._ids[~keep])
        if self.rescore == "float16":
            self._store.keep(keep)

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import topk

        rotated = queries if self._rotation.d is None else self._rotation.transform_queries(queries)[0]
        count = min(len(self), max(k, knobs["candidates"] or max(1000, 10 * k)))
        _, places = self._signs.nearest(pack_signs(rotated), count, allow, threads)
        heap_scores, heap_ids = topk.empty_heaps(len(queries), k)

        def work(a: int, b: int) -> None:
            if self.rescore == "code":
                scores = self._code_scores(rotated[a:b], places[a:b])
            else:
                rows = np.where(places[a:b] >= 0, self._signs.rows_at(places[a:b]), -1)
                scores = self._store.scores(queries[a:b], rows, "ip")
            ids = np.where(places[a:b] >= 0, self._signs.ids_at(places[a:b]), -1)
            topk.push_lists(scores, ids, heap_scores[a:b], heap_ids[a:b])

        in_chunks(work, len(queries), threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def _code_scores(self, queries: np.ndarray, places: np.ndarray) -> np.ndarray:
        from indexes.kernels.asymmetric import products

        words = self._signs.words
        padded = np.zeros((len(queries), words.shape[1] * 64), np.float32)
        padded[:, : queries.shape[1]] = queries
        scores = np.empty(places.shape, np.float32)
        products(words, padded, places, scores)
        return scores

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        signs, arrays, _ = self._signs._state()
        if self.rescore == "float16":
            arrays["vectors"] = self._store.stored(self.d or 1)
        state = {"d": self.d, "signs": signs, "rotation": self._rotation.header()}
        return state, arrays | self._rotation.arrays(), {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.d = state["d"]
        self._signs._ids = self._ids
        self._signs._restore(state["signs"], {"words": arrays.pop("words")}, {})
        if self._signs.nbytes not in (None, -(-(self.d or 0) // 8)):
            raise CorruptIndex(f"signs have {self._signs.nbytes} bytes; d is {self.d}")
        if self.rescore == "float16":
            self._store.open(arrays.pop("vectors"), len(self), self.d or 1)
        rotation = Fitted.restore(state["rotation"], arrays)
        if not isinstance(rotation, RandomRotation) or rotation.d not in (None, self.d):
            raise CorruptIndex(f"the rotation is {rotation!r} for d = {rotation.d}; d of the index is {self.d}")
        self._rotation = rotation
