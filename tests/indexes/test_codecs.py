"""What every codec keeps: shapes, scores as of the decoded vectors, errors by name, saving; and what parts make up."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import storage
from indexes.base import in_chunks
from indexes.codecs import (
    LVQ,
    OPQ,
    PCA,
    PQ,
    RQ,
    SQ,
    BFloat16,
    BinaryAutoencoder,
    Chain,
    Codec,
    Float8,
    Float16,
    Float32,
    LeanVec,
    RaBitQ,
    RandomRotation,
    Residual,
    SignBits,
)
from indexes.codecs.base import KINDS, Fitted
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted

D = 20
MAKERS = [
    Float32,
    Float16,
    BFloat16,
    Float8,
    lambda: Float8(format="e5m2"),
    SQ,
    lambda: SQ(scope="global"),
    lambda: SQ(bits=4),
    lambda: SQ(bits=2),
    lambda: SQ(bits=4, scope="global"),
    LVQ,
    lambda: LVQ(bits=4),
    lambda: LVQ(bits=2),
    lambda: PQ(M=5, bits=4),
    lambda: PQ(M=10),
    lambda: RQ(M=3, beam=2),
    lambda: BinaryAutoencoder(bytes=4),
    SignBits,
    RaBitQ,
    lambda: Chain(Float16()),
    lambda: Chain(PCA(dimensions=9), SQ(bits=4)),
    lambda: Chain(LeanVec(dimensions=D), RandomRotation(), LVQ()),
    lambda: Chain(OPQ(M=3, bits=4), PQ(M=3, bits=4)),
    lambda: Residual(PQ(M=4, bits=4), PQ(M=2, bits=4)),
    lambda: Residual(LVQ(bits=4), Chain(PCA(dimensions=7), Residual(SignBits(), RaBitQ()))),
]
TRAINED = {"learned", "recurrent", "retrained"}  # not made by fit: see test_codecs_learned and test_codecs_recurrent
codecs = pytest.mark.parametrize("make", MAKERS, ids=lambda make: repr(make()).replace(" ", ""))


def embeddings(n, d=D, seed=0):
    """Vectors with a mean, around 30 centres, with unequal and correlated dimensions, as embeddings have them."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    mixing = fixed.normal(size=(d, d)) * np.geomspace(1, 0.05, d)
    centres = fixed.normal(size=(30, d))
    vectors = (centres[rng.integers(0, 30, n)] + 0.5 * rng.normal(size=(n, d))) @ mixing + fixed.normal(size=d)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


DOCUMENTS, QUERIES = embeddings(300, seed=1), embeddings(40, seed=2)


def fitted(make):
    return make().fit(DOCUMENTS, QUERIES)


def test_the_list_holds_every_kind():
    def kinds(codec):
        return {codec.kind}.union(*(kinds(part) for part in getattr(codec, "parts", ())))

    assert set().union(*(kinds(make()) for make in MAKERS)) | TRAINED == set(KINDS)


# -- the contract ------------------------------------------------------------------------------------------------------


@codecs
def test_shapes_and_types(make):
    codec = fitted(make)
    codes = codec.encode(DOCUMENTS)
    assert codes.dtype == np.uint8 and codes.flags.c_contiguous
    assert codes.shape == (300, codec.bytes_per_vector) and codec.bytes_per_vector <= 4 * D
    decoded, scores = codec.decode(codes), codec.scores(QUERIES, codes)
    assert decoded.dtype == scores.dtype == np.float32
    assert decoded.shape == (300, D) and scores.shape == (40, 300)


@codecs
@settings(max_examples=5, deadline=None)
@given(n=st.integers(0, 70), nq=st.integers(0, 5), exponent=st.integers(-4, 4), seed=st.integers(0, 99))
def test_scores_are_those_of_the_decoded_vectors(make, n, nq, exponent, seed):
    documents = embeddings(300, seed=seed) * np.float32(10.0**exponent)
    codec = make().fit(documents, QUERIES)
    codes, queries = codec.encode(documents[:n]), embeddings(nq, seed=seed + 1) * np.float32(10.0**-exponent)
    expected = queries.astype(np.float64) @ codec.decode(codes).T.astype(np.float64)
    np.testing.assert_allclose(codec.scores(queries, codes), expected, rtol=0, atol=1e-5)


