"""Codecs whose parts were learned elsewhere, by training for ranking (see `retrieval.training`), and not by `fit`.

What training gives is made of them: `Chain(Learned(...), Retrained(PQ(M=48)))` holds JPQ's codes, which the first
centroids choose and the trained ones score. Both are saved and searched like any codec; `fit` refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from indexes.codecs.base import Codec, Scorer, check_integer
from indexes.codecs.linear import LinearMap
from indexes.errors import CorruptIndex, InvalidParameter

AnyCodec = TypeVar("AnyCodec", bound=Codec)


class Learned(LinearMap):
    """A given linear map to `dimensions`: documents become P (x - mean), queries A q.

    `Learned.of(projection, queries, mean)` makes one.
    """

    kind = "learned"
    trained = True

    def __init__(self, *, dimensions: int) -> None:
        super().__init__()
        check_integer("dimensions", dimensions, 1)
        self.dimensions = dimensions
        self.queries: np.ndarray

    @classmethod
    def of(cls, projection: np.ndarray, queries: np.ndarray, mean: np.ndarray | None = None) -> Learned:
        """`projection` (d', d) of documents, `queries` (d', d) of queries, `mean` (d,) or None for 0."""
        width, d = projection.shape
        centre = np.zeros(d, np.float32) if mean is None else mean
        arrays = {"mean": centre, "projection": projection, "queries": queries}
        header = {"kind": cls.kind, "d": d, "parameters": {"dimensions": width}}
        return cls.restore(header, {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})

    @property
    def query_projection(self) -> np.ndarray:
        return self.queries

    def parameters(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions}

    def inverse(self, reduced: np.ndarray) -> np.ndarray:
        return reduced @ self.queries + self.mean

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return super()._shapes(d) | {"queries": (self.dimensions, d)}

    def _out(self, d: int) -> int:
        return self.dimensions

    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        raise _refusal(self)


class Retrained(Codec):
    """Codes of `codec`, scored by other centroids than those that chose them.

    `codec`: `PQ`, `RQ` or `BinaryAutoencoder`. JPQ (Zhan et al., CIKM 2021) trains centroids and never changes codes.
    `Retrained.of(codec, centroids)` makes one of a fitted codec; `scoring` is the same codec with these centroids.
    """

    kind = "retrained"
    trained = True

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec
        self.scoring: Codec

    @classmethod
    def of(cls, codec: Codec, centroids: np.ndarray) -> Retrained:
        """`centroids`: float32, of the shape of the codec's own. Raises `InvalidParameter` where that is not so."""
        try:
            return cls._scored_by(codec, np.ascontiguousarray(centroids, np.float32))
        except CorruptIndex as problem:
            raise InvalidParameter(f"these centroids cannot score: {problem}") from problem

    @classmethod
    def _scored_by(cls, codec: Codec, centroids: np.ndarray) -> Retrained:
        made = cls(codec)
        made.scoring, made.d = with_centroids(codec, centroids), codec.d
        return made

    @property
    def centroids(self) -> np.ndarray:
        """Those that score."""
        return self.scoring.arrays()["centroids"]

    def parameters(self) -> dict[str, Any]:
        return {"codec": self.codec.header()}

    def arrays(self) -> dict[str, np.ndarray]:
        inner = {f"codec.{name}": array for name, array in self.codec.arrays().items()}
        return inner if self.d is None else inner | {"centroids": self.centroids}

    @classmethod
    def _restored(cls, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Retrained:
        given = dict(arrays)
        centroids = given.pop("centroids", None)
        inner = {name.removeprefix("codec."): array for name, array in given.items()}
        codec = Codec.restore(header["parameters"]["codec"], inner)
        if codec.d != header["d"] or (centroids is None) != (codec.d is None):
            raise CorruptIndex(f"a retrained codec for d = {header['d']} holds {codec!r} for d = {codec.d}")
        return cls(codec) if centroids is None else cls._scored_by(codec, centroids)

    def __repr__(self) -> str:
        return f"Retrained({self.codec!r})"

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        raise _refusal(self)

    def _bytes(self, d: int) -> int:
        return self.codec.bytes_per_vector

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return self.codec._encode(vectors)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.scoring._decode(codes)

    def _scorer(self, queries: np.ndarray) -> Scorer:
        return self.scoring._scorer(queries)


def with_centroids(codec: AnyCodec, centroids: np.ndarray) -> AnyCodec:
    """The same fitted codec with other `centroids`, float32 of the shape of its own. Raises `CorruptIndex`."""
    return type(codec).restore(codec.header(), codec.arrays() | {"centroids": centroids})


def _refusal(part: Any) -> InvalidParameter:
    return InvalidParameter(f"{part!r} was made by training, not by fit; train it anew")
