"""Document vectors kept on disk while they are made, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from retrieval.encoders.base import Encoder, batches

_OURS = re.compile(r"\.?[0-9a-f]{64}\.npy(\.\d+)?")


class Encodings:
    """Document vectors of a dense `encoder`, kept in `folder` chunk by chunk.

        for vectors in Encodings("encodings", encoder).stream(texts):
            index.add(vectors)

    Each chunk is one file, named after all that its vectors depend on: the encoder's settings and arrays, and the
    texts. What is found is read, what is not is encoded; vectors of another encoder or of other texts are never used.

    chunk: texts per file. It bounds the memory (one chunk's texts and vectors) and the work that a crash loses: 1,024
        texts are about half a minute on two cores. Other chunks are other files, so resume with the same number.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, *, chunk: int = 1024) -> None:
        if chunk < 1:
            raise ValueError(f"chunk is {chunk}; it must be 1 or more texts")
        self.folder = Path(folder)
        self.encoder = encoder
        self.chunk = chunk

    def stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The vectors of `texts` in their order, as float32 (m, d) arrays of up to `chunk` rows each.

        `texts` is read one chunk at a time. Raises what the encoder raises; chunks yielded before are kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        identity = self._identity()
        start = 0
        for part in batches(texts, self.chunk):
            path = self.folder / f"{_name(identity, part, start)}.npy"
            start += len(part)
            vectors = _read(path, len(part))
            if vectors is None:
                vectors = self.encoder.encode_documents(part)
                if not isinstance(vectors, np.ndarray):
                    raise TypeError(f"the encoder gave a {type(vectors).__name__}; only dense vectors are kept")
                _write(path, vectors)
            yield vectors

    def clear(self) -> None:
        """Remove the kept vectors, and the folder when nothing else is in it."""
        if not self.folder.exists():
            return
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _identity(self) -> bytes:
        digest = hashlib.sha256()
        described = {"kind": self.encoder.kind, "settings": self.encoder.settings()}
        digest.update(json.dumps(described, sort_keys=True).encode())
        for name, array in sorted(self.encoder.arrays().items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()


def _name(identity: bytes, texts: list[str], start: int) -> str:
    """What the chunk of `texts` is kept under; `start` is the position of its first text, for the error alone."""
    digest = hashlib.sha256(identity)
    for position, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] is of type {type(text).__name__}, expected str")
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))  # so that ["ab", "c"] is not ["a", "bc"]
        digest.update(encoded)
    return digest.hexdigest()


def _read(path: Path, n: int) -> np.ndarray | None:
    """The (n, d) vectors kept at `path`; None when there are none, or not whole."""
    try:
        vectors = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = isinstance(vectors, np.ndarray) and vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == n
    return vectors if whole else None


def _write(path: Path, vectors: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            np.lib.format.write_array(out, vectors, allow_pickle=False)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
