"""A shard that breaks loses no sample silently: what was whole is a row, and the end says where it broke."""

from __future__ import annotations

from grouped import SAMPLE_BYTES, only, rows_of, sample
from tars import Source, make_tar

from mmstream.errors import Reason, Rejected
from mmstream.shards.group import read_chunks


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
