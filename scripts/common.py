"""What every script shares: the options --quick and --json, and the table that is printed and written."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import Table


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the options that all scripts have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a first look in under a minute, on little data")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    return made


def finish(columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str], json_file: Path | None) -> None:
    """Print the table, with the machine in its notes, and write it as JSON if asked to."""
    table = Table(columns, rows, notes=[*notes, f"Machine: {machine()}."])
    print(table.to_text())
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(json.loads(table.to_json()), indent=1), encoding="utf-8")


def machine() -> str:
    """Processor, cores and Python, for the notes of a table."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
