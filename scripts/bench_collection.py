"""What a user waits for: imports, --help, indexing by BM25, one query from Python; and the memory that indexing takes.

    python scripts/bench_collection.py                   # 100,000 synthetic documents of 60 words (Zipfian)
    python scripts/bench_collection.py --texts FILE      # the first 100,000 documents of any source

Times are medians of several runs, each in a process of its own; imports are beyond those of an empty Python.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from common import finish, parser

import retrieval
from retrieval.documents import read_documents

TARGETS = {
    "import retrieval": 0.5, "import indexes": 0.3, "retrieval --help": 0.6,
    "index by BM25 (s)": 30, "peak memory of indexing (MB)": 1000, "one query (ms)": 2,
}  # fmt: skip


def seconds(code: str, runs: int) -> float:
    """Median wall time of `python -c code`."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def write_corpus(path: Path, source: str | None, n: int) -> list[str]:
    """Write n documents as JSON lines; returns texts to take queries from."""
    if source:
        texts = [document.contents for document in islice(read_documents(source), n)]
    else:
        rng = np.random.default_rng(0)
        words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 3 + i % 8)) for i in range(100_000)])
        ranks = np.minimum(rng.zipf(1.2, (n, 60)) - 1, len(words) - 1)
        texts = [" ".join(words[row]) for row in ranks]
    with open(path, "w", encoding="utf-8") as out:
        for number, text in enumerate(texts):
            out.write(json.dumps({"_id": str(number), "text": text}) + "\n")
    return texts


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--texts", help="a source of documents, as `retrieval index` takes it")
    options.add_argument("--n", type=int, default=100_000)
    args = options.parse_args()
    n, runs = (5_000, 3) if args.quick else (args.n, 7)
    empty = seconds("pass", runs)
    found = {
        "import retrieval": seconds("import retrieval", runs) - empty,
        "import indexes": seconds("import indexes", runs) - empty,
        "retrieval --help": seconds(
            "import sys; sys.argv[1:] = ['--help']; from retrieval.cli import main; main()", runs
        ),
    }
    with tempfile.TemporaryDirectory() as work:
        corpus, folder = Path(work) / "corpus.jsonl", Path(work) / "bench.idx"
        texts = write_corpus(corpus, args.texts, n)
        code = f"import retrieval as r; r.index({str(corpus)!r}, {str(folder)!r}, {{'bm25': r.bm25()}})"
        found["index by BM25 (s)"] = seconds(code, 1)
        found["peak memory of indexing (MB)"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        rng = np.random.default_rng(1)
        queries = [" ".join(rng.choice(text.split(), 4)) for text in (texts[i] for i in rng.integers(0, n, 500))]
        collection = retrieval.open(folder)
        collection.search(queries[0])
        times = []
        for query in queries:
            started = time.perf_counter()
            collection.search(query)
            times.append(time.perf_counter() - started)
        found["one query (ms)"] = 1000 * statistics.median(times)
        found["one query, 99th percentile (ms)"] = 1000 * float(np.percentile(times, 99))
    rows = [[what, round(value, 3), TARGETS.get(what)] for what, value in found.items()]
    source = args.texts or "synthetic, 60 words each, Zipfian"
    finish(("what", "measured", "target"), rows, [f"{n:,} documents ({source}); queries of 4 words."], args.json)


if __name__ == "__main__":
    main()
