from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.encoders import pretrained
from retrieval.encoders.base import load_encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.errors import EncoderError, MissingExtra

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
TEXTS = [
    "The heart pumps blood through the arteries.",
    "",
    "Statins lower cholesterol; " * 30,
    "北京是中国的首都",
    "A cat sat on the mat.",
    "Zebras",
]


@pytest.fixture(scope="module")
def encoder(minilm: str) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(minilm, device="cpu", batch_size=4)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_vectors_are_the_models_own(encoder: SentenceTransformerEncoder, minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm, device="cpu")
    vectors = encoder.encode_documents(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 384) == (len(TEXTS), encoder.dimension)
    one_by_one = np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), one_by_one, atol=1e-5)
    assert encoder.similarity == "cosine"


def test_batches_are_sorted_by_length_over_the_whole_list(encoder: SentenceTransformerEncoder) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=64)
    texts = ["word " * int(length) for length in lengths]
    shapes: list[tuple[int, int]] = []
    hook = encoder._load()[0].register_forward_pre_hook(lambda _, given: shapes.append(given[0]["input_ids"].shape))
    try:
        vectors = encoder.encode_documents(texts)
    finally:
        hook.remove()
    by_length = np.sort(lengths + 2).reshape(-1, 4)  # 4 to a batch, [CLS] and [SEP]
    assert sum(rows * width for rows, width in shapes) == 4 * by_length.max(axis=1).sum()
    order = np.argsort(lengths)
    np.testing.assert_allclose(vectors[order], encoder.encode_documents([texts[i] for i in order]), atol=1e-5)


def test_nothing_and_nothing_said(encoder: SentenceTransformerEncoder) -> None:
    for encode in (encoder.encode_documents, encoder.encode_queries):
        empty = encode([])
        assert empty.shape == (0, 384) and empty.dtype == np.float32
    assert np.isfinite(encoder.encode_documents(["", " ", "\x00"])).all()


