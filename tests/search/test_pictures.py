"""The picture of a hit is the member of the tar, byte for byte, or an error that says why not."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from mmstream.errors import RefusedError, Rejected, UsageError
from mmstream.search.pictures import read_picture, thumbnail
from mmstream.search.searcher import Index


def test_every_hit_gives_back_its_own_bytes(index: Index, index_url: str) -> None:
    for hit in index.search("anything", k=12):
        data = read_picture(index, hit)
        assert Image.open(io.BytesIO(data)).size == (hit.width, hit.height)
        assert index.search(image=data, k=1)[0].id == hit.id


def test_a_shard_that_grew_is_refused(index: Index, tmp_path: Path) -> None:
    hit = index.search("anything", k=1)[0]
    with (tmp_path / f"{hit.shard:05}.tar").open("ab") as f:
        f.write(bytes(512))
    with pytest.raises(RefusedError, match=r"\.tar: has changed since it was embedded"):
        read_picture(index, hit)


def test_a_shard_that_is_gone_is_named(index: Index, tmp_path: Path) -> None:
    hit = index.search("anything", k=1)[0]
    (tmp_path / f"{hit.shard:05}.tar").unlink()
    with pytest.raises(UsageError, match=rf"{hit.shard:05}\.tar: nothing is there"):
        read_picture(index, hit)


def test_a_sample_without_a_picture_says_so(index: Index) -> None:
    hit = dataclasses.replace(index.search("anything", k=1)[0], image_offset=None)
    with pytest.raises(UsageError, match="has no picture"):
        read_picture(index, hit)


def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(index: Index) -> None:
    hit = index.search("anything", k=1)[0]
    small = Image.open(io.BytesIO(thumbnail(read_picture(index, hit))))
    assert (small.format, small.width) == ("JPEG", 256)
    assert small.height == pytest.approx(256 * (hit.height or 0) / 400, abs=1)


def test_what_is_no_picture_gives_no_thumbnail() -> None:
    with pytest.raises(Rejected):
        thumbnail(b"GIF89a, or so it says")
