"""Pictures are held against the SHA-256 in their JSON as a shard is read."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from grouped import rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import File, Source, make_tar

from mmstream.shards.group import read_chunks


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
