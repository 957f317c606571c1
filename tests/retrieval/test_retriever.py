"""Retrievers: the index that suits the number of documents, and what the terms of a query earn."""

import math
import os

import numpy as np
import pytest

from indexes import BM25, TFIDF, BlockMaxIndex, EagerIndex
from indexes.sparse.weighting import METHODS
from retrieval import Collection, Document, Retriever, bm25
from retrieval.encoders.bag_of_words import BagOfWords

WORDS = ["wing", "flow", "heat", "shock", "plate", "layer", "jet", "nozzle"]


@pytest.fixture(autouse=True)
def many(monkeypatch):
    """Twenty documents are many here; and these tests end no machine, so nothing needs to outlive one."""
    monkeypatch.setattr("retrieval.retriever.MANY", 20)
    monkeypatch.setattr(os, "fsync", lambda file: None)


def texts(n, start=0):
    rng = np.random.default_rng(start)
    return [" ".join(rng.choice(WORDS, size=2 + i % 5)) for i in range(n)]


def documents(n, start=0):
    return [Document(f"d{start + i}", text) for i, text in enumerate(texts(n, start))]


def kind(collection):
    return collection.info()["indexes"]["bm25"]["index"]["kind"]


def answers(collection):
    return [[(r.id, r.score) for r in found] for found in collection.search(["wing flow", "heat", "jet layer jet"], 40)]


@pytest.mark.parametrize("method", METHODS)
def test_a_collection_that_grows_beyond_the_number_answers_the_same(method, tmp_path, monkeypatch):
    with Collection.create(tmp_path / "grown", {"bm25": bm25(method=method)}) as grown:
        grown.add(documents(12))
        assert kind(grown) == "eager"
        grown.delete("d3")
        grown.add(documents(12, start=12))
        assert kind(grown) == "blockmax"
        before = answers(grown)
    with Collection.open(tmp_path / "grown") as opened:
        assert answers(opened) == before
        opened.verify()
        monkeypatch.setattr("retrieval.retriever.MANY", 1000)
        with Collection.create(tmp_path / "eager", {"bm25": bm25(method=method)}) as eager:
            eager.add([document for document in documents(12) + documents(12, start=12) if document.id != "d3"])
            assert kind(eager) == "eager"
            assert answers(eager) == before


def test_one_that_shrinks_changes_back_when_it_is_built_anew(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25()}) as collection:
        collection.add(documents(25))
        assert kind(collection) == "blockmax"
        collection.delete([f"d{i}" for i in range(10)])
        collection.add(documents(1, start=50))
        assert kind(collection) == "blockmax"
        before = answers(collection)
        collection.compact()
        assert kind(collection) == "eager" and answers(collection) == before


def test_a_large_collection_made_before_opens_and_changes_with_its_next_change(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.retriever.MANY", 1000)
    with Collection.create(tmp_path / "c", {"bm25": bm25()}) as old:
        old.add(documents(30))
        before = answers(old)
    monkeypatch.setattr("retrieval.retriever.MANY", 20)
    with Collection.open(tmp_path / "c") as collection:
        assert kind(collection) == "eager" and answers(collection) == before
        collection.add([Document("new", "unheard of")])
        assert kind(collection) == "blockmax" and len(answers(collection)[0]) == len(before[0])


@pytest.mark.parametrize(
    "index, other",
    [(EagerIndex(weighting=BM25(), precision="uint8"), "eager"), (EagerIndex(weighting=TFIDF()), "blockmax"),
     (EagerIndex(), "eager"), (BlockMaxIndex(weighting=BM25(), order="insertion"), "blockmax")],
    ids=["another precision", "tf-idf", "no weighting", "another order"],
)  # fmt: skip
@pytest.mark.parametrize("n", [5, 30])
def test_indexes_with_settings_of_their_own_are_left_alone(index, other, n):
    retriever = Retriever(BagOfWords(), index).emptied()
    retriever.add(np.arange(n), texts(n))
    assert len(retriever.index) == n
    if n > 20 or index.parameters() != EagerIndex(weighting=TFIDF()).parameters():
        assert retriever.index.kind == other
    else:
        assert retriever.index.kind == "eager"


# -- explain -----------------------------------------------------------------------------------------------------------


def explained(index, query):
    retriever = Retriever(BagOfWords(), index)
    for start in (0, 9):
        counts = retriever.encoder.encode_documents(texts(15, start=start))
        index.add(counts, np.arange(15) + 100 * start)
    (hits,) = retriever.search([query], 40)
    return {key: (score, retriever.explain(query, key)) for key, score in hits}, retriever


@pytest.mark.parametrize("weighting", [None, TFIDF(), *(BM25(method=method) for method in METHODS)], ids=str)
def test_parts_add_up_to_the_score_and_are_the_same_in_both_indexes(weighting):
    told, _ = explained(EagerIndex(weighting=weighting), "wing flow flow unheard")
    again, _ = explained(BlockMaxIndex(weighting=weighting), "wing flow flow unheard")
    assert told == again and len(told) > 10
    lacking = getattr(weighting, "method", "") in ("bm25l", "bm25+")
    all_texts = dict(zip([*range(15), *range(900, 915)], texts(15) + texts(15, start=9), strict=True))
    for key, (score, parts) in told.items():
        assert math.fsum(parts.values()) == pytest.approx(score, rel=1e-5, abs=1e-6)
        words = {"wing", "flow"} & set(all_texts[key].split())
        assert set(parts) - {"(terms it lacks)"} == words
        assert ("(terms it lacks)" in parts) == (lacking and len(words) < 2)
        gains = [parts[word] for word in parts if word in words]
        assert gains == sorted(gains, reverse=True)


def test_nothing_is_told_of_documents_that_are_not_found():
    _, retriever = explained(EagerIndex(weighting=BM25()), "wing")
    without = next(key for key, text in enumerate(texts(15)) if "wing" not in text.split())
    for query, key in (("wing", without), ("wing", 7777), ("unheard", 0), ("", 0)):
        assert retriever.explain(query, key) == {}
