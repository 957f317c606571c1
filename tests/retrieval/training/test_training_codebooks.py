"""Scores of codes by tables against the decoded vectors, and codes that use all centroids."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from indexes.codecs import BinaryAutoencoder  # noqa: E402
from retrieval.training.codebooks import Codebooks, SignedSums, balanced, usage  # noqa: E402

M, KSUB, D = 3, 5, 12
rng = np.random.default_rng(0)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("width", [D // M, D])
def test_scores_are_products_with_the_decoded_vectors(width, linear):
    centroids = rng.normal(size=(M, KSUB, width)).astype(np.float32)
    books = Codebooks(centroids, D, linear=linear)
    np.testing.assert_allclose(books.array(), centroids, rtol=1e-5)
    codes = rng.integers(0, KSUB, (7, M)).astype(np.uint8)
    parts = [centroids[m, codes[:, m]] for m in range(M)]
    expected = np.concatenate(parts, axis=1) if width < D else np.sum(parts, axis=0)
    np.testing.assert_allclose(books.decode(codes).detach().numpy(), expected, atol=1e-5)
    queries = rng.normal(size=(2, D)).astype(np.float32)
    both = np.stack([codes, codes[::-1]])
    scores = books.scores(torch.from_numpy(queries), both).detach().numpy()
    np.testing.assert_allclose(scores, [queries[0] @ expected.T, queries[1] @ expected[::-1].T], atol=1e-4)


def test_scores_of_bits_are_products_with_the_sums_of_signed_centroids():
    codec = BinaryAutoencoder(bytes=3).fit(rng.normal(size=(50, D)))
    books, codes = SignedSums(codec), rng.integers(0, 256, (7, 3)).astype(np.uint8)
    np.testing.assert_allclose(books.array(), codec.centroids, rtol=1e-5)
    signs = [[1 if code[j // 8] >> (j % 8) & 1 else -1 for j in range(16)] for code in codes]
    expected = (codec.lengths[0] + codec.lengths[1] * codes[:, 2:]) * (np.array(signs) @ codec.centroids)
    np.testing.assert_allclose(expected + codec.mean, codec.decode(codes), atol=1e-4)
    np.testing.assert_allclose(books.decode(codes).detach().numpy(), expected, atol=1e-5)
    queries = rng.normal(size=(2, D)).astype(np.float32)
    scores = books.scores(torch.from_numpy(queries), np.stack([codes, codes[::-1]])).detach().numpy()
    np.testing.assert_allclose(scores, [queries[0] @ expected.T, queries[1] @ expected[::-1].T], atol=1e-4)


def test_distances_are_those_of_the_parts():
    centroids = rng.normal(size=(M, KSUB, D // M)).astype(np.float32)
    vectors = rng.normal(size=(6, D)).astype(np.float32)
    found = Codebooks(centroids, D).distances(torch.from_numpy(vectors)).detach().numpy()
    for m in range(M):
        part = vectors[:, 4 * m : 4 * m + 4]
        np.testing.assert_allclose(found[m], ((part[:, None] - centroids[m]) ** 2).sum(axis=2), atol=1e-4)


def test_a_step_moves_one_centroid_or_with_a_linear_basis_all_of_them():
    centroids = rng.normal(size=(1, KSUB, D)).astype(np.float32)
    for linear, moved in ((False, 1), (True, KSUB)):
        books = Codebooks(centroids, D, linear=linear)
        step = torch.optim.SGD(books.parameters(), lr=0.1)
        books.decode(np.array([[2]], np.uint8)).square().sum().backward()
        step.step()
        assert (np.abs(books.array() - centroids).max(axis=(0, 2)) > 1e-6).sum() == moved


def test_balanced_codes_use_a_centroid_that_is_nearest_to_all_no_more_than_others():
    distances = torch.rand(2, 512, 16, generator=torch.Generator().manual_seed(0))
    distances[:, :, 0] *= 0.1
    nearest = torch.bincount(distances[0].argmin(dim=1), minlength=16)
    even = np.bincount(balanced(distances)[:, 0], minlength=16)
    assert nearest[0] > 200 and even.max() <= 45 and even.min() >= 20


@pytest.mark.parametrize("epsilon", [1e-9, 1e-5, 10.0])
def test_no_epsilon_gives_anything_but_codes(epsilon):
    distances = torch.rand(2, 40, 16, generator=torch.Generator().manual_seed(0))
    codes = balanced(distances, epsilon)
    assert codes.shape == (40, 2) and codes.min() >= 0 and codes.max() < 16
    same = balanced(torch.zeros(2, 40, 16), epsilon)  # all vectors on all centroids
    assert same.shape == (40, 2)


def test_usage_is_one_for_even_codes_and_small_for_one():
    assert usage(np.arange(256, dtype=np.uint8)[:, None]) == pytest.approx(1)
    assert usage(np.zeros((100, 2), np.uint8)) == pytest.approx(1 / 256)
