"""What every codec provides: vectors (n, d) as short codes, scored against queries that stay float32.

A codec is fitted once, on a sample, and then turns vectors into rows of bytes and back. Scoring is asymmetric: only the
stored side is compressed. For every codec the score of a query with a code is the inner product of the query with the
decoded vector, up to rounding; codecs differ in how they get there without decoding.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np

from indexes.dense.base import LONGEST
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted

# kind, as saved -> where its class lives
KINDS = {
    "float32": "indexes.codecs.floats:Float32",
    "float16": "indexes.codecs.floats:Float16",
    "bfloat16": "indexes.codecs.floats:BFloat16",
    "float8": "indexes.codecs.floats:Float8",
    "sq": "indexes.codecs.scalar:SQ",
    "lvq": "indexes.codecs.scalar:LVQ",
    "pq": "indexes.codecs.product:PQ",
    "opq": "indexes.codecs.product:OPQ",
    "sign": "indexes.codecs.binary:SignBits",
    "rabitq": "indexes.codecs.binary:RaBitQ",
    "pca": "indexes.codecs.linear:PCA",
    "rotation": "indexes.codecs.linear:RandomRotation",
    "leanvec": "indexes.codecs.linear:LeanVec",
    "chain": "indexes.codecs.compose:Chain",
    "residual": "indexes.codecs.compose:Residual",
    "rq": "indexes.codecs.additive:RQ",
    "learned": "indexes.codecs.learned:Learned",
    "retrained": "indexes.codecs.learned:Retrained",
    "recurrent": "indexes.codecs.recurrent:Recurrent",
    "binary-autoencoder": "indexes.codecs.autoencoder:BinaryAutoencoder",
}
BLOCK = 1 << 18  # numbers decoded at once: 1 MB, which stays in cache

Scorer: TypeAlias = Callable[[np.ndarray], np.ndarray]
Self = TypeVar("Self", bound="Fitted")


@dataclass(frozen=True)
class ScoreError:
    """How far a codec's scores are from the exact inner products, over all pairs of a query and a vector.

    `rmse`: root mean square of the difference, in units of the scores. `correlation`: of Pearson, between -1 and 1;
    NaN where it is undefined, because either side is constant.
    """

    rmse: float
    correlation: float


class Fitted(ABC):
    """What codecs and linear maps share: they learn from a sample, and are saved as JSON values and arrays.

    Constructors only store; `fit` learns at least `d`, the width of the vectors, and all else needs it.
    """

    kind: ClassVar[str]
    needs_fit: bool = True
    """Whether `fit` learns more than the width, so that it needs a sample that stands for all vectors."""
    trained: bool = False
    """Whether it, or a part of it, was made by training: then `fit` refuses, and nothing but training makes it anew."""

    def __init__(self) -> None:
        self.d: int | None = None

    def fit(self: Self, vectors: Any, queries: Any = None) -> Self:
        """Learn from a sample.

        `vectors`: (n, d), n >= 1, finite. `queries`: (nq, d), for the parts that learn from queries too; the others
        pass them by. Fitting anew forgets what was learned before: codes made before then mean nothing.
        Raises `InvalidVectors` (also where a part needs more vectors, with the number), `InvalidParameter` (a
        parameter does not suit d).
        """
        sample = check_vectors(vectors)
        if not len(sample):
            raise InvalidVectors(f"fit got vectors of shape {sample.shape}; it needs at least one to learn from")
        asked = None if queries is None else check_vectors(queries, sample.shape[1], "queries")
        self.d = None  # until all is learned: a fit that fails leaves nothing that looks fitted
        self._fit(sample, asked)
        self.d = sample.shape[1]
        return self

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The constructor's parameters, as JSON values."""

    def header(self) -> dict[str, Any]:
        """What an index stores beside `arrays`, as JSON values: kind, parameters, and d (None before `fit`)."""
        return {"kind": self.kind, "d": self.d, "parameters": self.parameters()}

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learned, by name; nothing before `fit`. An index stores it inside its own files."""
        return {} if self.d is None else {name: getattr(self, name) for name in self._shapes(self.d)}

    @classmethod
    def restore(cls: type[Self], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The inverse of `header` and `arrays`: `Codec.restore(header, arrays)`.

        Raises `CorruptIndex` when an array is missing, superfluous, or of the wrong dtype or shape, or when the header
        lacks something or names something unknown.
        """
        try:
            module, _, name = KINDS[header["kind"]].partition(":")
            actual = getattr(importlib.import_module(module), name)
            if not issubclass(actual, cls):
                raise CorruptIndex(f"the header names {name}, which is not a {cls.__name__}")
            if header["d"] is not None and (not isinstance(header["d"], int) or header["d"] < 1):
                raise CorruptIndex(f"the header of {name} gives d as {header['d']!r}")
            return actual._restored(header, arrays)
        except CorruptIndex:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
            raise CorruptIndex(f"no codec can be made of {header!r} and {sorted(arrays)}: {problem!r}") from problem

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.parameters().items())})"

    # -- what a part provides --------------------------------------------------------------------------------------

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        """Learn from checked float32 vectors (n, d)."""
        return

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        """Attribute -> shape of what `_fit` learns from vectors of width d; all of it is float32."""
        return {}

    @classmethod
    def _restored(cls: type[Self], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """See `restore`, which has checked the kind and d."""
        part, d = cls(**header["parameters"]), header["d"]
        expected = {} if d is None else part._shapes(d)
        if set(arrays) != set(expected):
            raise CorruptIndex(f"{part!r} comes with the arrays {sorted(arrays)}; it needs {sorted(expected)}")
        for name, shape in expected.items():
            if arrays[name].dtype != np.float32 or arrays[name].shape != shape:
                found = f"{arrays[name].dtype} {arrays[name].shape}"
                raise CorruptIndex(f"{name} of {part!r} is {found}; for d = {d} it must be float32 {shape}")
            setattr(part, name, arrays[name])
        part.d = d
        return part

    def _width(self) -> int:
        if self.d is None:
            raise NotFitted(f"{self!r} must be fitted first: call fit(sample)")
        return self.d


class Codec(Fitted):
    """Base of all codecs."""

    # -- the public verbs ------------------------------------------------------------------------------------------

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one code. Raises `NotFitted`."""
        return self._bytes(self._width())

    def encode(self, vectors: Any) -> np.ndarray:
        """The codes of vectors (n, d): uint8 (n, bytes_per_vector), C-contiguous. n may be 0.

        Raises `NotFitted`, `InvalidVectors`.
        """
        checked = check_vectors(vectors, self._width())
        codes = np.empty((len(checked), self.bytes_per_vector), np.uint8)
        for part in _blocks(len(checked), checked.shape[1]):
            codes[part] = self._encode(checked[part])
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors float32 (n, d), near those that were encoded.

        Raises `NotFitted`, and `InvalidVectors` if the codes are not uint8 (n, bytes_per_vector).
        """
        self._check_codes(codes)
        vectors = np.empty((len(codes), self._width()), np.float32)
        for part in _blocks(*vectors.shape):
            vectors[part] = self._decode(codes[part])
        return vectors

    def scores(self, queries: Any, codes: np.ndarray) -> np.ndarray:
        """Inner products float32 (nq, n) of queries (nq, d) with the vectors behind `codes`.

        Raises `NotFitted`, `InvalidVectors` (queries or codes).
        """
        return self.scorer(queries)(codes)

    def scorer(self, queries: Any) -> Scorer:
        """A function from codes uint8 (n, bytes_per_vector) to scores float32 (nq, n).

        What depends on the queries alone (rotating them, tables of partial scores) is done once, here; an index that
        scores block after block calls this once per batch. Threads may share the function.
        Raises `NotFitted`, `InvalidVectors`.
        """
        score = self._scorer(check_vectors(queries, self._width(), "queries"))

        def checked(codes: np.ndarray) -> np.ndarray:
            self._check_codes(codes)
            return score(codes)

        return checked

    def score_error(self, vectors: Any, queries: Any) -> ScoreError:
        """Compare the scores of queries (nq, d) with encoded vectors (n, d) to the exact inner products.

        Raises `NotFitted`, `InvalidVectors` (also when either is empty).
        """
        documents = check_vectors(vectors, self._width())
        asked = check_vectors(queries, self._width(), "queries")
        if not len(documents) or not len(asked):
            raise InvalidVectors(f"score_error got {len(documents)} vectors and {len(asked)} queries; both need one")
        score = self._scorer(asked)
        sums = np.zeros(6)  # of the exact x, the estimated y, x^2, y^2, x y, (x - y)^2
        for part in _blocks(len(documents), max(len(asked), documents.shape[1])):
            x = (asked @ documents[part].T).astype(np.float64)
            y = score(self._encode(documents[part])).astype(np.float64)
            sums += x.sum(), y.sum(), (x * x).sum(), (y * y).sum(), (x * y).sum(), ((x - y) ** 2).sum()
        mean_x, mean_y, xx, yy, xy, square = sums / (len(documents) * len(asked))
        spread = max(0.0, xx - mean_x**2) * max(0.0, yy - mean_y**2)
        constant = spread <= 1e-24 * (xx * yy)  # nothing left but rounding
        correlation = math.nan if constant else float((xy - mean_x * mean_y) / math.sqrt(spread))
        return ScoreError(float(math.sqrt(square)), correlation)

    # -- what a codec provides -------------------------------------------------------------------------------------

    @abstractmethod
    def _bytes(self, d: int) -> int:
        """Bytes of a code of a vector of width d."""

    @abstractmethod
    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes uint8 (n, bytes) of checked vectors."""

    @abstractmethod
    def _decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors float32 (n, d) of checked codes."""

    def _scorer(self, queries: np.ndarray) -> Scorer:
        """See `scorer`; here by decoding, block by block, and matrix products."""
        return by_products(queries, self._decode)

    def _check_codes(self, codes: Any) -> None:
        width = self.bytes_per_vector
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            seen = f"{codes.dtype} {codes.shape}" if isinstance(codes, np.ndarray) else type(codes).__name__
            raise InvalidVectors(f"codes are {seen}; {self!r} for d = {self.d} takes uint8 (n, {width})")


def unfitted(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of the same codec before `fit`; its parts, where it has some, are unfitted too."""

    def inner(value: Any) -> Any:
        if isinstance(value, list):
            return [inner(one) for one in value]
        return unfitted(value) if isinstance(value, dict) and "kind" in value else value

    return {**header, "d": None, "parameters": {name: inner(value) for name, value in header["parameters"].items()}}


def check_vectors(vectors: Any, d: int | None = None, name: str = "vectors") -> np.ndarray:
    """float32 (n, d), C-contiguous; one vector (d,) becomes (1, d). `name` is what the errors call them."""
    array = np.asarray(vectors)
    if array.ndim == 1:
        array = array[None, :]
    if array.ndim != 2 or array.shape[1] == 0:
        raise InvalidVectors(f"{name} have shape {array.shape}; they must be (n, d) with d >= 1")
    if array.dtype.kind not in "fiu":
        raise InvalidVectors(f"{name} are {array.dtype}; they must be real numbers")
    if d is not None and array.shape[1] != d:
        raise InvalidVectors(f"{name} have {array.shape[1]} dimensions; here they must have {d}")
    with np.errstate(over="ignore", invalid="ignore"):
        checked = np.require(array, np.float32, ["C", "A"])
        good = np.einsum("ij,ij->i", checked, checked) <= LONGEST**2
    if not good.all():
        raise InvalidVectors(
            f"{name}: row {int(np.argmin(good))} holds NaN, infinity or a number beyond float32, "
            f"or is longer than {LONGEST}"
        )
    return checked


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """`InvalidParameter` unless the value is one of those allowed."""
    if value not in allowed or isinstance(value, bool):
        raise InvalidParameter(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def check_integer(name: str, value: Any, least: int) -> None:
    """`InvalidParameter` unless the value is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidParameter(f"{name} is {value!r}; it must be an integer of at least {least}")


def by_products(queries: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]) -> Scorer:
    """The scorer of queries (nq, d) with `decode(codes)`, float32 (n, d)."""

    def score(codes: np.ndarray) -> np.ndarray:
        scores = np.empty((len(queries), len(codes)), np.float32)
        for part in _blocks(len(codes), queries.shape[1]):
            np.matmul(queries, decode(codes[part]).T, out=scores[:, part])
        return scores

    return score


def _blocks(n: int, width: int) -> list[slice]:
    """Slices over n rows of `width` numbers, `BLOCK` numbers each."""
    step = max(1, BLOCK // width)
    return [slice(start, start + step) for start in range(0, n, step)]
