"""The Hamming distances of a block of packed codes from a query, and which of them are small, in wide registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments

LANES = 16  # documents in a block: two registers of 512 bits
WORD, LONG = ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(LONG, LANES)


@intrinsic
def near(typing_context, words, at, width, queries, first, limit, distances):
    """The distances of a block into `distances` uint64 (LANES,). Returns which are up to `limit`, as bits.

    `words` uint64 from `at` on, a block (width, LANES): the first 64 bits of all its codes, then the next; `queries`
    uint64 from `first` on, (width,). Both are one-dimensional. One compare for a block: nearly all blocks have none.
    Loops over words are split into registers of 256 bits by LLVM; those named so are not.
    """

    def generate(context, builder, signature, arguments):
        words, at, width, queries, first, limit, distances = arguments
        words, queries = (
            builder.gep(context.make_array(kind)(context, builder, array).data, [start])
            for kind, array, start in ((signature.args[0], words, at), (signature.args[3], queries, first))
        )
        out = context.make_array(signature.args[6])(context, builder, distances).data
        count = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR]), f"llvm.ctpop.v{LANES}i64"
        )
        total = cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0] * LANES))
        with cgutils.for_range(builder, width) as loop:
            place = builder.bitcast(builder.gep(words, [builder.mul(loop.index, LONG(LANES))]), VECTOR.as_pointer())
            asked = _splat(builder, builder.load(builder.gep(queries, [loop.index])))
            apart = builder.xor(builder.load(place, align=8), asked)
            builder.store(builder.add(builder.load(total), builder.call(count, [apart])), total)
        whole = builder.load(total)
        builder.store(whole, builder.bitcast(out, VECTOR.as_pointer()), align=8)
        good = builder.icmp_unsigned("<=", whole, _splat(builder, limit))
        return builder.zext(builder.bitcast(good, ir.IntType(LANES)), LONG)

    return types.int64(words, types.intp, types.intp, queries, types.intp, types.int64, distances), generate


def _splat(builder, one):
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), one, WORD(0))
    zeros = ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(VECTOR, ir.Undefined), zeros)
