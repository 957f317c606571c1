"""info, doctor."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.terminal import say

CORE = ("numpy", "scipy", "numba", "faiss-cpu", "ir-measures", "PyStemmer", "regex", "rich", "typer", "zstandard")
EXTRAS = {
    "encoders": (("torch", "sentence-transformers"), "sentence-transformers models and cross-encoders"),
    "datasets": (("ir-datasets",), "datasets by ir_datasets id"),
    "parquet": (("pyarrow",), ".parquet files"),
}


def info(
    folder: Annotated[Path, typer.Argument(help="The collection's folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and check it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Tell what a collection holds.

    Example:

        retrieval info my.idx --verify
    """
    from retrieval import building

    with building.open(folder) as collection:
        if verify:
            collection.verify()
        told = collection.info()
    if as_json:
        say(json.dumps(told, indent=1))
        return
    say(f"{told['folder']}: {told['documents']:,} documents, generation {told['generation']}")
    say(f"bytes on disk: {told['bytes_on_disk']:,}; metadata fields: {', '.join(told['fields']) or 'none'}")
    for name, part in told["indexes"].items():
        say(f"{name}")
        for role in ("encoder", "index"):
            say(f"  {role}: " + ", ".join(f"{key}={_short(value)}" for key, value in part[role].items()))
    if verify:
        say("verified: every file and every id is as it should be")


def _short(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def doctor() -> None:
    """Versions, CPU features, threads, and which extras are missing, with the line that installs each.

    Example:

        retrieval doctor
    """
    own = _version("retrieval") or "(not installed)"
    say(f"retrieval {own}, Python {platform.python_version()}, {platform.platform()}")
    say("core: " + ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in CORE))
    for extra, (packages, purpose) in EXTRAS.items():
        found = {name: _version(name) for name in packages}
        if all(found.values()):
            say(f"extra {extra}: " + ", ".join(f"{name} {version}" for name, version in found.items()))
        else:
            say(f"extra {extra}: missing; for {purpose}: pip install 'retrieval[{extra}]'")
    from indexes.base import available_threads

    say(f"threads: {available_threads()} of {os.cpu_count()} cores")
    say(f"CPU: {platform.machine()}; features that kernels are compiled for: {', '.join(_cpu_features()) or 'unknown'}")
    say(f"kernel cache: {_kernel_cache()}")
    missing = [name for name in CORE if not _version(name)]
    if missing:
        say(f"MISSING core packages: {', '.join(missing)}; reinstall with: pip install retrieval")
        sys.exit(1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_features() -> list[str]:
    """The vector extensions that numba's compiler finds."""
    import llvmlite.binding as llvm

    found = llvm.get_host_cpu_features()
    wanted = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512bf16", "neon", "sve")
    return [name for name in wanted if found.get(name)]


def _kernel_cache() -> str:
    """Where compiled kernels are kept, as numba decides it."""
    import indexes.kernels

    if os.environ.get("NUMBA_CACHE_DIR"):
        return f"{os.environ['NUMBA_CACHE_DIR']} (NUMBA_CACHE_DIR)"
    folder = Path(indexes.kernels.__path__[0])
    if os.access(folder, os.W_OK):
        return f"{folder / '__pycache__'}"
    return "a folder of the user's (the package's own is read-only); set NUMBA_CACHE_DIR to choose one"


COMMANDS = (info, doctor)
