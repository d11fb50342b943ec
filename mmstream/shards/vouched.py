"""A sample's JSON may hold the SHA-256 of its picture: whether it is that of the picture in the shard.

Only a digest notices a flipped bit in a JPEG: nine in ten decode "fine". But what a `sha256` in the JSON is of depends
on who wrote it. img2dataset hashes what it downloaded, before it resizes and encodes it anew, so that there no digest
fits. So a digest claims nothing where the JSON says that the picture was resized (`width`, `height` are not
`original_width`, `original_height`), and one that differs convicts its picture only where it is known that digests of
this shard are of what it holds:

* the JSON names the download's own digest apart (`original_sha256`), or
* another picture of the same chunk fits its own, or
* one of the shard's first `HEAD_ROWS` rows does.

All three are functions of the shard's bytes up to the chunk's end (a run that goes on reads the head again), so every
run judges alike. A shard of which nothing fits is one that was encoded anew, or is damaged throughout; a lone picture
that differs, without a fit in the head, cannot be told from these: both are taken. Of a set in which img2dataset kept
some downloads as they were (`skip_reencode`), those that it encoded anew at their own size are rejected.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, NamedTuple

from mmstream.schema import MAX_JSON_BYTES

HEAD_ROWS = 8


class Verdict(NamedTuple):
    """Whether a picture has the digest that its JSON gives, and whether that is surely meant to be this picture's."""

    fits: bool
    is_certain: bool


def verdict(about: bytes, picture: bytes) -> Verdict | None:
    """What a sample's JSON says of its picture; None where it claims nothing, or cannot be read."""
    if len(about) > MAX_JSON_BYTES or b'"sha256"' not in about:
        return None
    try:
        fields = json.loads(about)
    except (ValueError, RecursionError):
        return None  # `metadata` is for those to say who need it
    if not isinstance(fields, dict):
        return None
    is_certain = "original_sha256" in fields
    claim = fields.get("sha256")
    if not _is_digest(claim) or (_was_resized(fields) and not is_certain):
        return None
    return Verdict(sha256(picture).hexdigest() == claim.lower(), is_certain)


def _is_digest(claim: Any) -> bool:
    return isinstance(claim, str) and len(claim) == 64 and all(c in "0123456789abcdefABCDEF" for c in claim)


def _was_resized(fields: dict[str, Any]) -> bool:
    original = fields.get("original_width"), fields.get("original_height")
    return None not in original and original != (fields.get("width"), fields.get("height"))
