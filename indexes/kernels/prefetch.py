"""Ask the processor for memory before it is needed: LLVM's `prefetch`, which is one instruction or nothing at all."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, njit, types

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments


@intrinsic
def prefetch(typing_context, array, index):
    """Prefetch the cache line that holds `array[index]` (1-d, contiguous). Harmless beyond the end of the array."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        prefetch_at(builder, builder.gep(data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def prefetch_at(builder, place):
    """In code that is being generated: prefetch the cache line at the pointer `place`."""
    pointer, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    builder.call(function, [builder.bitcast(place, pointer), word(0), word(3), word(1)])  # to read, every level, data


@njit(nogil=True, cache=True, inline="always")
def prefetch_range(array, start, stop):
    """Prefetch `array[start:stop]`, one line of 64 bytes at a time."""
    step = 64 // array.itemsize
    for i in range(start, stop, step):
        prefetch(array, i)
