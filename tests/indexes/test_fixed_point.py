"""Bounds of 16 bits against whole numbers that have no end."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from indexes.kernels.fixed_point import LANES, add_full, add_scaled, add_scaled_lanes, raise_lanes

words, bytes_ = st.integers(0, 65535), st.integers(0, 255)
lanes = st.lists(st.tuples(words, bytes_), min_size=LANES, max_size=LANES)


@njit
def one(total, maximum, weight):
    return add_scaled(total, maximum, weight)


@njit
def all_lanes(totals, maxima, weight):
    add_scaled_lanes(totals, 1, maxima, 3, weight)


@njit
def both(a, b):
    return add_full(a, b)


@njit
def lifted(totals, more):
    return raise_lanes(totals, 1, more)


def slow(total: int, maximum: int, weight: int) -> int:
    return min(65535, total + maximum * weight // 256 + (maximum > 0))


@given(words, bytes_, words)
def test_one_value(total, maximum, weight):
    assert one(np.uint16(total), np.uint8(maximum), np.uint16(weight)) == slow(total, maximum, weight)
    assert slow(0, maximum, weight) >= min(65535, maximum * weight / 256)


@given(lanes, words)
def test_eight_values_and_none_beside_them(pairs, weight):
    totals = np.array([7, *(total for total, _ in pairs), 9], np.uint16)
    maxima = np.array([255, 255, 255, *(maximum for _, maximum in pairs)], np.uint8)
    all_lanes(totals, maxima, np.uint16(weight))
    assert totals.tolist() == [7, *(slow(total, maximum, weight) for total, maximum in pairs), 9]


@given(lanes, words)
def test_raised_values_and_the_highest(pairs, more):
    totals = np.array([65535, *(total for total, _ in pairs), 65535], np.uint16)
    highest = lifted(totals, np.uint16(more))
    expected = [min(65535, total + more) for total, _ in pairs]
    assert totals.tolist() == [65535, *expected, 65535] and highest == max(expected)
    assert both(np.uint16(pairs[0][0]), np.uint16(more)) == expected[0]
