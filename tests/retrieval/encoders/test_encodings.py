from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from counting_encoder import Counting
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoders.cache import Encodings
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder

ROOT = Path(__file__).resolve().parents[3]

TEXTS = [f"text {i} " * (i % 7) for i in range(25)]


def stacked(encodings: Encodings, texts: Sequence[str] = TEXTS) -> np.ndarray:
    return np.concatenate(list(encodings.stream(texts)))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_chunks_in_order_and_kept(tmp_path: Path) -> None:
    encoder = Counting()
    chunks = list(Encodings(tmp_path / "kept", encoder, chunk=10).stream(iter(TEXTS)))
    assert [len(chunk) for chunk in chunks] == [10, 10, 5] and chunks[0].dtype == np.float32
    expected = Counting().encode_documents(TEXTS)
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    assert [len(part) for part in encoder.encoded] == [10, 10, 5]
    again = Counting()
    np.testing.assert_array_equal(stacked(Encodings(tmp_path / "kept", again, chunk=10)), expected)
    assert again.encoded == []


def test_texts_are_read_one_chunk_at_a_time(tmp_path: Path) -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        for text in TEXTS:
            taken += 1
            yield text

    stream = Encodings(tmp_path, Counting(), chunk=10).stream(texts())
    assert taken == 0
    next(stream)
    assert taken == 10 and len(files(tmp_path)) == 1


def test_no_texts(tmp_path: Path) -> None:
    assert list(Encodings(tmp_path, Counting()).stream([])) == []


@pytest.mark.parametrize("death", [signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, death: int) -> None:
    code = f"""
import os
from counting_encoder import Counting
from retrieval.encoders.cache import Encodings

class Dying(Counting):
    def encode_documents(self, texts):
        if len(self.encoded) == 3:
            os.kill(os.getpid(), {int(death)})
        return super().encode_documents(texts)

for _ in Encodings({str(tmp_path)!r}, Dying(), chunk=4).stream({TEXTS!r}):
    pass
"""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert killed.returncode != 0 and killed.stderr == ""
    assert len(files(tmp_path)) == 3
    encoder = Counting()
    vectors = stacked(Encodings(tmp_path, encoder, chunk=4))
    np.testing.assert_array_equal(vectors, Counting().encode_documents(TEXTS))
    assert [text for part in encoder.encoded for text in part] == TEXTS[12:]


def test_a_crash_while_writing_leaves_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        stacked(Encodings(tmp_path, Counting()))
    assert files(tmp_path) == set()


def test_vectors_of_another_encoder_are_never_used(tmp_path: Path) -> None:
    stacked(Encodings(tmp_path, Counting()))
    renamed = type("Renamed", (Counting,), {"kind": "renamed"})
    for other in (Counting(factor=2.0), Counting(weights=(1.0, 3.0)), renamed()):
        expected = other.encode_documents(TEXTS)
        np.testing.assert_array_equal(stacked(Encodings(tmp_path, other)), expected)
        assert len(other.encoded) == 2
    assert len(files(tmp_path)) == 4


@given(st.lists(st.text(), max_size=6), st.lists(st.text(), max_size=6), st.integers(1, 4))
def test_vectors_of_other_texts_are_never_used(
    tmp_path_factory: pytest.TempPathFactory, one: list[str], two: list[str], chunk: int
) -> None:
    encodings = Encodings(tmp_path_factory.mktemp("kept"), Counting(), chunk=chunk)
    for texts in (one, two, one):
        vectors = [row for part in encodings.stream(texts) for row in part]
        np.testing.assert_array_equal(np.array(vectors).reshape(-1, 2), Counting().encode_documents(texts))


def test_moved_borders_between_texts_are_other_texts(tmp_path: Path) -> None:
    encodings = Encodings(tmp_path, Counting())
    for texts in (["ab", "c"], ["a", "bc"], ["abc", ""], ["", "abc"]):
        np.testing.assert_array_equal(stacked(encodings, texts), Counting().encode_documents(texts))
    assert len(files(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "rows", "dtype", "flat", "zip"])
def test_a_damaged_file_is_encoded_again(tmp_path: Path, damage: str) -> None:
    expected = stacked(Encodings(tmp_path, Counting()))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(whole[:-8])
    elif damage == "text":
        path.write_text("not an array")
    elif damage == "zip":
        with open(path, "wb") as out:
            np.savez(out, expected)
    else:
        wrong = {"rows": expected[:-1], "dtype": expected.astype(np.float64), "flat": expected.ravel()}[damage]
        np.save(path, wrong)
    encoder = Counting()
    np.testing.assert_array_equal(stacked(Encodings(tmp_path, encoder)), expected)
    assert len(encoder.encoded) == 1
    assert path.read_bytes() == whole


def test_clear_removes_only_what_it_kept(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    encodings = Encodings(folder, Counting(), chunk=10)
    encodings.clear()
    stacked(encodings)
    (folder / f".{'0' * 64}.npy.123").write_bytes(b"left by a crash")
    (folder / "mine.npy").write_bytes(b"")
    encodings.clear()
    assert files(folder) == {"mine.npy"}
    (folder / "mine.npy").unlink()
    stacked(encodings)
    encodings.clear()
    assert not folder.exists()


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk is 0"):
        Encodings(tmp_path, Counting(), chunk=0)
    with pytest.raises(TypeError, match=r"texts\[4\] is of type int"):
        list(Encodings(tmp_path, Counting(), chunk=3).stream(["a", "b", "c", "d", 1]))  # type: ignore[list-item]


def test_sparse_vectors_are_refused(tmp_path: Path) -> None:
    from scipy.sparse import csr_matrix

    sparse = type("Sparse", (Counting,), {"encode_documents": lambda self, texts: csr_matrix((len(texts), 3))})
    with pytest.raises(TypeError, match="csr_matrix; only dense vectors"):
        list(Encodings(tmp_path, sparse()).stream(TEXTS))


def test_a_real_model(minilm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SentenceTransformerEncoder(minilm, device="cpu")
    kept = stacked(Encodings(tmp_path, first, chunk=10))
    second = SentenceTransformerEncoder(minilm, device="cpu")
    monkeypatch.setattr(second, "encode_documents", None)  # every chunk is there
    np.testing.assert_array_equal(stacked(Encodings(tmp_path, second, chunk=10)), kept)
    np.testing.assert_allclose(kept, first.encode_documents(TEXTS), atol=1e-5)
