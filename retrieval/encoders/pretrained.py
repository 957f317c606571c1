"""Opening a pretrained model of sentence-transformers: by folder or hub name, quietly, with errors that say what is
wrong. Shared by the encoders that run one."""

from __future__ import annotations

import importlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import EncoderError, MissingExtra

DTYPES = ("float32", "bfloat16", "int8")
ORGANIZATIONS = {"SentenceTransformer": "sentence-transformers", "CrossEncoder": "cross-encoder"}  # of short names
HUB_TIMEOUT = 10.0  # seconds that the hub has to answer
_QUIET = threading.Lock()


def check_parameters(*, dtype: str, batch_size: int, max_length: int | None, device: str | None) -> None:
    """Refuse what no model accepts before one is loaded. Raises `EncoderError`."""
    if dtype not in DTYPES:
        raise EncoderError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if dtype == "int8" and device not in (None, "cpu"):
        raise EncoderError(f"dtype 'int8' runs on the CPU only, device is {device!r}; use 'bfloat16' there")
    if batch_size < 1:
        raise EncoderError(f"batch_size is {batch_size}; it must be 1 or more")
    if max_length is not None and max_length < 1:
        raise EncoderError(f"max_length is {max_length}; it must be 1 or more tokens, or None for the model's own")


def reference(model: str | Path) -> str:
    """What `model` is saved as: an existing folder's absolute path, or else the name as it is."""
    path = os.path.expanduser(model)
    return os.path.abspath(path) if os.path.exists(path) else str(model)


def load(
    kind: str, model: str, *, revision: str | None, dtype: str, device: str | None, max_length: int | None
) -> tuple[Any, str | None]:
    """The sentence-transformers model of class `kind` (a key of `ORGANIZATIONS`), and the hub's commit that it is of.

    The hub is asked once: when it does not answer, its local cache is all that is searched, without retries.
    Raises `EncoderError` (no such model, not one of this kind, a `max_length` it cannot read) and `MissingExtra`.
    """
    sentence_transformers = _import()
    is_folder = _is_folder(model)
    answers = not is_folder and _hub_answers(model)
    try:
        with _quiet():
            loaded = getattr(sentence_transformers, kind)(
                model,
                revision=revision,
                device="cpu" if dtype == "int8" else device,
                local_files_only=not answers,
                model_kwargs={"torch_dtype": "bfloat16" if dtype == "bfloat16" else "float32"},
            )
            if dtype == "int8":
                loaded = _quantize(loaded)
    except Exception as problem:  # whatever the libraries below stumble over, the answer is: not this model
        cached = "" if is_folder or answers else " (no such folder; the hub does not answer: only its cache was read)"
        raise EncoderError(
            f"model {model!r} cannot be loaded{cached}: {_first_line(problem)}. "
            f"Accepted: the folder of a {kind} model, or the name of one on the hub"
        ) from problem
    if max_length is not None:
        limit = getattr(getattr(transformer(loaded), "config", None), "max_position_embeddings", None)
        if limit is not None and max_length > limit:
            raise EncoderError(f"max_length is {max_length}; model {model!r} reads at most {limit} tokens")
        setattr(loaded, "max_seq_length" if hasattr(loaded, "max_seq_length") else "max_length", max_length)
    return loaded, None if is_folder else _commit(kind, model, revision)


def transformer(loaded: Any) -> Any:
    """The transformer in a loaded model, or None where there is none (static embeddings)."""
    return getattr(loaded, "transformers_model", None) or getattr(loaded, "model", None)


def check_texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    """`texts` as a list. Raises `TypeError` or `EncoderError` naming the position of what is no text."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is one string; expected a sequence of strings")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] is of type {type(text).__name__}, expected str")
        try:
            text.encode()
        except UnicodeEncodeError as problem:
            raise EncoderError(f"{name}[{position}] holds half a surrogate pair, which is no text") from problem
    return checked


def check_finite(numbers: np.ndarray, model: str) -> None:
    """Raises `EncoderError` naming the first text that the model has no finite numbers for."""
    finite = np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1)
    if not finite.all():
        raise EncoderError(f"model {model!r} gives NaN or infinite numbers for texts[{int(np.argmin(finite))}]")


def _import() -> Any:
    try:
        for name in ("torch", "transformers", "sentence_transformers"):  # without the first, the second complains aloud
            package = importlib.import_module(name)
    except ModuleNotFoundError as problem:
        if problem.name == name:
            raise MissingExtra("sentence-transformers", "encoders", "a neural encoder") from problem
        raise
    return package


def _is_folder(model: str) -> bool:
    if not model:
        raise EncoderError("model is an empty name")
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("modules.json", "config.json")):
            raise EncoderError(f"folder {model!r} holds no model: neither modules.json nor config.json is in it")
        return True
    if path.exists():
        raise EncoderError(f"model {model!r} is a file; expected the folder of a model or a name on the hub")
    if path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise EncoderError(f"model {model!r}: there is no such folder, and it cannot be a name on the hub")
    return False


def _hub_answers(name: str) -> bool:
    """Whether the hub can be reached: one short question, where the loading code would retry for a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return True  # an answer, though a no: the loading code says what is wrong, or finds the short name
    except Exception:
        return False
    return True


def _commit(kind: str, name: str, revision: str | None) -> str | None:
    """The commit whose files in the hub's local cache were just read: they lie in a folder named after it."""
    from huggingface_hub import try_to_load_from_cache

    for repository in (name, f"{ORGANIZATIONS[kind]}/{name}") if "/" not in name else (name,):
        for file in ("modules.json", "config.json"):
            path = try_to_load_from_cache(
                repository, file, cache_dir=os.getenv("SENTENCE_TRANSFORMERS_HOME"), revision=revision
            )
            if isinstance(path, str):
                return Path(path).parent.name
    return None


def _quantize(loaded: Any) -> Any:
    """Linear layers with int8 weights, one scale per output channel, and activations quantised as they come."""
    import torch
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    return quantize_dynamic(loaded, {torch.nn.Linear: per_channel_dynamic_qconfig}, inplace=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, warnings or load reports while a model loads; every switch is put back after it."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as switches

    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers", "huggingface_hub")]
    with _QUIET, warnings.catch_warnings():  # the switches are the process's: one at a time
        warnings.simplefilter("ignore")
        had_bars, hub_had_none = switches.is_progress_bar_enabled(), are_progress_bars_disabled()
        levels = [logger.level for logger in loggers]
        try:
            switches.disable_progress_bar()  # the hub's too
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            if had_bars:
                switches.enable_progress_bar()
            if hub_had_none:
                disable_progress_bars()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _first_line(problem: Exception) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__).rstrip(".")
