"""Finding, streaming and writing text files."""

from __future__ import annotations

import gzip
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import DatasetError, FormatError, MissingExtra
from eval.files import find, read_lines, write_atomically

ROOT = Path(__file__).resolve().parents[2]


def pack(path: Path, content: bytes) -> Path:
    packers = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


@pytest.fixture(params=["", ".gz", ".zst"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_find_prefers_the_plain_file(tmp_path: Path) -> None:
    assert find(tmp_path, "a.tsv") is None
    for name in ("a.tsv.zst", "a.tsv.gz", "a.tsv"):
        (tmp_path / name).touch()
        assert find(tmp_path, "a.tsv") == tmp_path / name
    (tmp_path / "folder").mkdir()
    assert find(tmp_path, "folder") is None


def test_lines_are_numbered_and_only_line_feeds_end_them(tmp_path: Path, suffix: str) -> None:
    content = "\ufeffone\r\n\ntwo\u2028still two\x0cand on\n\ufeffthree".encode()
    path = pack(tmp_path / f"a.txt{suffix}", content)
    assert list(read_lines(path)) == [(1, "one"), (2, ""), (3, "two\u2028still two\x0cand on"), (4, "\ufeffthree")]


def test_empty_file_has_no_lines(tmp_path: Path, suffix: str) -> None:
    assert list(read_lines(pack(tmp_path / f"a.txt{suffix}", b""))) == []


def test_a_line_longer_than_any_buffer(tmp_path: Path, suffix: str) -> None:
    long = "".join(map(str, range(200_000)))
    path = pack(tmp_path / f"a.txt{suffix}", f"{long}\nshort\n{long}".encode())
    assert [text for _, text in read_lines(path)] == [long, "short", long]


def test_a_bad_byte_names_its_line(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"a.txt{suffix}", b"fine\ncaf\xe9\nfine\n")
    with pytest.raises(FormatError, match=r"a\.txt.*:2: not UTF-8") as caught:
        list(read_lines(path))
    assert (caught.value.path, caught.value.line) == (path, 2)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kept", [0.99, 0.5])
def test_truncated_archives_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = pack(tmp_path / f"a{suffix}", "".join(f"{i * i}\n" for i in range(100_000)).encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    seen = 0
    with pytest.raises(FormatError, match="truncated or damaged") as caught:
        for seen, _ in read_lines(path):  # noqa: B007
            pass
    assert caught.value.line == seen + 1


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_an_archive_that_is_none_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"plain text\n")
    with pytest.raises(FormatError, match=":1: truncated or damaged"):
        list(read_lines(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_concatenated_archives_are_one(tmp_path: Path, suffix: str) -> None:
    one, two = pack(tmp_path / f"1{suffix}", b"a\nb"), pack(tmp_path / f"2{suffix}", b"c\nd\n")
    both = tmp_path / f"3{suffix}"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    assert [text for _, text in read_lines(both)] == ["a", "bc", "d"]


@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("round")
    for name in ("a", "a.gz", "a.zst"):
        with write_atomically(folder / name) as file:
            file.writelines(f"{line}\n" for line in lines)
        expected = [lines[0].removeprefix("\ufeff"), *lines[1:]] if lines else []
        assert [text for _, text in read_lines(folder / name)] == expected


def test_the_same_text_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        with write_atomically(tmp_path / f"{name}{suffix}") as file:
            file.write("text\n" * 1000)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = pack(tmp_path / f"a{suffix}", b"old\n")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as file:
        file.write("half of the n")
        raise KeyboardInterrupt
    assert list(read_lines(path)) == [(1, "old")]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with write_atomically(tmp_path / "written") as file:
        file.write("text")
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_writing_into_a_missing_folder_names_it(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"),
        write_atomically(tmp_path / "nowhere" / "a"),
    ):
        pass


def test_errors_survive_pickling_and_say_what_to_do() -> None:
    error = pickle.loads(pickle.dumps(FormatError("a.tsv", 3, "bad")))
    assert str(error) == "a.tsv:3: bad"
    assert str(FormatError("a.tsv", None, "bad")) == "a.tsv: bad"
    assert "pip install 'retrieval[datasets]'" in str(
        pickle.loads(pickle.dumps(MissingExtra("ir_datasets", "datasets")))
    )
    assert issubclass(DatasetError, ValueError)


def test_importing_eval_is_light_and_its_names_are_there() -> None:
    code = (
        "import sys, eval\n"
        "heavy = {'ir_measures', 'scipy', 'numpy', 'ir_datasets', 'zstandard', 'retrieval', 'indexes', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import eval.measures, eval.datasets, eval.trec\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "for name in eval.__all__: assert callable(getattr(eval, name)), name\n"
        "assert not {'torch', 'retrieval', 'indexes', 'scipy.stats'} & set(sys.modules)\n"
        "assert not hasattr(eval, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
