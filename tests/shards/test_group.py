"""Every sample is a row of one chunk, whatever the shard is like; boundaries are the shard's own."""

from __future__ import annotations

import hashlib
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import File, Source, make_tar, special

from mmstream.errors import Reason, Rejected
from mmstream.shards.group import CHUNK, PAYLOADS, Chunk, count_rows, read_chunks, split_name
from mmstream.shards.vouched import HEAD_ROWS

SAMPLE_BYTES = 6 * 512  # of one `sample`: three members, each a header and a payload of one block


def sample(key: str, *, size: int = 300) -> list[File]:
    return [(f"{key}.jpg", key.encode() * size), (f"{key}.txt", f"about {key}".encode()), (f"{key}.json", b"{}")]


def rows_of(data: bytes, **options: Any) -> list[dict[str, Any]]:
    return [row for chunk in read_chunks(Source(data), 0, **options) for row in chunk.table.to_pylist()]


def only(data: bytes) -> Chunk:
    (chunk,) = read_chunks(Source(data), 0)
    return chunk


def reasons(files: list[File | tarfile.TarInfo]) -> dict[str, str | None]:
    return {row["key"]: row["reason"] for row in rows_of(make_tar(files))}


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("000.jpg", "000", "jpg"),
        ("a.b/000.JPG", "a.b/000", "jpg"),
        ("000.seg.png", "000", "seg.png"),
        ("./a/000.txt", "./a/000", "txt"),
        ("plain", "plain", ""),
        ("a/.hidden", "a/.hidden", ""),
        ("", "", ""),
    ],
)
def test_the_key_ends_at_the_first_dot_of_the_files_name(name: str, key: str, suffix: str) -> None:
    assert split_name(name) == (key, suffix)


def test_a_sample_has_its_members_in_the_columns_of_their_suffixes() -> None:
    files = [
        ("s.JPEG", b"i"),
        ("s.caption", b"t"),
        ("s.json", b"{}"),
        ("s.cls", b"7"),
        ("s.FLAC", b"a"),
        ("s.mp4", b"v"),
    ]
    data = make_tar([("r.png", b"0"), *files, ("s.npy", b"?")])
    first, second = rows_of(data)
    assert {p: second[p] for p in PAYLOADS} == dict(zip(PAYLOADS, (b"i", b"a", b"v", "t", "{}", "7"), strict=True))
    assert (second["key"], second["row"], second["id"], second["reason"]) == ("s", 1, 1, None)
    assert (first["offset"], second["offset"], second["image_offset"]) == (0, 1024, 1536)
    assert data[second["image_offset"] :].startswith(b"i\0")


def test_the_id_holds_shard_and_row() -> None:
    (chunk,) = read_chunks(Source(make_tar([("a.jpg", b"1"), ("b.jpg", b"2")])), 3)
    assert chunk.table["id"].to_pylist() == [3 << 32, 3 << 32 | 1]
    assert set(chunk.table["shard"].to_pylist()) == {3}


def test_columns_and_types_are_the_same_for_every_chunk() -> None:
    for data in (make_tar(sample("a")), make_tar([("a", b"")]), b"", make_tar([])):
        assert only(data).table.schema == CHUNK


def test_a_key_that_comes_again_is_a_row_of_its_own_and_never_merged() -> None:
    again = rows_of(make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"late"), ("c.jpg", b"3")]))
    assert [(r["key"], r["reason"], r["text"]) for r in again] == [
        ("a", None, None),
        ("b", None, None),
        ("a", "duplicate_key", None),
        ("c", None, None),
    ]


@pytest.mark.parametrize("second", ["a.jpg", "a.JPG", "a.png"])
def test_a_second_member_for_one_column_is_never_chosen_from(second: str) -> None:
    (row,) = rows_of(make_tar([("a.jpg", b"1"), (second, b"2")]))
    assert (row["reason"], row["image"]) == ("duplicate_key", None)
    assert second in row["detail"]


