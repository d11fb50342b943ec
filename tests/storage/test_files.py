from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmstream.errors import Reason, Rejected, UnreachableError, UsageError
from mmstream.storage.files import (
    RangeReader,
    absolute,
    glob_files,
    info,
    list_files,
    open_fs,
    read_bytes,
    read_range,
    write_bytes,
)


def walk(reader: RangeReader, content: bytes) -> None:
    """Reads and skips at odd places must see what slicing sees."""
    for i, step in enumerate([1, 511, 0, 4096, 37, 9000, 12_345] * 40):
        start = reader.tell()
        if i % 3 == 2:
            reader.skip(step)
        else:
            assert reader.read(step) == content[start : start + step]
        assert reader.tell() == min(start + step, len(content))


@pytest.mark.parametrize("block_bytes", [512, 1000, 1 << 20])
def test_a_range_reader_gives_the_bytes_of_a_local_file(tmp_path: Path, block_bytes: int) -> None:
    content = os.urandom(300_000)
    (tmp_path / "a.tar").write_bytes(content)
    with RangeReader(str(tmp_path / "a.tar"), block_bytes=block_bytes) as reader:
        walk(reader, content)


def test_a_range_reader_gives_the_bytes_of_an_s3_object(s3) -> None:
    content = os.urandom(300_000)
    url = s3.bucket("range") + "/a.tar"
    write_bytes(url, content)
    with RangeReader(url, block_bytes=10_000) as reader:
        walk(reader, content)
    assert read_range(url, 299_990, 100) == content[-10:]


def test_a_source_that_changed_or_went_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 10)
    with pytest.raises(Rejected) as changed:
        RangeReader(str(path), bytes=11)
    assert changed.value.reason is Reason.SOURCE_CHANGED
    with pytest.raises(Rejected) as gone:
        RangeReader(str(tmp_path / "b.tar"))
    assert gone.value.reason is Reason.UNREADABLE


def test_whole_objects_are_replaced_and_listed(tmp_path: Path, s3) -> None:
    for root in (str(tmp_path / "folder"), s3.bucket("whole") + "/folder", "memory://whole/folder"):
        write_bytes(f"{root}/b/c.txt", b"first")
        write_bytes(f"{root}/b/c.txt", b"second")
        write_bytes(f"{root}/a.txt", b"a")
        assert read_bytes(f"{root}/b/c.txt") == b"second"
        names = [f.url.split("folder/")[1] for f in list_files(root)]
        assert names == ["a.txt", "b/c.txt"]
        assert [f.url for f in glob_files(f"{root}/*.txt")] == [f.url for f in list_files(root)][:1]
        assert info(f"{root}/a.txt").bytes == 1
        assert list_files(f"{root}/nothing") == []


def test_what_is_missing_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.bin: nothing is there"):
        read_bytes(str(tmp_path / "nowhere.bin"))


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "shell://ls", "nonsense://x"])
def test_schemes_that_run_commands_or_are_unknown_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        open_fs(url)


def test_a_store_that_does_not_answer_is_said_to_be_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a" * 20)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b" * 40)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError, match="s3://nowhere/a: the store does not answer"):
        read_bytes("s3://nowhere/a")


def test_local_paths_become_absolute_and_urls_stay() -> None:
    assert absolute("a/b/") == str(Path.cwd() / "a/b")
    assert absolute("file:///x/y") == "/x/y"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