@codecs
def test_scores_resemble_the_exact_ones(make):
    codec = fitted(make)
    fresh, asked = embeddings(200, seed=3), embeddings(30, seed=4)  # neither was seen by fit
    error = codec.score_error(fresh, asked)
    exact, estimated = (asked @ fresh.T).ravel(), codec.scores(asked, codec.encode(fresh)).ravel()
    assert error.rmse == pytest.approx(np.sqrt(np.mean((exact - estimated) ** 2)), rel=1e-4, abs=1e-7)
    assert error.correlation == pytest.approx(np.corrcoef(exact, estimated)[0, 1], abs=1e-5)
    assert error.correlation > 0.8


@codecs
def test_blocks_and_threads_change_nothing(make, monkeypatch):
    codec = fitted(make)
    codes, scores = codec.encode(DOCUMENTS), codec.scores(QUERIES, codec.encode(DOCUMENTS))
    decoded, error = codec.decode(codes), codec.score_error(DOCUMENTS, QUERIES)
    monkeypatch.setattr("indexes.codecs.base.BLOCK", 7 * D)
    np.testing.assert_allclose(codec.decode(codec.encode(DOCUMENTS)), decoded, atol=2e-3)  # BLAS rounds by the block
    score, out = codec.scorer(QUERIES), np.empty_like(scores)

    def work(start, stop):
        out[:, start:stop] = score(codes[start:stop])

    in_chunks(work, len(codes), 4)
    np.testing.assert_allclose(out, scores, atol=1e-6)
    assert codec.score_error(DOCUMENTS, QUERIES).rmse == pytest.approx(error.rmse, rel=1e-3, abs=1e-7)


@codecs
def test_codes_may_come_in_any_layout(make):
    codec = fitted(make)
    codes = codec.encode(DOCUMENTS)
    backwards = codes[::-2]
    wide = np.zeros((len(codes), codes.shape[1] + 3), np.uint8)
    wide[:, 1:-2] = codes
    wide.flags.writeable = False
    np.testing.assert_allclose(codec.scores(QUERIES, backwards), codec.scores(QUERIES, codes)[:, ::-2], atol=1e-6)
    np.testing.assert_allclose(codec.decode(wide[:, 1:-2]), codec.decode(codes), atol=1e-6)


@codecs
def test_fitting_again_gives_the_same_bytes_and_keeps_faiss_threads(make):
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        first, second = fitted(make), fitted(make)
        np.testing.assert_array_equal(first.encode(DOCUMENTS), second.encode(DOCUMENTS))
        for name, array in first.arrays().items():
            np.testing.assert_array_equal(array, second.arrays()[name])
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@codecs
def test_what_goes_in_is_left_alone(make):
    documents, queries = DOCUMENTS.copy(), QUERIES.copy()
    documents.flags.writeable = queries.flags.writeable = False
    codec = make().fit(documents, queries)
    codes = codec.encode(documents)
    codes.flags.writeable = False
    codec.scores(queries, codes)
    codec.decode(codes)
    np.testing.assert_array_equal(documents, DOCUMENTS)
    np.testing.assert_array_equal(queries, QUERIES)


# -- little and odd data -----------------------------------------------------------------------------------------------


@codecs
def test_constant_dimensions_come_back(make):
    documents = DOCUMENTS.copy()
    documents[:, 3], documents[:, 8] = 0.25, 0
    codec = make().fit(documents, QUERIES)
    assert np.isfinite(codec.decode(codec.encode(documents))).all()
    error = codec.score_error(documents, QUERIES)
    assert np.isfinite([error.rmse, error.correlation]).all() and error.correlation > 0.8


