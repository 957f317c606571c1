"""Scores of chosen vectors, or of all, from float32, float16 or 8-bit levels as they are stored."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import extending, njit, types

from indexes.kernels.prefetch import prefetch_range

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments
AHEAD = 4  # vectors: so far ahead memory is asked for
BOUNDS = 8  # bytes before the levels of a vector
FAST = {"reassoc", "contract", "nsz"}  # sums in any order, for wide instructions
_FEATURES = llvmlite.binding.get_host_cpu_features()
_CONVERTS = bool(_FEATURES.get("f16c") or _FEATURES.get("fullfp16"))  # elsewhere LLVM would call a C function for each


@intrinsic
def widen(typing_context, number):
    """float32 of itself, or of the bits, uint16, of a float16."""
    if number == types.float32:
        return types.float32(number), lambda context, builder, signature, arguments: arguments[0]
    if number != types.uint16:
        return None

    def generate(context, builder, signature, arguments):
        single, word = ir.FloatType(), ir.IntType(32)
        if _CONVERTS:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), single)
        bits = builder.zext(arguments[0], word)
        sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
        rest = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
        # what the exponent lacks when the bits are read as those of a float32
        return builder.fmul(builder.bitcast(builder.or_(sign, rest), single), ir.Constant(single, 2.0**112))

    return types.float32(number), generate


@intrinsic
def float_at(typing_context, array, index):
    """The float32 whose bytes begin at `array[index]`, uint8 (1-d, contiguous): `view` takes as long as 300 numbers."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]])
        number = builder.load(builder.bitcast(place, ir.FloatType().as_pointer()))
        number.align = 1
        return number

    return types.float32(array, types.intp), generate


@njit(nogil=True, cache=True)
def chosen(vectors, queries, rows, l2, scores):
    """`scores[q, i]` = the score of query q with vector `rows[q, i]`, or nothing where that is -1.

    `vectors` float32 (n, d), the bits, uint16, of float16, or uint8 levels (`indexes.dense.store.in_levels`); `queries`
    float32 (nq, d); `rows` int64 (nq, m); `l2`: whether scores are minus squared distances, not inner products;
    `scores` float32 (nq, m).
    """
    flat, d = vectors.reshape(-1), vectors.shape[1]
    for q in range(queries.shape[0]):
        for i in range(rows.shape[1]):
            if i + AHEAD < rows.shape[1]:
                ahead = max(0, rows[q, i + AHEAD])
                prefetch_range(flat, ahead * d, ahead * d + d)
            if rows[q, i] >= 0:
                row = vectors[rows[q, i]]
                scores[q, i] = -distance(row, queries[q]) if l2 else product(row, queries[q])


@njit(nogil=True, cache=True)
def every(vectors, start, stop, queries, l2, scores):
    """`scores[q, i]` = the score of query q with vector i, from `start` to `stop`; else as `chosen`."""
    for i in range(start, stop):
        for q in range(queries.shape[0]):
            scores[q, i] = -distance(vectors[i], queries[q]) if l2 else product(vectors[i], queries[q])


@njit(nogil=True, cache=True)
def widened(numbers, out):
    """`out[i]` = the float32 of the bits `numbers[i]` of a float16; both one-dimensional."""
    for i in range(numbers.shape[0]):
        out[i] = widen(numbers[i])


def product(vector: Any, query: Any) -> Any:
    """The inner product, summed in any order; for kernels, where numba chooses by the type of the vector."""
    raise NotImplementedError


def distance(vector: Any, query: Any) -> Any:
    """The squared Euclidean distance, summed in any order; as `product`."""
    raise NotImplementedError


@extending.overload(product, jit_options={"fastmath": FAST})
def _choose_product(vector, query):
    def of_numbers(vector, query):
        total = np.float32(0)
        for i in range(vector.shape[0]):
            total += widen(vector[i]) * query[i]
        return total

    def of_levels(vector, query):
        total, plain = np.float32(0), np.float32(0)
        for i in range(query.shape[0]):
            total += np.float32(vector[BOUNDS + i]) * query[i]
            plain += query[i]
        return float_at(vector, 0) * plain + float_at(vector, 4) * total

    return of_levels if vector.dtype == types.uint8 else of_numbers


@extending.overload(distance, jit_options={"fastmath": FAST})
def _choose_distance(vector, query):
    def of_numbers(vector, query):
        total = np.float32(0)
        for i in range(vector.shape[0]):
            difference = widen(vector[i]) - query[i]
            total += difference * difference
        return total

    def of_levels(vector, query):
        lower, step, total = float_at(vector, 0), float_at(vector, 4), np.float32(0)
        for i in range(query.shape[0]):
            difference = lower + step * np.float32(vector[BOUNDS + i]) - query[i]
            total += difference * difference
        return total

    return of_levels if vector.dtype == types.uint8 else of_numbers
