"""The picture behind a hit is read back from its shard: one range of bytes, nothing else of the tar."""

from __future__ import annotations

import io

import pyarrow.compute as pc
from PIL import Image

from mmstream.errors import RefusedError, UsageError
from mmstream.media.image import decode
from mmstream.search.searcher import Hit, Index
from mmstream.storage.compressed import read_part
from mmstream.storage.files import info

THUMBNAIL_PIXELS = 256


def read_picture(index: Index, hit: Hit) -> bytes:
    """The picture as it lies in the shard: JPEG, PNG or whatever it is.

    Raises:
        UsageError: the sample has no picture, or its shard is gone.
        RefusedError: the shard is not the one that was embedded.
        UnreachableError: its store does not answer.
    """
    if hit.image_offset is None or hit.image_bytes is None:
        raise UsageError(f"{hit.key} (id {hit.id}): this sample has no picture.")
    url, size, etag = _shard(index, hit)
    now = info(url)
    if now.bytes != size or (etag and now.etag and now.etag != etag):
        raise RefusedError(
            f"{url}: has changed since it was embedded (then {size:,} bytes, etag {etag!r}; now {now.bytes:,} bytes, "
            f"etag {now.etag!r}), so the picture of {hit.key} is no longer known to be there. Embed it again."
        )
    return read_part(url, hit.image_offset, hit.image_bytes)


def _shard(index: Index, hit: Hit) -> tuple[str, int, str]:
    found = index.catalog.filter(pc.field("shard") == hit.shard).to_pylist()
    if len(found) != 1:
        raise RefusedError(f"{index.url}: its catalog has {len(found)} shards of number {hit.shard}. Build it again.")
    return found[0]["url"], found[0]["bytes"], found[0]["etag"]


def thumbnail(picture: bytes, side: int = THUMBNAIL_PIXELS) -> bytes:
    """A JPEG of at most `side` × `side` pixels, made anew from the decoded picture: nothing else of it passes.

    Raises:
        Rejected: the picture cannot be decoded.
    """
    small = Image.fromarray(decode(picture).rgb)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85)
    return out.getvalue()
