"""Margins of a teacher, learned by JPQ and BPR: the losses, what they lead to, and where the data come from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
import eval as evaluation  # noqa: E402
import retrieval  # noqa: E402
from retrieval import Collection, bm25, dense  # noqa: E402
from retrieval.cli.app import app  # noqa: E402
from retrieval.encoders.lsa import LSA  # noqa: E402
from retrieval.errors import TrainingError  # noqa: E402
from retrieval.training import pipeline, teachers  # noqa: E402
from retrieval.training.bpr import BPR  # noqa: E402
from retrieval.training.data import TrainingData, nearest  # noqa: E402
from retrieval.training.jpq import JPQ  # noqa: E402
from retrieval.training.loop import train  # noqa: E402
from retrieval.training.negatives import mined  # noqa: E402
from retrieval.training.sources import Questions  # noqa: E402

D = 16
CRANFIELD = Path(retrieval.__file__).parent / "cranfield"
QUICK = {"bytes": 4, "epochs": 2, "count": 150, "threads": 1}


def toy(seed: int = 0, n: int = 600, nq: int = 120) -> TrainingData:
    """Documents whose first half of the dimensions varies little, and is all that queries ask for; with margins."""
    rng = np.random.default_rng(seed)
    documents = (rng.normal(size=(n, D)) * np.repeat([0.3, 1.0], D // 2)).astype(np.float32)
    rows = rng.choice(n, nq, replace=False)
    queries = (documents[rows] * np.repeat([3.0, 0.0], D // 2)).astype(np.float32)
    positives = [np.array([row]) for row in rows]
    negatives = mined([nearest(queries, documents, 60)], positives, 40)
    negatives[::7, 30:] = -1
    return teachers.taught(TrainingData(documents, queries, positives, negatives=negatives))


def make(kind: str, **parameters):
    common = {"bytes": 2, "gpl": "embedding", "lr": 0.02, **parameters}
    return JPQ(rank=4, **common) if kind == "jpq" else BPR(**common)


KINDS = ["jpq", "bpr"]


def squared(scores: np.ndarray, teacher: np.ndarray) -> float:
    """The mean squared error of margins, one by one."""
    errors = [
        (scores[q, 0] - scores[q, i] - teacher[q, 0] + teacher[q, i]) ** 2
        for q in range(len(scores))
        for i in range(1, scores.shape[1])
        if np.isfinite(teacher[q, i])
    ]
    return float(np.mean(errors))


def test_the_loss_of_jpq_is_that_of_the_margins_of_its_codes():
    data = toy()
    method = make("jpq")
    method.start(data)
    method.epoch(data, 1)
    rows = np.arange(0, 40, 3)
    loss = method.loss(data, rows, np.random.default_rng(0))
    decoded = method.codec().decode(method.codes(data))
    candidates = teachers.candidates(data, rows)
    scores = np.einsum("qd,qmd->qm", data.queries[rows], decoded[candidates])
    assert loss.item() == pytest.approx(squared(scores, data.teacher[rows]), rel=1e-3)


def test_the_losses_of_bpr_are_those_of_float_queries_and_of_their_codes():
    data = toy()
    method = make("bpr")
    method.start(data)
    rows = np.arange(0, 40, 3)
    loss = method.loss(data, rows, np.random.default_rng(0)).item()
    head, candidates = method.head, teachers.candidates(data, rows)
    with torch.no_grad():
        codes = np.tanh(np.sqrt(1.1) * head(torch.from_numpy(data.documents)).numpy())[candidates]
        asked = head.asked(torch.from_numpy(data.queries[rows])).numpy()
    binary = np.tanh(np.sqrt(1.1) * asked) * np.abs(asked).mean(axis=1, keepdims=True)
    both = [float(head.scale) * np.einsum("qb,qmb->qm", one, codes) for one in (asked, binary)]
    assert loss == pytest.approx(sum(squared(scores, data.teacher[rows]) for scores in both), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    data, rows = toy(), np.arange(30)
    method = make(kind)
    method.start(data)
    weight = method.quantizer.books.weight if kind == "jpq" else method.head.documents
    loss = lambda: method.loss(data, rows, np.random.default_rng(0))  # noqa: E731
    if kind == "bpr":
        method.steps = lambda: 10  # sharpness stays as it is
    method.modules.zero_grad()
    loss().backward()
    direction = weight.grad / weight.grad.norm()
    values = []
    for step in (0.01, -0.01):
        with torch.no_grad():
            weight += step * direction
            values.append(loss().item())
            weight -= step * direction
    assert (values[0] - values[1]) / 0.02 == pytest.approx(weight.grad.norm().item(), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_margins_come_nearer_and_unseen_queries_gain(kind):
    """Queries ask for half of the dimensions: codes that keep these are the best, and the margins say so."""
    data, dev = toy(nq=400).split(0.25)
    trained = train(make(kind, bytes={"jpq": 4, "bpr": 2}[kind]), data, dev.without_labels(), epochs=6, patience=6)
    losses = [row["loss"] for row in trained.history[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert trained.history[trained.best]["dev"] > trained.history[0]["dev"] + 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_codes_and_a_killed_run_goes_on(kind, tmp_path):
    data, parameters = toy(), {"epochs": 3, "patience": 9, "threads": 1}
    whole, other = (train(make(kind, seed=seed), data, **parameters) for seed in (0, 1))
    assert not np.array_equal(whole.codes, other.codes)

    def kill(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(kind), data, checkpoint=tmp_path / "run", progress=kill, **parameters)
    again = train(make(kind), data, checkpoint=tmp_path / "run", **parameters)
    assert again.history[1:] == whole.history[1:]
    np.testing.assert_array_equal(again.codes, whole.codes)
    for name, array in whole.codec.arrays().items():
        np.testing.assert_array_equal(array, again.codec.arrays()[name])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_teacher_change_nothing_for_who_learns_from_labels(kind):
    data = toy()
    one, two = (
        train(make(kind, gpl=None), some, epochs=2, threads=1) for some in (data, replace(data, teacher=None))
    )
    np.testing.assert_array_equal(one.codes, two.codes)


def test_bad_input_is_named():
    data = toy()
    for kind in KINDS:
        with pytest.raises(TrainingError, match="gpl is 'embedding', and the data have no teacher's scores"):
            train(make(kind), replace(data, teacher=None))
    lacking = replace(data, positives=[rows if i != 3 else rows[:0] for i, rows in enumerate(data.positives)])
    with pytest.raises(TrainingError, match="query 3 has no positive"):
        train(make("jpq"), lacking, lacking)


# -- from a collection -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """400 abstracts; no test changes it."""
    folder, source = tmp_path_factory.mktemp("built") / "c", retrieval.read_documents(CRANFIELD)
    with Collection.create(folder, {"bm25": bm25(), "dense": dense(LSA(d=32))}) as collection:
        collection.add([next(source) for _ in range(400)])
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "c")


class Reader:
    """A cross-encoder: how many words of the query the text has, times 100."""

    asked = 0

    def __init__(self, name):
        assert name == "some/model"

    def score(self, query, texts):
        Reader.asked += 1
        words = set(query.lower().split())
        return np.array([100 * len(words & set(text.lower().split())) for text in texts], np.float32)


def test_no_label_is_looked_at_and_negatives_come_from_every_index(folder, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("a label was read")

    for name in ("read_qrels", "load"):
        monkeypatch.setattr(evaluation, name, refuse, raising=False)
    monkeypatch.setattr(pipeline, "rows_of", refuse)
    seen, given = [], []
    count, learn = mined, pipeline.train
    monkeypatch.setattr(pipeline, "mined", lambda found, *more: seen.append(len(found)) or count(found, *more))
    monkeypatch.setattr(
        pipeline, "train", lambda method, data, *a, **named: given.append(data) or learn(method, data, *a, **named)
    )  # fmt: skip
    with Collection.open(folder) as collection:
        for place, method in enumerate(KINDS):
            result = collection.train(method, method, index="dense", gpl="embedding", **QUICK)
            assert not result.labelled and seen[place] == 2  # the vectors and BM25, and nothing that training made
            assert given[place].teacher.shape == (result.queries, 1 + pipeline.NEGATIVES)
    with Collection.open(folder) as collection:
        assert all(len(collection.search("wing flutter", k=5, index=name)) == 5 for name in KINDS)


def test_a_cross_encoder_is_asked_once_even_if_training_is_interrupted(folder, monkeypatch):
    monkeypatch.setattr("retrieval.encoders.cross_encoder.CrossEncoder", Reader)

    def stop(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    with Collection.open(folder) as collection:
        Reader.asked = 0
        with pytest.raises(KeyboardInterrupt):
            collection.train("bpr", "small", gpl="some/model", progress=stop, **QUICK)
        asked = Reader.asked
        result = collection.train("bpr", "small", gpl="some/model", **QUICK)
        assert Reader.asked == asked == result.queries + result.dev_queries
        assert not (folder / "training").exists()


def test_questions_need_labels_and_bring_their_own_negatives(folder, monkeypatch):
    with Collection.open(folder) as collection:
        with pytest.raises(TrainingError, match="the questions have no labels"):
            collection.train("bpr", "small", queries=["heat flow", "wing"], gpl="embedding")
        with pytest.raises(TrainingError, match="gpl: no parameter of distill-vq"):
            collection.train("distill-vq", "small", gpl="embedding", **QUICK)
        monkeypatch.setattr(pipeline, "mined", None)
        found = collection.search("boundary layer", k=40, index="bm25")
        ids = [result.id for result in found]
        asked = Questions(["boundary layer"] * 20, [[id] for id in ids[:20]], [[id] for id in ids[20:]])
        result = collection.train("jpq", "small", queries=asked, gpl="embedding", **QUICK)
        assert result.labelled and result.queries == 18


def test_a_command_learns_margins(folder):
    done = CliRunner().invoke(app, [
        "train", "bpr", str(folder), "--to", "small", "--bytes", "4", "--epochs", "1", "--count", "80",
        "--gpl", "embedding", "--threads", "1",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "index small added" in done.output
