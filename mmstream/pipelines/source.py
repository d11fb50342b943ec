"""Shards become a Ray Data source whose every row is one whole chunk.

Each column of a row is the list of the chunk's values (zero copy both ways), so that Ray's merging and slicing of
blocks, which work on rows, cannot touch a chunk. Each row carries its own (shard, chunk, first row, number of rows):
when a worker dies Ray splices the blocks of two attempts by position and checks nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray._private.worker
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from mmstream.errors import Reason, RefusedError, Rejected
from mmstream.schema import SAMPLE, Damage, sample_id
from mmstream.shards.group import CHUNK, PAYLOADS, Chunk, count_rows, read_chunks
from mmstream.storage.compressed import CompressedReader, open_reader
from mmstream.storage.ranges import RangeReader

CHUNK_ROWS = 512
CHUNK_BYTES = 32 << 20
_PASSING = (Reason.SOURCE_CHANGED, Reason.UNREADABLE)  # what a repeated task may find that the one before did not


@dataclass(frozen=True, slots=True)
class ShardTask:
    """What one read task reads: a shard of the catalog, but for the chunks that are committed already."""

    shard: int
    url: str
    bytes: int
    etag: str
    max_rows: int | None = None
    sha256: str | None = None
    skip: frozenset[int] = frozenset()
    epoch: int = 0


@dataclass(frozen=True)
class ChunkInfo:
    """What a row says of its chunk, beside the samples."""

    shard: int
    chunk: int
    first_row: int
    num_samples: int
    end: bool
    damage: Damage | None
    source_url: str
    source_bytes: int
    source_etag: str
    read_bytes: int
    read_seconds: float
    epoch: int
    store_seconds: float = 0.0  # of read_seconds, those that the store took


_INFO = pa.schema(
    [
        ("shard", pa.int32()),
        ("chunk", pa.int32()),
        ("first_row", pa.int32()),
        ("num_samples", pa.int32()),
        ("end", pa.bool_()),
        ("damage", pa.string()),
        ("source_url", pa.string()),
        ("source_bytes", pa.int64()),
        ("source_etag", pa.string()),
        ("read_bytes", pa.int64()),
        ("read_seconds", pa.float64()),
        ("store_seconds", pa.float64()),
        ("epoch", pa.int32()),
    ]
)
_SAMPLES = "samples."


def read_rows(task: ShardTask, columns: Collection[str] = PAYLOADS) -> Iterator[pa.Table]:
    """The shard as tables of one row, each a chunk, whose `columns` are read."""
    start = time.perf_counter()
    for chunk in chunks_of(task, columns):
        yield to_row(chunk, task, time.perf_counter() - start)
        start = time.perf_counter()


class ShardSource(Datasource):
    """One read task per shard, in the order given, each a stream of what `read` makes of its shard."""

    def __init__(self, tasks: list[ShardTask], read: Callable[[ShardTask], Iterator[pa.Table]] = read_rows) -> None:
        super().__init__()
        self._tasks, self._read = tasks, read

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(task.bytes for task in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [self._read_task(task, per_task_row_limit) for task in self._tasks]

    def _read_task(self, task: ShardTask, limit: int | None) -> ReadTask:
        metadata = BlockMetadata(num_rows=None, size_bytes=task.bytes, exec_stats=None, input_files=(task.url,))
        return ReadTask(partial(self._read, task), metadata, per_task_row_limit=limit)


def chunks_of(
    task: ShardTask, columns: Collection[str] = PAYLOADS, keys: Collection[str] | None = None
) -> Iterator[Chunk]:
    """The chunks of a shard, with what `columns` and `keys` ask for (see `read_chunks`).

    One that is gone, has changed or does not have its SHA-256 gives a single empty chunk that says so. Pictures are
    held against the SHA-256 in their JSON where `image` is selected, and those of `keys` against each other's alone.

    Raises:
        RefusedError: that is so, but a part of it was read before, in an earlier run or epoch.
        UnreachableError: the store does not answer.
    """
    try:
        reader = open_reader(task.url, bytes=task.bytes, etag=task.etag)
    except Rejected as e:
        yield _lost(task, e)
        return
    with reader:
        try:
            _verify(reader, task)
        except Rejected as e:
            yield _lost(task, e)
            return
        so_far = 0.0
        for chunk in read_chunks(
            reader,
            task.shard,
            chunk_rows=CHUNK_ROWS,
            chunk_bytes=CHUNK_BYTES,
            max_rows=task.max_rows,
            skip=task.skip,
            columns=columns,
            keys=keys,
        ):
            if chunk.damage and chunk.damage.reason in _PASSING:
                _check_unread(task, chunk.damage.detail)
            waited, so_far = reader.waited_seconds - so_far, reader.waited_seconds
            if chunk.damage and isinstance(reader, CompressedReader):
                chunk = replace(chunk, damage=chunk.damage.model_copy(update={"unpacked_bytes": reader.size}))
            yield replace(chunk, store_seconds=waited)


def _verify(reader: RangeReader | CompressedReader, task: ShardTask) -> None:
    """Reads the shard for its SHA-256 before anything of it is used, in the first epoch; twice, if need be: a bit that
    was flipped on the way is another bit the next time."""
    if not task.sha256 or task.epoch:
        return
    if reader.sha256() != task.sha256 and (found := reader.sha256()) != task.sha256:
        raise Rejected(Reason.CHECKSUM, f"{task.url} has SHA-256 {found}, the catalog says {task.sha256}")


def _lost(task: ShardTask, e: Rejected) -> Chunk:
    _check_unread(task, e.detail)
    damage = Damage(reason=e.reason, offset=0, detail=e.detail)
    return Chunk(task.shard, 0, 0, 0, CHUNK.empty_table(), end=True, damage=damage, bytes_read=0)


def _check_unread(task: ShardTask, detail: str) -> None:
    """A shard that is gone or another now is accounted for as such only if nothing was taken from it before."""
    if task.skip or task.epoch:
        raise RefusedError(
            f"{task.url}: {detail}, though part of it was read before. Restore it, or start in a new folder."
        )


def num_rows(task: ShardTask) -> int:
    """How many rows a shard has, at most `task.max_rows`, counted without reading what they hold; 0 if it is gone, or
    is not its SHA-256, for which it is read.

    Raises:
        UnreachableError: the store does not answer.
    """
    try:
        with open_reader(task.url, bytes=task.bytes, etag=task.etag) as reader:
            _verify(reader, task)
            return count_rows(reader, task.max_rows)
    except Rejected:
        return 0  # what became of it is for those to say who read


def read_samples(task: ShardTask, *, columns: Sequence[str], keys: frozenset[str] | None = None) -> Iterator[pa.Table]:
    """The shard as ordinary tables of samples; where it broke, one more row without a key says so.

    Raises:
        RefusedError: it went away or changed before Ray read it again, since the first worker died. What that one had
            given is taken for the beginning of this, by position, and the row that says so would go under.
        UnreachableError: the store does not answer.
    """
    for chunk in chunks_of(task, columns, keys):
        if chunk.damage and chunk.damage.reason in _PASSING and _is_repeated():
            raise RefusedError(
                f"{task.url}: {chunk.damage.detail}, and the worker that had begun to read it died. Restore it, or "
                "start again without it."
            )
        table = chunk.table
        if keys is not None:
            table = table.filter(pa.array([key in keys for key in table["key"].to_pylist()], pa.bool_()))
        yield table.select(columns)
        if chunk.damage:
            row = chunk.first_row + chunk.num_samples
            rest = {"id": sample_id(task.shard, row), "shard": task.shard, "row": row}
            yield pa.Table.from_pylist([{**rest, **chunk.damage.told()}], schema=SAMPLE).select(columns)


def _is_repeated() -> bool:
    """Whether Ray runs this task again. There is no public name for it."""
    worker: Any = ray._private.worker.global_worker
    return ray.is_initialized() and worker.core_worker.get_current_task_attempt_number() > 0


def to_row(chunk: Chunk, task: ShardTask, read_seconds: float) -> pa.Table:
    info = {
        "shard": chunk.shard,
        "chunk": chunk.number,
        "first_row": chunk.first_row,
        "num_samples": chunk.num_samples,
        "end": chunk.end,
        "damage": chunk.damage.model_dump_json() if chunk.damage else None,
        "source_url": task.url,
        "source_bytes": task.bytes,
        "source_etag": task.etag,
        "read_bytes": chunk.bytes_read,
        "read_seconds": read_seconds,
        "store_seconds": chunk.store_seconds,
        "epoch": task.epoch,
    }
    row = pa.Table.from_pylist([info], schema=_INFO)
    for name in chunk.table.column_names:
        row = row.append_column(_SAMPLES + name, as_list(chunk.table[name]))
    return row


def from_row(row: pa.Table) -> tuple[ChunkInfo, pa.Table]:
    """A row made by `to_row`, taken apart: what it says of itself, and the samples."""
    values = row.select(_INFO.names).to_pylist()[0]
    damage = values.pop("damage")
    info = ChunkInfo(**values, damage=Damage.model_validate_json(damage) if damage else None)
    names = [n for n in row.column_names if n.startswith(_SAMPLES)]
    samples = pa.table({n.removeprefix(_SAMPLES): row[n].combine_chunks().flatten() for n in names})
    return info, samples


def as_list(column: pa.ChunkedArray) -> pa.LargeListArray:
    """A column as a column of one row: the list of its values, without a copy where it is one chunk."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):
        values = values.chunk(0) if values.num_chunks else pa.array([], column.type)
    return pa.LargeListArray.from_arrays([0, len(values)], values)
