"""Text files, plain or compressed by suffix (.gz, .zst): found, streamed line by line, written atomically.

Lines end with a line feed only: the other characters that `str.splitlines` takes for line ends (U+2028, form feed)
occur inside real documents.
"""

from __future__ import annotations

import gzip
import io
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from eval.errors import FormatError

SUFFIXES = ("", ".gz", ".zst")
_BOM = b"\xef\xbb\xbf"
_CHUNK_BYTES = 1 << 16


def find(folder: str | Path, name: str) -> Path | None:
    """The file `name`, or `name`.gz, or `name`.zst in `folder`: the first that exists, else None."""
    candidates = (Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Stream (line number from 1, text without its newline) of a UTF-8 file; a byte order mark is dropped.

    Raises FormatError with the line for a byte that is not UTF-8 and where a compressed file is truncated or damaged.
    """
    for number, line in byte_lines(path):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, number, error) from error


def byte_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """`read_lines` before decoding, for those who go on after a line that is not UTF-8."""
    path = Path(path)
    number = 0
    try:
        for number, line in enumerate(_unpacked_lines(path), start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(path, number + 1, f"truncated or damaged {path.suffix} file: {error}") from error


def not_utf8(path: str | Path, number: int, error: UnicodeDecodeError) -> FormatError:
    """The error for a line whose bytes are not UTF-8."""
    return FormatError(path, number, f"not UTF-8: {error.reason} at byte {error.start} of the line")


def _unpacked_lines(path: Path) -> Iterator[bytes]:
    if path.suffix == ".zst":
        with open(path, "rb") as raw:
            yield from _split_lines(_zst_chunks(raw))
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as unpacked:
            yield from unpacked
    else:
        with open(path, "rb") as raw:
            yield from raw


def _zst_chunks(raw: IO[bytes]) -> Iterator[bytes]:
    """Decompress frame by frame, because zstandard's own stream reader takes a truncated file for a complete one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    try:
        while packed := raw.read(_CHUNK_BYTES):
            while packed:
                frame = frame or decompressor.decompressobj()
                yield frame.decompress(packed)
                packed = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if frame is not None:
        raise EOFError("the file ends inside a zstd frame")


def _split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    pieces: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pieces.append(first)
        if rest:
            yield b"".join(pieces)
            yield from rest[:-1]
            pieces = [rest[-1]]
    last = b"".join(pieces)
    if last:
        yield last


@contextmanager
def write_atomically(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 text handle whose content becomes the file `path` at once when the block succeeds, and never otherwise.

    It writes a temporary file in the same folder, compressed as the suffix of `path` says, syncs it to the disk and
    renames it; when the block fails the temporary file is removed and an older `path` stays as it was. The same text
    gives the same bytes (no time stamp in .gz).
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with ExitStack() as stack:
            stream: Any = stack.enter_context(open(temporary, "xb"))
            if path.suffix == ".gz":
                stream = stack.enter_context(gzip.GzipFile("", "wb", 6, stream, mtime=0))
            elif path.suffix == ".zst":
                import zstandard

                stream = stack.enter_context(zstandard.ZstdCompressor().stream_writer(stream))
            yield stack.enter_context(io.TextIOWrapper(stream, encoding="utf-8", newline="\n"))
        with open(temporary, "r+b") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