@codecs
@pytest.mark.parametrize("value", [0, 0.37])
def test_equal_vectors_come_back(make, value):
    documents = np.full((300, D), value, np.float32)
    codec = make().fit(documents, QUERIES)
    share = 2**-3 if isinstance(codec, Float8) else 0.01
    np.testing.assert_allclose(codec.decode(codec.encode(documents)), documents, rtol=share)
    assert np.isnan(codec.score_error(documents, QUERIES[:1]).correlation)


@pytest.mark.parametrize("make", [m for m in MAKERS if not re.search("PQ|RQ", repr(m()))], ids=lambda m: repr(m()))
def test_one_vector_is_enough_and_may_be_flat(make):
    codec = make().fit(DOCUMENTS[0], QUERIES[0])
    codes = codec.encode(DOCUMENTS[0])
    assert codes.shape == (1, codec.bytes_per_vector)
    if not isinstance(codec, SignBits):
        np.testing.assert_allclose(codec.decode(codes)[0], DOCUMENTS[0], atol=0.05)
    assert codec.scores(QUERIES[0], codes).shape == (1, 1)


@codecs
def test_no_vectors_give_no_codes(make):
    codec = fitted(make)
    nothing = codec.encode(np.empty((0, D)))
    assert nothing.shape == (0, codec.bytes_per_vector)
    assert codec.decode(nothing).shape == (0, D)
    assert codec.scores(QUERIES, nothing).shape == (40, 0)
    assert codec.scores(np.empty((0, D)), codec.encode(DOCUMENTS)).shape == (0, 300)


# -- errors ------------------------------------------------------------------------------------------------------------


@codecs
def test_before_fit_all_is_refused(make):
    codec = make()
    codes = np.zeros((1, 1), np.uint8)
    for use in (
        lambda: codec.bytes_per_vector, lambda: codec.encode(DOCUMENTS), lambda: codec.decode(codes),
        lambda: codec.scores(QUERIES, codes), lambda: codec.scorer(QUERIES),
        lambda: codec.score_error(DOCUMENTS, QUERIES),
    ):  # fmt: skip
        with pytest.raises(NotFitted, match="must be fitted first"):
            use()


@codecs
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.full((2, D), np.nan), "vectors: row 0 holds NaN"),
        (np.vstack([DOCUMENTS[:3], np.full((1, D), np.inf)]), "vectors: row 3 holds NaN, infinity"),
        (np.full((1, D), 1e300), "row 0 holds NaN, infinity or a number beyond float32"),
        (np.full((1, D), 3e18), "longer than 3e"),
        (np.ones((2, 3, D)), r"shape \(2, 3, 20\)"),
        (np.ones((2, 0)), r"shape \(2, 0\)"),
        (np.full((1, D), "x"), "must be real numbers"),
        (np.ones((1, D), complex), "complex128; they must be real numbers"),
    ],
)
def test_bad_vectors_are_named(make, bad, message):
    codec = fitted(make)
    for use in (codec.fit, codec.encode, lambda v: codec.score_error(v, QUERIES)):
        with pytest.raises(InvalidVectors, match=message):
            use(bad)
    for use in (codec.scorer, lambda v: codec.score_error(DOCUMENTS, v)):
        with pytest.raises(InvalidVectors, match=message.replace("vectors", "queries")):
            use(bad)


@codecs
def test_another_width_is_refused(make):
    codec = fitted(make)
    codes = codec.encode(DOCUMENTS)
    with pytest.raises(InvalidVectors, match="vectors have 19 dimensions; here they must have 20"):
        codec.encode(DOCUMENTS[:, 1:])
    with pytest.raises(InvalidVectors, match="queries have 19 dimensions; here they must have 20"):
        codec.scores(QUERIES[:, 1:], codes)
    with pytest.raises(InvalidVectors, match="queries have 19 dimensions; here they must have 20"):
        make().fit(DOCUMENTS, QUERIES[:, 1:])