def test_bad_texts_are_named(encoder: SentenceTransformerEncoder) -> None:
    with pytest.raises(TypeError, match=r"texts\[1\] is of type float, expected str"):
        encoder.encode_documents(["a", float("nan"), "b"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"texts\[2\] is of type NoneType"):
        encoder.encode_queries(["a", "b", None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="one string"):
        encoder.encode_queries("a")
    with pytest.raises(EncoderError, match=r"texts\[1\] holds half a surrogate pair"):
        encoder.encode_documents(["a", "\ud83d"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dtype": "float64"}, "dtype 'float64' is not one of float32, bfloat16, int8"),
        ({"dtype": "int8", "device": "cuda"}, "'int8' runs on the CPU only, device is 'cuda'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        SentenceTransformerEncoder("any", **parameters)


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.99), ("int8", 0.9)])
def test_smaller_dtypes_stay_close(encoder: SentenceTransformerEncoder, minilm: str, dtype: str, least: float) -> None:
    vectors = SentenceTransformerEncoder(minilm, dtype=dtype, device="cpu").encode_documents(TEXTS)
    assert vectors.dtype == np.float32
    exact = encoder.encode_documents(TEXTS)
    assert not np.array_equal(vectors, exact)
    cosine = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosine.min() > least


def test_max_length_cuts(encoder: SentenceTransformerEncoder, minilm: str) -> None:
    short = SentenceTransformerEncoder(minilm, max_length=5, device="cpu")  # [CLS] a cat sat [SEP]
    whole, cut = short.encode_documents(["a cat sat", "a cat sat on the mat"])
    np.testing.assert_allclose(whole, cut, atol=1e-6)
    np.testing.assert_allclose(whole, encoder.encode_documents(["a cat sat"])[0], atol=1e-6)
    with pytest.raises(EncoderError, match=r"max_length is 513; model .* reads at most 512 tokens"):
        SentenceTransformerEncoder(minilm, max_length=513).encode_queries(["a"])


def test_importing_constructing_and_opening_load_no_torch(encoder: SentenceTransformerEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    printed = run(f"""
import sys
from retrieval.encoders.base import load_encoder
from retrieval.encoders.cross_encoder import CrossEncoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
SentenceTransformerEncoder("a/model"), CrossEncoder("a/model")
encoder = load_encoder({str(tmp_path)!r})
print(encoder.similarity, encoder.dimension, encoder.encode_queries([]).shape, encoder.settings()["model"])
print([name for name in ("torch", "transformers", "sentence_transformers", "faiss", "numba") if name in sys.modules])
""")
    assert printed.splitlines() == [f"cosine 384 (0, 384) {encoder.model}", "[]"]


def test_saved_by_reference_and_opened_again(tiny: Callable[..., str], tmp_path: Path) -> None:
    parameters: dict[str, Any] = {
        "dtype": "bfloat16",
        "batch_size": 7,
        "max_length": 9,
        "query_prompt": "ask: ",
        "document_prompt": "say: ",
    }
    encoder = SentenceTransformerEncoder(tiny(similarity_fn_name="dot"), **parameters)
    encoder.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "encoder.json").read_text())
    assert saved["settings"] == {
        "model": encoder.model,
        "revision": None,
        "dimension": 32,
        "similarity": "ip",
        **parameters,
    }
    opened = load_encoder(tmp_path / "saved")
    assert isinstance(opened, SentenceTransformerEncoder)
    assert opened.settings() == encoder.settings() and opened._model is None
    np.testing.assert_allclose(opened.encode_documents(TEXTS), encoder.encode_documents(TEXTS), atol=1e-6)
    assert opened._model is not None
    emptied = SentenceTransformerEncoder.restore(opened.settings(), {})
    assert emptied.settings() == encoder.settings()


def test_a_folder_is_found_from_any_working_directory(
    tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(tiny())
    monkeypatch.chdir(folder.parent)
    encoder = SentenceTransformerEncoder(Path(folder.name))
    monkeypatch.chdir(ROOT)
    assert encoder.encode_queries(["a"]).shape == (1, 32)
    assert encoder.settings()["model"] == str(folder)


def test_another_model_is_refused(tiny: Callable[..., str], tmp_path: Path) -> None:
    folder = tiny()
    SentenceTransformerEncoder(folder).save(tmp_path / "saved")
    opened = load_encoder(tmp_path / "saved")
    moved = tmp_path / "moved"
    shutil.move(folder, moved)
    with pytest.raises(EncoderError, match=r"tiny.*: there is no such folder"):
        opened.encode_queries(["a"])
    shutil.move(tiny("another", seed=1), folder)
    with pytest.raises(EncoderError, match=r"tiny' is not the one that was saved: .* cosine -?0.[0-8]"):
        opened.encode_queries(["a"])
    shutil.rmtree(folder)
    shutil.move(tiny("wider", hidden=64), folder)
    with pytest.raises(EncoderError, match="gives 64 dimensions; the saved encoder has 32"):
        opened.encode_queries(["a"])
    shutil.rmtree(folder)
    shutil.move(moved, folder)
    assert opened.encode_queries(["a"]).shape == (1, 32)


def test_prompts_are_the_models_unless_given(tiny: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny(prompts={"query": "find: ", "document": ""})
    plain = SentenceTransformerEncoder(folder, query_prompt="", document_prompt="")
    found, said = plain.encode_documents(["find: blood", "blood"])
    asked = plain.encode_documents(["ask: blood"])[0]
    assert abs(found - said).max() > 0.01 and abs(found - asked).max() > 0.01
    own = SentenceTransformerEncoder(folder)
    given = SentenceTransformerEncoder(folder, query_prompt="ask: ")

    def check() -> None:
        np.testing.assert_allclose(own.encode_queries(["blood"])[0], found, atol=1e-5)
        np.testing.assert_allclose(own.encode_documents(["blood"])[0], said, atol=1e-5)
        np.testing.assert_allclose(given.encode_queries(["blood"])[0], asked, atol=1e-5)
        np.testing.assert_allclose(plain.encode_queries(["blood"])[0], said, atol=1e-5)

    check()
    from sentence_transformers import SentenceTransformer

    monkeypatch.delattr(SentenceTransformer, "encode_query")  # as before version 5
    monkeypatch.delattr(SentenceTransformer, "encode_document")
    check()


@pytest.mark.parametrize(("theirs", "ours"), [("cosine", "cosine"), ("dot", "ip"), ("euclidean", "l2")])
def test_similarity(tiny: Callable[..., str], theirs: str | None, ours: str) -> None:
    assert SentenceTransformerEncoder(tiny(similarity_fn_name=theirs)).similarity == ours


def test_a_similarity_that_no_index_has(tiny: Callable[..., str]) -> None:
    with pytest.raises(EncoderError, match="compares by 'manhattan'; accepted: cosine, dot, euclidean"):
        SentenceTransformerEncoder(tiny(similarity_fn_name="manhattan")).settings()


def test_models_that_cannot_be_loaded_are_named(minilm: str, tmp_path: Path) -> None:
    def refused(model: str | Path, message: str) -> None:
        encoder = SentenceTransformerEncoder(model)
        with pytest.raises(EncoderError, match=message):
            encoder.encode_queries(["a"])

    refused(tmp_path / "none", r"none': there is no such folder")
    refused("./none", r"'./none': there is no such folder")
    refused("", "model is an empty name")
    refused(tmp_path, "holds no model: neither modules.json nor config.json")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; expected the folder")
    refused("no-such-owner/no-such-model", r"'no-such-owner/no-such-model' cannot be loaded.*Accepted: the folder of a")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"cannot be loaded: .*Unrecognized model")
    cut = tmp_path / "cut"
    shutil.copytree(minilm, cut, ignore=lambda _, names: [name for name in names if name.endswith(".safetensors")])
    (cut / "model.safetensors").write_bytes(b"\x00" * 100)
    refused(cut, r"cut' cannot be loaded: \S+")


def test_an_unreachable_hub_is_said_without_retries(tmp_path: Path) -> None:
    code = """
import time
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.errors import EncoderError
import sentence_transformers
from huggingface_hub import HfApi
asked = []
ask = HfApi.model_info
HfApi.model_info = lambda *args, **named: (asked.append(1), ask(*args, **named))
try:
    SentenceTransformerEncoder("owner/model").encode_queries(["a"])
except EncoderError as error:
    print(len(asked), error)
"""
    # an address where nothing listens
    printed = run(code, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert printed.startswith("1 model 'owner/model' cannot be loaded (no such folder; the hub does not answer")


@pytest.mark.parametrize(
    ("name", "repository"), [("owner/model", "owner--model"), ("mini", "sentence-transformers--mini")]
)
def test_a_hub_model_is_pinned_to_its_commit(
    tiny: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repository: str
) -> None:
    cache = tmp_path / f"models--{repository}"  # as the hub's own cache has it
    commits = ["0" * 39 + "1", "0" * 39 + "2"]
    for seed, commit in enumerate(commits):
        shutil.move(tiny(seed=seed), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commits[0])
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    monkeypatch.setattr(pretrained, "_hub_answers", lambda _: False)
    encoder = SentenceTransformerEncoder(name)
    encoder.save(tmp_path / "saved")
    assert encoder.revision == commits[0]
    (cache / "refs" / "main").write_text(commits[1])  # the model moves on, the saved encoder does not
    opened = load_encoder(tmp_path / "saved")
    assert isinstance(opened, SentenceTransformerEncoder) and (opened.model, opened.revision) == (name, commits[0])
    np.testing.assert_allclose(opened.encode_queries(["a"]), encoder.encode_queries(["a"]), atol=1e-6)
    newest = SentenceTransformerEncoder(name)
    assert newest.settings()["revision"] == commits[1]


@pytest.mark.parametrize("package", ["sentence_transformers", "torch"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"sentence-transformers.*'retrieval\[encoders\]'"):
        SentenceTransformerEncoder("a/model").encode_queries(["a"])


def test_loading_and_encoding_are_quiet_and_change_no_switch(minilm: str, capfd: Any) -> None:
    import logging

    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils.logging import is_progress_bar_enabled

    names = ("transformers", "sentence_transformers", "huggingface_hub")

    def switches() -> tuple[Any, ...]:
        levels = [logging.getLogger(name).level for name in names]
        return is_progress_bar_enabled(), are_progress_bars_disabled(), levels, list(warnings.filters), dict(os.environ)

    before = switches()
    assert before[0], "transformers shows no bars here, so this test could not fail"
    capfd.readouterr()
    for dtype in ("float32", "int8"):
        SentenceTransformerEncoder(minilm, dtype=dtype, device="cpu").encode_documents(TEXTS)
    with pytest.raises(EncoderError):
        SentenceTransformerEncoder("no-such-owner/no-such-model").encode_documents(TEXTS)
    assert capfd.readouterr() == ("", "")
    assert switches() == before


def test_nan_is_refused(tiny: Callable[..., str]) -> None:
    folder = tiny(nan=True)
    with pytest.raises(EncoderError, match="gives NaN or infinite numbers"):
        SentenceTransformerEncoder(folder).encode_documents(["a"])


def test_threads_share_one_model(tiny: Callable[..., str]) -> None:
    encoder = SentenceTransformerEncoder(tiny())
    expected = SentenceTransformerEncoder(encoder.model).encode_queries(TEXTS)
    results: list[np.ndarray] = []
    models: set[int] = set()

    def work() -> None:
        for _ in range(3):
            results.append(encoder.encode_queries(TEXTS))
            models.add(id(encoder._model))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 12 and len(models) == 1
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "published", "margin"), [("nfcorpus", 0.316, 0.003), ("scifact", 0.645, 0.005)])
def test_published_quality(encoder: SentenceTransformerEncoder, dataset: str, published: float, margin: float) -> None:
    """nDCG@10 of all-MiniLM-L6-v2 under exact search, as BEIR's tables have it."""
    from eval import evaluate, load
    from retrieval.documents import read_documents

    folder = DATA / dataset
    if not folder.is_dir():
        pytest.skip(f"{dataset} is not here")
    documents = list(read_documents(folder / "corpus.jsonl.gz"))
    test = load(folder)
    vectors = encoder.encode_documents([document.contents for document in documents])
    scores = encoder.encode_queries(list(test.queries.values())) @ vectors.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    run_ = {
        query: {documents[i].id: float(scores[row, i]) for i in best[row]} for row, query in enumerate(test.queries)
    }
    found = evaluate(run_, test.qrels, ["nDCG@10"]).mean["nDCG@10"]
    assert found == pytest.approx(published, abs=margin)
