"""Hashers on toy vectors: slow definitions of their starts, what training gains, saving, resuming, refusals."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from indexes import ScanIndex, TwoStageIndex  # noqa: E402
from indexes.codecs.packing import pack_signs, unpack_signs  # noqa: E402
from retrieval.errors import TrainingError  # noqa: E402
from retrieval.training.bebr import BEBR  # noqa: E402
from retrieval.training.bpr import BPR  # noqa: E402
from retrieval.training.data import TrainingData, quality  # noqa: E402
from retrieval.training.dpsh import DPSH  # noqa: E402
from retrieval.training.hashing import HashHead, signs, targets  # noqa: E402
from retrieval.training.itq import ITQ, LSH, itq, random_rows  # noqa: E402
from retrieval.training.loop import train  # noqa: E402
from retrieval.training.orthohash import OrthoHash  # noqa: E402
from retrieval.training.similarity_calibration import SimilarityCalibration  # noqa: E402

D = 16


def toy(labels: bool = True, n: int = 500, nq: int = 120, seed: int = 0) -> TrainingData:
    """Documents whose first half of the dimensions varies little, and is all that queries ask for."""
    rng = np.random.default_rng(seed)
    documents = (rng.normal(size=(n, D)) * np.repeat([0.3, 1.0], D // 2)).astype(np.float32)
    rows = rng.choice(n, nq, replace=False)
    queries = (documents[rows] * np.repeat([3.0, 0.0], D // 2)).astype(np.float32)
    return TrainingData(documents, queries, [np.array([row]) for row in rows] if labels else None)


MAKERS = {
    "lsh": LSH, "itq": ITQ, "bpr": lambda **p: BPR(**{"temperature": 0.3, "contrast": 0.3, "lr": 0.02} | p),
    "bebr": lambda **p: BEBR(**{"temperature": 0.3, "lr": 0.02, "queue": 300} | p),
    "bebr-1": lambda **p: BEBR(**{"temperature": 0.3, "lr": 0.02, "queue": 300, "levels": 1} | p),
    "orthohash": lambda **p: OrthoHash(**{"classes": 20, "random": 40} | p), "dpsh": DPSH,
    "similarity-calibration": lambda **p: SimilarityCalibration(**{"random": 40} | p),
}  # fmt: skip
TRAINED = [kind for kind in MAKERS if kind not in ("lsh", "itq")]


def make(kind: str, **parameters):
    return MAKERS[kind](**{"bytes": 2} | parameters)


# -- starts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5, 16, 40])
def test_random_rows_keep_lengths_where_there_are_enough(count):
    rows = random_rows(count, 16, seed=3)
    assert rows.shape == (count, 16) and rows.dtype == np.float32
    if count == 16:
        np.testing.assert_allclose(rows.T @ rows, np.eye(16), atol=1e-5)
    elif count < 16:
        np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=1e-5)
    else:
        vectors = np.random.default_rng(0).normal(size=(200, 16))
        ratios = np.linalg.norm(vectors @ rows.T, axis=1) / np.linalg.norm(vectors, axis=1)
        assert abs(ratios.mean() - 1) < 0.05


@pytest.mark.parametrize("count", [8, 16, 24])
def test_itq_loses_less_to_signs_with_every_iteration_and_keeps_the_principal_directions(count):
    documents = toy().documents + np.float32(2)

    def lost(projection):
        numbers = (documents - documents.mean(axis=0)) @ projection.T
        return np.square(numbers - np.where(numbers >= 0, 1, -1)).sum()  # its objective, up to float rounding

    losses = [lost(itq(documents, count, iterations=iterations)) for iterations in (0, 1, 5, 50)]
    assert losses == sorted(losses, reverse=True) and losses[3] < 0.995 * losses[0]
    projection = itq(documents, count)
    kept = min(count, D)
    _, _, right = np.linalg.svd(documents - documents.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(projection.T @ projection, right[:kept].T @ right[:kept], atol=1e-3)


@pytest.mark.parametrize("kind", ["lsh", "itq"])
def test_unsupervised_hashes_score_as_their_projection_says(kind):
    data = toy()
    trained = train(make(kind), data)
    assert trained.best == 0 and len(trained.history) == 1
    mean = data.documents.mean(axis=0, dtype=np.float64).astype(np.float32)
    projection = trained.method.projection(data.documents)
    numbers = (data.documents - mean) @ projection.T
    np.testing.assert_array_equal(trained.codes, pack_signs(numbers))
    expected = (data.queries @ projection.T) @ np.where(numbers >= 0, 1, -1).T * np.abs(numbers).mean()
    scores = trained.codec.scores(data.queries, trained.codes)
    np.testing.assert_allclose(scores, expected + (data.queries @ mean)[:, None], atol=1e-3)
    with pytest.raises(TrainingError, match="takes no steps"):
        train(make(kind), data, epochs=1)


def test_signs_are_signs_with_the_gradient_of_tanh():
    numbers = torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    hard = signs(numbers)
    assert hard.tolist() == [-1, 1, 1]
    hard.sum().backward()
    np.testing.assert_allclose(numbers.grad, 1 - np.tanh([-2.0, 0.0, 0.5]) ** 2)


def test_targets_are_relevant_and_the_others_known():
    candidates, positives = np.array([2, 5, 7, 9]), [np.array([5, 9]), np.array([2])]
    chosen, known = targets(positives, candidates, np.random.default_rng(0))
    assert candidates[chosen[0]] in (5, 9) and chosen[1] == 0
    assert known.sum() == 1 and known[0, {1: 3, 3: 1}[int(chosen[0])]]


def test_a_head_and_its_codec_agree():
    data = toy()
    head = HashHead(random_rows(24, D, 0), data.documents)
    with torch.no_grad():
        head.queries += torch.randn(head.queries.shape)
    codec = head.codec(np.eye(D, dtype=np.float32))
    documents, queries = torch.from_numpy(data.documents), torch.from_numpy(data.queries)
    expected = (head.scale * head.asked(queries) @ signs(head(documents)).T).detach().numpy()
    scores = codec.scores(data.queries, codec.encode(data.documents))
    np.testing.assert_allclose(scores - data.queries @ head.mean.numpy()[:, None], expected, rtol=1e-3, atol=1e-3)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["bpr", "bebr", "bebr-1", "dpsh"])
def test_training_helps_and_its_codec_is_an_ordinary_one(kind, labels, tmp_path):
    data = toy(labels)
    trained = train(make(kind), data, data, epochs=8, batch=16, patience=9)
    assert trained.history[trained.best]["dev"] > trained.history[0]["dev"] + 0.02
    assert trained.codes.shape == (500, 2)
    np.testing.assert_array_equal(trained.codec.encode(data.documents), trained.codes)
    index = ScanIndex(codec=trained.codec, rerank=None).add(data.documents)
    index.save(tmp_path / "index")
    found = ScanIndex.load(tmp_path / "index").search(data.queries, 10).ids
    assert quality(found, data) == pytest.approx(trained.history[trained.best]["dev"], abs=0.03)


@pytest.mark.parametrize("kind", TRAINED)
def test_steps_lower_the_loss_of_a_batch(kind):
    data, method = toy(), make(kind)
    method.start(data)
    optimizer = torch.optim.AdamW(method.groups(), weight_decay=0.0)
    values = []
    method.epoch(data, 1)
    for _ in range(40):
        loss = method.loss(data, np.arange(40), np.random.default_rng(0))  # the same draws each time
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_seed_gives_the_same_codes_and_another_does_not(kind):
    epochs = 0 if kind in ("lsh", "itq") else 2
    one, two, other = (train(make(kind, seed=seed), toy(), epochs=epochs, threads=1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.codes, two.codes)
    for name, array in one.codec.arrays().items():
        np.testing.assert_array_equal(array, two.codec.arrays()[name])
    assert not np.array_equal(one.codes, other.codes)


@pytest.mark.parametrize("kind", TRAINED)
def test_a_run_in_two_parts_ends_as_an_uninterrupted_one(kind, tmp_path):
    data = toy()
    whole = train(make(kind), data, epochs=3, patience=9, threads=1)
    train(make(kind), data, epochs=2, patience=9, threads=1, checkpoint=tmp_path / "run")
    again = train(make(kind), data, epochs=3, patience=9, threads=1, checkpoint=tmp_path / "run")
    assert again.best == whole.best and again.history[1:] == whole.history[1:]
    now, then = (part.method.modules.state_dict() for part in (again, whole))
    assert all(torch.equal(now[name], then[name]) for name in then)
    np.testing.assert_array_equal(again.codes, whole.codes)


@pytest.mark.parametrize("kind", TRAINED)
def test_without_labels_nothing_of_them_is_needed(kind):
    one, two = (train(make(kind), data, epochs=2) for data in (toy().without_labels(), toy(labels=False)))
    np.testing.assert_array_equal(one.codes, two.codes)


@pytest.mark.parametrize("count", [8, 16, 32])
def test_codes_may_have_fewer_or_more_bits_than_there_are_dimensions(count):
    data = toy()
    values = [train(make(kind, bytes=count // 8), data, data, epochs=4, batch=16).history for kind in ("bpr", "bebr-1")]
    for history in values:
        assert max(row["dev"] for row in history) > history[0]["dev"]


def test_an_adapter_is_folded_into_the_codec():
    data = toy()
    trained = train(make("bpr", tune="adapter", query_lr=0.02, rank=4), data, data, epochs=3, batch=16)
    adapted = trained.method.queries.embed(data.queries, None)
    assert trained.best > 0 and np.abs(adapted - data.queries).max() > 0.01
    head = trained.method.average.module
    expected = head.scale.numpy() * (adapted @ head.queries.detach().numpy().T) @ unpack_signs(trained.codes, 16).T
    scores = trained.codec.scores(data.queries, trained.codes)
    np.testing.assert_allclose(scores - data.queries @ head.mean.numpy()[:, None], expected, rtol=1e-3, atol=1e-3)


def test_two_stages_find_nearly_what_a_scan_of_all_codes_finds():
    data = toy()
    trained = train(make("bpr", bytes=8), data, data, epochs=3, batch=16)
    learned = trained.codec.parts[0]
    two = TwoStageIndex(candidates=150).add(learned.transform(data.documents))
    found = two.search(learned.transform_queries(data.queries)[0], 10).ids
    scanned = ScanIndex(codec=trained.codec, rerank=None).add(data.documents).search(data.queries, 10).ids
    assert quality(found, data) == pytest.approx(quality(scanned, data), abs=0.02)


# -- two versions of a model, one index --------------------------------------------------------------------------------


def next_version(data: TrainingData, noise: float = 0.1) -> TrainingData:
    """The same documents and queries by a model that turns all of them, and errs a little."""
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0]

    def turned(vectors):
        return ((vectors + noise * rng.normal(size=vectors.shape) * vectors.std(axis=0)) @ rotation).astype(np.float32)

    return TrainingData(turned(data.documents), turned(data.queries), data.positives)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("labels", [True, False])
def test_queries_of_a_new_model_find_codes_of_the_old_one(labels, levels):
    old, common = toy(labels), {"bytes": 4, "levels": levels}
    new = next_version(old)
    first = train(make("bebr", **common), old, old, epochs=4, batch=16)
    alone = train(make("bebr", **common), new, new, epochs=4, batch=16)
    both = train(make("bebr", **common, earlier=first.codes), new, new, epochs=4, batch=16)

    def found(codec, codes, queries=new.queries):
        return quality(np.argsort(-codec.scores(queries, codes), axis=1, kind="stable")[:, :10], old)

    assert found(alone.codec, first.codes) < 0.1  # two spaces
    assert found(both.codec, first.codes) > 0.75 * found(first.codec, first.codes, old.queries)
    assert found(both.codec, both.codes) > 0.75 * found(alone.codec, alone.codes)
    mixed = np.where(np.arange(500)[:, None] % 2 == 0, first.codes, both.codes)  # an index half of which is renewed
    assert found(both.codec, mixed) > 0.75 * found(first.codec, first.codes, old.queries)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "build"),
    [
        ("bytes is 0", lambda d: train(LSH(bytes=0), d)),
        ("bytes is 17", lambda d: train(ITQ(bytes=17), d)),
        ("bytes is 17", lambda d: train(BPR(bytes=17), d)),
        ("levels is 3", lambda d: train(BEBR(bytes=2, levels=3), d)),
        ("bytes is -1", lambda d: train(BEBR(bytes=-1), d)),
        (r"earlier is uint8 \(3, 2\)", lambda d: train(BEBR(bytes=2, earlier=np.zeros((3, 2), np.uint8)), d)),
        ("earlier is list", lambda d: train(BEBR(bytes=2, earlier=[1]), d)),
    ],
)
def test_bad_input_of_hashers_is_named(what, build):
    with pytest.raises(TrainingError, match=what):
        build(toy())
