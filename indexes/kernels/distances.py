"""The Hamming distances of packed codes from a query, some at once, and which of them are small, in wide registers."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

from indexes.kernels.popcount import popcount
from indexes.kernels.prefetch import prefetch_at

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments

WORD, LONG = ir.IntType(32), ir.IntType(64)


def make_near(lanes: int, stride: int, ahead: int = 0) -> Any:
    """A function for numba: the distances of `lanes` codes, up to 64, of a block of `stride`.

    `near(words, at, width, queries, first, limit, distances)` reads `words` uint64 from `at` on: the first 64 bits of
    the codes, and their next ones each time `stride` later, `width` times; `queries` uint64 from `first` on, (width,).
    Both are one-dimensional. It returns which distances are up to `limit`, as bits; if any is, all are written to
    `distances` uint64 (lanes,). One compare for many codes: nearly always none is near.
    `ahead`: bytes, so far ahead memory is asked for, a line for each that is read; 0 leaves that to the processor.
    Loops over words are split into registers of 256 bits by LLVM; those named so are not.
    """
    vector = ir.VectorType(LONG, lanes)

    def splat(builder, one):
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), one, WORD(0))
        zeros = ir.Constant(ir.VectorType(WORD, lanes), [0] * lanes)
        return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)

    @intrinsic
    def near(typing_context, words, at, width, queries, first, limit, distances):
        def generate(context, builder, signature, arguments):
            words, at, width, queries, first, limit, distances = arguments
            words, queries = (
                builder.gep(context.make_array(kind)(context, builder, array).data, [start])
                for kind, array, start in ((signature.args[0], words, at), (signature.args[3], queries, first))
            )
            out = context.make_array(signature.args[6])(context, builder, distances).data
            count = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector]), f"llvm.ctpop.v{lanes}i64"
            )
            total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0] * lanes))
            with cgutils.for_range(builder, width) as loop:
                place = builder.gep(words, [builder.mul(loop.index, LONG(stride))])
                for line in range(0, lanes if ahead else 0, 8):
                    prefetch_at(builder, builder.gep(place, [LONG(ahead // 8 + line)]))
                place = builder.bitcast(place, vector.as_pointer())
                asked = splat(builder, builder.load(builder.gep(queries, [loop.index])))
                apart = builder.xor(builder.load(place, align=8), asked)
                builder.store(builder.add(builder.load(total), builder.call(count, [apart])), total)
            whole = builder.load(total)
            good = builder.bitcast(builder.icmp_signed("<=", whole, splat(builder, limit)), ir.IntType(lanes))
            bits = good if lanes == 64 else builder.zext(good, LONG)
            with builder.if_then(builder.icmp_unsigned("!=", bits, LONG(0)), likely=False):
                builder.store(whole, builder.bitcast(out, vector.as_pointer()), align=8)
            return bits

        return types.int64(words, types.intp, types.intp, queries, types.intp, types.int64, distances), generate

    return near


@njit(nogil=True, cache=True, inline="always")
def lowest(bits):
    """The number of the lowest bit that is set."""
    return np.int64(popcount(np.uint64((bits & -bits) - 1)))
