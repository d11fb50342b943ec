"""What a digest in the JSON says of the picture beside it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from mmstream.shards.vouched import Verdict, verdict

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
    assert verdict(about(**fields), b"a") is None


def test_a_digest_claims_the_picture_where_it_was_not_resized_or_the_original_has_its_own() -> None:
    size = {"width": 5, "height": 4}
    assert verdict(about(sha256=A.upper()), b"a") == Verdict(fits=True, is_certain=False)
    assert verdict(about(sha256=A), b"b") == Verdict(fits=False, is_certain=False)
    assert verdict(about(sha256=A, original_width=5, original_height=4, **size), b"b") == Verdict(False, False)
    resized = about(sha256=A, original_width=9, original_height=9, original_sha256=B, **size)
    assert verdict(resized, b"b") == Verdict(fits=False, is_certain=True)


@pytest.mark.parametrize("raw", [b"", b'{"sha256": ', b'["sha256"]', b"[" * 100_000 + b'"sha256"'])
def test_json_that_cannot_be_read_claims_nothing(raw: bytes) -> None:
    assert verdict(raw, b"") is None
