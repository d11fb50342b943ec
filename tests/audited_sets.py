"""A set whose tars are real, and what an adversary does to it; what the audit said of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from embedding_sets import embed_here
from tars import make_tar

from mmstream.embeddings.audit import AuditReport
from mmstream.embeddings.writer import to_parquet
from mmstream.schema import ChunkRecord, Manifest, Record, ShardRecord, StoredObject

SHARDS, SAMPLES, CHUNK = 2, 20, 8
RECORD = "commits/000000.0.json"


def tar_of(keys: Sequence[str]) -> bytes:
    return make_tar((f"{key}.txt", f"caption of {key}".encode()) for key in keys)


def keys_of(shard: int) -> list[str]:
    return [f"{shard}{i:03}" for i in range(SAMPLES)]


def made_in(folder: Path) -> Path:
    """The set `folder/emb`, embedded from `folder/tars`."""
    (folder / "tars").mkdir()
    for shard in range(SHARDS):
        (folder / "tars" / f"{shard}.tar").write_bytes(tar_of(keys_of(shard)))
    return Path(embed_here(folder / "tars", folder / "emb", chunk_rows=CHUNK))


def said(report: AuditReport, *, unchecked: bool = False) -> list[tuple[int | None, int | None, str]]:
    """(shard, chunk, what) of each difference; and whether something could not be looked at is as expected."""
    assert bool(report.unchecked) == unchecked
    assert report.exit_code == (6 if report.differences else 5 if unchecked else 0)
    return [(d.shard, d.chunk, d.what) for d in report.differences]


# An adversary's tools: whatever he changes, hashes, counts and totals agree again afterwards.


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table], *, samples: int = 0) -> None:
    """Chunk 1 of shard 0 gets other rows, and `samples` more samples; everything else is made to fit."""
    record = ShardRecord.from_bytes((root / RECORD).read_bytes())
    chunks = list(record.chunks)
    before = chunks[1]
    assert before.data
    data = to_parquet(change(pq.read_table(root / before.data.path)))
    stored = StoredObject(path=before.data.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (root / stored.path).write_bytes(data)
    num_rows = pq.read_table(root / stored.path).num_rows
    chunks[1] = replaced(before, data=stored, num_rows=num_rows, num_samples=before.num_samples + samples)
    for i in range(2, len(chunks)):
        chunks[i] = replaced(chunks[i], first_row=chunks[i].first_row + samples)
        shift(root, chunks, i, samples)
    more = num_rows - before.num_rows
    put(root / RECORD, replaced(record, chunks=chunks, num_samples=record.num_samples + samples,
                                num_rows=record.num_rows + more))  # fmt: skip
    manifest = Manifest.from_bytes((root / "manifest/000001.json").read_bytes())
    assert manifest.totals
    totals = replaced(manifest.totals, samples=manifest.totals.samples + samples, rows=manifest.totals.rows + more)
    put(root / "manifest/000001.json", replaced(manifest, totals=totals))


def shift(root: Path, chunks: list[ChunkRecord], i: int, by: int) -> None:
    stored = chunks[i].data
    assert stored
    table = pq.read_table(root / stored.path)
    data = to_parquet(moved(table, by))
    (root / stored.path).write_bytes(data)
    new = StoredObject(path=stored.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    chunks[i] = replaced(chunks[i], data=new)


def moved(table: pa.Table, by: int) -> pa.Table:
    rows = [{**r, "row": r["row"] + by, "id": r["id"] + by} for r in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)


def put(path: Path, record: Record) -> None:
    path.write_bytes(record.to_bytes())


def replaced(record, **values):
    return type(record).model_validate({**record.model_dump(), **{k: dumped(v) for k, v in values.items()}})


def dumped(value):
    if isinstance(value, list):
        return [dumped(v) for v in value]
    return value.model_dump() if isinstance(value, Record) else value


def without(i: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables([table.slice(0, i), moved(table.slice(i + 1), -1)])


def swapped(i: int, j: int) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        keys = table["key"].to_pylist()
        keys[i], keys[j] = keys[j], keys[i]
        return table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys, pa.string()))

    return change
