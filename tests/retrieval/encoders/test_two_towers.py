"""Two towers: queries by a trained model, documents by the one that it was trained from; saved with a collection."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from retrieval import Collection, dense
from retrieval.encoders.base import load_encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.encoders.tuned import prompted, trainable
from retrieval.encoders.two_towers import TwoTowers
from retrieval.errors import EncoderError, TrainingError
from retrieval.training.sources import Questions

TEXTS = ["wing flow", "heat", "a nozzle and a shock"]


def changed(encoder):
    import torch

    model = trainable(encoder)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.1).add_(0.01)
    return model


def test_documents_stay_queries_are_of_the_trained_model_and_all_is_saved(tiny, tmp_path):
    frozen = SentenceTransformerEncoder(tiny())
    before = frozen.encode_queries(TEXTS)
    model = changed(frozen)
    towers = TwoTowers.of(frozen, model)
    expected = model.encode(TEXTS)
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_allclose(towers.encode_queries(TEXTS), expected, atol=1e-5)
    np.testing.assert_array_equal(towers.encode_documents(TEXTS), frozen.encode_documents(TEXTS))
    np.testing.assert_array_equal(frozen.encode_queries(TEXTS), before)  # the model given was copied
    assert towers.similarity == "cosine" and towers.costly
    towers.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert isinstance(again, TwoTowers) and again.similarity == "cosine"
    np.testing.assert_allclose(again.encode_queries(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(again.encode_documents(TEXTS), frozen.encode_documents(TEXTS), atol=1e-6)


def test_another_document_model_is_refused(tiny, tmp_path):
    folder, other = tiny("one"), tiny("two", seed=1)
    frozen = SentenceTransformerEncoder(folder)
    TwoTowers.of(frozen, trainable(frozen)).save(tmp_path / "saved")
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(EncoderError, match="not the one that was saved"):
        load_encoder(tmp_path / "saved").encode_queries(TEXTS)


def test_bad_input_is_named(tiny):
    frozen = SentenceTransformerEncoder(tiny())
    weights = {name: value.detach().numpy() for name, value in trainable(frozen).named_parameters()}
    weights.pop(next(iter(weights)))
    with pytest.raises(EncoderError, match="other names or shapes"):
        TwoTowers(frozen, weights).encode_queries(TEXTS)
    coarse = SentenceTransformerEncoder(tiny("again"), dtype="bfloat16")
    with pytest.raises(EncoderError, match="'bfloat16'"):
        TwoTowers(coarse, {})
    with pytest.raises(EncoderError, match="'bfloat16'"):
        trainable(coarse)


def test_queries_are_trained_with_the_prompt_that_they_get(tiny):
    folder = tiny(prompts={"query": "ask: ", "document": ""})
    assert prompted(SentenceTransformerEncoder(folder), ["a"]) == ["ask: a"]
    assert prompted(SentenceTransformerEncoder(folder, query_prompt="say: "), ["a"]) == ["say: a"]
    assert prompted(SentenceTransformerEncoder(folder, query_prompt=""), ["a"]) == ["a"]


def test_a_query_encoder_is_trained_into_a_collection(tiny, tmp_path):
    words = ["wing", "flow", "heat", "shock", "plate", "layer", "jet", "nozzle", "drag", "lift"]
    texts = [f"{words[i % 10]} {words[i // 10 % 10]} {words[(i // 7) % 10]} {i}" for i in range(300)]
    with Collection.create(tmp_path / "c", {"dense": dense(tiny())}) as collection:
        collection.add([{"id": str(i), "text": text} for i, text in enumerate(texts)])
        asked = Questions([f"about {text}" for text in texts[:60]], [[str(i)] for i in range(60)])
        result = collection.train(
            "jpq", "small", queries=asked, dev=asked, tune="encoder", query_lr=0.02, bytes=4, epochs=2, threads=1
        )
        assert result.labelled
        # what was measured while training is what the reopened index does, by the trained model
    with Collection.open(tmp_path / "c") as collection:
        collection.verify()
        parts = collection.info()["indexes"]
        assert parts["small"]["encoder"]["kind"] == "two-towers"
        found = collection.search(asked.texts, k=10, index="small")
        ranks = [[r.id for r in results].index(str(i)) if str(i) in {r.id for r in results} else None
                 for i, results in enumerate(found)]  # fmt: skip
        ndcg = np.mean([0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])
        assert ndcg == pytest.approx(result.rows[-1]["dev"], abs=0.02)
        collection.add([{"id": "new", "text": "wing heat drag"}])
        collection.delete("3")
        collection.compact()
        assert len(collection.search("wing heat drag", k=301, index="small")) == 300


def test_only_a_model_that_compares_by_cosine_is_trained(tiny, tmp_path):
    with Collection.create(tmp_path / "c", {"dense": dense(tiny(similarity_fn_name="dot"))}) as collection:
        collection.add([{"id": str(i), "text": f"text {i} of many words"} for i in range(20)])
        with pytest.raises(TrainingError, match=r"cosine.*'ip'"):
            collection.train("jpq", "small", queries=Questions(["text"], [["1"]]), bytes=4, tune="encoder")


def test_queries_are_trained_without_dropout_and_nothing_deprecated_is_called(tiny, recwarn, caplog):
    import torch

    from retrieval.training.query_side import query_side

    frozen = SentenceTransformerEncoder(tiny())
    vectors = frozen.encode_queries(TEXTS)
    side = query_side("encoder", vectors, TEXTS, trainable(frozen), rank=1, seed=0)
    side.train()
    one, two = side(np.arange(3)), side(np.arange(3))
    assert one.requires_grad and torch.equal(one, two)
    np.testing.assert_allclose(one.detach().numpy(), side.embed(vectors, TEXTS), atol=1e-6)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(side.embed(vectors, TEXTS), unit, atol=1e-5)
    np.testing.assert_array_equal(side.matrix(), np.eye(vectors.shape[1]))
    old = [w for w in recwarn if issubclass(w.category, (FutureWarning, DeprecationWarning))]
    assert not [w for w in old if "embedding" in str(w.message)]
    assert "deprecated" not in caplog.text
