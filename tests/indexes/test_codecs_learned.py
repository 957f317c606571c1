"""Codecs and linear maps that learn: PCA, LeanVec, rotations, PQ, OPQ, residual levels, against slow definitions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_codecs import embeddings

from indexes.codecs import OPQ, PCA, PQ, SQ, Chain, Float16, Float32, LeanVec, RandomRotation, Residual

DOCUMENTS = embeddings(1500, d=24, seed=1)


def loss(codec, documents, queries):
    return codec.score_error(documents, queries).rmse


def elsewhere(n, seed=0):
    """Queries that lie otherwise than DOCUMENTS: mostly in the few dimensions in which these vary least."""
    mixing = np.random.default_rng(7).normal(size=(24, 24))
    spread = np.geomspace(0.03, 1, 24)  # the documents' dimensions shrink, these grow
    return (np.random.default_rng(seed).normal(size=(n, 24)) * spread + 0.1 * spread @ mixing).astype(np.float32)


# -- linear maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: PCA(dimensions=24), RandomRotation, lambda: LeanVec(dimensions=24)])
def test_maps_to_all_dimensions_lose_nothing(make):
    queries = elsewhere(200)
    codec = Chain(make(), Float32()).fit(DOCUMENTS, queries)
    np.testing.assert_allclose(codec.decode(codec.encode(DOCUMENTS)), DOCUMENTS, atol=1e-4)
    np.testing.assert_allclose(codec.scores(queries, codec.encode(DOCUMENTS)), queries @ DOCUMENTS.T, atol=1e-4)


def test_pca_is_the_best_subspace_around_the_mean():
    codec = Chain(PCA(dimensions=6), Float32()).fit(DOCUMENTS)
    u, s, v = np.linalg.svd(DOCUMENTS - DOCUMENTS.mean(axis=0), full_matrices=False)
    expected = (u[:, :6] * s[:6]) @ v[:6] + DOCUMENTS.mean(axis=0)
    np.testing.assert_allclose(codec.decode(codec.encode(DOCUMENTS)), expected, atol=1e-4)
    rows = codec.parts[0].projection
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-5)


def test_pca_of_vectors_in_a_subspace_is_exact_with_fewer_vectors_than_dimensions():
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(10, 3)) @ rng.normal(size=(3, 40)) + 5
    codec = Chain(PCA(dimensions=20), Float32()).fit(documents)
    np.testing.assert_allclose(codec.decode(codec.encode(documents)), documents, atol=1e-4)


def test_rotations_are_rotations_and_depend_on_the_seed():
    rows = [RandomRotation(seed=seed).fit(DOCUMENTS).projection for seed in range(200)]
    np.testing.assert_allclose(rows[0] @ rows[0].T, np.eye(24), atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 0.1
    entries = np.array(rows)  # drawn evenly: of mean 0, also on the diagonal, and of variance 1 / d
    assert np.abs(entries.mean(axis=0)).max() < 5 / np.sqrt(200 * 24)
    assert entries.var() == pytest.approx(1 / 24, rel=0.05)


def test_leanvec_loses_no_more_than_the_best_linear_map():
    """Which is given by the singular values of K_q^(1/2) K_x^(1/2) (Eckart and Young)."""
    queries = elsewhere(5000)
    centred = (DOCUMENTS - DOCUMENTS.mean(axis=0)).astype(np.float64)

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    product = root(queries.T.astype(np.float64) @ queries / 5000) @ root(centred.T @ centred / len(centred))
    for dimensions in (2, 6, 12):
        least = np.sqrt((np.linalg.svd(product, compute_uv=False)[dimensions:] ** 2).sum())
        lean = loss(Chain(LeanVec(dimensions=dimensions), Float32()).fit(DOCUMENTS, queries), DOCUMENTS, queries)
        pca = loss(Chain(PCA(dimensions=dimensions), Float32()).fit(DOCUMENTS), DOCUMENTS, queries)
        assert least * 0.999 < lean < least * 1.02
        assert pca > 1.3 * lean


def test_leanvec_of_few_queries_helps_others_of_their_kind_or_does_no_harm():
    unseen = elsewhere(1000, seed=1)
    pca = loss(Chain(PCA(dimensions=6), Float32()).fit(DOCUMENTS), DOCUMENTS, unseen)
    losses = [
        loss(Chain(LeanVec(dimensions=6), Float32()).fit(DOCUMENTS, elsewhere(n)), DOCUMENTS, unseen)
        for n in (1, 30, 1000)
    ]
    assert losses[0] < 1.05 * pca and losses[2] < losses[1] < 0.9 * pca


def test_leanvec_for_queries_from_everywhere_is_pca():
    queries = np.vstack([np.eye(24), -np.eye(24)])
    lean, pca = LeanVec(dimensions=5).fit(DOCUMENTS, queries), PCA(dimensions=5).fit(DOCUMENTS)
    np.testing.assert_allclose(lean.projection, pca.projection, atol=1e-3)
    np.testing.assert_allclose(lean.query_projection, pca.projection, atol=1e-3)
    nothing = LeanVec(dimensions=5).fit(DOCUMENTS, np.zeros((3, 24)))
    np.testing.assert_allclose(nothing.projection, pca.projection, atol=1e-3)


def test_leanvec_makes_coarse_codes_err_where_queries_do_not_look():
    queries = elsewhere(2000)

    def coarse(*maps):
        return loss(Chain(*maps, SQ(bits=4, scope="global")).fit(DOCUMENTS, queries), DOCUMENTS, queries)

    assert coarse(LeanVec(dimensions=24), RandomRotation()) < 0.9 * coarse(RandomRotation())


def test_the_mean_takes_up_no_dimension():
    far = DOCUMENTS + np.float32(10)
    queries = elsewhere(50)
    near_error = loss(Chain(PCA(dimensions=6), Float32()).fit(DOCUMENTS), DOCUMENTS, queries)
    assert loss(Chain(PCA(dimensions=6), Float32()).fit(far), far, queries) == pytest.approx(near_error, rel=0.01)


# -- product quantisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("M", "bits"), [(1, 8), (4, 8), (24, 4), (3, 4)])
def test_pq_codes_are_the_nearest_centroids(M, bits):
    codec = PQ(M=M, bits=bits).fit(DOCUMENTS)
    assert codec.centroids.shape == (M, 2**bits, 24 // M) and codec.bytes_per_vector == -(-M * bits // 8)
    decoded = codec.decode(codec.encode(DOCUMENTS[:50])).reshape(50, M, -1)
    for i, vector in enumerate(DOCUMENTS[:50].reshape(50, M, -1)):
        for m in range(M):
            away = np.linalg.norm(codec.centroids[m] - vector[m], axis=1)
            assert np.linalg.norm(decoded[i, m] - vector[m]) == pytest.approx(away.min(), abs=1e-5)


def test_pq_depends_on_the_seed_alone():
    a, b, c = (PQ(M=4, bits=4, seed=seed).fit(DOCUMENTS).centroids for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def test_opq_rotates_so_that_pq_errs_less():
    queries = embeddings(200, d=24, seed=2)
    plain = loss(PQ(M=6, bits=4).fit(DOCUMENTS), DOCUMENTS, queries)
    rotated = Chain(OPQ(M=6, bits=4), PQ(M=6, bits=4)).fit(DOCUMENTS)
    assert loss(rotated, DOCUMENTS, queries) < 0.8 * plain
    rows = rotated.parts[0].projection
    np.testing.assert_allclose(rows @ rows.T, np.eye(24), atol=1e-4)


@pytest.mark.parametrize(("dimensions", "kept"), [(None, 21), (14, 14)])
def test_opq_drops_dimensions_so_that_m_divides_them(dimensions, kept):
    codec = Chain(OPQ(M=7, bits=4, dimensions=dimensions), PQ(M=7, bits=4)).fit(DOCUMENTS)
    assert codec.parts[1].d == kept and codec.parts[0].projection.shape == (kept, 24)
    assert codec.score_error(DOCUMENTS, DOCUMENTS[:100]).correlation > 0.9


# -- levels ------------------------------------------------------------------------------------------------------------


def test_each_residual_level_errs_less_and_the_first_stands_alone():
    queries = embeddings(100, d=24, seed=2)
    parts = [PQ(M=4, bits=4, seed=seed) for seed in range(4)]
    errors = [loss(Residual(*parts[:levels]).fit(DOCUMENTS), DOCUMENTS, queries) for levels in (2, 3, 4)]
    assert errors[2] < 0.85 * errors[1] < 0.85**2 * errors[0]
    codec = Residual(*parts).fit(DOCUMENTS)
    codes, first = codec.encode(DOCUMENTS), codec.parts[0]
    start = np.ascontiguousarray(codes[:, : first.bytes_per_vector])
    np.testing.assert_array_equal(start, PQ(M=4, bits=4).fit(DOCUMENTS).encode(DOCUMENTS))
    np.testing.assert_allclose(first.scores(queries, start), queries @ first.decode(start).T, atol=1e-5)


def test_the_second_level_encodes_what_the_first_lost():
    codec = Residual(SQ(bits=4), Float16()).fit(DOCUMENTS)
    codes = codec.encode(DOCUMENTS)
    lost = DOCUMENTS - codec.parts[0].decode(codes[:, :12])
    np.testing.assert_array_equal(codes[:, 12:].copy().view(np.float16), lost.astype(np.float16))
    np.testing.assert_allclose(codec.decode(codes), DOCUMENTS, atol=1e-4)


# -- determinism -------------------------------------------------------------------------------------------------------


def test_directions_hold_no_bits_that_depend_on_lapack():
    """Its threads change the 13th digit; that shows in float32, but not in multiples of 2^-20."""
    lean = LeanVec(dimensions=6).fit(DOCUMENTS, elsewhere(50))
    for array in (PCA(dimensions=6).fit(DOCUMENTS).projection, lean.projection, lean.query_projection):
        steps = array.astype(np.float64) * 2**20
        np.testing.assert_array_equal(steps, np.rint(steps))
        assert not (np.signbit(array) & (array == 0)).any()


def test_the_number_of_threads_changes_no_byte():
    code = """
import hashlib, numpy as np
from indexes.codecs import *
rng = np.random.default_rng(0)
x = (rng.normal(size=(900, 256)) * np.geomspace(1, 0.1, 256) @ rng.normal(size=(256, 256))).astype(np.float32)
for codec in (Chain(LeanVec(dimensions=100), SQ()), Chain(PCA(dimensions=200), LVQ()), RaBitQ(),
              Chain(OPQ(M=8, bits=4), PQ(M=8, bits=4)), PQ(M=4, bits=4), SQ(bits=4)):
    codec.fit(x, x[:50])
    for array in (*codec.arrays().values(), codec.encode(x)):
        print(hashlib.sha256(np.ascontiguousarray(array)).hexdigest())
"""
    outputs = set()
    for threads in ("1", "4"):
        settings = dict(os.environ, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads, PYTHONHASHSEED=threads)
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", code], env=settings, cwd=root, capture_output=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and outputs.pop().count(b"\n") > 15
