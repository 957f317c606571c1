"""Codecs made of others: linear maps before a codec, and codecs of what the codecs before them lost."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from indexes.codecs.base import Codec, Fitted, Scorer
from indexes.codecs.linear import LinearMap
from indexes.errors import CorruptIndex, InvalidParameter

Self = TypeVar("Self", bound="Composed")


class Composed(Codec):
    """Base of the codecs with parts, which are fitted and saved with it."""

    parts: tuple[Fitted, ...]

    def _hold(self, *parts: Fitted) -> None:
        if len({id(part) for part in parts}) < len(parts):
            raise InvalidParameter(f"a part of {type(self).__name__} is given twice; each needs a codec of its own")
        self.parts = parts
        self.needs_fit = any(part.needs_fit for part in parts)
        self.trained = any(part.trained for part in parts)

    def parameters(self) -> dict[str, Any]:
        return {"parts": [part.header() for part in self.parts]}

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"{i}.{name}": array for i, part in enumerate(self.parts) for name, array in part.arrays().items()}

    @classmethod
    def _restored(cls: type[Self], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        headers = header["parameters"]["parts"]
        mine: list[dict[str, np.ndarray]] = [{} for _ in headers]
        for name, array in arrays.items():
            number, _, rest = name.partition(".")
            mine[int(number)][rest] = array
        parts = [Fitted.restore(*both) for both in zip(headers, mine, strict=True)]
        made = cls(*parts)
        d, found = header["d"], [part.d for part in parts]
        needed = [None] * len(parts) if d is None else list(made._widths(d))
        if needed != found:
            raise CorruptIndex(f"the parts of {made!r} were fitted for {found} dimensions; they need {needed}")
        made.d = d
        return made

    @abstractmethod
    def _widths(self, d: int) -> Iterator[int]:
        """The width that each part takes."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.parts))})"


class Chain(Composed):
    """Linear maps, then a codec of what they give: `Chain(PCA(dimensions=128), SQ(bits=8))`.

    Queries are mapped once; codes are scored in the mapped space. Raises `InvalidParameter` unless the last part is a
    codec and all before it are linear maps.
    """

    kind = "chain"

    def __init__(self, *parts: Fitted) -> None:
        super().__init__()
        *maps, codec = parts or (None,)
        if not isinstance(codec, Codec) or not all(isinstance(part, LinearMap) for part in maps):
            raise InvalidParameter(f"parts are {list(parts)}; they must be linear maps (or none) and then one codec")
        self._hold(*parts)
        self._maps: list[LinearMap] = [part for part in maps if isinstance(part, LinearMap)]
        self._codec = codec

    @classmethod
    def of(cls, *parts: Fitted) -> Chain:
        """A chain of parts that are fitted already. Raises `InvalidParameter` where their widths do not follow."""
        made = cls(*parts)
        needed = list(made._widths(made.parts[0].d or 0))
        if [part.d for part in parts] != needed:
            raise InvalidParameter(f"{made!r}: parts are for {[part.d for part in parts]} dimensions, not {needed}")
        made.d = made.parts[0].d
        return made

    def _widths(self, d: int) -> Iterator[int]:
        for part in self._maps:
            yield d
            d = part._out(d)
        yield d

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        for part in self._maps:
            part.fit(vectors, queries)
            vectors = part.transform(vectors)
            queries = None if queries is None else part.transform_queries(queries)[0]
        self._codec.fit(vectors, queries)

    def _bytes(self, d: int) -> int:
        return self._codec.bytes_per_vector

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        for part in self._maps:
            vectors = part.transform(vectors)
        return self._codec._encode(vectors)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        vectors = self._codec._decode(codes)
        for part in reversed(self._maps):
            vectors = part.inverse(vectors)
        return vectors

    def _scorer(self, queries: np.ndarray) -> Scorer:
        base = np.zeros(len(queries), np.float32)
        for part in self._maps:
            queries, more = part.transform_queries(queries)
            base += more
        score = self._codec._scorer(queries)
        return lambda codes: score(codes) + base[:, None]


class Residual(Composed):
    """Codecs one after another: each encodes what is left of a vector after those before it; the sum is decoded.

    `Residual(PQ(M=24), PQ(M=24))` is residual PQ (Chen, Guan and Wang, 2010, with one centroid choice per level);
    `Residual(LVQ(bits=4), LVQ(bits=8))` is two-level LVQ. The code of the first codec comes first, so that
    `parts[0].scores(queries, codes[:, : parts[0].bytes_per_vector])` ranks by the first level alone.
    Raises `InvalidParameter` unless all parts are codecs, two or more.
    """

    kind = "residual"

    def __init__(self, *parts: Fitted) -> None:
        super().__init__()
        if len(parts) < 2 or not all(isinstance(part, Codec) for part in parts):
            raise InvalidParameter(f"parts are {list(parts)}; they must be codecs, two or more")
        self._hold(*parts)
        self._codecs: list[Codec] = [part for part in parts if isinstance(part, Codec)]

    def _widths(self, d: int) -> Iterator[int]:
        return iter([d] * len(self.parts))

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        for part in self._codecs:
            vectors = vectors - part.fit(vectors, queries).decode(part.encode(vectors))

    def _bytes(self, d: int) -> int:
        return sum(part.bytes_per_vector for part in self._codecs)

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        levels = []
        for part in self._codecs:
            levels.append(part._encode(vectors))
            vectors = vectors - part._decode(levels[-1])
        return np.concatenate(levels, axis=1)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        vectors = np.zeros((len(codes), self._width()), np.float32)
        for part, mine in self._split(codes):
            vectors += part._decode(mine)
        return vectors

    def _scorer(self, queries: np.ndarray) -> Scorer:
        scorers = [part._scorer(queries) for part in self._codecs]

        def scores(codes: np.ndarray) -> np.ndarray:
            total = np.zeros((len(queries), len(codes)), np.float32)
            for score, (_, mine) in zip(scorers, self._split(codes), strict=True):
                total += score(mine)
            return total

        return scores

    def _split(self, codes: np.ndarray) -> Iterator[tuple[Codec, np.ndarray]]:
        """Each codec with its columns of the codes."""
        start = 0
        for part in self._codecs:
            stop = start + part.bytes_per_vector
            yield part, codes[:, start:stop]
            start = stop