def test_a_problem_of_one_member_is_its_samples_and_nobody_elses() -> None:
    files: list[File | tarfile.TarInfo] = [
        *sample("a"),
        ("b.txt", b"t"),
        special("b.jpg", tarfile.SYMTYPE, "a.jpg"),
        *sample("c"),
    ]
    assert reasons(files) == {"a": None, "b": "unsafe_member", "c": None}
    big = [r["reason"] for r in rows_of(make_tar([("a.jpg", bytes(900)), ("b.jpg", bytes(901))]), member_limit=900)]
    assert big == [None, "member_too_large"]


def test_text_must_be_utf_8() -> None:
    files: list[File | tarfile.TarInfo] = [
        ("a.txt", b"caf\xe9"),
        ("b.json", b"\xff{}"),
        ("c.cls", b"\xff"),
        ("d.txt", "café\0".encode()),
    ]
    assert reasons(files) == {"a": "caption", "b": "metadata", "c": "metadata", "d": None}
    bad, *_, good = rows_of(make_tar(files))
    assert "byte 3" in bad["detail"] and bad["text"] is None
    assert good["text"] == "café\0"


def test_members_that_no_column_knows_make_a_row_without_payload() -> None:
    (row,) = rows_of(make_tar([("a.npy", b"1"), ("a.pkl", b"2")]))
    assert row["reason"] is None and not any(row[p] for p in PAYLOADS)


def test_what_macos_leaves_behind_is_no_sample() -> None:
    data = make_tar(
        [
            ("._a.jpg", b"0"),
            ("a.jpg", b"1"),
            ("._a.txt", b"0"),
            ("a.txt", b"2"),
            ("__MACOSX/._a.jpg", b"0"),
            (".DS_Store", b"0"),
        ]
    )
    (row,) = rows_of(data)
    assert (row["key"], row["image"], row["text"]) == ("a", b"1", "2")


def test_a_chunk_ends_with_the_sample_that_fills_it() -> None:
    files = [f for k in "abcde" for f in sample(k)]
    by_rows = list(read_chunks(Source(make_tar(files)), 0, chunk_rows=2))
    assert [(c.number, c.first_row, c.num_samples, c.end) for c in by_rows] == [
        (0, 0, 2, False),
        (1, 2, 2, False),
        (2, 4, 1, True),
    ]
    exact = list(read_chunks(Source(make_tar(files)), 0, chunk_rows=5))
    assert [(c.num_samples, c.end) for c in exact] == [(5, True)]
    one = 3 * 512 + 300 + 7 + 2
    by_bytes = list(read_chunks(Source(make_tar(files)), 0, chunk_bytes=2 * one))
    assert [c.num_samples for c in by_bytes] == [2, 2, 1]
    assert [c.num_samples for c in read_chunks(Source(make_tar(files)), 0, chunk_bytes=2 * one - 1)] == [2, 2, 1]
    assert [c.num_samples for c in read_chunks(Source(make_tar(files)), 0, chunk_bytes=2 * one + 1)] == [3, 2]


def test_the_bytes_of_all_chunks_are_the_bytes_of_the_shard() -> None:
    data = make_tar([f for k in "abcde" for f in sample(k)])
    chunks = list(read_chunks(Source(data), 0, chunk_rows=2))
    assert sum(c.bytes_read for c in chunks) == len(data)
    assert [c.bytes_read for c in chunks[:2]] == [2 * SAMPLE_BYTES] * 2


SHARDS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["jpg", "txt", "png", "npy"]), st.integers(0, 1500)),
    max_size=16,
)


