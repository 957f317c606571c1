"""Binary autoencoders: codes against all codes there are, and against the definition, one sign at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import ScanIndex
from indexes.codecs import PQ, BinaryAutoencoder, Codec, Retrained
from indexes.codecs.packing import unpack_signs
from indexes.errors import CorruptIndex, InvalidParameter, NotFitted

D = 12


def embeddings(n, seed=0, d=D):
    """Correlated, off centre, with unequal dimensions."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ (fixed.normal(size=(d, d)) * np.geomspace(1, 0.1, d)) + 1).astype(np.float32)


def lost(codec, vectors, signs):
    """The squared error that the search for signs makes small: of sums, before their length is corrected."""
    return np.square(signs @ codec.centroids + codec.mean - vectors).sum(axis=1)


def signs_of(codec, codes):
    return unpack_signs(codes[:, :-1], codec.bits)


def test_codes_are_nearly_the_best_of_all():
    vectors = embeddings(500)
    codec = BinaryAutoencoder(bytes=2).fit(vectors)
    every = unpack_signs(np.arange(256, dtype=np.uint8)[:, None], 8) @ codec.centroids + codec.mean
    best = ((vectors[:, None] - every) ** 2).sum(axis=2).min(axis=1)
    found = lost(codec, vectors, signs_of(codec, codec.encode(vectors)))
    assert (found <= best * (1 + 1e-4)).mean() > 0.6 and found.mean() < 1.1 * best.mean()


@settings(max_examples=20, deadline=None)
@given(size=st.integers(2, 5), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_no_single_bit_turned_around_is_nearer(size, n, seed):
    vectors = embeddings(n, seed)
    codec = BinaryAutoencoder(bytes=size, seed=seed).fit(embeddings(100, seed + 1))
    signs = signs_of(codec, codec.encode(vectors))
    found = lost(codec, vectors, signs)
    for bit in range(codec.bits):
        turned = signs.copy()
        turned[:, bit] *= -1
        assert (lost(codec, vectors, turned) >= found * (1 - 1e-4) - 1e-6).all()


def test_a_decoded_vector_is_the_mean_and_a_signed_sum_of_a_length():
    codec = BinaryAutoencoder(bytes=3).fit(embeddings(300))
    codes = np.array([[0b00000101, 0b10000000, 200]], np.uint8)
    signs = np.array([1, -1, 1] + [-1] * 12 + [1])
    length = codec.lengths[0] + 200 * codec.lengths[1]
    np.testing.assert_allclose(codec.decode(codes)[0], codec.mean + length * (signs @ codec.centroids), atol=1e-4)


def test_decoded_vectors_are_as_far_from_the_mean_as_the_vectors():
    vectors = embeddings(500)
    codec = BinaryAutoencoder(bytes=4).fit(vectors)
    apart = [np.linalg.norm(some - codec.mean, axis=1) for some in (vectors, codec.decode(codec.encode(vectors)))]
    assert (np.abs(apart[1] / apart[0] - 1) < 0.01).mean() > 0.98  # a byte holds no length that fit has not seen


def test_it_is_nearer_than_products_of_as_many_bytes():
    """And nearer with every byte, beyond one bit a dimension too."""
    vectors, fresh = embeddings(2000, d=32), embeddings(500, seed=1, d=32)
    left = []
    for size in (2, 3, 5, 9):
        codec = BinaryAutoencoder(bytes=size).fit(vectors)
        left.append(np.square(codec.decode(codec.encode(fresh)) - fresh).sum())
    assert left == sorted(left, reverse=True)
    pq = PQ(M=4).fit(vectors)
    assert left[2] < np.square(pq.decode(pq.encode(fresh)) - fresh).sum()


def test_what_is_added_alone_or_in_company_gets_the_same_code():
    vectors = embeddings(60)
    codec = BinaryAutoencoder(bytes=4).fit(vectors)
    together = codec.encode(vectors)
    alone = np.concatenate([codec.encode(vector) for vector in vectors])
    np.testing.assert_array_equal(alone[:, :-1], together[:, :-1])
    assert np.abs(alone[:, -1].astype(int) - together[:, -1]).max() <= 1  # BLAS rounds by the number of rows
    np.testing.assert_array_equal(BinaryAutoencoder(bytes=4).fit(vectors).encode(vectors), together)
    assert not np.array_equal(BinaryAutoencoder(bytes=4, seed=1).fit(vectors).encode(vectors), together)


@pytest.mark.parametrize("vectors", [np.ones((1, D)), np.zeros((5, D)), np.tile(np.eye(1, D), (300, 1))])
def test_vectors_without_any_difference_are_kept(vectors):
    codec = BinaryAutoencoder(bytes=3).fit(vectors)
    np.testing.assert_allclose(codec.decode(codec.encode(vectors)), vectors, atol=1e-5)


@pytest.mark.parametrize("retrained", [False, True])
def test_a_scan_scores_bits_as_the_codec_does(retrained, tmp_path):
    """Through the tables of levels, and from disk."""
    vectors, queries = embeddings(2000), embeddings(20, seed=1)
    codec = BinaryAutoencoder(bytes=3).fit(vectors)
    if retrained:
        codec = Retrained.of(codec, codec.centroids[::-1] + np.float32(0.1))
    scores = codec.scores(queries, codec.encode(vectors))
    index = ScanIndex(codec=codec, rerank=None)
    if not retrained:
        index.fit(vectors)
    index.add(vectors)
    index.save(tmp_path / "index")
    hits = ScanIndex.load(tmp_path / "index").search(queries, 10)
    np.testing.assert_allclose(hits.scores, -np.sort(-scores, axis=1)[:, :10], rtol=1e-3, atol=1e-2)


def test_bad_input():
    """No bits; no steps; a seed below 0; use before fit; centroids of another shape, from a file and to score by."""
    with pytest.raises(InvalidParameter, match="bytes is 1"):
        BinaryAutoencoder(bytes=1)
    with pytest.raises(InvalidParameter, match="steps is 0"):
        BinaryAutoencoder(steps=0)
    with pytest.raises(InvalidParameter, match="seed is -1"):
        BinaryAutoencoder(seed=-1)
    with pytest.raises(NotFitted):
        BinaryAutoencoder().encode(embeddings(3))
    codec = BinaryAutoencoder(bytes=3).fit(embeddings(30))
    with pytest.raises(CorruptIndex, match=r"must be float32 \(16, 12\)"):
        Codec.restore(codec.header(), codec.arrays() | {"centroids": np.zeros((8, D), np.float32)})
    with pytest.raises(InvalidParameter, match="cannot score"):
        Retrained.of(codec, np.zeros((8, D), np.float32))
