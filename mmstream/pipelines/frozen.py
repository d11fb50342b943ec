"""The catalog that a set is made from: cut to what `--limit` takes, and made again where the stored one is lost.

A set's shards and their bounds were frozen when it was begun. What a command lists later is measured by that: only new
shards get a bound, and a listing stands in for a lost catalog only if it gives the same bytes.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Sequence

import pyarrow as pa

from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.pipelines.source import ShardTask, num_rows
from mmstream.schema import CATALOG, Manifest
from mmstream.shards.catalog import build_catalog, extend_catalog, from_parquet, to_parquet
from mmstream.storage.files import join, list_files, read_bytes


def limited(listed: pa.Table, limit: int | None, stored: pa.Table | None = None) -> pa.Table:
    """The catalog cut to the first shards that hold `limit` samples; the last of them has `max_rows`.

    Where a set is gone on with, the shards of its catalog `stored` stay in with their bounds, whatever they hold by
    now. Only if they had less than `limit` samples do new ones come in.
    """
    if limit is None:
        return listed
    if limit < 1:
        raise UsageError(f"--limit {limit}: give a number of at least 1.")
    old = {} if stored is None else {entry["url"]: entry["max_rows"] for entry in stored.to_pylist()}
    entries = listed.to_pylist()
    kept = [{**entry, "max_rows": old[entry["url"]]} for entry in entries if entry["url"] in old]
    left = limit
    if any(bound is not None for bound in old.values()):
        left = 0
    elif old and len(entries) > len(kept):
        left -= sum(num_rows(_task(entry, None)) for entry in kept)
    for entry in entries:
        if left <= 0:
            break
        if entry["url"] in old:
            continue
        rows = num_rows(_task(entry, left))
        # A shard that is taken whole keeps no bound: behind one, damage at its end would go unseen.
        kept.append({**entry, "max_rows": left if rows >= left else None})
        left -= rows
    # As they were listed: where nothing is stored that is their order, else extend_catalog sees to it.
    return pa.Table.from_pylist(sorted(kept, key=lambda entry: entry["shard"]), schema=CATALOG)


def _task(entry: dict, max_rows: int | None) -> ShardTask:
    return ShardTask(entry["shard"], entry["url"], entry["bytes"], entry["etag"], max_rows, entry["sha256"])


def restored(dest: str, manifest: Manifest, sources: Sequence[str]) -> pa.Table:
    """The catalog that the manifest vouches for, made again.

    Tried are the other files in `catalog/`, then what `sources` list now: by itself, and as what an older catalog of
    the set grew to, or what it was after shards had been mended.

    Raises:
        DifferencesError: none of these has the SHA-256 that the manifest says.
        UsageError, UnreachableError: `sources` cannot be listed.
    """
    for data in _candidates(dest, manifest, sources):
        if hashlib.sha256(data).hexdigest() == manifest.catalog_sha256:
            return from_parquet(data, dest)
    where = join(dest, manifest.catalog)
    if not sources:
        command = shlex.join(["mmstream", "repair", dest, "--source"])
        raise DifferencesError(
            f"{where}: the catalog is lost or damaged, it is not the one that the manifest vouches for. Name the "
            f"shards as they were named to embed, and it is made again: `{command} SRC`."
        )
    raise DifferencesError(
        f"{where}: the catalog is lost or damaged, and what {' '.join(sources)} list now is another one (wanted: "
        f"SHA-256 {manifest.catalog_sha256[:16]}…, as pyarrow {manifest.libraries.get('pyarrow')} wrote it). Name all "
        "shards of the set and no others, unchanged; or embed into another folder."
    )


def _candidates(dest: str, manifest: Manifest, sources: Sequence[str]) -> Iterator[bytes]:
    stored = [read_bytes(file.url) for file in reversed(list_files(join(dest, "catalog")))]
    yield from stored
    if not sources:
        return
    listed = build_catalog(list(sources))
    yield to_parquet(limited(listed, manifest.limit))
    for data in stored:
        try:
            older = from_parquet(data, dest)
            mended = _as_now(older, listed)
            now = limited(listed, manifest.limit, mended)
            yield to_parquet(extend_catalog(mended, now, dest))
            yield to_parquet(mended)
        except RefusedError:
            continue  # damaged as well, or of shards that are not named


def _as_now(catalog: pa.Table, listed: pa.Table) -> pa.Table:
    """The catalog with sizes and etags as they are now; a checksum of what was is dropped, as by a replay."""
    now = {entry["url"]: entry for entry in listed.to_pylist()}
    rows = []
    for row in catalog.to_pylist():
        entry = now.get(row["url"], row)
        is_same = (entry["bytes"], entry["etag"]) == (row["bytes"], row["etag"])
        rows.append(row if is_same else {**row, "bytes": entry["bytes"], "etag": entry["etag"], "sha256": None})
    return pa.Table.from_pylist(rows, schema=CATALOG)
