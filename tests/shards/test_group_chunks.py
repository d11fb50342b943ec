"""Where chunks end, and that no row or boundary depends on what is skipped, selected or limited."""

from __future__ import annotations

from dataclasses import replace

from grouped import SAMPLE_BYTES, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import Source, make_tar

from mmstream.shards.group import PAYLOADS, count_rows, read_chunks
from mmstream.shards.vouched import HEAD_ROWS


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
