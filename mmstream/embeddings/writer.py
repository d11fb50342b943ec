"""One chunk is committed: rows and rejects become objects with a SHA-256, then one record vouches for both.

The same rows give the same bytes: nothing that enters an object depends on a clock, a host or an attempt. A kill
before the record leaves objects that nobody refers to; a second writer of the same chunk loses the race for the
record and its objects are never read. A record that lies damaged is never replaced: the next generation of it is
written.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.layout import C, InvalidRecordError, object_path, parse
from mmstream.embeddings.listing import chunk_record_path, shard_record_path
from mmstream.errors import RefusedError
from mmstream.schema import ChunkRecord, Damage, ShardRecord, StoredObject
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import join, read_bytes, write_bytes


@dataclass(frozen=True)
class ChunkResult:
    """What encoding made of one chunk: `rows` in `embedding_schema`, `rejects` in schema.REJECT.

    The reject row of a shard's unknown rest, if there is one, is in `rejects` and has a null key.
    """

    shard: int
    chunk: int
    first_row: int
    num_samples: int
    rows: pa.Table
    rejects: pa.Table
    end: bool
    damage: Damage | None
    source_bytes: int
    source_etag: str


def commit_chunk(root: str, result: ChunkResult, fingerprint: str, generation: int = 0) -> ChunkRecord:
    """Writes the objects, then the record. Returns the record that counts: ours, or that of whoever was first.

    Args:
        generation: of the record; higher than 0 where the chunk is made anew.

    Raises:
        RefusedError: the record that was first was made by another encoder.
    """
    attempt = secrets.token_hex(6)
    record = ChunkRecord(
        shard=result.shard,
        chunk=result.chunk,
        first_row=result.first_row,
        num_samples=result.num_samples,
        num_rows=result.rows.num_rows,
        num_rejects=dict(sorted(Counter(result.rejects["reason"].to_pylist()).items())),
        data=_write(root, "data", result, result.rows, attempt),
        rejects=_write(root, "rejects", result, result.rejects, attempt),
        end=result.end,
        damage=result.damage,
        source_bytes=result.source_bytes,
        source_etag=result.source_etag,
        fingerprint=fingerprint,
        attempt=attempt,
    )
    counts = _publish(record, generation, lambda g: join(root, chunk_record_path(record.shard, record.chunk, g)))
    if counts.fingerprint != fingerprint:
        raise RefusedError(
            f"{root}: fingerprint of shard {record.shard} chunk {record.chunk} is {counts.fingerprint}, ours is "
            f"{fingerprint}: another encoder wrote it."
        )
    return counts


def commit_shard(root: str, record: ShardRecord, generation: int = 0) -> ShardRecord:
    """Writes the folded record of a shard. Returns the one that counts: ours, or that of whoever was first."""
    return _publish(record, generation, lambda g: join(root, shard_record_path(record.shard, g)))


def _publish(record: C, generation: int, url_of: Callable[[int], str]) -> C:
    """`record` under the first generation that is free, unless a valid one of the same source is met before that."""
    while True:
        url = url_of(generation)
        if put_if_absent(url, record.to_bytes()):
            return record
        try:
            first = parse(type(record), read_bytes(url), url)
        except InvalidRecordError:
            first = None  # damaged where it lies; what is written above it counts
        if first is not None and first.source == record.source:
            return first
        generation += 1


def _write(root: str, kind: str, result: ChunkResult, table: pa.Table, attempt: str) -> StoredObject | None:
    if table.num_rows == 0:
        return None
    path = object_path(kind, result.shard, result.chunk, attempt)
    data = to_parquet(table)
    write_bytes(join(root, path), data)
    return StoredObject(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes that are a function of the table alone (and of the version of pyarrow)."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", compression_level=1, row_group_size=1 << 20, store_schema=True)
    return out.getvalue()
