"""Latent semantic analysis: what it finds, that it is deterministic, and the edges of what it can be fitted on."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eval as evaluation
import retrieval
from retrieval.encoders.base import load_encoder
from retrieval.encoders.lsa import LSA, principal_directions
from retrieval.errors import EncoderError

CRANFIELD = Path(retrieval.__file__).parent / "cranfield"
CARS = [
    "the car has an engine and wheels",
    "an automobile has an engine and wheels",
    "engine and wheels of the automobile were repaired",
    "the car engine was repaired in the garage",
]
CATS = ["a cat drinks milk and sleeps", "the kitten drinks milk", "cat and kitten sleeps at night", "milk at night"]


def fitted(texts, **settings):
    return LSA(**settings).fit(lambda: iter(texts))


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def test_a_document_is_found_that_shares_no_word_with_the_query():
    lsa = fitted(CARS + CATS, d=2)
    documents = ["automobile", "kitten"]
    to_car, to_kitten = (unit(lsa.encode_documents(documents)) @ unit(lsa.encode_queries(["car"]))[0]).tolist()
    assert to_car > 0.9 and to_kitten < 0.3


def test_the_same_corpus_gives_the_same_arrays():
    a, b = fitted(CARS + CATS, d=4).arrays(), fitted(CARS + CATS, d=4).arrays()
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    other = fitted(CARS + CATS, d=4, seed=1).arrays()
    assert np.allclose(np.abs(other["components"]), np.abs(a["components"]), atol=1e-3)  # the seed decides no result


def test_texts_without_known_terms_are_zero_vectors():
    lsa = fitted(CARS + CATS)
    encoded = lsa.encode_documents(["", "the of and", "zeppelin", "?!", "milk"])
    assert encoded.dtype == np.float32
    assert not encoded[:4].any() and encoded[4].any()
    assert lsa.encode_queries([]).shape == (0, encoded.shape[1])


@pytest.mark.parametrize("texts", [[], [""], ["the of"], ["", "", ""]])
def test_a_corpus_without_words_gives_zero_vectors(texts):
    lsa = fitted(texts)
    assert not lsa.encode_documents(["milk", ""]).any()
    assert lsa.encode_documents(texts).shape[0] == len(texts)


def test_one_document_is_found_by_its_words():
    lsa = fitted(["cats drink milk"])
    vectors = lsa.encode_documents(["cats drink milk", "milk", "car"])
    assert vectors.any(axis=1).tolist() == [True, True, False]
    assert (unit(vectors[:1]) @ unit(vectors[1:2]).T).item() == pytest.approx(1)  # the one direction there is


def test_dimensions_are_no_more_than_documents_or_terms():
    assert fitted(CARS + CATS, d=256).encode_documents(["milk"]).shape[1] <= 8
    assert fitted(CARS + CATS, d=3).encode_documents(["milk"]).shape == (1, 3)


def test_terms_of_a_single_document_are_left_out():
    lsa = fitted(CARS + CATS)
    assert not lsa.encode_documents(["garage"]).any() and lsa.encode_documents(["repaired"]).any()


def test_a_sample_of_a_large_corpus_is_decomposed_and_all_of_it_counts_as_fitted():
    lsa = fitted((CARS + CATS) * 20, d=4, sample=40)
    assert lsa.fitted_on == 160 and not lsa.outgrown(320) and lsa.outgrown(321)
    assert unit(lsa.encode_documents(CARS))[0] @ unit(lsa.encode_queries(["car"]))[0] > 0.5


@pytest.mark.parametrize("texts", [CARS + CATS, [], ["one"]])
def test_saved_and_loaded_it_encodes_alike(tmp_path, texts):
    lsa = fitted(texts, d=4, seed=5)
    lsa.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, LSA) and loaded.settings() == lsa.settings() and loaded.fitted_on == len(texts)
    queries = ["car engine", "", "unheard"]
    assert np.array_equal(loaded.encode_queries(queries), lsa.encode_queries(queries))


def test_unfitted_it_says_so_and_is_saved_as_such(tmp_path):
    with pytest.raises(EncoderError, match="not fitted"):
        LSA().encode_queries(["x"])
    LSA(d=7).save(tmp_path)
    with pytest.raises(EncoderError, match="not fitted"):
        load_encoder(tmp_path).encode_documents(["x"])
    assert load_encoder(tmp_path).d == 7


@pytest.mark.parametrize("settings", [{"d": 0}, {"sample": 1}])
def test_settings_that_are_refused(settings):
    with pytest.raises(EncoderError, match=r"d is .*, sample .*; d must be >= 1"):
        LSA(**settings)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), V=st.integers(1, 30), d=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_directions_are_those_of_an_exact_decomposition(n, V, d, seed):
    """All but d are few here, so that the randomised method must agree with LAPACK's up to rounding."""
    from scipy.sparse import random as random_sparse

    matrix = random_sparse(n, V, 0.3, "csr", np.float32, random_state=seed)
    directions = principal_directions(matrix, d, seed=0).astype(np.float64)
    if matrix.nnz == 0:
        assert directions.shape == (V, 1) and not directions.any()
        return
    assert directions.shape == (V, min(d, n, V))
    exact = np.linalg.svd(matrix.toarray().astype(np.float64), compute_uv=False)
    found = np.linalg.norm(matrix.toarray() @ directions, axis=0)  # lengths of what they keep: singular values
    assert found == pytest.approx(exact[: directions.shape[1]], abs=2e-3 * exact[0])


@pytest.fixture(scope="module")
def cranfield(tmp_path_factory):
    with retrieval.index(CRANFIELD, tmp_path_factory.mktemp("cranfield") / "c") as collection:
        yield collection


@pytest.mark.parametrize(("index", "least"), [("bm25", 0.345), ("dense", 0.38), ("hybrid", 0.37)])
def test_quality_on_cranfield(cranfield, index, least):
    data = evaluation.load(CRANFIELD)
    found = evaluation.evaluate(cranfield.stage(index).run(data.queries, 100), data.qrels, ["nDCG@10"])
    assert found.mean["nDCG@10"] > least
