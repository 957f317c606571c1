"""A saved index is a folder: `index.json` (the header) and the `.npy` arrays it names.

Data files carry a part of their own SHA-256 in their name and are never overwritten; `index.json` is replaced last,
in one atomic step. A crash at any moment therefore leaves the old index or the new one; what an interrupted save leaves
behind is removed by the next. Files that are not ours are never touched. No pickle is read or written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

from indexes.errors import CorruptIndex, NewerIndex

FORMAT = 1
HEADER = "index.json"

# the names that `save` gives: data files, and files still being written
OURS = re.compile(r"[^.].*-[0-9a-f]{12}\.(npy|faiss|hnswlib|usearch|svs)|\..+\.[0-9]+\.tmp")


def save(
    folder: str | Path,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray | Path],
    foreign: Mapping[str, Callable[[str], None]] | None = None,
    *,
    name: str = HEADER,
) -> None:
    """Write an index into `folder`, replacing the one there atomically.

    `header`: JSON values (kind, parameters, n ...). `arrays`: name -> array, kept as `.npy`, or the path of a `.npy`
    file on the same disk, which is moved here (for arrays larger than memory). `foreign`: file name -> function that
    writes that file at a given path, for parts that another library serialises (faiss). `name`: of the header file,
    for things beside indexes that are saved the same way (one to a folder).
    Raises `OSError` (disk full, folder not writeable); what the folder held before is then intact.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {}
    for part, array in arrays.items():
        if isinstance(array, Path):
            with open(array, "rb") as data:
                shape, _, dtype, _ = _npy_header(data)
            entry = _write(folder, part, ".npy", functools.partial(os.replace, array))
        else:
            contiguous = np.ascontiguousarray(array)
            shape, dtype = contiguous.shape, contiguous.dtype
            entry = _write(folder, part, ".npy", functools.partial(_write_npy, contiguous))
        files[part] = entry | {"dtype": dtype.str, "shape": list(shape)}
    for part, write in (foreign or {}).items():
        stem, suffix = os.path.splitext(part)
        files[part] = _write(folder, stem, suffix, write)
    full = {"format": FORMAT, **header, "files": files, "written_with": _versions()}
    text = json.dumps(full, indent=1, sort_keys=True)
    with _being_written(folder, name) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _sha256(temporary, sync=True)
        fsync_folder(folder)  # the data files' names must be durable before the header that names them
        os.replace(temporary, folder / name)
    fsync_folder(folder)
    _remove_leftovers(folder, {entry["file"] for entry in files.values()})