@settings(max_examples=200, deadline=None)
@given(
    shard=SHARDS,
    chunk_rows=st.integers(1, 4),
    chunk_bytes=st.integers(1, 6000),
    skip=st.frozensets(st.integers(0, 8)),
    length=st.none() | st.integers(0, 30000),
    max_rows=st.none() | st.integers(1, 6),
)
def test_skipping_chunks_changes_no_other(
    shard: list[tuple[str, str, int]],
    chunk_rows: int,
    chunk_bytes: int,
    skip: frozenset[int],
    length: int | None,
    max_rows: int | None,
) -> None:
    data = make_tar([(f"{k}.{s}", bytes(n)) for k, s, n in shard])[:length]
    sizes = {"chunk_rows": chunk_rows, "chunk_bytes": chunk_bytes, "max_rows": max_rows}
    everything = list(read_chunks(Source(data), 0, **sizes))  # ty: ignore[invalid-argument-type]
    rest = list(read_chunks(Source(data), 0, skip=skip, **sizes))  # ty: ignore[invalid-argument-type]
    assert rest == [c for c in everything if c.number not in skip]
    assert [c.end for c in everything] == [False] * (len(everything) - 1) + [True]
    assert [c.number for c in everything] == list(range(len(everything)))
    assert count_rows(Source(data), max_rows) == sum(c.num_samples for c in everything)
    rows = [r for c in everything for r in c.table["row"].to_pylist()]
    assert rows == list(range(len(rows)))
    assert [c.first_row for c in everything if c.num_samples] == [
        c.table["row"][0].as_py() for c in everything if c.num_samples
    ]


def test_the_payload_of_skipped_chunks_is_not_read() -> None:
    data = make_tar([f for k in "abcdefghijklmnopqrstuvwxyz" for f in sample(k, size=50_000)])
    source = Source(data)
    chunks = list(read_chunks(source, 0, chunk_rows=2, skip=frozenset(range(13)) - {6}))
    assert [c.table["key"].to_pylist() for c in chunks] == [["m", "n"]]
    assert source.num_read < (2 + HEAD_ROWS) * 50_000 + 26 * SAMPLE_BYTES + (1 << 16), "its own, and the head"


@settings(max_examples=100, deadline=None)
@given(
    shard=SHARDS,
    columns=st.frozensets(st.sampled_from(PAYLOADS)),
    keys=st.none() | st.frozensets(st.sampled_from("abcdef")),
    chunk_rows=st.integers(1, 4),
)
def test_what_is_selected_changes_no_row_and_no_boundary(
    shard: list[tuple[str, str, int]], columns: frozenset[str], keys: frozenset[str] | None, chunk_rows: int
) -> None:
    data = make_tar([(f"{k}.{s}", bytes(n)) for k, s, n in shard])
    whole = list(read_chunks(Source(data), 0, chunk_rows=chunk_rows))
    some = list(read_chunks(Source(data), 0, chunk_rows=chunk_rows, columns=columns, keys=keys))
    assert [replace(c, table=None) for c in some] == [replace(c, table=None) for c in whole]
    for chunk, selected in zip(whole, some, strict=True):
        for row, found in zip(chunk.table.to_pylist(), selected.table.to_pylist(), strict=True):
            hidden = set(PAYLOADS) - columns if keys is None or row["key"] in keys else set(PAYLOADS)
            assert found == {**row, **dict.fromkeys(hidden)}


def test_the_payload_of_what_is_not_selected_is_not_read() -> None:
    data = make_tar([f for k in "abcdef" for f in sample(k, size=50_000)])
    for wanted in ({"columns": ["text", "json"]}, {"keys": {"none"}}, {"columns": []}):
        source = Source(data)
        assert sum(c.num_samples for c in read_chunks(source, 0, **wanted)) == 6  # ty: ignore[invalid-argument-type]
        assert source.num_read < 6 * SAMPLE_BYTES + (1 << 17)
    source = Source(data)
    (chunk,) = read_chunks(source, 0, keys={"c"})
    assert [r["key"] for r in chunk.table.to_pylist() if r["image"]] == ["c"]
    assert source.num_read < 50_000 + 6 * SAMPLE_BYTES + (1 << 17)


def vouched(keys: str, *, swapped: str = "") -> bytes:
    """A shard of samples whose JSON has the SHA-256 of the picture; the pictures of `swapped` are others."""
    files: list[File] = []
    for key in keys:
        about = {"sha256": hashlib.sha256(key.encode()).hexdigest()}
        picture = key.upper() if key in swapped else key
        files += [(f"{key}.jpg", picture.encode()), (f"{key}.json", json.dumps(about).encode())]
    return make_tar(files)


def rejected(data: bytes, **options: Any) -> dict[str, str]:
    return {r["key"]: r["reason"] for r in rows_of(data, **options) if r["reason"]}


