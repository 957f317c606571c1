"""Codecs whose codes are rows of small whole numbers, taken apart so that a scan can score them without floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from indexes.codecs.autoencoder import BinaryAutoencoder
from indexes.codecs.base import Codec
from indexes.codecs.binary import RaBitQ, SignBits, _factors
from indexes.codecs.compose import Chain
from indexes.codecs.learned import Retrained
from indexes.codecs.scalar import LVQ, SQ

RowTerms: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
QueryTerms: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
LONGEST = 65_536  # numbers to a code: sums of so many products of a byte with a signed byte fit 32 bits


@dataclass(frozen=True)
class Levels:
    """What a score is made of: (weights . levels) * scale + tilt * offset, and a number that only depends on the query.

    A code begins with `nbytes` bytes that hold the levels, whole numbers of `bits` bits, the first in the lowest bits
    of the first byte. `row_terms` takes codes (n, bytes) to `scale` and `offset`, float32 (n,), or both (0,) where they
    are 1 and 0 for all. `query_terms` takes queries float32 (nq, d) to `weights` float32 (nq, levels) and `tilt`
    float32 (nq,).
    """

    bits: int
    nbytes: int
    row_terms: RowTerms
    query_terms: QueryTerms


def levels_of(codec: Codec) -> Levels | None:
    """The levels of a fitted codec, or None where its codes are something else."""
    if isinstance(codec, Chain):
        inner = levels_of(codec._codec)
        return inner and Levels(inner.bits, inner.nbytes, inner.row_terms, _mapped(codec, inner.query_terms))
    if codec.d is None or codec.d > LONGEST:
        return None
    if isinstance(codec, Retrained):
        return levels_of(codec.scoring)
    if isinstance(codec, BinaryAutoencoder) and codec.bits <= LONGEST:
        centroids = codec.centroids.T
        return Levels(1, codec.bytes - 1, _both(codec.lengths_of), lambda queries: _signed(queries @ centroids))
    if isinstance(codec, SQ):
        step = codec.step
        return Levels(codec.bits, codec.bytes_per_vector, _no_terms, lambda queries: _untilted(queries * step))
    if isinstance(codec, LVQ):
        return Levels(codec.bits, codec.bytes_per_vector - 4, _bounds(codec), _summed(codec))
    if isinstance(codec, SignBits):
        scale = 2 * codec.scale
        return Levels(1, codec.bytes_per_vector, _no_terms, lambda queries: _untilted(queries * scale))
    if isinstance(codec, RaBitQ):
        projection = codec.projection.T
        return Levels(1, codec.bytes_per_vector - 4, _both(_factors), lambda queries: _signed(queries @ projection))
    return None


def _mapped(chain: Chain, inner: QueryTerms) -> QueryTerms:
    def terms(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for part in chain._maps:
            queries = queries @ part.query_projection.T  # checked before, and the term of the mean is not needed
        return inner(queries)

    return terms


def _no_terms(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.empty(0, np.float32), np.empty(0, np.float32)


def _untilted(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return weights, np.zeros(len(weights), np.float32)


def _bounds(codec: LVQ) -> RowTerms:
    def terms(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower, step = codec._bounds(codes)
        return np.ascontiguousarray(step[:, 0]), np.ascontiguousarray(lower[:, 0])

    return terms


def _summed(codec: LVQ) -> QueryTerms:
    def terms(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weights = queries * codec.scale
        return weights, weights.sum(axis=1)

    return terms


def _both(factors_of: Callable[[np.ndarray], np.ndarray]) -> RowTerms:
    def terms(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        factors = factors_of(codes)
        return factors, factors

    return terms


def _signed(rotated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signs are 1 and -1, twice the bit less 1."""
    return 2 * rotated, -rotated.sum(axis=1)