def load_header(folder: str | Path, name: str = HEADER) -> dict[str, Any]:
    """The header of the index in `folder`, its format checked.

    Raises `FileNotFoundError` (no index there), `CorruptIndex` (unreadable header), `NewerIndex`.
    """
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{folder}: nothing saved here ({name} is missing)")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        number = header["format"]
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"format {number!r} is no format number")
        newer = number > FORMAT  # then nothing else in the header is known to mean what it means here
        for entry in [] if newer else header["files"].values():
            file, size, digest = entry["file"], entry["bytes"], entry["sha256"]
            if not OURS.fullmatch(file) or file != os.path.basename(file):
                raise ValueError(f"{file!r} is not the name of a data file of this folder")
            if not (isinstance(size, int) and isinstance(digest, str) and isinstance(entry.get("shape", []), list)):
                raise ValueError(f"size, digest or shape of {file} is of the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CorruptIndex(f"{path}: not a readable header ({problem!r})") from problem
    if newer:
        raise NewerIndex(f"{path}: format {number} is newer than {FORMAT}, the newest this release reads; upgrade")
    return header


def load_arrays(
    folder: str | Path, header: Mapping[str, Any], *, mmap: bool, verify: bool
) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """The arrays that `header` names, and the paths of its foreign files, each checked before it is used.

    Sizes, dtypes and shapes are always checked; `verify` compares the SHA-256 of every file too (about 1 second per
    GB). With `mmap` arrays stay on disk, copy-on-write, and pages are read as they are touched.
    Raises `CorruptIndex` naming the file and what is wrong.
    """
    arrays: dict[str, np.ndarray] = {}
    foreign: dict[str, Path] = {}
    for name, entry in header["files"].items():
        path = Path(folder) / entry["file"]
        _check_file(path, entry, verify)
        if "dtype" not in entry and "shape" not in entry:
            foreign[name] = path
            continue
        arrays[name] = _read_npy(path, entry, mmap)
    return arrays, foreign


def fsync_folder(folder: str | Path) -> None:
    """Make the names in `folder` durable (a no-op where folders cannot be synced, as on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_npy(array: np.ndarray, path: str) -> None:
    with open(path, "wb") as out:
        np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
        out.write(array.data)  # numpy's own `tofile` loses the last bytes on a full disk without an error


def _npy_header(data: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether by column, dtype, and the place where the numbers start."""
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError("not version 1.0 of the .npy format")
    return (*np.lib.format.read_array_header_1_0(data), data.tell())


def _read_npy(path: Path, entry: Mapping[str, Any], mmap: bool) -> np.ndarray:
    """One array, after its own header was found to agree with `entry`."""
    with open(path, "rb") as data:
        try:
            shape, by_column, dtype, start = _npy_header(data)
        except Exception as problem:  # garbage ends in whatever error numpy's parser runs into
            raise CorruptIndex(f"{path}: not a readable array ({problem})") from problem
        if dtype.kind not in "biuf" or by_column:
            raise CorruptIndex(f"{path}: holds {dtype.str}, by_column={by_column}; arrays hold numbers, row by row")
        if dtype.str != entry.get("dtype") or list(shape) != entry.get("shape"):
            raise CorruptIndex(
                f"{path}: holds {dtype.str} {list(shape)}, the header says {entry.get('dtype')} {entry.get('shape')}"
            )
        if start + math.prod(shape) * dtype.itemsize != entry["bytes"]:
            raise CorruptIndex(f"{path}: {list(shape)} numbers of {dtype.str} do not fill its {entry['bytes']} bytes")
        if mmap and 0 not in shape:
            # copy-on-write, not read-only: numba would compile every kernel again for read-only arrays
            return np.asarray(np.memmap(path, dtype, "c", start, shape))
        return np.fromfile(data, dtype, math.prod(shape)).reshape(shape)


def _write(folder: Path, stem: str, suffix: str, write: Callable[[str], None]) -> dict[str, Any]:
    """Write one data file under a name that holds its digest; returns its header entry."""
    with _being_written(folder, stem + suffix) as temporary:
        write(str(temporary))
        digest = _sha256(temporary, sync=True)
        final = folder / f"{stem}-{digest[:12]}{suffix}"
        size = temporary.stat().st_size
        os.replace(temporary, final)
    return {"file": final.name, "bytes": size, "sha256": digest}


@contextlib.contextmanager
def _being_written(folder: Path, name: str) -> Iterator[Path]:
    """A temporary path in `folder`; the file there is removed if the block fails."""
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sha256(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as data:
        digest = hashlib.file_digest(data, "sha256") if hasattr(hashlib, "file_digest") else _digest_310(data)
        if sync:
            os.fsync(data.fileno())
    return digest.hexdigest()


def _digest_310(data: Any) -> Any:
    digest = hashlib.sha256()
    while block := data.read(1 << 20):
        digest.update(block)
    return digest


def _check_file(path: Path, entry: Mapping[str, Any], verify: bool) -> None:
    if not path.is_file():
        raise CorruptIndex(f"{path}: the file is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorruptIndex(f"{path}: has {size} bytes, the header says {entry['bytes']}; the file was cut or altered")
    if verify and _sha256(path) != entry["sha256"]:
        raise CorruptIndex(f"{path}: its SHA-256 differs from the header's; the file was altered")


def _remove_leftovers(folder: Path, keep: set[str]) -> None:
    """Remove the files of earlier saves; a reader that still maps one keeps its pages (POSIX)."""
    for path in folder.iterdir():
        if path.name not in keep and OURS.fullmatch(path.name) and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


@functools.cache  # reading packages' metadata takes longer than a small save
def _versions() -> dict[str, str]:
    """Of Python and of the libraries on which the content of a file may depend, those that are installed."""
    found = {"python": platform.python_version()}
    for package in ("numpy", "scipy", "numba", "faiss-cpu", "hnswlib", "usearch", "scalable-vs", "PyStemmer", "regex"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
