"""Bounds as 16-bit whole numbers that stop at 65535: LLVM's saturating addition, one value or eight at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments

LANES = 8
FULL = 65535  # stands for itself and all above


def _pointer(context, builder, array_type, array, index, kind):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())


def _splat(builder, value, kind):
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), lanes)


def _add_full(builder, a, b, kind):
    suffix = f"v{kind.count}i16" if isinstance(kind, ir.VectorType) else "i16"
    add = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind, kind]), f"llvm.uadd.sat.{suffix}"
    )
    return builder.call(add, [a, b])


def _add_scaled(builder, total, maximum, weight, kind):
    """`total` + ceil(`maximum` * `weight` / 256), or one more where `maximum` is above 0; at most 65535."""
    lanes = kind.count if isinstance(kind, ir.VectorType) else 0
    byte = ir.VectorType(ir.IntType(8), lanes) if lanes else ir.IntType(8)
    eight, low = (ir.Constant(kind, [value] * lanes if lanes else value) for value in (8, 255))
    units = builder.zext(maximum, kind)
    # in two halves, so that all products have 16 bits: processors multiply 16-bit lanes fast, 32-bit lanes slowly
    whole = builder.mul(units, builder.lshr(weight, eight))
    rest = builder.lshr(builder.mul(units, builder.and_(weight, low)), eight)
    there = builder.icmp_unsigned("!=", maximum, ir.Constant(byte, [0] * lanes if lanes else 0))
    part = builder.add(builder.add(whole, rest), builder.zext(there, kind))
    return _add_full(builder, total, part, kind)


@intrinsic
def add_scaled(typing_context, total, maximum, weight):
    """`total` uint16 plus at least `maximum` (uint8) * `weight` (uint16) / 256: uint16, at most 65535.

    Rounded so that it is above 0 where `maximum` is.
    """

    def generate(context, builder, signature, arguments):
        total, maximum, weight = arguments
        return _add_scaled(builder, total, maximum, weight, ir.IntType(16))

    return types.uint16(types.uint16, types.uint8, types.uint16), generate


@intrinsic
def add_scaled_lanes(typing_context, totals, place, maxima, at, weight):
    """`add_scaled` for `totals[place : place + 8]`, uint16, and `maxima[at : at + 8]`, uint8, both contiguous."""

    def generate(context, builder, signature, arguments):
        lanes, half = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(16), LANES)
        out = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], half)
        row = _pointer(context, builder, signature.args[2], arguments[2], arguments[3], lanes)
        weight = _splat(builder, arguments[4], half)
        total = builder.load(out, align=2)
        builder.store(_add_scaled(builder, total, builder.load(row, align=1), weight, half), out, align=2)
        return context.get_dummy_value()

    return types.void(totals, types.uintp, maxima, types.uintp, types.uint16), generate


@intrinsic
def add_full(typing_context, a, b):
    """`a + b`, both uint16, at most 65535."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        return _add_full(builder, a, b, ir.IntType(16))

    return types.uint16(types.uint16, types.uint16), generate


@intrinsic
def raise_lanes(typing_context, totals, place, more):
    """Add `more`, uint16, to `totals[place : place + 8]`, at most 65535 each; returns the highest."""

    def generate(context, builder, signature, arguments):
        half = ir.VectorType(ir.IntType(16), LANES)
        out = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], half)
        total = _add_full(builder, builder.load(out, align=2), _splat(builder, arguments[2], half), half)
        builder.store(total, out, align=2)
        best = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(16), [half]), f"llvm.vector.reduce.umax.v{LANES}i16"
        )
        return builder.call(best, [total])

    return types.uint16(totals, types.uintp, types.uint16), generate
