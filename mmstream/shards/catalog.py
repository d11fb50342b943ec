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
            pa.nulls(len(shards), pa.string()),
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


def from_parquet(data: bytes, where: str) -> pa.Table:
    """A stored catalog; a column that an older one lacks is null.

    Raises:
        RefusedError: `data` is no catalog.
    """
    try:
        stored = pq.read_table(pa.BufferReader(data))
        columns = [stored[f.name] if f.name in stored.column_names else pa.nulls(len(stored), f.type) for f in CATALOG]
        catalog = pa.table(columns, names=CATALOG.names).cast(CATALOG)
    except (pa.ArrowException, OSError) as e:
        raise RefusedError(f"{where}: is no catalog of shards ({str(e).splitlines()[0]}).") from e
    if catalog["shard"].to_pylist() != list(range(len(catalog))) or catalog["url"].null_count:
        raise RefusedError(f"{where}: is no catalog of shards: they are not numbered from 0 on.")
    return catalog


_FROZEN = ("bytes", "etag", "max_rows")


def check_same(stored: pa.Table, now: pa.Table, where: str) -> None:
    """Refuses to go on where the shards are not those that were frozen."""
    for column in ("url", *_FROZEN):
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
    for shard, (a, b) in enumerate(zip(stored["sha256"].to_pylist(), now["sha256"].to_pylist(), strict=True)):
        if a and b and a != b:  # that it is not known now is no change
            raise RefusedError(f"{where}: catalog differs: sha256 of shard {shard} was {a} and is {b}.")


def extend_catalog(stored: pa.Table, now: pa.Table, where: str) -> pa.Table:
    """`stored` with the shards of `now` that it lacks after its own: every old number stays what it is.

    Both are tables of schema.CATALOG; `now` has all shards of `stored`, wherever they sort among the new ones.

    Raises:
        RefusedError: a shard of `stored` is not in `now`, or has changed.
    """
    numbers = {url: number for number, url in enumerate(now["url"].to_pylist())}
    for shard, url in enumerate(stored["url"].to_pylist()):
        if url not in numbers:
            raise RefusedError(
                f"{where}: shard {shard}, {url}, is not among the shards given now. Shards can only be added: "
                "name the old ones too, and restore those that are gone."
            )
    old = now.take(pa.array([numbers[url] for url in stored["url"].to_pylist()], pa.int64()))
    check_same(stored, old, where)
    known = set(stored["url"].to_pylist())
    new = now.filter(pa.array([url not in known for url in now["url"].to_pylist()], pa.bool_()))
    both = pa.concat_tables([stored, new]).combine_chunks()
    return both.set_column(0, CATALOG.field("shard"), pa.array(range(len(both)), pa.int32()))


def known_successes(shard_url: str) -> int | None:
    """The number of samples that img2dataset's `NNNNN_stats.json` beside a shard vouches for, or None."""
    stats = shard_url.removesuffix(".tar") + "_stats.json"
    if not exists(stats):
        return None
    try:
        return int(json.loads(read_bytes(stats))["successes"])
    except (ValueError, KeyError, TypeError):
        return None
