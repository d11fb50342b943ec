"""Which digests are taken for the picture's, and which pictures are then not theirs."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from mmstream.shards.vouched import claimed_sha256, foreign

A, B = (hashlib.sha256(data).hexdigest() for data in (b"a", b"b"))


def about(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sha256": None},
        {"sha256": "x" * 64},
        {"sha256": A[1:]},
        {"note": {"sha256": A}},
        {"sha256": A, "width": 256, "height": 256, "original_width": 800, "original_height": 256},
    ],
)
def test_what_is_no_digest_of_this_picture_claims_nothing(fields: dict[str, Any]) -> None:
    assert claimed_sha256(about(**fields)) is None


def test_a_digest_claims_the_picture_where_it_was_not_resized_or_the_original_has_its_own() -> None:
    size = {"width": 5, "height": 4}
    assert claimed_sha256(about(sha256=A.upper())) == A
    assert claimed_sha256(about(sha256=A, original_width=5, original_height=4, **size)) == A
    assert claimed_sha256(about(sha256=A, original_width=9, original_height=9, original_sha256=B, **size)) == A


@pytest.mark.parametrize("raw", [b"", b'{"sha256": ', b'["sha256"]', b"[" * 100_000 + b'"sha256"'])
def test_json_that_cannot_be_read_claims_nothing(raw: bytes) -> None:
    assert claimed_sha256(raw) is None


def test_digests_that_fit_nothing_are_of_something_else() -> None:
    fits, differs, none = (about(sha256=A), b"a"), (about(sha256=A), b"b"), (b"{}", b"b")
    assert foreign([fits, differs, none, fits]) == [False, True, False, False]
    assert foreign([fits, differs]) == [False, True]
    assert foreign([differs, none, fits, differs]) == [False] * 4  # as img2dataset's, of pictures that it encoded anew
    assert foreign([differs]) == [False]
    assert foreign([]) == []
