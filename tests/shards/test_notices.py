"""What is said of a list of shards before it is read: what was passed over, and what is there twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import S3

from mmstream.shards.catalog import build_catalog
from mmstream.storage.files import write_bytes


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("0.tar", "_1.tar", ".2.tar", "3.TAR", "4.tar.gz", "._0.tar", "0_stats.json", "notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_shards_that_a_folder_passes_over_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(build_catalog(str(folder))) == 1
    assert f"{folder}: passes over 4 files with the name of a shard (.2.tar, 3.TAR, 4.tar.gz, …)" in said(capsys)


def test_shards_that_a_glob_passes_over_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(build_catalog(f"{folder}/*.tar")) == 1
    assert f"{folder}/*.tar: passes over 1 file with the name of a shard (_1.tar)" in said(capsys)


def test_what_is_named_and_what_was_never_a_shard_is_no_news(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(build_catalog([f"{folder}/{{0,_1}}.tar", f"{folder}/3.TAR"])) == 3
    for name in ("_1.tar", ".2.tar", "3.TAR", "4.tar.gz"):
        (folder / name).unlink()
    assert len(build_catalog(str(folder))) == 1
    assert said(capsys) == ""


def test_one_local_file_under_two_names_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "0.tar").write_bytes(b"x")
    (tmp_path / "1.tar").symlink_to("0.tar")
    assert len(build_catalog(str(tmp_path))) == 2
    assert f"1 shard named a second time, so that samples count twice: {tmp_path}/1.tar is" in said(capsys)


def test_two_files_of_one_size_and_time_are_two(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (1, 1))
    catalog = build_catalog(str(tmp_path))
    assert catalog["etag"][0] == catalog["etag"][1]
    assert said(capsys) == ""


def test_one_object_under_two_names_of_a_store_is_said(s3: S3, capsys: pytest.CaptureFixture) -> None:
    bucket = s3.bucket("twice")
    for name, data in {"a/0.tar": b"same", "a/1.tar": b"else", "b/0.tar": b"same", "c/0.tar": b"same"}.items():
        write_bytes(f"{bucket}/{name}", data)
    assert len(build_catalog([f"{bucket}/{name}" for name in "abc"])) == 4
    assert f"2 shards named a second time, so that samples count twice: {bucket}/b/0.tar is" in said(capsys)