@codecs
def test_wrong_codes_are_named(make):
    codec = fitted(make)
    codes = codec.encode(DOCUMENTS)
    for bad in (codes.astype(np.int16), codes[:, :-1], np.hstack([codes, codes]), codes[0], codes.tolist()):
        for use in (codec.decode, codec.scorer(QUERIES)):
            with pytest.raises(InvalidVectors, match=rf"codes are .* takes uint8 \(n, {codec.bytes_per_vector}\)"):
                use(bad)


@codecs
def test_nothing_to_learn_from_or_to_compare(make):
    with pytest.raises(InvalidVectors, match="at least one"):
        make().fit(np.empty((0, D)))
    with pytest.raises(InvalidVectors, match="0 vectors and 40 queries"):
        fitted(make).score_error(np.empty((0, D)), QUERIES)


def test_a_fit_that_fails_leaves_the_codec_unfitted():
    codec = PQ(M=5, bits=4).fit(DOCUMENTS)
    with pytest.raises(InvalidVectors, match="PQ got 15 vectors; 4 bits, which are 16 centroids, need at least 16"):
        codec.fit(DOCUMENTS[:15])
    with pytest.raises(NotFitted):
        codec.encode(DOCUMENTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float8(format="e3m4"), "format is 'e3m4'; it must be one of 'e4m3', 'e5m2'"),
        (lambda: SQ(bits=5), "bits is 5; it must be one of 2, 4, 8"),
        (lambda: SQ(scope="vector"), "scope is 'vector'; it must be one of 'dimension', 'global'"),
        (lambda: LVQ(bits=True), "bits is True"),
        (lambda: PQ(M=0), "M is 0; it must be an integer of at least 1"),
        (lambda: PQ(M=2.0), "M is 2.0"),
        (lambda: PQ(M=2, bits=6), "bits is 6"),
        (lambda: PQ(M=2, seed=-1), "seed is -1"),
        (lambda: OPQ(M=4, dimensions=10), "dimensions is 10; M = 4 must divide it"),
        (lambda: OPQ(M=4, dimensions=3), "dimensions is 3; it must be an integer of at least 4"),
        (lambda: RaBitQ(seed=None), "seed is None"),
        (lambda: PCA(dimensions=0), "dimensions is 0"),
        (lambda: LeanVec(dimensions="half"), "dimensions is 'half'"),
        (lambda: RandomRotation(seed=-3), "seed is -3"),
        (lambda: Chain(), "parts are \\[\\]; they must be linear maps"),
        (lambda: Chain(PCA(dimensions=2)), "then one codec"),
        (lambda: Chain(SQ(), PCA(dimensions=2)), "then one codec"),
        (lambda: Chain(SQ(), SQ()), "then one codec"),
        (lambda: Residual(SQ()), "two or more"),
        (lambda: Residual(PCA(dimensions=2), SQ()), "must be codecs"),
        (lambda: Residual(*[SQ()] * 2), "a part of Residual is given twice"),
        (lambda: PQ(M=3).fit(DOCUMENTS), r"M is 3; it must divide d = 20; OPQ\(M=3\) in front"),
        (lambda: OPQ(M=21).fit(DOCUMENTS), "OPQ of M = 21 and dimensions = None needs more than d = 20"),
        (lambda: OPQ(M=4, dimensions=24).fit(DOCUMENTS), "dimensions = 24 needs more than d = 20"),
        (lambda: PCA(dimensions=21).fit(DOCUMENTS), "dimensions is 21; the vectors have only 20"),
        (lambda: LeanVec(dimensions=21).fit(DOCUMENTS, QUERIES), "dimensions is 21; the vectors have only 20"),
        (lambda: LeanVec(dimensions=5).fit(DOCUMENTS), "LeanVec learns from a sample of queries"),
        (lambda: Chain(LeanVec(dimensions=5), SQ()).fit(DOCUMENTS, QUERIES[:0]), "queries is empty"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(InvalidParameter, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "n", "message"),
    [
        (lambda: PQ(M=5), 255, "8 bits, which are 256 centroids, need at least 256"),
        (lambda: OPQ(M=5, bits=4), 15, "OPQ got 15 vectors; 4 bits, which are 16 centroids"),
        (lambda: OPQ(M=5, bits=4), 19, "OPQ got 19 vectors; for d = 20 it needs at least 20"),
    ],
)
def test_too_few_vectors_are_refused_with_the_number_needed(make, n, message):
    with pytest.raises(InvalidVectors, match=message):
        make().fit(DOCUMENTS[:n])
    make().fit(DOCUMENTS[: n + 5])


