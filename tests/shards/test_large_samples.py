"""What is too large is judged by its headers, before any of it is read, and costs its own sample alone."""

from __future__ import annotations

import pytest
from tars import File, Source, make_tar

from mmstream.shards.group import TEXT_LIMIT, read_chunks

LIMIT = 10_000


def rows(files: list[File], limit: int = LIMIT) -> tuple[Source, list[tuple[str, str | None, str | None]]]:
    source = Source(make_tar(files))
    found = [row for chunk in read_chunks(source, 0, sample_limit=limit) for row in chunk.table.to_pylist()]
    return source, [(r["key"], r["reason"], r["detail"]) for r in found]


def test_files_that_are_too_large_together_reject_their_sample_and_no_other() -> None:
    big = [("b.jpg", bytes(6_000)), ("b.txt", b"b"), ("b.wav", bytes(4_000)), ("b.mp4", bytes(9_000))]
    source, found = rows([("a.jpg", bytes(LIMIT)), *big, ("c.jpg", b"c"), ("c.txt", b"c")])
    together = "b.wav makes 10,001 bytes of its sample, the limit is 10,000"
    assert found == [("a", None, None), ("b", "member_too_large", together), ("c", None, None)]
    assert source.largest_read < 1 << 17 and source.num_read - (1 << 16) < LIMIT + 6_000 + 20 * 512


def test_files_that_no_column_takes_do_not_count() -> None:
    _, found = rows([("a.jpg", bytes(LIMIT)), ("a.npy", bytes(LIMIT)), ("a.seg.png", bytes(LIMIT))])
    assert found == [("a", None, None)]


@pytest.mark.parametrize("columns", [("image",), ("text",), ("image", "video"), ()])
def test_what_is_too_large_does_not_depend_on_what_is_selected(columns: tuple[str, ...]) -> None:
    files = [("a.jpg", bytes(6_000)), ("a.mp4", bytes(6_000)), ("a.txt", b"a"), ("b.txt", b"b")]
    chunks = read_chunks(Source(make_tar(files)), 0, sample_limit=LIMIT, columns=columns)
    assert [r["reason"] for c in chunks for r in c.table.to_pylist()] == ["member_too_large", None]


@pytest.mark.parametrize("suffix", ["txt", "caption", "json", "cls"])
def test_a_text_has_a_lower_limit_of_its_own(suffix: str) -> None:
    fits, is_over = (f"a.{suffix}", b" " * TEXT_LIMIT), (f"b.{suffix}", b" " * (TEXT_LIMIT + 1))
    source, found = rows([fits, ("b.jpg", b"b"), is_over, ("c.jpg", b"c")], 2 * TEXT_LIMIT)
    assert [row[:2] for row in found] == [("a", None), ("b", "member_too_large"), ("c", None)]
    assert source.num_read < TEXT_LIMIT + (1 << 18), "it was judged unread"
