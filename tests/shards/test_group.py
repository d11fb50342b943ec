"""Members become rows: keys, columns, and what makes a sample unusable."""

from __future__ import annotations

import tarfile
import time

import pytest
from grouped import only, reasons, rows_of, sample
from tars import File, Source, make_tar, special

from mmstream.shards.group import CHUNK, PAYLOADS, read_chunks, split_name


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


@pytest.mark.slow
def test_a_sample_of_many_members_takes_time_in_their_number_and_not_its_square() -> None:
    def seconds(num: int) -> float:
        tar = make_tar([*((f"a.x{i}", b"") for i in range(num)), *[("a.txt", b"")] * num])
        start = time.process_time()
        (chunk,) = read_chunks(Source(tar), 0)
        assert chunk.table["reason"].to_pylist() == ["duplicate_key"]
        return time.process_time() - start

    assert min(seconds(4_000) for _ in range(3)) < 6 * min(seconds(1_000) for _ in range(3))