# -- saving ------------------------------------------------------------------------------------------------------------


def saved_and_loaded(codec, folder, mmap):
    """Through the files of an index."""
    storage.save(folder, {"codec": codec.header()}, {f"codec.{name}": a for name, a in codec.arrays().items()})
    header = storage.load_header(folder)
    arrays, _ = storage.load_arrays(folder, header, mmap=mmap, verify=True)
    return Codec.restore(header["codec"], {name.removeprefix("codec."): a for name, a in arrays.items()})


@codecs
@pytest.mark.parametrize("mmap", [False, True])
def test_saved_codecs_come_back_bit_by_bit(make, mmap, tmp_path):
    codec = fitted(make)
    codes = codec.encode(DOCUMENTS)
    loaded = saved_and_loaded(codec, tmp_path, mmap)
    assert repr(loaded) == repr(codec) and loaded.needs_fit == codec.needs_fit
    assert loaded.header() == codec.header()
    np.testing.assert_array_equal(loaded.encode(DOCUMENTS), codes)
    np.testing.assert_array_equal(loaded.decode(codes), codec.decode(codes))
    np.testing.assert_array_equal(loaded.scores(QUERIES, codes), codec.scores(QUERIES, codes))


@codecs
def test_unfitted_codecs_come_back_unfitted(make, tmp_path):
    loaded = saved_and_loaded(make(), tmp_path, False)
    assert repr(loaded) == repr(make()) and loaded.d is None and not loaded.arrays()
    np.testing.assert_array_equal(fitted(lambda: loaded).encode(DOCUMENTS), fitted(make).encode(DOCUMENTS))


@codecs
def test_damaged_states_are_refused(make):
    codec = fitted(make)
    header, arrays = codec.header(), codec.arrays()
    broken = [
        ({}, arrays),
        ({**header, "kind": "zip"}, arrays),
        ({**header, "kind": "pca", "parameters": {"dimensions": 2}}, arrays),
        ({**header, "d": 0}, arrays),
        ({**header, "d": "20"}, arrays),
        ({**header, "parameters": {"colour": "red"}}, arrays),
        ({**header, "parameters": None}, arrays),
        (header, {**arrays, "more": np.ones(3, np.float32)}),
        (header, {**arrays, "0.more": np.ones(3, np.float32)}),
        (header, {**arrays, "77.more": np.ones(3, np.float32)}),
    ]
    for name, array in arrays.items():
        broken.append((header, {n: a for n, a in arrays.items() if n != name}))
        broken.append((header, {**arrays, name: array.astype(np.float64)}))
        broken.append((header, {**arrays, name: array[..., None]}))
        broken.append(({**header, "d": None}, arrays))
    if any(D in array.shape for array in arrays.values()):
        broken.append(({**header, "d": D + 1}, arrays))
    for wrong, state in broken:
        with pytest.raises(CorruptIndex):
            Codec.restore(wrong, state)


def test_parts_that_do_not_fit_each_other_are_refused():
    codec = Chain(PCA(dimensions=9), Float16()).fit(DOCUMENTS)
    header = json.loads(json.dumps(codec.header()))
    header["parameters"]["parts"][1]["d"] = 8
    with pytest.raises(CorruptIndex, match=r"were fitted for \[20, 8\] dimensions; they need \[20, 9\]"):
        Codec.restore(header, codec.arrays())


def test_linear_maps_are_saved_too():
    rotation = LeanVec(dimensions=4).fit(DOCUMENTS, QUERIES)
    loaded = Fitted.restore(rotation.header(), rotation.arrays())
    np.testing.assert_array_equal(loaded.transform(DOCUMENTS), rotation.transform(DOCUMENTS))
