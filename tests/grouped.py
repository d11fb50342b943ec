"""Small samples, and what `shards.group` makes of them."""

from __future__ import annotations

import tarfile
from typing import Any

from tars import File, Source, make_tar

from mmstream.shards.group import Chunk, read_chunks

SAMPLE_BYTES = 6 * 512  # of one `sample`: three members, each a header and a payload of one block


def sample(key: str, *, size: int = 300) -> list[File]:
    return [(f"{key}.jpg", key.encode() * size), (f"{key}.txt", f"about {key}".encode()), (f"{key}.json", b"{}")]


def rows_of(data: bytes, **options: Any) -> list[dict[str, Any]]:
    return [row for chunk in read_chunks(Source(data), 0, **options) for row in chunk.table.to_pylist()]


def only(data: bytes) -> Chunk:
    (chunk,) = read_chunks(Source(data), 0)
    return chunk


def reasons(files: list[File | tarfile.TarInfo]) -> dict[str, str | None]:
    return {row["key"]: row["reason"] for row in rows_of(make_tar(files))}