def test_a_picture_that_is_not_the_one_of_its_json_is_rejected() -> None:
    assert rejected(vouched("abcd")) == {}
    assert rejected(vouched("abcd", swapped="c")) == {"c": "checksum"}
    (row,) = [r for r in rows_of(vouched("abcd", swapped="c")) if r["reason"]]
    assert (row["image"], row["detail"]) == (None, "c: the SHA-256 of the image is not that of its JSON")
    assert rejected(vouched("abcd", swapped="bcd")) == dict.fromkeys("bcd", "checksum"), "one that fits is enough"


def test_digests_of_which_none_fits_are_of_something_else() -> None:
    assert rejected(vouched("abcd", swapped="abcd")) == {}
    assert rejected(vouched("a", swapped="a")) == {}


def test_a_picture_alone_in_its_chunk_is_judged_by_the_shards_first_rows() -> None:
    assert rejected(vouched("abcd", swapped="d"), chunk_rows=3) == {"d": "checksum"}
    assert rejected(vouched("abcd", swapped="d"), chunk_rows=1) == {"d": "checksum"}
    letters = "abcdefghijkl"
    assert rejected(vouched(letters, swapped="abcdefghl"), chunk_rows=1) == {}, "a fit behind the head tells others not"


@settings(max_examples=100, deadline=None)
@given(
    swapped=st.sets(st.sampled_from("abcdefghijkl")),
    chunk_rows=st.integers(1, 5),
    skip=st.frozensets(st.integers(0, 11)),
)
def test_a_run_that_goes_on_judges_pictures_as_one_that_was_not_disturbed(
    swapped: set[str], chunk_rows: int, skip: frozenset[int]
) -> None:
    data = vouched("abcdefghijkl", swapped="".join(swapped))
    everything = list(read_chunks(Source(data), 0, chunk_rows=chunk_rows))
    rest = list(read_chunks(Source(data), 0, chunk_rows=chunk_rows, skip=skip))
    assert rest == [c for c in everything if c.number not in skip]


def test_a_picture_is_judged_whatever_else_is_selected() -> None:
    data = vouched("abcd", swapped="c")
    assert rejected(data, columns=["image"]) == rejected(data, columns=["image", "text"]) == {"c": "checksum"}
    assert not any(r["json"] for r in rows_of(data, columns=["image"]))
    assert rejected(data, columns=["json"]) == {}, "what is not read is not judged"


def test_rows_are_counted_without_reading_what_they_hold() -> None:
    source = Source(make_tar([f for k in "abcdef" for f in sample(k, size=50_000)]))
    assert count_rows(source) == 6
    assert source.num_read < 6 * 3 * 512 + (1 << 17)


def test_max_rows_ends_a_shard_undamaged() -> None:
    data = make_tar([f for k in "abcd" for f in sample(k)])
    for cut in (len(data), len(data) - 1200, 3 * SAMPLE_BYTES + 512):  # whole; without an end mark; inside d
        chunks = list(read_chunks(Source(data[:cut]), 0, max_rows=3))
        assert [(c.num_samples, c.end, c.damage) for c in chunks] == [(3, True, None)], cut
    assert [c.num_samples for c in read_chunks(Source(data), 0, max_rows=2, chunk_rows=1)] == [1, 1]
    assert [c.num_samples for c in read_chunks(Source(data), 0, max_rows=9)] == [4]


def test_a_cut_at_any_byte_loses_no_sample_silently() -> None:
    keys = ["a", "b"]
    data = make_tar([f for k in keys for f in sample(k)])
    whole = rows_of(data)
    for length in range(len(data)):
        chunk = only(data[:length])
        rows = chunk.table.to_pylist()
        assert chunk.end and chunk.damage is not None
        assert [r["key"] for r in rows] == keys[: len(rows)]
        complete = sum(length >= (i + 1) * SAMPLE_BYTES + 512 * (i == 0) for i in range(2))  # b's header ends a
        assert rows[:complete] == whole[:complete], length
        assert all(r["reason"] == "tar_truncated" or r == whole[1] for r in rows[complete:]), length


