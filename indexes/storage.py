"""A saved index is a folder: `index.json` (the header) and the `.npy` arrays it names.

Data files carry a part of their own SHA-256 in their name and are never overwritten; `index.json` is replaced last,
in one atomic step. A crash at any moment therefore leaves the old index or the new one. No pickle is read or written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from indexes.errors import CorruptIndex, NewerIndex

FORMAT = 1
HEADER = "index.json"


def save(
    folder: str | Path,
    header: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    foreign: Mapping[str, Callable[[str], None]] | None = None,
    *,
    name: str = HEADER,
) -> None:
    """Write an index into `folder`, replacing the one there atomically.

    `header`: JSON values (kind, parameters, n ...). `arrays`: name -> array, kept as `.npy`. `foreign`: file name ->
    function that writes that file at a given path, for parts that another library serialises (faiss). `name`: of the
    header file, for things beside indexes that are saved the same way.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {}
    for part, array in arrays.items():
        contiguous = np.ascontiguousarray(array)
        entry = _write(folder, part, ".npy", lambda path, a=contiguous: _write_npy(path, a))
        files[part] = entry | {"dtype": contiguous.dtype.str, "shape": list(contiguous.shape)}
    for part, write in (foreign or {}).items():
        stem, suffix = os.path.splitext(part)
        files[part] = _write(folder, stem, suffix, write)
    full = {"format": FORMAT, **header, "files": files, "written_with": _versions()}
    temporary = folder / f".{name}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(full, out, indent=1, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, folder / name)
    fsync_folder(folder)
    _remove_unnamed(folder, {entry["file"] for entry in files.values()})


def load_header(folder: str | Path, name: str = HEADER) -> dict[str, Any]:
    """The header of the index in `folder`, its format checked.

    Raises `FileNotFoundError` (no index there), `CorruptIndex` (unreadable header), `NewerIndex`.
    """
    path = Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{folder}: nothing saved here ({name} is missing)")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        number, files = header["format"], header["files"]
        named = [(entry["file"], entry["bytes"], entry["sha256"]) for entry in files.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CorruptIndex(f"{path}: not a readable index header ({problem!r})") from problem
    if not isinstance(number, int) or number > FORMAT:
        raise NewerIndex(f"{path}: format {number!r} is newer than {FORMAT}, the newest this release reads; upgrade")
    for file, _, _ in named:
        if file != os.path.basename(file):
            raise CorruptIndex(f"{path}: names a file outside of its folder: {file!r}")
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
        if "dtype" not in entry:
            foreign[name] = path
            continue
        try:
            # copy-on-write, not read-only: numba would compile every kernel again for read-only arrays
            mapped = np.load(path, mmap_mode="c" if mmap and 0 not in entry["shape"] else None, allow_pickle=False)
        except ValueError as problem:
            raise CorruptIndex(f"{path}: not a readable array ({problem})") from problem
        if mapped.dtype.str != entry["dtype"] or list(mapped.shape) != entry["shape"]:
            raise CorruptIndex(
                f"{path}: holds {mapped.dtype.str} {list(mapped.shape)}, "
                f"the header says {entry['dtype']} {entry['shape']}"
            )
        arrays[name] = np.asarray(mapped)
    return arrays, foreign


def fsync_folder(folder: str | Path) -> None:
    """Make the names in `folder` durable (a no-op where folders cannot be synced, as on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_npy(path: str, array: np.ndarray) -> None:
    with open(path, "wb") as out:
        np.lib.format.write_array(out, array, allow_pickle=False)


def _write(folder: Path, stem: str, suffix: str, write: Callable[[str], None]) -> dict[str, Any]:
    """Write one data file under a name that holds its digest; returns its header entry."""
    temporary = folder / f".{stem}{suffix}.{os.getpid()}"
    try:
        write(str(temporary))
        digest = _sha256(temporary, sync=True)
        final = folder / f"{stem}-{digest[:12]}{suffix}"
        size = temporary.stat().st_size
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return {"file": final.name, "bytes": size, "sha256": digest}


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
    if not path.exists():
        raise CorruptIndex(f"{path}: the file is missing")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CorruptIndex(f"{path}: has {size} bytes, the header says {entry['bytes']}; the file was cut or altered")
    if verify and _sha256(path) != entry["sha256"]:
        raise CorruptIndex(f"{path}: its SHA-256 differs from the header's; the file was altered")


def _remove_unnamed(folder: Path, keep: set[str]) -> None:
    """Remove data files of earlier saves; a reader that still maps one keeps its pages (POSIX)."""
    for path in folder.iterdir():
        if path.name not in keep and path.suffix in (".npy", ".faiss") and path.is_file():
            with contextlib.suppress(OSError):
                path.unlink()


def _versions() -> dict[str, str]:
    return {"numpy": np.__version__, "python": platform.python_version()}
