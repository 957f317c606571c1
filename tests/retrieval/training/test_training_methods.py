"""The loop and the trainers of quantisers on toy vectors: what they learn, keep, save and refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from indexes import ScanIndex  # noqa: E402
from retrieval.errors import TrainingError  # noqa: E402
from retrieval.training.data import TrainingData, labelled, nearest, quality  # noqa: E402
from retrieval.training.distill_vq import DistillVQ  # noqa: E402
from retrieval.training.jpq import JPQ, with_positives  # noqa: E402
from retrieval.training.loop import train  # noqa: E402
from retrieval.training.method import search_codes  # noqa: E402
from retrieval.training.repconc import RepCONC  # noqa: E402

D = 16


def toy(labels: bool = True, n: int = 700, nq: int = 120, seed: int = 0) -> TrainingData:
    """Documents whose first half of the dimensions varies little, and is all that queries ask for."""
    rng = np.random.default_rng(seed)
    scale = np.repeat([0.3, 1.0], D // 2)
    documents = (rng.normal(size=(n, D)) * scale).astype(np.float32)
    rows = rng.choice(n, nq, replace=False)
    queries = (documents[rows] * np.repeat([3.0, 0.0], D // 2)).astype(np.float32)
    return TrainingData(documents, queries, [np.array([row]) for row in rows] if labels else None)


def make(kind: str, **parameters):
    common = {"bytes": 2, "lr": 0.02, "rank": 4, **parameters}
    return {
        "jpq": lambda: JPQ(**common), "jpq-additive": lambda: JPQ(codebooks="additive", **common),
        "jpq-binary": lambda: JPQ(codebooks="binary", **common | {"bytes": 4}),
        "distill-vq-binary": lambda: DistillVQ(temperature=0.5, codebooks="binary", **common | {"bytes": 4}),
        "distill-vq": lambda: DistillVQ(temperature=0.5, **common),
        "distill-vq-additive": lambda: DistillVQ(temperature=0.5, codebooks="additive", recode=False, **common),
        "distill-vq-lists": lambda: DistillVQ(temperature=0.5, nlist=12, **common),
        "distill-vq-linear": lambda: DistillVQ(temperature=0.5, linear=True, **common),
        "repconc": lambda: RepCONC(first=2, **common),
    }[kind]()  # fmt: skip


KINDS = [
    "jpq", "jpq-additive", "jpq-binary", "distill-vq", "distill-vq-additive", "distill-vq-binary", "distill-vq-linear",
    "distill-vq-lists", "repconc",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_training_helps_and_its_codec_is_an_ordinary_one(kind, tmp_path):
    data = toy()
    trained = train(make(kind), data, data, epochs=4)
    assert trained.history[trained.best]["dev"] > trained.history[0]["dev"] + 0.01
    losses = [row["loss"] for row in trained.history[1:3]]
    assert losses[1] < losses[0]
    index = ScanIndex(codec=trained.codec, rerank=None).add(data.documents)
    index.save(tmp_path / "index")
    found = ScanIndex.load(tmp_path / "index").search(data.queries, 10).ids
    np.testing.assert_array_equal(trained.codec.encode(data.documents), trained.codes)
    assert quality(found, data) == pytest.approx(trained.history[trained.best]["dev"], abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_codes_and_another_does_not(kind):
    data = toy()
    one, two, other = (train(make(kind, seed=seed), data, epochs=2, threads=1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.codes, two.codes)
    for name, array in one.codec.arrays().items():
        np.testing.assert_array_equal(array, two.codec.arrays()[name])
    assert not np.array_equal(one.codes, other.codes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(kind, tmp_path):
    data, parameters = toy(), {"epochs": 4, "patience": 9, "threads": 1}
    whole = train(make(kind), data, **parameters)

    class Killed(Exception):
        pass

    def kill(what, done, total):
        if what.startswith("epoch 3"):
            raise Killed

    with pytest.raises(Killed):
        train(make(kind), data, checkpoint=tmp_path / "run", progress=kill, **parameters)
    seen = []
    again = train(make(kind), data, checkpoint=tmp_path / "run", progress=lambda *a: seen.append(a[0]), **parameters)
    assert seen[0].startswith("epoch 3")
    assert again.best == whole.best and again.history[1:] == whole.history[1:]
    np.testing.assert_array_equal(again.codes, whole.codes)
    for name, array in whole.codec.arrays().items():
        np.testing.assert_array_equal(array, again.codec.arrays()[name])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    data = toy()
    train(make("jpq"), data, epochs=1, checkpoint=tmp_path / "run")
    for method, other in ((make("jpq", lr=0.5), data), (make("jpq"), toy(seed=9)), (make("distill-vq"), data)):
        with pytest.raises(TrainingError, match="another run"):
            train(method, other, epochs=1, checkpoint=tmp_path / "run")


def test_steps_of_additive_codebooks_are_small_where_codes_leave_little():
    """Sixteen codebooks hold the documents nearly whole; one of them does not; and a rate that is given stays."""
    data = toy(n=2000)
    rates = {}
    for size, lr in ((1, None), (16, None), (16, 0.02)):
        method = DistillVQ(bytes=size, codebooks="additive", lr=lr)
        method.start(data)
        rates[size, lr] = method.rate()
    assert rates[1, None] == 0.005 and rates[16, 0.02] == 0.02 and rates[16, None] < 0.001
    quantizer, vectors = method.quantizer, data.documents - data.documents.mean(axis=0)
    lost = np.square(vectors - quantizer.first.decode(method.coded)).sum() / np.square(vectors).sum()
    assert quantizer.left_over(data.documents, method.coded) == pytest.approx(lost, rel=1e-3)
    assert rates[16, None] == pytest.approx(0.03 * lost, rel=1e-3)


def test_codes_of_jpq_never_change_and_those_of_repconc_do():
    data = toy()
    jpq, start = train(make("jpq"), data, data, epochs=3), train(make("jpq"), data, data, epochs=0)
    assert jpq.best > 0
    np.testing.assert_array_equal(jpq.codes, start.codes)
    assert not np.array_equal(train(make("repconc"), data, data, epochs=3).codes, start.codes)


def test_without_labels_nothing_of_them_is_needed():
    with_labels, without = toy(), toy(labels=False)
    one, two = (train(make("distill-vq"), data, epochs=2) for data in (with_labels.without_labels(), without))
    np.testing.assert_array_equal(one.codes, two.codes)
    for kind in ("jpq", "repconc"):
        with pytest.raises(TrainingError, match="relevant documents"):
            train(make(kind), without)


def test_an_adapter_is_folded_into_the_codec():
    data = toy()
    trained = train(make("jpq", tune="adapter", query_lr=0.02), data, data, epochs=3)
    adapted = trained.method.queries.embed(data.queries, None)
    assert np.abs(adapted - data.queries).max() > 0.01
    plain = train(make("jpq", tune="code"), data, data, epochs=3)
    np.testing.assert_array_equal(plain.method.queries.embed(data.queries, None), data.queries)
    # the codec turns float queries itself: what it gives them equals the quantizer's scores of adapted ones
    expected = trained.method.quantizer.scores(
        torch.from_numpy(adapted[:5]), trained.codes, np.tile(np.arange(50), (5, 1))
    ).detach().numpy()  # fmt: skip
    scores = trained.codec.scores(data.queries[:5], trained.codes[:50])
    shift = scores - expected  # the mean's share, one number for each query
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)


def test_the_unsupervised_start_is_kept_when_no_step_helps():
    data = toy()
    trained = train(make("jpq", lr=1e-9, tune="code"), data, data, epochs=2)
    assert trained.best == 0
    np.testing.assert_array_equal(trained.codec.encode(data.documents), trained.codes)


def test_candidates_hold_relevant_documents_that_were_not_found():
    found = np.array([[4, 2, 9], [1, 2, 3]])
    candidates, relevant = with_positives(found, [np.array([2, 7]), np.array([1])])
    np.testing.assert_array_equal(candidates, [[4, 2, 9, 7], [1, 2, 3, -1]])
    np.testing.assert_array_equal(relevant, [[False, True, False, True], [True, False, False, False]])


def test_negatives_that_come_with_the_data_join_those_found():
    data = toy()
    given = np.full((len(data.queries), 2), -1)
    given[:, 0] = 699
    method = make("jpq", tune="code")
    method.start(data)
    method.epoch(data, 1)
    method.negatives = method.negatives[:, :5]
    seen = []
    score = method.quantizer.scores
    method.quantizer.scores = lambda queries, codes, rows: seen.append(rows) or score(queries, codes, rows)
    rows = np.arange(20)
    plain = method.loss(data, rows, np.random.default_rng(0))
    joined = method.loss(replace(data, negatives=given), rows, np.random.default_rng(0))
    assert torch.isfinite(plain) and torch.isfinite(joined) and plain != joined
    for before, after in zip(*seen, strict=True):
        assert {*before[before >= 0], 699} == {*after[after >= 0]}
        assert len(set(after[after >= 0])) == (after >= 0).sum()  # none twice


def test_nearest_and_quality():
    documents, queries = np.eye(4, dtype=np.float32), np.array([[3, 2, 1, 0], [0, 0, 1, 1]], np.float32)
    np.testing.assert_array_equal(nearest(queries, documents, 3), [[0, 1, 2], [2, 3, 0]])
    assert nearest(queries, documents, 9).shape == (2, 4)
    some = np.array([[False, True, False, True], [True, False, False, False]])
    allowed = nearest(queries, documents, 3, lambda q, rows: some[q, rows])
    np.testing.assert_array_equal(allowed, [[1, 3, -1], [0, -1, -1]])
    data = TrainingData(documents, queries, [np.array([0]), np.array([3])])
    assert quality(nearest(queries, documents, 4), data) == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert quality(np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), data.without_labels()) == 1


def test_labels_of_documents_that_are_not_there_are_left_out():
    qrels = {"a": {"x": 1, "gone": 1}, "b": {"gone": 1}, "c": {"x": 0}}
    texts, positives = labelled(qrels, {"a": "A", "b": "B", "c": "C"}, {"x": 5})
    assert texts == ["A"] and [rows.tolist() for rows in positives] == [[5]]
    with pytest.raises(TrainingError, match="none has a text"):
        labelled({"b": {"gone": 1}}, {"b": "B"}, {"x": 5})


@pytest.mark.parametrize(
    ("what", "build"),
    [
        ("documents are float64", lambda d: TrainingData(d.documents.astype(np.float64), d.queries)),
        ("queries are float32", lambda d: TrainingData(d.documents, d.queries[0])),
        ("other widths", lambda d: TrainingData(d.documents, d.queries[:, :3])),
        ("NaN", lambda d: TrainingData(d.documents, np.full((2, D), np.nan, np.float32))),
        ("3 lists of positives for 120", lambda d: TrainingData(d.documents, d.queries, d.positives[:3])),
        ("beyond the 700", lambda d: TrainingData(d.documents, d.queries[:1], [np.array([700])])),
        ("2 texts for 120", lambda d: TrainingData(d.documents, d.queries, texts=["a", "b"])),
        ("bytes is 17", lambda d: train(make("jpq", bytes=17), d)),
        ("codebooks is 'sum'", lambda d: train(JPQ(codebooks="sum", bytes=2), d)),
        ("nlist is 701", lambda d: train(make("distill-vq", nlist=701), d)),
        ("nlist is 0", lambda d: train(make("distill-vq", nlist=0), d)),
        ("no teacher's scores", lambda d: train(make("jpq", gpl="embedding"), d)),
        ("tune is 'all'", lambda d: train(JPQ(tune="all", bytes=2), d)),
        ("needs the texts", lambda d: train(JPQ(tune="encoder", bytes=2), d)),
        ("200 documents are too few", lambda d: train(make("jpq"), toy(n=200))),
        ("epochs=-1", lambda d: train(make("jpq"), d, epochs=-1)),
        ("1 queries cannot be split", lambda d: train(make("jpq"), toy(nq=1))),
    ],
)
def test_bad_input_is_named(what, build):
    with pytest.raises(TrainingError, match=what):
        build(toy())


def test_search_codes_is_the_ranking_of_decoded_vectors():
    data = toy()
    trained = train(make("jpq"), data, epochs=0)
    found = search_codes(trained.codec, trained.codes, data.queries, 5)
    expected = np.argsort(-(data.queries @ trained.codec.decode(trained.codes).T), axis=1, kind="stable")[:, :5]
    assert (found == expected).mean() > 0.97  # equal codes may differ in their last bit