def test_a_flip_of_any_header_byte_loses_no_sample_silently() -> None:
    keys = ["a", "b"]
    data = make_tar([f for k in keys for f in sample(k)])
    whole = rows_of(data)
    for start in range(0, len(data) - 1024, 512):
        if data[start + 257 : start + 262] != b"ustar":
            continue
        for position in range(start, start + 512):
            flipped = bytearray(data)
            flipped[position] ^= 0x10
            chunk = only(bytes(flipped))
            rows = chunk.table.to_pylist()
            if chunk.damage is None:
                assert rows == whole
                continue
            assert chunk.damage.reason == "tar_header" and chunk.damage.offset == start
            complete = start > SAMPLE_BYTES  # a, as soon as b's first header is sound
            assert rows[:complete] == whole[:complete]
            assert len(rows) == -(-start // SAMPLE_BYTES) and all(r["reason"] == "tar_header" for r in rows[complete:])


def test_the_open_sample_is_whole_if_it_has_what_any_before_it_had() -> None:
    data = make_tar(
        [("a.jpg", b"1"), ("a.txt", b"2"), ("b.txt", b"3"), ("b.png", b"4"), ("c.png", b"5"), ("c.txt", b"6")]
    )
    assert [r["reason"] for r in rows_of(data[: 4 * 1024])] == [None, None]
    assert [r["reason"] for r in rows_of(data[: 3 * 1024])] == [None, "tar_truncated"]
    assert [r["reason"] for r in rows_of(data[:2048])] == ["tar_truncated"], "it has all, but nobody can know that"
    assert [r["reason"] for r in rows_of(data[:1024])] == ["tar_truncated"]
    mixed = make_tar([*sample("a"), ("b.jpg", b"2"), ("c.jpg", b"3"), ("c.txt", b"lost"), ("d.jpg", b"4")])
    cut = SAMPLE_BYTES + 2 * 1024
    assert [r["reason"] for r in rows_of(mixed[:cut])] == [None, None, "tar_truncated"], "b had no more than c has left"


def test_a_sample_whose_own_member_is_cut_is_never_whole() -> None:
    data = make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("b.txt", bytes(900))])
    assert [r["reason"] for r in rows_of(data[:3000])] == [None, "tar_truncated"]
    other = make_tar([("a.jpg", b"1"), ("a.txt", b"1"), ("b.jpg", b"2"), ("c.jpg", bytes(900))])
    assert [r["reason"] for r in rows_of(other[:3900])] == [None, None], "c's header ends b"


def test_after_the_end_mark_all_samples_are_whole() -> None:
    chunk = only(make_tar([*sample("a"), ("b.jpg", b"2")]) + b"rest")
    assert chunk.table["reason"].to_pylist() == [None, None]
    assert chunk.damage and chunk.damage.reason == "tar_trailing"


def test_a_reader_that_finds_the_source_changed_ends_the_shard_there() -> None:
    class Changed(Source):
        def read(self, n: int | None = -1, /) -> bytes:
            if self.tell() >= 2 * SAMPLE_BYTES:
                raise Rejected(Reason.SOURCE_CHANGED, "another etag")
            return super().read(n)

    (chunk,) = read_chunks(Changed(make_tar([*sample("a"), *sample("b"), *sample("c")])), 0)
    assert chunk.table["reason"].to_pylist() == [None, None]
    assert chunk.damage and (chunk.damage.reason, chunk.damage.offset) == ("source_changed", 2 * SAMPLE_BYTES)


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


@pytest.mark.slow
def test_a_sample_of_many_members_takes_time_in_their_number_and_not_its_square() -> None:
    def seconds(num: int) -> float:
        tar = make_tar([*((f"a.x{i}", b"") for i in range(num)), *[("a.txt", b"")] * num])
        start = time.process_time()
        (chunk,) = read_chunks(Source(tar), 0)
        assert chunk.table["reason"].to_pylist() == ["duplicate_key"]
        return time.process_time() - start

    assert min(seconds(4_000) for _ in range(3)) < 6 * min(seconds(1_000) for _ in range(3))
