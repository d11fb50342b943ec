"""A sample's JSON may hold the SHA-256 of its picture: pictures that are not theirs are named.

Only a digest notices a flipped bit in a JPEG: nine in ten decode "fine". But what a `sha256` in the JSON is of depends
on who wrote it. img2dataset hashes what it downloaded, before it resizes and encodes it anew, so that there no digest
fits. So a digest is taken for the member's

* not where the JSON says that the picture was resized (`width`, `height` are not `original_width`, `original_height`),
  unless it names the download's own digest apart (`original_sha256`);
* only if at least as many of a chunk's digests fit as do not.

Both depend on the chunk alone: every run judges alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any


def foreign(members: Iterable[tuple[bytes, bytes]]) -> list[bool]:
    """For each of a chunk's (JSON, picture): whether a SHA-256 that is taken for the picture's is not."""
    claims = [(claimed_sha256(about), picture) for about, picture in members]
    differs = [claim is not None and sha256(picture).hexdigest() != claim for claim, picture in claims]
    num_claims = sum(claim is not None for claim, _ in claims)
    return differs if 2 * sum(differs) <= num_claims else [False] * len(differs)


def claimed_sha256(about: bytes) -> str | None:
    """The digest that a sample's JSON gives of its picture, or None; JSON that cannot be read gives none."""
    if b'"sha256"' not in about:
        return None
    try:
        fields = json.loads(about)
    except (ValueError, RecursionError):
        return None  # `metadata` is for those to say who need it
    if not isinstance(fields, dict) or (_was_resized(fields) and "original_sha256" not in fields):
        return None
    claim = fields.get("sha256")
    is_digest = isinstance(claim, str) and len(claim) == 64 and all(c in "0123456789abcdefABCDEF" for c in claim)
    return claim.lower() if is_digest else None


def _was_resized(fields: dict[str, Any]) -> bool:
    original = fields.get("original_width"), fields.get("original_height")
    return None not in original and original != (fields.get("width"), fields.get("height"))
