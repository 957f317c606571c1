"""Count the ones of a word: LLVM's `ctpop`, which in a loop over words becomes wide instructions where they exist."""

from __future__ import annotations

from typing import Any

from numba import extending, types

intrinsic: Any = extending.intrinsic  # mypy would count the typing context among the arguments


@intrinsic
def popcount(typing_context, word):
    """The number of ones of an unsigned integer, in its own type."""
    if word not in types.unsigned_domain:
        return None

    def generate(context, builder, signature, arguments):
        return builder.call(builder.module.declare_intrinsic("llvm.ctpop", [arguments[0].type]), arguments)

    return word(word), generate
