"""A look at shards, and the catalog that it leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tars import make_tar

from mmstream.errors import RefusedError, UsageError
from mmstream.pipelines.inspect import inspect
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import chunks_of
from mmstream.shards.catalog import build_catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(make_tar([(f"{name}.txt", b"some words")]))
    return tmp_path


def test_a_frozen_catalog_notices_the_flip_of_one_bit_that_nothing_else_tells(folder: Path) -> None:
    frozen = f"{folder}/frozen.parquet"
    report = inspect(str(folder), catalog_to=frozen, checksums=True)
    assert (report.shards, report.samples_seen) == (2, 2)
    assert f"written to {frozen}" in str(report)
    assert report.next == [f"mmstream embed {frozen} DEST --model hf:openai/clip-vit-base-patch32"]
    path, before = folder / "a.tar", (folder / "a.tar").stat()
    data = bytearray(path.read_bytes())
    data[514] ^= 1  # in a payload
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    flipped, sound = (next(chunks_of(task)) for task in shard_tasks(build_catalog(frozen)))
    assert flipped.damage and (flipped.damage.reason, flipped.num_samples) == ("checksum", 0)
    assert (sound.damage, sound.num_samples) == (None, 1)


def test_a_catalog_is_never_written_over_and_checksums_need_one(folder: Path) -> None:
    inspect(str(folder), catalog_to=f"{folder}/frozen.parquet")
    with pytest.raises(RefusedError, match="is there already"):
        inspect(str(folder), catalog_to=f"{folder}/frozen.parquet")
    with pytest.raises(UsageError, match=r"ends with \.parquet"):
        inspect(str(folder), catalog_to=f"{folder}/frozen")
    with pytest.raises(UsageError, match="--catalog"):
        inspect(str(folder), checksums=True)
