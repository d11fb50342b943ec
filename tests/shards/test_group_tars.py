"""Whole tars of other projects and of this one end as their table says."""

from __future__ import annotations

from pathlib import Path

import pytest
from grouped import only, rows_of

TARS = {
    "concat__test_read_format_tar_concatenated": ([None], "tar_trailing"),
    "derived__cut_short": ([], "tar_truncated"),
    "derived__empty": ([], "not_tar"),
    "derived__gzip_named": ([], "not_tar"),
    "derived__no_end_blocks": ([None] * 3, "tar_truncated"),
    "derived__twice_in_a_row": ([None] * 3, "tar_trailing"),
    "gnu__gnu-long-nul": ([None], None),
    "gnu__test_compat_gtar_1": ([None, "unsafe_member"], None),
    "invalid__test_read_format_tar_V_negative_size": ([], "tar_header"),
    "invalid__test_read_format_tar_empty_filename": ([], None),
    "links__hardlink": ([None, "unsafe_member"], None),
    "links__test_leading_slash": (["unsafe_member"] * 2, None),
    "packed__all_images": ([None] * 54, None),
    "pax__pax-path-hdr": ([], "tar_truncated"),
    "pax__pax-records": ([None], None),
    "pax__test_pax_filename_encoding": (["duplicate_key"], None),
    "sparse__test_read_format_gtar_sparse_1_17_posix10": (["unsafe_member"] * 2 + [None], None),
    "wds__image2": ([None] * 3, None),
    "wds__mpdata": ([None] * 100, None),
}


@pytest.mark.parametrize("name", sorted(TARS))
def test_tars_of_other_projects_end_as_their_table_says(shared: Path, name: str) -> None:
    chunk = only((shared / "data" / "bad_inputs" / "tars" / f"{name}.tar").read_bytes())
    expected, damage = TARS[name]
    assert chunk.table["reason"].to_pylist() == expected
    assert (chunk.damage and chunk.damage.reason) == damage


def test_the_table_of_tars_is_complete(shared: Path) -> None:
    there = {p.stem for p in (shared / "data" / "bad_inputs" / "tars").glob("*.tar")}
    assert there == {*TARS, "cpython__testtar"}


def test_pythons_collection_of_dialects_has_a_row_for_every_file(shared: Path) -> None:
    chunk = only((shared / "data" / "bad_inputs" / "tars" / "cpython__testtar.tar").read_bytes())
    assert chunk.damage is None
    unsafe = [r["key"] for r in chunk.table.to_pylist() if r["reason"] == "unsafe_member"]
    assert len(unsafe) == 13 and "gnu/sparse-1" in unsafe and "ustar/fifotype" in unsafe


def test_the_images_of_the_packed_tar_all_reach_the_decoder(shared: Path) -> None:
    rows = rows_of((shared / "data" / "bad_inputs" / "tars" / "packed__all_images.tar").read_bytes())
    assert all(r["image"] is not None and r["text"] for r in rows)


def test_real_shards_give_every_sample_with_its_place_in_the_shard(shared: Path) -> None:
    path = shared / "data" / "pairs" / "00000.tar"
    data = path.read_bytes()
    rows = rows_of(data, chunk_rows=50)
    assert len(rows) == 127 and not any(r["reason"] for r in rows)
    for row in rows:
        at = row["image_offset"]
        assert data[at : at + len(row["image"])] == row["image"]
        assert f"{row['key']}." in data[row["offset"] : row["offset"] + 100].decode("latin1")
