"""The tars we write are what every WebDataset reader expects, and the same bytes for the same samples."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mmstream.errors import UsageError
from mmstream.shards.writer import write_shard

SAMPLES = [
    {"__key__": "a/one", "jpg": b"\xff\xd8\xff", "txt": "é", "json": "{}"},
    {"__key__": "a/two", "jpg": b"", "txt": "two"},
]


def test_a_written_shard_reads_back_member_by_member(tmp_path: Path):
    assert write_shard(str(tmp_path / "x" / "0.tar"), SAMPLES) == 2
    with tarfile.open(tmp_path / "x" / "0.tar") as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar}  # ty: ignore[missing-union-attribute]
    assert found == {
        "a/one.jpg": b"\xff\xd8\xff",
        "a/one.txt": "é".encode(),
        "a/one.json": b"{}",
        "a/two.jpg": b"",
        "a/two.txt": b"two",
    }


def test_equal_samples_give_equal_bytes_whoever_writes_them_and_when(tmp_path: Path):
    for name in ("0.tar", "1.tar"):
        write_shard(str(tmp_path / name), SAMPLES)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert {(m.uname, m.gname, m.uid, m.mtime) for m in tar} == {("", "", 0, 1_000_000_000)}


@pytest.mark.parametrize("key", ["", "a.b", "twice"])
def test_a_key_that_a_reader_would_misunderstand_is_refused_and_nothing_is_published(tmp_path: Path, key: str):
    samples = [{"__key__": "twice", "txt": "1"}, {"__key__": key, "txt": "2"}]
    with pytest.raises(UsageError, match="key of a sample"):
        write_shard(str(tmp_path / "0.tar"), samples)
    assert list(tmp_path.iterdir()) == []
