"""HnswlibIndex, UsearchIndex and SVSIndex beside their exact twin, each where its library is installed."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from indexes import FlatIndex, HnswlibIndex, SVSIndex, UsearchIndex, load, storage
from indexes.base import in_chunks
from indexes.dense import library_base, svs
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, MissingLibrary
from indexes.kernels import candidates

N, D = 1200, 24
KINDS = {"hnswlib": HnswlibIndex, "usearch": UsearchIndex, "svs": SVSIndex}


def vectors(n=N, seed=0):
    """Around 40 centres, as embeddings lie."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(40, D))
    return (centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(size=(n, D))).astype(np.float32)


def recall(hits, truth):
    return np.mean([np.isin(a, b).mean() for a, b in zip(truth.ids, hits.ids, strict=True)])


def digests(folder):
    return {k: v["sha256"] for k, v in json.loads((folder / "index.json").read_text())["files"].items()}


@pytest.fixture(params=KINDS)
def make(request, monkeypatch):
    """Makes one of a kind, with graphs from few vectors on, which small filters go through too."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(svs, "UNLINKED", (30, 10))
    monkeypatch.setattr(library_base, "EFFORT", 0)
    quick = {"window": 40} if request.param == "svs" else {"M": 12, "ef_construction": 60}
    return functools.partial(KINDS[request.param], **quick)


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_recall_and_scores(make, metric, dtype):
    index = make(metric=metric, dtype=dtype).add(vectors(), np.arange(N)[::-1] * 3)
    flat = FlatIndex(metric=metric, dtype=dtype).add(vectors(), np.arange(N)[::-1] * 3)
    truth, hits = flat.search(vectors(40, 1), 10), index.search(vectors(40, 1), 10)
    assert recall(hits, truth) >= 0.97
    same = hits.ids == truth.ids
    np.testing.assert_allclose(hits.scores[same], truth.scores[same], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(index.vectors, flat.vectors)


def test_how_many_candidates_are_asked_for(make, monkeypatch):
    index, counts = make().add(vectors()), []
    find, knob = index._candidates, next(iter(index.search_knobs))
    monkeypatch.setattr(index, "_candidates", lambda queries, count, threads: (
        counts.append(count) or find(queries, count, threads)))  # fmt: skip
    half = np.arange(N) % 2 > 0
    for k, given, expected in ((10, {knob: 33}, 33), (50, {knob: 33}, 50), (10, {knob: 33, "allow": half}, 66)):
        index.search(vectors(2, 1), k, **given)
        assert counts.pop() == expected
    index.remove(np.arange(N // 3))
    index.search(vectors(2, 1), **{knob: 32})
    assert counts.pop() == 48
    index.search(vectors(2, 1))
    assert counts.pop() == (96 if knob == "ef_search" else 64) * 1.5
    monkeypatch.setattr(library_base, "EFFORT", 40)  # 32 candidates of so many are no longer less work than a scan
    index.search(vectors(2, 1), **{knob: 32})
    assert not counts


def test_filters_keep_their_recall(make, monkeypatch):
    index, flat, queries = make().add(vectors()), FlatIndex(dtype="float16").add(vectors()), vectors(20, 1)
    for order in (np.argsort(vectors()[:, 0]), np.random.default_rng(1).permutation(N)):
        for share, effort in itertools.product((0.1, 0.01, 0.001), (0, 40)):
            monkeypatch.setattr(library_base, "EFFORT", effort)
            allow = np.isin(np.arange(N), order[: int(share * N)])
            hits, truth = index.search(queries, 10, allow=allow), flat.search(queries, 10, allow=allow)
            assert allow[hits.ids[hits.ids >= 0]].all()
            assert recall(hits, truth) >= 0.95
            if effort:  # few rows are scanned
                np.testing.assert_array_equal(hits.ids, truth.ids)


def test_removing_and_adding(make):
    index, flat, queries = make(metric="l2").add(vectors()), FlatIndex(metric="l2").add(vectors()), vectors(20, 1)
    whole, gone = index.describe()["bytes"], np.random.default_rng(2).permutation(N)
    for some, kept in ((gone[:500], True), (gone[500:800], False)):
        for one in (index, flat):
            assert one.remove(some) == len(some)
        assert (index.describe()["bytes"] > 0.9 * whole) == kept  # the graph is built anew when most are gone
        assert recall(index.search(queries, 10), flat.search(queries, 10)) >= 0.97
    for start in (0, 50, 400):
        for one in (index, flat):
            one.add(vectors()[gone[start : start + 50]], gone[start : start + 50])
        assert recall(index.search(queries, 10), flat.search(queries, 10)) >= 0.97
    np.testing.assert_array_equal(index.ids, flat.ids)


@pytest.mark.parametrize("mmap", [True, False])
def test_saved_and_loaded(make, mmap, tmp_path):
    index = make(metric="cosine").add(vectors(), np.arange(N) + 2**40)
    index.remove(index.ids[::7])
    index.add(vectors(20, 3))
    index.save(tmp_path)
    loaded, queries = load(tmp_path, mmap), vectors(30, 1)
    for allow in (None, np.arange(len(index)) % 3 > 0):
        one, other = index.search(queries, 20, allow=allow), loaded.search(queries, 20, allow=allow)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.scores, other.scores)
    assert loaded.describe() == index.describe()
    loaded.add(vectors(15, 4)).add(vectors(1000, 5))
    flat = FlatIndex(metric="cosine").add(loaded.vectors.astype(np.float32), loaded.ids)
    assert recall(loaded.search(queries, 10), flat.search(queries, 10)) >= 0.97


def test_builds_repeat_to_the_byte_also_in_parts(make, tmp_path):
    for folder in ("one", "two"):
        make().add(vectors(400)).save(tmp_path / folder)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    if make.func is not SVSIndex:
        make().add(vectors(400)[:150]).add(vectors(400)[150:]).save(tmp_path / "parts")
        assert digests(tmp_path / "one") == digests(tmp_path / "parts")


def test_graphs_that_find_too_few(make):
    """Equal vectors are linked to each other only, so that a walk sees few of them; all are answers nevertheless."""
    rows = np.repeat(vectors(10), 60, axis=0)
    index = make(metric="l2").add(rows)
    for k in (1, 200, 600):
        hits = index.search(vectors(5, 1), k)
        assert all(len(set(ids.tolist())) == k for ids in hits.ids) and hits.ids.min() >= 0
    assert (np.sort(index.search(rows[:1], 600).ids) == np.arange(600)).all()


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("length", [1e-15, 1e-4, 1e15])
def test_vectors_of_any_length(make, metric, length):
    """hnswlib and usearch compute 1 - x.y for inner products, in which 1e-8 is lost."""
    rows, queries = vectors(600) * np.float32(length), vectors(20, 1) * np.float32(length)
    index, flat = make(metric=metric, dtype="float32").add(rows), FlatIndex(metric=metric).add(rows)
    assert recall(index.search(queries, 10), flat.search(queries, 10)) >= 0.97
    if metric == "ip":
        tiny = queries / np.float32(length**2)
        assert recall(index.search(tiny, 10), flat.search(tiny, 10)) >= 0.97
    assert recall(make(metric=metric, dtype="float32").add(rows[:300]).add(rows[300:]).search(queries, 10),
                  flat.search(queries, 10)) >= 0.97  # fmt: skip


def test_later_vectors_much_longer_than_the_first(make):
    rows = vectors(600)
    rows[:300] *= 1e-5
    index = make(dtype="float16").add(rows[:300]).add(rows[300:])
    flat = FlatIndex(dtype="float16").add(rows)
    assert recall(index.search(vectors(20, 1), 10), flat.search(vectors(20, 1), 10)) > 0.9
    with pytest.raises(InvalidVectors, match="65,504"):
        index.add(rows[300:] * 1e5)
    assert len(index) == 600


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.filterwarnings("error")
def test_first_vectors_so_short_that_others_leave_float32(make, metric):
    index = make(metric=metric, dtype="float32").add(vectors(300) * np.float32(1e-43)).add(vectors(300, 1))
    hits = index.search(vectors(5, 2) * np.float32(1e17), 20)
    assert np.isfinite(index._scaled(index.vectors)).all() and (hits.ids >= 0).all()


def test_callers_at_the_same_time(make):
    index, queries = make().add(vectors()), vectors(200, 1)
    expected = index.search(queries, 10, threads=1)
    with ThreadPoolExecutor(4) as pool:
        for hits in pool.map(lambda threads: index.search(queries, 10, threads=threads), [1, 2] * 6):
            np.testing.assert_array_equal(hits.ids, expected.ids)
    in_chunks(lambda a, b: np.testing.assert_array_equal(index.search(queries[a:b], 10).ids, expected.ids[a:b]), 200, 2)


# -- SVS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "compression, metric", [("lvq4", "ip"), ("lvq8", "l2"), ("lvq4x4", "l2"), ("lvq4x8", "ip"), ("leanvec", "cosine")]
)
def test_compressed_graphs(compression, metric, monkeypatch, tmp_path):
    pytest.importorskip("svs")
    monkeypatch.setattr(svs, "UNLINKED", (30, 10))
    monkeypatch.setattr(library_base, "EFFORT", 0)
    index, again = (
        SVSIndex(metric=metric, compression=compression, window=40).add(vectors(800)) for _ in range(2)
    )  # fmt: skip
    truth = FlatIndex(metric=metric, dtype="float16").add(vectors(800)).search(vectors(20, 1), 10)
    assert recall(index.search(vectors(20, 1), 10), truth) >= 0.95
    index.save(tmp_path)
    again.save(tmp_path / "again")
    assert digests(tmp_path) == digests(tmp_path / "again")
    np.testing.assert_array_equal(load(tmp_path).search(vectors(5), 10).ids, index.search(vectors(5), 10).ids)


def test_svs_links_what_was_added_once_it_is_a_tenth():
    pytest.importorskip("svs")
    index, flat = SVSIndex(window=40).add(vectors(1000)), FlatIndex(dtype="float16").add(vectors(1000))
    assert index._linked == 0
    for more, linked in ((1, 1001), (999, 1001), (2, 2002)):
        rows = vectors(more, seed=more)
        index.add(rows)
        flat.add(rows)
        assert index._linked == linked
        near = rows[-3:]
        assert recall(index.search(near, 1), flat.search(near, 1)) == 1


# -- candidates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_candidates_against_the_definition(l2, dtype):
    rng = np.random.default_rng(0)
    stored, queries = rng.integers(-3, 4, (50, 5)).astype(dtype), rng.integers(-3, 4, (6, 5)).astype(np.float32)
    labels = rng.permutation(200)[:50]
    labels[rng.permutation(50)[:15]] = -1
    found = np.stack([rng.permutation(40)[:20] for _ in queries])
    found[rng.random(found.shape) < 0.3] = -1
    scores, ids = np.empty((6, 12), np.float32), np.empty((6, 12), np.int64)
    candidates.rank(library_base.as_numbers(stored), queries, found, 45, labels, l2, scores, ids)
    for q, query in enumerate(queries):
        answers = []
        for slot in {*found[q].tolist(), *range(45, 50)} - {-1}:
            score = -((stored[slot] - query) ** 2).sum() if l2 else stored[slot].astype(np.float32) @ query
            answers += [(-score, labels[slot])] if labels[slot] >= 0 else []
        answers = [*sorted(answers), *[(np.inf, -1)] * 12][:12]
        assert [(-score, id) for score, id in answers] == list(zip(scores[q].tolist(), ids[q].tolist(), strict=True))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HnswlibIndex, UsearchIndex])
@pytest.mark.parametrize(
    "wrong",
    [{"metric": "dot"}, {"M": 1}, {"M": 8.0}, {"ef_construction": 0}, {"ef_construction": "9"}, {"ef_search": 0},
     {"dtype": "int8"}],
    ids=str,
)  # fmt: skip
def test_hnsw_parameters_out_of_range_are_refused(kind, wrong):
    with pytest.raises(InvalidParameter, match=next(iter(wrong))):
        kind(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"metric": "dot"}, {"R": 1}, {"R": 2.0}, {"window": 0}, {"alpha": 1.2}, {"alpha": 0},
     {"alpha": 0.9, "metric": "l2"}, {"alpha": float("inf"), "metric": "l2"}, {"compression": "lvq"},
     {"search_window": 0}, {"dtype": "int8"}],
    ids=str,
)  # fmt: skip
def test_svs_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidParameter, match=next(iter(wrong))):
        SVSIndex(**wrong)


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_library_that_is_not_installed(kind, monkeypatch, tmp_path):
    pytest.importorskip(kind.library)
    monkeypatch.setattr(svs, "UNLINKED", (30, 10))
    kind().add(vectors(100)).save(tmp_path)

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", lambda name, real=importlib.import_module:
                        missing(name) if name == kind.library else real(name))  # fmt: skip
    index = kind()  # to store parameters takes no library
    for use in (lambda: index.add(vectors(3)), lambda: load(tmp_path)):
        with pytest.raises(MissingLibrary, match=rf"{kind.__name__} needs .*pip install {kind.package}"):
            use()
    assert len(index) == 0


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.8])
def test_truncated_files(make, share, tmp_path):
    make().add(vectors(300)).save(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    entry = header["files"][f"index.{make.func.kind}"]
    path = tmp_path / entry["file"]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptIndex, match=r"has .* bytes, the header says"):
        load(tmp_path)
    entry |= {"bytes": path.stat().st_size, "sha256": storage._sha256(path)}
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(CorruptIndex, match=f"{make.func.kind} cannot read it|holds d="):
        load(tmp_path)


def test_headers_that_do_not_agree_with_their_files(make, tmp_path, refusing):
    make(metric="ip").add(vectors(300)).save(tmp_path / "one")
    refused = refusing(tmp_path / "one")
    refused(lambda header: header["state"].update(linked=299), "holds d=24, n=")
    refused(lambda header: header["state"].update(linked=301), "linked is 301")
    refused(lambda header: header["state"].update(scale=0), "scale 0")
    refused(lambda header: header["state"].update(d=25), "vectors are float16")
    refused(lambda header: header["files"].pop(f"index.{make.func.kind}"), f"names no index.{make.func.kind}, yet")
    refused(lambda header: header["files"].pop("slots"), "lacks something")


def test_a_graph_of_another_width(make, tmp_path):
    """The file of one index in the folder of another."""
    make().add(vectors(300)[:, :20]).save(tmp_path / "narrow")
    make().add(vectors(300)).save(tmp_path / "wide")
    narrow, wide = (json.loads((tmp_path / name / "index.json").read_text()) for name in ("narrow", "wide"))
    part = f"index.{make.func.kind}"
    (tmp_path / "wide" / narrow["files"][part]["file"]).write_bytes(
        (tmp_path / "narrow" / narrow["files"][part]["file"]).read_bytes()
    )
    wide["files"][part] = narrow["files"][part]
    (tmp_path / "wide" / "index.json").write_text(json.dumps(wide))
    with pytest.raises(CorruptIndex, match="holds d=20, n=300; the header says 24, 300"):
        load(tmp_path / "wide")


def test_a_full_disk_is_noticed(make, tmp_path, monkeypatch):
    index = make().add(vectors(300))
    write = index._write

    def cut(path):
        write(path)
        with open(path, "r+b") as file:
            file.truncate(100)

    monkeypatch.setattr(index, "_write", cut)
    with pytest.raises(OSError, match="wrote less"):
        index.save(tmp_path)
    assert not list(tmp_path.glob("*.json"))
