"""Bags of words: the counts that BM25 scores, and a vocabulary that grows with the documents."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoders.bag_of_words import BagOfWords, pack_terms, unpack_terms
from retrieval.encoders.base import KINDS, load_encoder
from retrieval.errors import EncoderError

words = st.sampled_from(["wing", "Wings", "heat", "the", "flow", "flows", "ünïcode", "日本語", "!"])
texts = st.lists(st.lists(words, max_size=8).map(" ".join), max_size=6)


def named(bag, matrix):
    """Each row as term -> count."""
    rows = [matrix[i] for i in range(matrix.shape[0])]
    return [{bag.term(j): int(c) for j, c in zip(row.indices, row.data, strict=True)} for row in rows]


@given(first=texts, second=texts)
def test_documents_are_counts_of_their_terms_however_they_come_in(first, second):
    bag = BagOfWords("unicode")
    matrices = [bag.encode_documents(first), bag.encode_documents(second)]
    assert [m.shape[0] for m in matrices] == [len(first), len(second)]
    assert matrices[1].shape[1] == len(bag.vocabulary)
    assert all(m.dtype == np.float32 and m.has_canonical_format for m in matrices)
    assert named(bag, matrices[0]) + named(bag, matrices[1]) == [dict(Counter(bag.analyzer(t))) for t in first + second]
    at_once = BagOfWords("unicode")
    at_once.encode_documents(first + second)
    assert list(at_once.vocabulary) == list(bag.vocabulary)  # columns in the order of first occurrence


@given(known=texts, asked=texts)
def test_queries_are_counts_of_the_terms_that_documents_have(known, asked):
    bag = BagOfWords()
    bag.encode_documents(known)
    size = len(bag.vocabulary)
    expected = [{t: c for t, c in Counter(bag.analyzer(text)).items() if t in bag.vocabulary} for text in asked]
    assert named(bag, bag.encode_queries(asked)) == expected
    assert len(bag.vocabulary) == size


def test_a_word_unknown_to_one_query_is_known_to_the_next_once_a_document_has_it():
    bag = BagOfWords()
    bag.encode_documents(["wing"])
    assert bag.encode_queries(["heat"]).nnz == 0
    bag.encode_documents(["heat"])
    assert bag.encode_queries(["heat"]).nnz == 1


@pytest.mark.parametrize("analyzer", ["english", "unicode", "german", "ja"])
def test_saved_and_loaded_it_encodes_alike_and_grows_on(tmp_path, analyzer):
    bag = BagOfWords(analyzer)
    bag.encode_documents(["Die Flügel des Flugzeugs", "日本語の本", "wings and heat"])
    bag.save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert loaded.settings() == bag.settings() and loaded.analyzer == bag.analyzer
    assert (loaded.encode_queries(["Flügel wing 日本"]) != bag.encode_queries(["Flügel wing 日本"])).nnz == 0
    assert (loaded.encode_documents(["new heat"]) != bag.encode_documents(["new heat"])).nnz == 0


@given(st.lists(st.text(), unique=True))
def test_vocabularies_of_any_text_are_packed_without_loss(terms):
    vocabulary = {term: column for column, term in enumerate(terms)}
    packed = pack_terms(vocabulary)
    assert packed.dtype == np.uint8
    assert list(unpack_terms(packed).items()) == list(vocabulary.items())


def test_every_kind_of_encoder_can_be_found():
    import importlib

    for kind, home in KINDS.items():
        module, _, name = home.partition(":")
        assert getattr(importlib.import_module(module), name).kind == kind


def test_an_encoder_of_an_unknown_kind_is_named(tmp_path):
    bag = BagOfWords()
    bag.save(tmp_path)
    header = tmp_path / "encoder.json"
    header.write_text(header.read_text().replace("bag-of-words", "colbert"))
    with pytest.raises(EncoderError, match="kind 'colbert'; this release knows adapted, bag-of-words, lsa"):
        load_encoder(tmp_path)
