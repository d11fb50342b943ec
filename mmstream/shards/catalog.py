"""Patterns become a frozen, numbered list of shards: number, URL, size and etag, in sorted order.

The catalog is made once, before the first sample is read, and stored with whatever is made from it: a sample's id
counts on the shard's number. Patterns are globs, braces (`{00000..00041}.tar`), directories and plain URLs.
"""

from __future__ import annotations

import io
import json
import os.path
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from braceexpand import braceexpand

from mmstream.errors import RefusedError, UsageError
from mmstream.schema import CATALOG
from mmstream.storage.files import (
    FileInfo,
    absolute,
    exists,
    glob_files,
    info,
    is_folder,
    is_local,
    list_files,
    read_bytes,
)

MAX_EXPANSION = 10_000_000


def build_catalog(sources: str | Sequence[str]) -> pa.Table:
    """All shards that `sources` name, as a table of schema.CATALOG sorted by URL, each once.

    Raises:
        UsageError: a source is missing or a pattern matches nothing.
        UnreachableError: a store does not answer.
    """
    patterns = [sources] if isinstance(sources, str) else list(sources)
    found: dict[str, FileInfo] = {}
    for pattern in patterns:
        for shard in _expand(pattern):
            found[shard.url] = shard
    shards = [found[url] for url in sorted(found)]
    return pa.table(
        [
            pa.array(range(len(shards)), pa.int32()),
            pa.array([s.url for s in shards], pa.string()),
            pa.array([s.bytes for s in shards], pa.int64()),
            pa.array([s.etag for s in shards], pa.string()),
            pa.nulls(len(shards), pa.int64()),
        ],
        schema=CATALOG,
    )


def _expand(pattern: str) -> list[FileInfo]:
    shards: list[FileInfo] = []
    for url in _braces(pattern):
        url = absolute(url)
        if any(c in url for c in "*?[") and not (is_local(url) and exists(url)):
            shards += [f for f in glob_files(url) if not _is_aside(f.url)]
        elif url.endswith(".tar") and not is_local(url):
            shards.append(info(url))  # without asking for a folder first: over http that would read the shard
        elif is_folder(url):
            shards += [f for f in list_files(url) if f.url.endswith(".tar") and not _is_aside(f.url)]
        else:
            shards.append(info(url))
    if not shards:
        raise UsageError(
            f"{pattern}: no shard matches. Give a glob, a {{brace}} pattern, or a folder that holds .tar files."
        )
    return shards


def _is_aside(url: str) -> bool:
    """Files that img2dataset and others write beside their shards."""
    return os.path.basename(url).startswith((".", "_")) or url.endswith((".json", ".parquet", ".txt", ".md"))  # noqa: PTH119


def _braces(pattern: str) -> list[str]:
    try:
        expanded = []
        for url in braceexpand(pattern):
            expanded.append(url)
            if len(expanded) > MAX_EXPANSION:
                raise UsageError(f"{pattern}: expands to more than {MAX_EXPANSION:,} shards.")
        return expanded
    except ValueError as e:
        raise UsageError(f"{pattern}: {e}. Quote literal braces or close them.") from e


def to_parquet(catalog: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(catalog, out, compression="zstd")
    return out.getvalue()


def check_same(stored: pa.Table, now: pa.Table, where: str) -> None:
    """Refuses to go on where the shards are not those that were frozen."""
    for column in ("url", "bytes", "etag", "max_rows"):
        before, after = stored[column].to_pylist(), now[column].to_pylist()
        if before != after:
            index = next(
                (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
            )
            a, b = (values[index] if index < len(values) else "nothing" for values in (before, after))
            raise RefusedError(
                f"{where}: catalog differs: {column} of shard {index} was {a} and is {b}. "
                "Restore the source, or embed into a new folder."
            )


def known_successes(shard_url: str) -> int | None:
    """The number of samples that img2dataset's `NNNNN_stats.json` beside a shard vouches for, or None."""
    stats = shard_url.removesuffix(".tar") + "_stats.json"
    if not exists(stats):
        return None
    try:
        return int(json.loads(read_bytes(stats))["successes"])
    except (ValueError, KeyError, TypeError):
        return None
