"""Codecs of single numbers against slow definitions: float16, bfloat16, float8, scalar quantisation, signs."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from indexes.codecs import LVQ, SQ, BFloat16, Chain, Float8, Float16, Float32, RaBitQ, RandomRotation, SignBits
from indexes.codecs.floats import FLOAT8, float8_codes, float8_values, power_of_two
from indexes.codecs.packing import (
    nibble_tables,
    pack_nibbles,
    pack_quarters,
    pack_signs,
    sign_tables,
    unpack_nibbles,
    unpack_quarters,
    unpack_signs,
)
from indexes.errors import InvalidVectors

formats = pytest.mark.parametrize("format", FLOAT8)
singles = st.floats(-(2.0**57), 2.0**57, width=32)


def gaussians(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


# -- float formats -----------------------------------------------------------------------------------------------------


def slow_float8(code, format):
    """The number of a code, by the definition of the format: sign, exponent, mantissa."""
    exponent_bits, mantissa_bits = {"e4m3": (4, 3), "e5m2": (5, 2)}[format]
    bias = 2 ** (exponent_bits - 1) - 1
    bits = f"{code:08b}"
    sign, exponent = -1 if bits[0] == "1" else 1, int(bits[1 : 1 + exponent_bits], 2)
    mantissa = bits[1 + exponent_bits :]
    if format == "e4m3" and bits[1:] == "1111111":
        return math.nan
    if format == "e5m2" and exponent == 31:
        return math.nan if int(mantissa, 2) else sign * math.inf
    fraction = Fraction(int(mantissa, 2), 2**mantissa_bits)
    size = (1 + fraction) * Fraction(2) ** (exponent - bias) if exponent else fraction * Fraction(2) ** (1 - bias)
    return sign * float(size)


FINITE = {f: [Fraction(x) for c in range(128) if math.isfinite(x := slow_float8(c, f))] for f in FLOAT8}


def slow_nearest(number, format):
    """The code of the nearest finite float8, of two as near the even one."""
    size = abs(Fraction(number))
    _, _, best = min((abs(value - size), code % 2, code) for code, value in enumerate(FINITE[format]))
    return best | (0x80 if math.copysign(1, number) < 0 else 0)


@formats
def test_float8_values_are_those_of_the_definition(format):
    np.testing.assert_array_equal(float8_values(format), [slow_float8(c, format) for c in range(256)])
    assert float8_values(format)[FLOAT8[format][2]] == {"e4m3": 448, "e5m2": 57344}[format]


@formats
def test_float8_rounds_to_the_nearest_and_halves_to_even(format):
    finite = np.sort(float8_values(format)[: FLOAT8[format][2] + 1].astype(np.float64))
    middle = ((finite[1:] + finite[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    numbers = np.concatenate([finite.astype(np.float32), middle, *beside, np.float32([1e-30, 1e9, 2.0**60])])
    for codes, sign in ((float8_codes(numbers, format), 0), (float8_codes(-numbers, format), 0x80)):
        assert codes.tolist() == [slow_nearest(float(x), format) | sign for x in numbers]


@given(singles, st.sampled_from(list(FLOAT8)))
def test_float8_of_any_number(number, format):
    assert float8_codes(np.float32([number]), format)[0] == slow_nearest(number, format)


@formats
@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
def test_float8_scales_to_the_sample_and_keeps_a_share_of_each_number(format, size):
    vectors = gaussians(200, 8) * np.float32(size)
    codec = Float8(format=format).fit(vectors)
    assert np.frexp(codec.scale)[0] == 0.5  # a power of two
    decoded = codec.decode(codec.encode(vectors * 1.9))  # nearly twice as large as the sample still has room
    share = 2.0 ** -(FLOAT8[format][0] + 1)
    smallest = codec.scale * float8_values(format)[1] / 2
    assert (np.abs(decoded - vectors * 1.9) <= share * np.abs(vectors * 1.9) + smallest).all()
    beyond = codec.decode(codec.encode(vectors * 100))
    assert np.abs(beyond).max() == pytest.approx(float(float8_values(format)[FLOAT8[format][2]] * codec.scale[0]))


@given(st.lists(singles, min_size=1, max_size=20))
@example([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, -2.0 + 2.0**-8])  # halves
def test_bfloat16_rounds_to_the_nearest_and_halves_to_even(numbers):
    vectors = np.array([numbers], np.float32)
    decoded = BFloat16().fit(vectors).decode(BFloat16().fit(vectors).encode(vectors))
    below = (vectors.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # nearer to 0
    above = ((vectors.view(np.uint32) | np.uint32(0xFFFF)) + np.uint32(1)).view(np.float32)
    for x, low, high, found in zip(vectors[0], below[0], above[0], decoded[0], strict=True):
        a, b = Fraction(float(x)) - Fraction(float(low)), Fraction(float(high)) - Fraction(float(x))
        low_is_even = (low.view(np.uint32) >> 16) % 2 == 0
        expected = low if abs(a) < abs(b) or (abs(a) == abs(b) and low_is_even) else high
        assert found == expected


def test_float32_and_float16_are_numpys():
    vectors = gaussians(50, 7) * 1000
    for codec, dtype in ((Float32(), np.float32), (Float16(), np.float16)):
        codes = codec.fit(vectors).encode(vectors)
        np.testing.assert_array_equal(codes.view(dtype), vectors.astype(dtype))
        np.testing.assert_array_equal(codec.decode(codes), vectors.astype(dtype).astype(np.float32))
    with pytest.raises(InvalidVectors, match="beyond float16's 65,504"):
        Float16().fit(vectors).encode(np.full((1, 7), 65520))


def test_powers_of_two():
    assert [power_of_two(x)[0] for x in (0, 1, 1.01, 2, 0.25, 0.26, 3e18)] == [1, 1, 2, 2, 0.25, 0.5, 2.0**62]
    assert power_of_two(1e-44)[0] == 2.0**-126


# -- scalar quantisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["dimension", "global"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sq_gives_the_nearest_level(bits, scope):
    vectors = gaussians(400, 5) * [1, 2, 0.1, 5, 1] + [0, 1, 5, 0, -3]
    codec = SQ(bits=bits, scope=scope).fit(vectors)
    assert codec.lower.shape == codec.step.shape == ((5,) if scope == "dimension" else (1,))
    decoded = codec.decode(codec.encode(vectors))
    levels = codec.lower + codec.step * np.arange(2**bits)[:, None]  # (levels, 5 or 1)
    nearest = np.abs(vectors[None] - levels[:, None, :]).min(axis=0)
    np.testing.assert_allclose(np.abs(vectors - decoded), nearest, atol=1e-5)


def test_sq_keeps_numbers_between_the_bounds_within_half_a_step():
    vectors = np.random.default_rng(0).uniform(-1, 3, (1000, 6)).astype(np.float32)
    codec = SQ().fit(vectors)
    upper = codec.lower + 255 * codec.step
    np.testing.assert_allclose(codec.lower, -1, atol=0.02)
    np.testing.assert_allclose(upper, 3, atol=0.02)
    clipped = np.clip(vectors, codec.lower, upper)
    assert (np.abs(codec.decode(codec.encode(vectors)) - clipped) <= codec.step / 2 + 1e-6).all()


def test_sq_clips_rare_large_numbers():
    """Of Gaussians 16 levels hold the least error over about -2.6 to 2.6 (Max, 1960), not over the whole range."""
    vectors = gaussians(100_000, 1)
    codec = SQ(bits=4).fit(vectors)
    assert 0.30 < codec.step[0] < 0.37  # 0.3352 is the best
    error = np.mean((codec.decode(codec.encode(vectors)) - vectors) ** 2)
    assert error < 0.0125  # 0.01154 is the least; over the whole range it is 0.025


@given(st.lists(st.lists(singles, min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from([4, 8]))
def test_lvq_is_off_by_no_more_than_half_a_step(rows, bits):
    vectors = np.array(rows, np.float32)
    codec = LVQ(bits=bits).fit(vectors)
    centred = vectors.astype(np.float64) - codec.mean
    away = np.abs(codec.decode(codec.encode(vectors)) - vectors).max(axis=1)
    largest = np.abs(centred).max(axis=1)
    widest = centred.max(axis=1) - centred.min(axis=1) + 2.0**-9 * largest  # bounds are rounded outwards, to float16
    rounding = 2.0**-21 * np.abs(vectors).max()  # of the sums, to float32; also of float16's smallest numbers
    assert (away <= widest / (2**bits - 1) / 2 + rounding).all()


def test_lvq_codes_as_in_the_paper():
    vectors = np.array([[1, 2, 3, 4.5], [-1, -2, -3, -4.5]], np.float32)  # of mean 0
    codec = LVQ(bits=4).fit(vectors)
    codes = codec.encode(vectors)
    assert codec.scale[0] == 8 and codec.bytes_per_vector == 2 + 4
    lower, spread = codes[:, 2:].copy().view(np.float16).T.astype(np.float64) * 8
    np.testing.assert_array_equal(lower, [1, -4.5])
    np.testing.assert_array_equal(spread, [3.5, 3.5])
    levels = [round((x - 1) / (3.5 / 15)) for x in (1, 2, 3, 4.5)]
    assert unpack_nibbles(codes[:1, :2], 4)[0].tolist() == levels == [0, 4, 9, 15]


def test_lvq_bounds_enclose_the_numbers():
    vectors = gaussians(200, 6) * np.float32(0.01) + gaussians(200, 1, seed=1)
    codec = LVQ().fit(vectors)
    lower, spread = codec.encode(vectors)[:, 6:].copy().view(np.float16).T.astype(np.float64) * codec.scale
    centred = vectors - codec.mean
    assert (lower <= centred.min(axis=1)).all() and (lower + spread >= centred.max(axis=1)).all()
    assert (lower >= centred.min(axis=1) - 2.0**-10 * np.abs(centred).max(axis=1)).all()  # and no more than need be


def test_lvq_in_2_bits_has_the_least_error():
    """Of Gaussians: 0.1188 of the variance (Max, 1960), where levels over the whole range would leave more than it."""
    vectors = gaussians(25, 2000) * np.geomspace(0.01, 1, 25)[:, None]
    vectors = np.concatenate([vectors, -vectors])  # of mean 0
    codec = LVQ(bits=2).fit(vectors)
    error = ((codec.decode(codec.encode(vectors)) - vectors) ** 2).mean(axis=1) / vectors.var(axis=1)
    assert (error < 0.128).all() and error.mean() < 0.1205


@given(st.lists(st.lists(singles, min_size=5, max_size=5), min_size=1, max_size=6))
def test_lvq_in_2_bits_is_no_worse_than_one_level(rows):
    """For any numbers; one level is their mean. Also of one number, or two, of which nothing is lost."""
    vectors = np.array(rows, np.float32)
    codec = LVQ(bits=2).fit(vectors)
    centred = vectors.astype(np.float64) - codec.mean
    error = np.linalg.norm(codec.decode(codec.encode(vectors)) - vectors, axis=1)
    rounding = 2.0**-8 * np.abs(centred).max(axis=1) + 2.0**-20 * np.abs(vectors).max()  # bounds are float16
    assert (error <= np.linalg.norm(centred - centred.mean(axis=1, keepdims=True), axis=1) + 5 * rounding).all()


def test_lvq_refuses_vectors_out_of_all_proportion():
    codec = LVQ().fit(gaussians(50, 4))
    with pytest.raises(InvalidVectors, match="vector 1 is over 30,000 times larger"):
        codec.encode(np.array([[1, 1, 1, 1], [1e6, 0, 0, 0]]))


# -- bits --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 19), st.integers(0, 99))
def test_packing_and_its_tables(n, d, seed):
    rng = np.random.default_rng(seed)
    halves, numbers, queries = rng.integers(0, 16, (n, d), np.uint8), rng.normal(size=(n, d)), rng.normal(size=(2, d))
    numbers[:, ::3] = 0  # counts as positive
    codes = pack_nibbles(halves)
    assert codes.shape == (n, -(-d // 2))
    np.testing.assert_array_equal(unpack_nibbles(codes, d), halves)
    tables = rng.normal(size=(2, d, 16)).astype(np.float32)
    byte_tables = nibble_tables(tables)
    for i in range(n):
        direct = tables[:, np.arange(d), halves[i]].sum(axis=1)
        np.testing.assert_allclose(byte_tables[:, np.arange(len(codes[i])), codes[i]].sum(axis=1), direct, atol=1e-4)
    quarters = halves % 4
    codes = pack_quarters(quarters)
    assert codes.shape == (n, -(-d // 4)) and codes.dtype == np.uint8
    np.testing.assert_array_equal(unpack_quarters(codes, d), quarters)
    for i in range(n):
        assert int.from_bytes(codes[i].tobytes(), "little") == sum(int(x) << 2 * j for j, x in enumerate(quarters[i]))
    signs = pack_signs(numbers)
    np.testing.assert_array_equal(unpack_signs(signs, d), np.where(numbers >= 0, 1, -1))
    tables = sign_tables(queries.astype(np.float32))
    for i in range(n):
        direct = queries @ np.where(numbers[i] >= 0, 1, -1)
        np.testing.assert_allclose(tables[:, np.arange(len(signs[i])), signs[i]].sum(axis=1), direct, atol=1e-4)


def test_sign_bits_are_signs_of_the_right_size():
    vectors = gaussians(3000, 10) * 5
    codec = SignBits().fit(vectors)
    assert codec.bytes_per_vector == 2
    np.testing.assert_allclose(codec.scale, 5 * math.sqrt(2 / math.pi), rtol=0.02)  # the least squared error
    np.testing.assert_array_equal(codec.decode(codec.encode(vectors)), np.where(vectors >= 0, 1, -1) * codec.scale)


def test_rabitq_is_unbiased_over_rotations():
    """And signs after the same rotations, all scaled alike, are not."""
    rng = np.random.default_rng(5)
    sample = rng.normal(size=(20, 16)) * 0.1
    vectors, queries = np.abs(rng.normal(size=(6, 16))) * [[0.2], [1], [1], [1], [5], [20]], rng.normal(size=(4, 16))
    queries += 1.5 * vectors[2]  # near one of them: the estimate must not fall short there
    exact = queries @ vectors.T
    estimates, signs = [], []
    for seed in range(1500):
        codec = RaBitQ(seed=seed).fit(sample)
        estimates.append(codec.scores(queries, codec.encode(vectors)))
        rotated = Chain(RandomRotation(seed=seed), SignBits()).fit(sample)
        signs.append(rotated.scores(queries, rotated.encode(vectors)))
    spread = np.std(estimates, axis=0) / math.sqrt(1500)  # standard error of the mean
    assert np.abs((np.mean(estimates, axis=0) - exact) / spread).max() < 4.5
    assert np.abs((np.mean(signs, axis=0) - exact) / spread).max() > 20


def test_rabitq_errs_less_in_more_dimensions():
    """Standard deviation of the estimate for unit vectors: about sqrt((pi / 2 - 1) / (d - 1)) (section 3.2)."""
    for d in (64, 256):
        vectors, queries = gaussians(300, d), gaussians(100, d, seed=1)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        codec = RaBitQ().fit(vectors)
        assert codec.bytes_per_vector == d // 8 + 4
        expected = math.sqrt((math.pi / 2 - 1) / (d - 1))
        assert codec.score_error(vectors, queries).rmse == pytest.approx(expected, rel=0.04)


def test_rabitq_follows_the_formula_of_the_paper():
    vectors, query = gaussians(30, 12) + 2, gaussians(1, 12, seed=1)[0].astype(np.float64)
    codec = RaBitQ(seed=3).fit(vectors)
    P, mean = codec.projection.astype(np.float64), vectors.mean(axis=0, dtype=np.float64)
    for x, found in zip(vectors.astype(np.float64), codec.scores(query, codec.encode(vectors))[0], strict=True):
        residual = x - mean
        o = P @ residual / np.linalg.norm(residual)  # the unit vector, rotated
        o_bar = np.where(o >= 0, 1, -1) / math.sqrt(12)
        estimate = (o_bar @ (P @ query)) / (o_bar @ o)
        assert found == pytest.approx(np.linalg.norm(residual) * estimate + query @ mean, rel=1e-4)
