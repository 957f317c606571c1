"""Products of bytes with signed bytes, added up as 32-bit integers: 64 products per instruction where it exists.

The instruction is VPDPBUSD, of AVX-512 VNNI or AVX-VNNI. LLVM does not find it in loops, so that it is called by name;
elsewhere the same sums are made of products of 16 bits: 16 per instruction with AVX2 (VPMADDWD, a third of the speed),
and with any processor as LLVM does it (a sixth).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from indexes.kernels.prefetch import prefetch_at

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments

LANES = 16  # documents in a block: the 32-bit lanes of 512 bits
AHEAD = 4096  # bytes: so far ahead of a single query memory is asked for, a line for each that it reads
WORD, LONG = ir.IntType(32), ir.IntType(64)
VECTOR, FLOATS = ir.VectorType(WORD, LANES), ir.VectorType(ir.FloatType(), LANES)
SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
_FEATURES = llvmlite.binding.get_host_cpu_features()
FASTEST = next((name for name in ("avx512vnni", "avxvnni", "avx2") if _FEATURES.get(name)), "portable")


def make_products(bits: int, count: int, way: str = FASTEST) -> Any:
    """A function for numba: products of a block of documents with `count` queries, by one `way` ("portable" is any).

    `products(words, at, width, queries, first, sums)` reads `words` uint32 from `at` on, a block (width, LANES): the
    packed numbers of `bits` bits, 8 // bits to a byte, four bytes to a word. `queries` uint32 from `first` on, (count,
    width, 8 // bits): four signed bytes to a word, for the numbers in the lowest `bits` of the four bytes of a word of
    codes, then for the next. Both are one-dimensional. `sums` int32 (count * LANES,) is overwritten.
    A single query waits for memory, and each sum for the one before: it asks ahead, and adds up every other word apart.
    """
    parts = 8 // bits
    banks = 2 if count == 1 else 1

    @intrinsic
    def products(typing_context, words, at, width, queries, first, sums):
        def generate(context, builder, signature, arguments):
            words, at, width, queries, first, sums = arguments
            words, queries = (
                builder.gep(context.make_array(kind)(context, builder, array).data, [start])
                for kind, array, start in ((signature.args[0], words, at), (signature.args[3], queries, first))
            )
            out = context.make_array(signature.args[5])(context, builder, sums).data
            zero = ir.Constant(VECTOR, [0] * LANES)
            totals = [
                [[cgutils.alloca_once_value(builder, zero) for _ in range(parts)] for _ in range(count)]
                for _ in range(banks)
            ]
            masks = [_splat(builder, WORD((2**bits - 1) * 0x01010101 << bits * part)) for part in range(parts)]
            stride = builder.mul(width, LONG(parts))

            def add_word(word, bank):
                place = builder.gep(words, [builder.mul(word, LONG(LANES))])
                if count == 1:
                    prefetch_at(builder, builder.gep(place, [LONG(AHEAD // 4)]))
                block = builder.load(builder.bitcast(place, VECTOR.as_pointer()), align=4)
                # numbers stay where they are in their byte, times a power of two, which the end takes away again
                levels = [builder.and_(block, mask) for mask in masks] if parts > 1 else [block]
                start = builder.mul(word, LONG(parts))
                for query in range(count):
                    row = builder.gep(queries, [builder.add(start, builder.mul(stride, LONG(query)))])
                    for part in range(parts):
                        four = _splat(builder, builder.load(builder.gep(row, [LONG(part)]), align=4))
                        total = totals[bank][query][part]
                        builder.store(_add(builder, builder.load(total), levels[part], four, way), total)

            rounds = builder.udiv(width, LONG(banks))
            with cgutils.for_range(builder, rounds) as loop:
                for bank in range(banks):
                    add_word(builder.add(builder.mul(loop.index, LONG(banks)), LONG(bank)), bank)
            done = builder.mul(rounds, LONG(banks))
            with cgutils.for_range(builder, builder.sub(width, done)) as loop:
                add_word(builder.add(done, loop.index), 0)
            for query in range(count):
                whole = zero
                for part in range(parts):
                    total = builder.load(totals[0][query][part])
                    for bank in range(1, banks):
                        total = builder.add(total, builder.load(totals[bank][query][part]))
                    whole = builder.add(whole, builder.ashr(total, ir.Constant(VECTOR, [bits * part] * LANES)))
                place = builder.bitcast(builder.gep(out, [LONG(query * LANES)]), VECTOR.as_pointer())
                builder.store(whole, place, align=4)
            return context.get_dummy_value()

        return types.void(words, types.intp, types.intp, queries, types.intp, sums), generate

    return products


@intrinsic
def rate(typing_context, sums, at, slope, scales, tilt, offsets, squares, start, least, scores):
    """The scores of a block: slope * sum * scale + tilt * offset - square. Returns which are `least` or more, as bits.

    `sums` int32 from `at` on; `scales` and `offsets`, `squares` float32 from `start` on, LANES each, or arrays (0,) for
    1, 0 and 0; `scores` float32 (LANES,) is overwritten. One compare for a block: nearly all blocks have none.
    """

    def generate(context, builder, signature, arguments):
        arrays = {
            i: context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 3, 5, 6, 9)
        }
        at, slope, tilt, start, least = (arguments[i] for i in (1, 2, 4, 7, 8))

        def lanes(i, first, kind):
            place = builder.bitcast(builder.gep(arrays[i].data, [first]), kind.as_pointer())
            return builder.load(place, align=4)

        def there(i):
            return builder.icmp_signed("!=", arrays[i].nitems, ir.Constant(arrays[i].nitems.type, 0))

        rated = builder.fmul(builder.sitofp(lanes(0, at, VECTOR), FLOATS), _splat(builder, slope))
        total = cgutils.alloca_once_value(builder, rated)
        with builder.if_then(there(3)):
            shift = builder.fmul(lanes(5, start, FLOATS), _splat(builder, tilt))
            builder.store(builder.fadd(builder.fmul(builder.load(total), lanes(3, start, FLOATS)), shift), total)
        with builder.if_then(there(6)):
            builder.store(builder.fsub(builder.load(total), lanes(6, start, FLOATS)), total)
        rated = builder.load(total)
        builder.store(rated, builder.bitcast(arrays[9].data, FLOATS.as_pointer()), align=4)
        good = builder.fcmp_ordered(">=", rated, _splat(builder, least))
        return builder.zext(builder.bitcast(good, ir.IntType(LANES)), WORD)

    single = types.float32
    return types.uint32(
        sums, types.intp, single, scales, single, offsets, squares, types.intp, single, scores
    ), generate


def _splat(builder, one):
    kind = ir.VectorType(one.type, LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), one, WORD(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(VECTOR, [0] * LANES))


def _add(builder, totals, levels, four, way):
    """`totals` plus, in each lane, the products of four bytes with four signed bytes."""
    if way == "avx512vnni":
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", [totals, levels, four])
    if way == "avxvnni":
        halves = []
        for start in (0, LANES // 2):
            lanes = ir.Constant(ir.VectorType(WORD, LANES // 2), list(range(start, start + LANES // 2)))
            half = [builder.shuffle_vector(whole, whole, lanes) for whole in (totals, levels, four)]
            halves.append(_call(builder, "llvm.x86.avx512.vpdpbusd.256", half, half[0].type))
        return builder.shuffle_vector(*halves, ir.Constant(VECTOR, list(range(LANES))))
    if way == "avx2":
        return builder.add(totals, _pairs(builder, levels, four))
    # a byte times a signed byte fits 16 bits: the products of every other byte at once, then of those between
    for byte in (0, 1):
        level = builder.and_(builder.lshr(levels, _same(8 * byte)), _same(0x00FF00FF))
        number = builder.bitcast(builder.shl(four, _same(8 - 8 * byte)), SHORTS)
        number = builder.ashr(number, ir.Constant(SHORTS, [8] * 2 * LANES))
        pair = builder.bitcast(builder.mul(builder.bitcast(level, SHORTS), number), VECTOR)
        totals = builder.add(totals, builder.ashr(builder.shl(pair, _same(16)), _same(16)))
        totals = builder.add(totals, builder.ashr(pair, _same(16)))
    return totals


def _pairs(builder, levels, four):
    """The sum of each lane's four products, by an instruction that adds products of 16 bits in pairs."""
    halves, shorts = [], ir.VectorType(ir.IntType(16), LANES)
    for start in (0, LANES // 2):
        lanes = ir.Constant(ir.VectorType(WORD, LANES // 2), list(range(start, start + LANES // 2)))
        half = []
        for byte in (0, 1):
            level = builder.and_(builder.lshr(levels, _same(8 * byte)), _same(0x00FF00FF))
            number = builder.bitcast(builder.shl(four, _same(8 - 8 * byte)), SHORTS)
            number = builder.bitcast(builder.ashr(number, ir.Constant(SHORTS, [8] * 2 * LANES)), VECTOR)
            pair = [
                builder.bitcast(builder.shuffle_vector(whole, whole, lanes), shorts) for whole in (level, number)
            ]
            half.append(_call(builder, "llvm.x86.avx2.pmadd.wd", pair, lanes.type))
        halves.append(builder.add(*half))
    return builder.shuffle_vector(*halves, ir.Constant(VECTOR, list(range(LANES))))


def _same(number):
    return ir.Constant(VECTOR, [number] * LANES)


def _call(builder, name, arguments, kind=VECTOR):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments)
