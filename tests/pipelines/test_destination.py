"""A set begins only where nothing else is, and goes on wherever it was begun."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import S3
from embedding_sets import embed_here
from tars import make_tar

import mmstream as mm
from mmstream.errors import RefusedError, UsageError
from mmstream.pipelines.destination import check_vacant
from mmstream.storage.files import join, write_bytes


@pytest.fixture(params=["folder", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path, s3: S3) -> str:
    if request.param == "folder":
        return str(tmp_path / "emb")
    return s3.bucket(f"vacant-{abs(hash(request.node.name)) % 10**9}") + "/emb"


@pytest.mark.parametrize("name", ["README", "notes/a.txt", "data/00000.tar", "commits/notes.json", "v=1/manifest.json"])
def test_other_things_are_refused_by_name(dest: str, name: str) -> None:
    write_bytes(join(dest, name), b"mine")
    shown = name if name.startswith(("data", "commits")) else name.split("/")[0]
    with pytest.raises(RefusedError, match=f"{dest}: holds other things than an embedding set: {shown}"):
        check_vacant(dest)


def test_nothing_and_what_a_killed_start_left_are_no_obstacle(dest: str) -> None:
    check_vacant(dest)
    for name in ("catalog/000000.parquet", "catalog/.000001.parquet.123-00000000abcd", ".probe-0123456789abcdef"):
        write_bytes(join(dest, name), b"x")
    check_vacant(dest)


def test_a_whole_set_whose_manifest_was_lost_is_no_stranger(dest: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("0.txt", b"words"), ("1.xyz", b"?")]))
    embed_here(tmp_path / "a.tar", dest)
    check_vacant(dest)


def test_a_forgotten_destination_never_writes_into_a_shard(dest: str) -> None:
    write_bytes(join(dest, "b.tar"), make_tar([("0.txt", b"words")]))
    with pytest.raises(UsageError, match=r"b\.tar: is a file where a folder is needed"):
        check_vacant(join(dest, "b.tar"))


def test_embed_refuses_before_it_writes_or_starts_anything(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("0.txt", b"words")]))
    with pytest.raises(RefusedError, match=r"holds other things than an embedding set: a\.tar\. Choose a folder"):
        mm.embed(str(tmp_path / "*.tar"), str(tmp_path), model="fake:8")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
