"""Codes of one vector after the other, scored by integer products along the vector: what a graph or a few rows need.

A row is the levels of a code, from the lowest bits of its first byte on, then up to three float32 (scale and offset,
half of the squared length), filled up to whole lines of 64 bytes, which one instruction multiplies at a time. The query
has zeros where a row holds something else than levels. The first line of a row costs as much as all others, some 10
nanoseconds, unless it was asked for before: so is every row here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.experimental import structref

from indexes.dense.store import LINE
from indexes.kernels.multiply_add import FASTEST, LANES, LONG, VECTOR, WORD, _add
from indexes.kernels.prefetch import prefetch_range

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments

AHEAD = 6  # rows: so far ahead memory is asked for in a scan


@structref.register
class GraphType(types.StructRef):
    """numba's type of `Graph`."""


class Graph(structref.StructRefProxy):
    """All that a search reads, behind one pointer.

    `neighbors` int32 (linked, R), -1 where there are fewer; `rows` uint8, all rows one after the other; `terms` the
    same memory as float32; `lines` of a row; `bits` of a level; `at` the place of a row's first term among its float32;
    `scaled` and `l2`, 0 or 1: whether terms have a scale and an offset, and half a squared length; `starts`
    int64: where walks begin.
    """

    def __new__(cls, neighbors, rows, terms, lines, bits, at, scaled, l2, starts):
        made = structref.StructRefProxy.__new__(cls, neighbors, rows, terms, lines, bits, at, scaled, l2, starts)
        return made


structref.define_proxy(
    Graph, GraphType, ["neighbors", "rows", "terms", "lines", "bits", "at", "scaled", "l2", "starts"]
)  # fmt: skip


def make_product(bits: int, way: str = FASTEST) -> Any:
    """A function for numba: the product of a row with a query, by one `way` ("portable" is any).

    `product(rows, start, lines, asked, first)` is an int32: of `lines` lines of 64 bytes of `rows` uint8 from `start`
    on with `asked` int8 from `first` on, where there are 8 // bits times as many: for each line 64 numbers for the
    lowest `bits` of its bytes, then 64 for the next.
    """
    parts = 8 // bits

    @intrinsic
    def product(typing_context, rows, start, lines, asked, first):
        def generate(context, builder, signature, arguments):
            rows, start, lines, asked, first = arguments
            row, query = (
                builder.gep(context.make_array(kind)(context, builder, array).data, [place])
                for kind, array, place in ((signature.args[0], rows, start), (signature.args[3], asked, first))
            )
            totals = [cgutils.alloca_once_value(builder, ir.Constant(VECTOR, [0] * LANES)) for _ in range(parts)]
            masks = [
                ir.Constant(VECTOR, [(2**bits - 1) * 0x01010101 << bits * part] * LANES) for part in range(parts)
            ]

            def line(pointer, number):
                place = builder.gep(pointer, [builder.mul(number, LONG(LINE))])
                return builder.load(builder.bitcast(place, VECTOR.as_pointer()), align=1)

            with cgutils.for_range(builder, lines) as loop:
                block = line(row, loop.index)
                for part in range(parts):
                    # numbers stay where they are in their byte, times a power of two, which the end takes away again
                    levels = builder.and_(block, masks[part]) if parts > 1 else block
                    numbers = line(query, builder.add(builder.mul(loop.index, LONG(parts)), LONG(part)))
                    builder.store(_add(builder, builder.load(totals[part]), levels, numbers, way), totals[part])
            kind = ir.FunctionType(WORD, [VECTOR])
            across = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i32")
            whole = WORD(0)
            for part in range(parts):
                shifted = builder.ashr(builder.load(totals[part]), ir.Constant(VECTOR, [bits * part] * LANES))
                whole = builder.add(whole, builder.call(across, [shifted]))
            return whole

        return types.int32(rows, types.intp, types.intp, asked, types.intp), generate

    return product


product_8, product_4, product_2, product_1 = (make_product(bits) for bits in (8, 4, 2, 1))


@njit(nogil=True, cache=True, inline="always")
def score(rows, terms, lines, bits, at, scaled, l2, row, asked, first, slope, tilt):
    """The score of a row: slope * product * scale + tilt * offset - half the squared length."""
    start = row * lines * LINE
    if bits == 8:
        whole = product_8(rows, start, lines, asked, first)
    elif bits == 4:
        whole = product_4(rows, start, lines, asked, first)
    elif bits == 2:
        whole = product_2(rows, start, lines, asked, first)
    else:
        whole = product_1(rows, start, lines, asked, first)
    total = slope * np.float32(whole)
    place = row * lines * (LINE // 4) + at
    if scaled:
        total = total * terms[place] + tilt * terms[place + 1]
        place += 2
    if l2:
        total -= terms[place]
    return total


@njit(nogil=True, cache=True, inline="always")
def prefetch_row(rows, lines, row):
    prefetch_range(rows, row * lines * LINE, (row + 1) * lines * LINE)


@njit(nogil=True, cache=True)
def quantize(weights, bits, asked, slopes):
    """Weights float32 (nq, width) as `asked` int8 (nq, numbers), in the order that `make_product` states.

    The largest number of each query becomes 127 or -127, and `slopes` float32 (nq,) is what to multiply its
    products by.
    """
    parts, width = 8 // bits, weights.shape[1]
    for q in range(weights.shape[0]):
        largest = np.float32(0)
        for i in range(width):
            largest = max(largest, abs(weights[q, i]))
        slopes[q] = largest / np.float32(127)
        inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
        if not np.isfinite(inverse):  # of numbers so small that nothing is lost by calling them 0
            inverse = np.float32(0)
        asked[q] = 0
        if parts == 1:
            for i in range(width):
                asked[q, i] = np.int8(np.rint(weights[q, i] * inverse))
        else:
            for i in range(width):
                byte, part = i // parts, i % parts
                place = (byte // LINE * parts + part) * LINE + byte % LINE
                asked[q, place] = np.int8(np.rint(weights[q, i] * inverse))


@njit(nogil=True, cache=True)
def score_exactly(graph, weights, tilt, chosen, scores):
    """Scores of one query, `weights` float32 (width,), not rounded, with rows `chosen` int64 (m,), lengths aside."""
    bits, parts, stride = graph.bits, 8 // graph.bits, graph.lines * LINE
    mask = np.uint8(2**bits - 1)
    for c in range(chosen.shape[0]):
        start, total = chosen[c] * stride, np.float32(0)
        for i in range(weights.shape[0]):
            level = (graph.rows[start + i // parts] >> np.uint8(bits * (i % parts))) & mask
            total += weights[i] * np.float32(level)
        if graph.scaled:
            place = start // 4 + graph.at
            total = total * graph.terms[place] + tilt * graph.terms[place + 1]
        scores[c] = total
