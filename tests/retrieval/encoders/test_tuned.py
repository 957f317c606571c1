"""One encoder of queries and documents, trained together with the codes: what is learned, resumed, saved, refused."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from indexes.dense.faiss_files import write_faiss  # noqa: E402
from retrieval import Collection, dense  # noqa: E402
from retrieval.encoders.base import load_encoder  # noqa: E402
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder  # noqa: E402
from retrieval.encoders.tuned import Tuned, prompted, trainable  # noqa: E402
from retrieval.errors import EncoderError, TrainingError  # noqa: E402
from retrieval.training import METHODS, by_name, query_side  # noqa: E402
from retrieval.training.data import TrainingData, quality  # noqa: E402
from retrieval.training.loop import train  # noqa: E402
from retrieval.training.sources import Questions  # noqa: E402

WORDS = ["wing", "flow", "heat", "shock", "plate", "layer", "jet", "nozzle", "drag", "lift"]
TEXTS = [f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} {WORDS[(i // 7) % 10]} {i}" for i in range(300)]
ASKED = [f"about {text}" for text in TEXTS[:40]]
METHODS_THAT_CAN = ["repconc", "bpr"]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def encoder(tiny):
    return SentenceTransformerEncoder(tiny())


@pytest.fixture
def data(encoder):
    positives = [np.array([i]) for i in range(len(ASKED))]
    vectors = unit(encoder.encode_documents(TEXTS)), unit(encoder.encode_queries(ASKED))
    return TrainingData(*vectors, positives, ASKED, contents=TEXTS)


def make(kind, **parameters):
    more = {"first": 2} if kind == "repconc" else {}
    return by_name(kind, **{"bytes": 4, "tune": "encoders", "query_lr": 0.02, **more, **parameters})


def run(kind, data, encoder, **more):
    given = {"epochs": 3, "batch": 8, "patience": 9, "threads": 1} | more
    return train(make(kind), data, data, model=trainable(encoder), **given)


@pytest.mark.parametrize("kind", METHODS_THAT_CAN)
def test_documents_are_encoded_anew_and_both_sides_learn(kind, data, encoder):
    trained = run(kind, data, encoder, epochs=4)
    first, *later = trained.history
    assert later[1]["loss"] < later[0]["loss"]
    assert first["dev"] + 0.05 < trained.history[trained.best]["dev"]
    assert np.abs(trained.documents - data.documents).max() > 0.01
    tuned = trained.method.encoder(encoder)
    assert isinstance(tuned, Tuned)
    np.testing.assert_allclose(unit(tuned.encode_documents(TEXTS)), trained.documents, atol=1e-5)
    np.testing.assert_allclose(unit(tuned.encode_queries(ASKED)), trained.method.asked(data.queries, ASKED), atol=1e-5)
    np.testing.assert_array_equal(trained.codec.encode(trained.documents), trained.codes)
    found = trained.method.search(trained.codec, trained.codes, data, trained.method.asked(data.queries, ASKED), 10)
    assert quality(found, data) == trained.history[trained.best]["dev"]


@pytest.mark.parametrize("kind", METHODS_THAT_CAN)
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(kind, data, encoder, tmp_path):
    whole = run(kind, data, encoder, epochs=4)

    class Killed(Exception):
        pass

    for epoch in (2, 4):  # in the first stage of RepCONC, and in its second

        def kill(what, done, total, epoch=epoch):
            if what.startswith(f"epoch {epoch}") and done == 2:
                raise Killed

        with pytest.raises(Killed):
            run(kind, data, encoder, epochs=4, checkpoint=tmp_path / "run", progress=kill)
    seen = []
    again = run(kind, data, encoder, epochs=4, checkpoint=tmp_path / "run", progress=lambda *a: seen.append(a[0]))
    assert seen[0].startswith("epoch 4")
    assert again.best == whole.best and again.history[1:] == whole.history[1:]
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.documents, whole.documents)
    weights = again.method.modules.state_dict()
    for name, value in whole.method.modules.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), weights[name].numpy())


@pytest.mark.parametrize("kind", METHODS_THAT_CAN)
def test_gradients_reach_the_encoder_from_queries_and_from_documents(kind, data, encoder):
    method = make(kind)
    method.start(data, trainable(encoder))
    method.epoch(data, 1)
    vectors, forward = method.vectors, method.queries.forward
    loss = method.step if kind == "bpr" else method.loss  # without BPR's count of steps, which sharpens its tanh

    def gradient(queries, documents):
        method.queries.forward = lambda rows: side(forward(rows), queries)
        method.vectors = lambda data, rows: side(vectors(data, rows), documents)
        method.modules.zero_grad()
        loss(data, np.arange(8), np.random.default_rng(0)).backward()
        grads = [p.grad for p in method.queries.parameters() if p.grad is not None]
        return torch.cat([g.ravel() for g in grads]).numpy() if grads else None

    def side(values, live):
        return values if live else values.detach()

    queries, documents, both = gradient(True, False), gradient(False, True), gradient(True, True)
    assert np.abs(queries).max() > 0 and np.abs(documents).max() > 0
    assert gradient(False, False) is None
    np.testing.assert_allclose(both, queries + documents, atol=1e-4 * np.abs(both).max())


def test_the_second_stage_of_repconc_moves_centroids_alone(data, encoder):
    method = make("repconc", first=1)
    method.start(data, trainable(encoder))

    def weights():
        return torch.cat([p.detach().ravel().clone() for p in method.queries.parameters()])

    start = weights()
    for number, moves in ((1, True), (2, False)):
        method.epoch(data, number)
        optimizer = torch.optim.AdamW(method.groups(), weight_decay=0.0)
        before, books = weights(), method.quantizer.books.array()
        method.loss(data, np.arange(8), np.random.default_rng(0)).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(before, weights()) != moves
        assert not np.array_equal(books, method.quantizer.books.array())
        anew = method.anew(data)
        assert (anew is not data) == moves
    assert not torch.equal(start, weights())


def test_many_texts_are_read_in_parts_with_the_same_gradients(data, encoder, monkeypatch):
    side = query_side.query_side("encoder", data.queries, ASKED, trainable(encoder), rank=1, seed=0)
    weights = torch.linspace(-1, 1, data.queries.shape[1])

    def read(most):
        monkeypatch.setattr(query_side, "READ", most)
        side.zero_grad()
        vectors = side.read(ASKED)
        (vectors @ weights).square().sum().backward()
        return vectors.detach().numpy(), torch.cat([p.grad.ravel() for p in side.parameters() if p.grad is not None])

    (whole, gradient), (parts, of_parts) = read(100), read(7)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(of_parts, gradient, atol=1e-3 * float(gradient.abs().max()))
    np.testing.assert_allclose(side.embed_documents(ASKED), whole, atol=1e-5)


def test_the_learning_rate_of_a_pretrained_model_grows_over_the_first_tenth_of_the_steps(data, encoder, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: seen.append([g["lr"] for g in self.param_groups]) or step(self)
    )
    train(
        by_name("jpq", bytes=4, tune="encoder", query_lr=0.02, lr=0.005), data, data, model=trainable(encoder),
        epochs=4, batch=4, patience=9, threads=1,
    )  # fmt: skip
    assert len(seen) == 40
    books, model = np.array(seen).T
    assert (books == 0.005).all()
    peak = 0.02 * query_side.PRETRAINED["encoder"]
    np.testing.assert_allclose(model, peak * np.minimum(1, np.arange(1, 41) / 4))


# -- in a collection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METHODS_THAT_CAN)
def test_a_trained_encoder_is_that_of_its_index_for_both_sides(kind, tiny, tmp_path):
    with Collection.create(tmp_path / "c", {"dense": dense(tiny())}) as collection:
        collection.add([{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
        asked = Questions(ASKED, [[str(i)] for i in range(len(ASKED))])
        more = {"first": 2} if kind == "repconc" else {}
        result = collection.train(
            kind, "small", queries=asked, dev=asked, tune="encoders", query_lr=0.02, bytes=4, epochs=1, batch=8,
            threads=1, **more,
        )  # fmt: skip
        assert result.trained.best > 0
        assert [row["vectors"] for row in result.rows][-2:] == ["full precision, tuned", kind]
    with Collection.open(tmp_path / "c") as collection:
        collection.verify()
        parts = collection.info()["indexes"]
        assert parts["small"]["encoder"]["kind"] == "tuned"
        found = collection.search(asked.texts, k=10, index="small")
        ranks = [[r.id for r in results].index(str(i)) if str(i) in {r.id for r in results} else None
                 for i, results in enumerate(found)]  # fmt: skip
        ndcg = np.mean([0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])
        assert ndcg == pytest.approx(result.rows[-1]["dev"], abs=0.02)
        collection.add([{"id": f"copy{i}", "text": TEXTS[i]} for i in range(20)])  # coded as those that were trained on
        with collection.reading() as retrievers:
            index = retrievers["small"].index
            codes = index._coded().at(np.arange(len(index)))
        np.testing.assert_array_equal(codes[300:], codes[:20])
        np.testing.assert_array_equal(codes[:300], result.trained.codes)
        if kind == "repconc":
            write_faiss(index, tmp_path / "f")
            encoder = retrievers["small"].encoder
            held = pytest.importorskip("faiss").read_index(str(tmp_path / "f"))
            vectors = unit(encoder.encode_queries(ASKED))
            np.testing.assert_allclose(held.search(vectors, 10)[0], index.search(vectors, 10).scores, atol=1e-4)
        collection.compact()
        assert len(collection.search(ASKED[0], k=400, index="small")) == 320


def test_what_a_tuned_encoder_holds_is_saved_and_bad_input_is_named(tiny, tmp_path):
    folder, other = tiny("one"), tiny("two", seed=1)
    base = SentenceTransformerEncoder(folder)
    before = base.encode_documents(TEXTS[:5])
    model = trainable(base)
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.1).add_(0.01)
    tuned = Tuned.of(base, model)
    expected = model.encode(TEXTS[:5])
    for encode in (tuned.encode_documents, tuned.encode_queries):
        np.testing.assert_allclose(encode(TEXTS[:5]), expected, atol=1e-5)
    np.testing.assert_array_equal(base.encode_documents(TEXTS[:5]), before)
    tuned.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert isinstance(again, Tuned) and again.similarity == "cosine" and again.costly
    np.testing.assert_allclose(again.encode_documents(TEXTS[:5]), expected, atol=1e-5)
    weights = dict(tuned.weights)
    weights.pop(next(iter(weights)))
    with pytest.raises(EncoderError, match="other names or shapes"):
        Tuned(base, weights).encode_queries(TEXTS[:1])
    with pytest.raises(EncoderError, match="'bfloat16'"):
        Tuned(SentenceTransformerEncoder(folder, dtype="bfloat16"), {})
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    with pytest.raises(EncoderError, match="not the one that was saved"):
        load_encoder(tmp_path / "saved").encode_queries(TEXTS[:1])


def test_documents_are_read_with_the_prompt_that_they_get(tiny):
    folder = tiny(prompts={"query": "ask: ", "document": "read: "})
    assert prompted(SentenceTransformerEncoder(folder), ["a"], "document") == ["read: a"]
    assert prompted(SentenceTransformerEncoder(folder, document_prompt="say: "), ["a"], "document") == ["say: a"]
    assert prompted(SentenceTransformerEncoder(folder, document_prompt=""), ["a"], "document") == ["a"]
    encoder = SentenceTransformerEncoder(folder)
    side = query_side.query_side("encoder", np.ones((1, 32), np.float32), ["a"], trainable(encoder), rank=1, seed=0)
    read = side.embed_documents(prompted(encoder, TEXTS[:9], "document"))
    np.testing.assert_allclose(read, unit(encoder.encode_documents(TEXTS[:9])), atol=1e-5)


def test_methods_that_cannot_say_so(data, encoder):
    others = [kind for kind in METHODS if kind not in METHODS_THAT_CAN and "tune" in by_name(kind).parameters()]
    assert {"jpq", "distill-vq", "bidr", "bebr"} <= set(others)
    for kind in others:
        with pytest.raises(TrainingError, match=f"tune is 'encoders'.*code, adapter, encoder for {kind}"):
            train(by_name(kind, tune="encoders"), data, model=trainable(encoder))


def test_what_is_missing_is_named(data, encoder, tiny, tmp_path):
    model = trainable(encoder)
    for what, given, loaded in [
        ("texts of the documents", replace(data, contents=None), model),
        ("texts of the queries and the model", replace(data, texts=None), model),
        ("texts of the queries and the model", data, None),
        ("learns from relevant documents", data.without_labels(), model),
    ]:
        for kind in METHODS_THAT_CAN:
            with pytest.raises(TrainingError, match=what):
                train(make(kind), given, model=loaded)
    with pytest.raises(TrainingError, match="2 contents for 300 documents"):
        replace(data, contents=["a", "b"])
    with Collection.create(tmp_path / "c", {"dense": dense("lsa")}) as collection:
        collection.add([{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
        with pytest.raises(TrainingError, match="tune='encoders' needs a sentence-transformers model"):
            collection.train("bpr", "small", bytes=4, tune="encoders")
        with pytest.raises(TrainingError, match="tune is 'encoders'"):
            collection.train("jpq", "small", bytes=4, tune="encoders")
