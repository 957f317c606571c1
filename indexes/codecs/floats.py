"""Fewer bits per number: float16, bfloat16 and float8 (Micikevicius et al., 2022, "FP8 Formats for Deep Learning").

Numbers are rounded to the nearest that the format has, ties to the one whose last bit is 0.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from indexes.codecs.base import Codec, check_choice
from indexes.codecs.packing import look_up
from indexes.errors import InvalidVectors

# format -> bits of the mantissa, bias of the exponent, the code of its largest finite number
FLOAT8 = {"e4m3": (3, 7, 0x7E), "e5m2": (2, 15, 0x7B)}


class Float32(Codec):
    """All the bits: 4 bytes per dimension, nothing lost. The exact twin of the others."""

    kind = "float32"
    needs_fit = False

    def parameters(self) -> dict[str, Any]:
        return {}

    def _bytes(self, d: int) -> int:
        return 4 * d

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return _as_bytes(vectors, "<f4")

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return _as_numbers(codes, "<f4").astype(np.float32, copy=False)


class Float16(Codec):
    """IEEE half precision: 2 bytes per dimension, 11 bits of each number, up to 65,504.

    `encode` raises `InvalidVectors` for larger numbers.
    """

    kind = "float16"
    needs_fit = False

    def parameters(self) -> dict[str, Any]:
        return {}

    def _bytes(self, d: int) -> int:
        return 2 * d

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        if not np.isfinite(halves).all():
            raise InvalidVectors("a vector holds a number beyond float16's 65,504; scale it, or use BFloat16")
        return _as_bytes(halves, "<f2")

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return _as_numbers(codes, "<f2").astype(np.float32)


class BFloat16(Codec):
    """The upper half of float32: 2 bytes per dimension, 8 bits of each number, the range of float32."""

    kind = "bfloat16"
    needs_fit = False

    def parameters(self) -> dict[str, Any]:
        return {}

    def _bytes(self, d: int) -> int:
        return 2 * d

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(vectors).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # half, and one more if odd
        return _as_bytes((rounded >> np.uint32(16)).astype(np.uint16), "<u2")

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return (_as_numbers(codes, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


class Float8(Codec):
    """One byte per dimension, as a floating-point number: small and large numbers keep the same share of digits.

    `format`: "e4m3" (4 bits of precision, numbers over 2^17 in size; the better one for embeddings) or "e5m2" (3
    bits, 2^32). `fit` learns one power of two by which all numbers are scaled, such that the sample's largest uses
    the upper end of the range but one factor of two; numbers beyond the end become the largest one.
    """

    kind = "float8"

    def __init__(self, *, format: str = "e4m3") -> None:
        super().__init__()
        check_choice("format", format, tuple(FLOAT8))
        self.format = format
        self.scale: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"format": self.format}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (1,)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        top = float8_values(self.format)[FLOAT8[self.format][2]]
        self.scale = power_of_two(2 * np.abs(vectors).max() / top)

    def _bytes(self, d: int) -> int:
        return d

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return float8_codes(vectors / self.scale, self.format)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return look_up(float8_values(self.format) * self.scale, codes)


def float8_codes(numbers: np.ndarray, format: str = "e4m3") -> np.ndarray:
    """The nearest float8 of finite float32 numbers, as uint8 of the same shape; those beyond the range get its end."""
    mantissa, bias, last = FLOAT8[format]
    size = np.abs(numbers).astype(np.float64)
    least = 1 - bias  # exponent of the smallest normal number; the spacing stays the same below it
    exponent = np.frexp(np.maximum(size, 2.0**least))[1] - 1
    # the number of spacings counts on where the exponent below ends; rounding up to the next exponent comes out right
    steps = np.rint(np.ldexp(size, mantissa - exponent)) + (exponent - least) * 2.0**mantissa
    return np.minimum(steps, last).astype(np.uint8) | (np.signbit(numbers).astype(np.uint8) << np.uint8(7))


@functools.cache
def float8_values(format: str = "e4m3") -> np.ndarray:
    """float32 (256,): the number of each code; NaN and infinity for the codes that mean these."""
    mantissa, bias, last = FLOAT8[format]
    codes = np.arange(128)
    exponent, fraction = codes >> mantissa, codes & (2**mantissa - 1)
    normal = np.ldexp(1 + fraction / 2**mantissa, exponent - bias)
    values = np.where(exponent > 0, normal, np.ldexp(fraction / 2**mantissa, 1 - bias)).astype(np.float32)
    values[last + 1 :] = np.nan
    if format == "e5m2":
        values[last + 1] = np.inf
    both = np.concatenate([values, -values])
    both.flags.writeable = False
    return both


def power_of_two(size: float) -> np.ndarray:
    """float32 (1,): the smallest power of two that is at least `size`, so that dividing by it loses no bit; 1 for 0."""
    fraction, exponent = np.frexp(size)
    exponent = np.clip(exponent - (fraction == 0.5), -126, 126)
    return np.array([np.ldexp(1.0, exponent) if size > 0 else 1.0], np.float32)


def _as_bytes(numbers: np.ndarray, little: str) -> np.ndarray:
    return np.ascontiguousarray(numbers, little).view(np.uint8)


def _as_numbers(codes: np.ndarray, little: str) -> np.ndarray:
    return np.ascontiguousarray(codes).view(little)
