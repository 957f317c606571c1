"""The codec of trained recurrent codes: against its formula, one vector and one bit at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexes.codecs import Codec
from indexes.codecs.recurrent import LEVELS, Recurrent
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted

D = 6


def codec_of(levels, width, seed=0):
    rng = np.random.default_rng(seed)
    return Recurrent.of(
        rng.normal(size=(levels, width, D)), 0.3 * rng.normal(size=(levels - 1, D, width)), rng.normal(size=(width, D)),
        rng.normal(size=D),
    )  # fmt: skip


def numbers_of(codec, vector):
    """What a code stands for, by the paper's recurrence, in float64."""
    rest, numbers = vector.astype(np.float64) - codec.mean, np.zeros(codec.dimensions)
    for level in range(codec.levels):
        binary = np.array([1 if row @ rest >= 0 else -1 for row in codec.binarize[level].astype(np.float64)])
        numbers += binary / 2**level
        if level + 1 < codec.levels:
            rest = rest - codec.rebuild[level].astype(np.float64) @ binary
    return numbers


@given(st.sampled_from(LEVELS), st.integers(1, 21), st.integers(0, 99))
def test_codes_hold_the_signs_of_what_is_left(levels, width, seed):
    codec = codec_of(levels, width, seed)
    vectors = np.random.default_rng(seed + 1).normal(size=(5, D)).astype(np.float32)
    codes = codec.encode(vectors)
    assert codes.dtype == np.uint8 and codes.shape == (5, codec.bytes_per_vector)
    assert codec.bytes_per_vector == -(-levels * width // 8)
    expected = np.array([numbers_of(codec, vector) for vector in vectors])
    np.testing.assert_array_equal(codec.numbers(codes), expected)
    queries = np.random.default_rng(seed + 2).normal(size=(3, D)).astype(np.float32)
    scores = (queries @ codec.queries.T) @ expected.T + (queries @ codec.mean)[:, None]
    np.testing.assert_allclose(codec.scores(queries, codes), scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(queries @ codec.decode(codes).T, scores, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("levels", LEVELS)
def test_it_is_saved_and_restored_as_all_codecs(levels):
    codec, vectors = codec_of(levels, 9), np.random.default_rng(1).normal(size=(20, D))
    again = Codec.restore(json.loads(json.dumps(codec.header())), codec.arrays())
    assert isinstance(again, Recurrent) and repr(again) == f"Recurrent(dimensions=9, levels={levels})"
    np.testing.assert_array_equal(again.encode(vectors), codec.encode(vectors))
    arrays = codec.arrays() | {"rebuild": np.zeros((levels, D, 9), np.float32)}
    with pytest.raises(CorruptIndex, match="rebuild"):
        Codec.restore(codec.header(), arrays)


def test_more_levels_are_nearer():
    """With maps that keep everything, each level halves what is lost."""
    vectors = np.random.default_rng(0).uniform(-1.9, 1.9, size=(500, D)).astype(np.float32)
    eye, lost = np.eye(D), []
    for levels in LEVELS:
        rebuild = np.stack([eye * 2.0**-i for i in range(levels)])[: levels - 1].reshape(-1, D, D)
        codec = Recurrent.of(np.stack([eye] * levels), rebuild, eye, np.zeros(D))
        error = np.abs(codec.decode(codec.encode(vectors)) - vectors)
        lost.append(error.max())
        assert lost[-1] <= 2.0 ** (1 - levels) + 1e-5
    assert lost == sorted(lost, reverse=True)


def test_refusals():
    codec = codec_of(2, 9)
    with pytest.raises(InvalidParameter, match="made by training"):
        codec.fit(np.ones((3, D)))
    with pytest.raises(InvalidParameter, match="levels is 3"):
        Recurrent(dimensions=4, levels=3)
    with pytest.raises(InvalidParameter, match="dimensions is 0"):
        Recurrent(dimensions=0, levels=1)
    with pytest.raises(NotFitted):
        Recurrent(dimensions=4, levels=2).encode(np.ones((1, D)))
    with pytest.raises(InvalidVectors, match=r"uint8 \(n, 3\)"):
        codec.numbers(np.zeros((2, 4), np.uint8))
