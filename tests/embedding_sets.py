"""A small embedding set written by hand, with the real writer, without Ray or an encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmstream.embeddings.layout import catalog_path, fold, manifest_path, shard_record_path
from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.schema import CATALOG, REJECT, ChunkRecord, Manifest, embedding_schema, sample_id
from mmstream.shards.catalog import to_parquet
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import join, write_bytes

Row = Mapping[str, Any]


def write_set(
    root: str,
    rows: Sequence[Row],
    *,
    dimension: int,
    modalities: Sequence[str] = ("image", "text"),
    encoder: str = "fake:8",
    fingerprint: str = "sha256:made-by-hand",
    shards: Sequence[tuple[str, int]] = (("/nowhere/00000.tar", 0),),
    fields: Sequence[str] = (),
    chunk_rows: int = 300,
    finished: bool = True,
) -> str:
    """`rows` are dicts with `shard` and `row`, in this order, and whatever else of the schema they have."""
    schema = embedding_schema(list(modalities), dimension, list(fields))
    records: dict[int, dict[int, ChunkRecord]] = {}
    for shard in sorted({r["shard"] for r in rows}):
        of_shard = [_with_id(r) for r in rows if r["shard"] == shard]
        starts = range(0, len(of_shard), chunk_rows)
        for chunk, start in enumerate(starts):
            part = of_shard[start : start + chunk_rows]
            result = ChunkResult(
                shard, chunk, start, len(part), pa.Table.from_pylist(part, schema=schema),
                REJECT.empty_table(), start == starts[-1], None, 0, "",
            )  # fmt: skip
            records.setdefault(shard, {})[chunk] = commit_chunk(root, result, fingerprint)
    for shard, chunks in records.items():
        folded = fold(chunks)
        assert folded is not None
        put_if_absent(join(root, shard_record_path(shard)), folded.to_bytes())
    catalog = to_parquet(_catalog(shards))
    write_bytes(join(root, catalog_path(0)), catalog)
    manifest = Manifest(
        finished=finished,
        catalog=catalog_path(0),
        catalog_sha256=hashlib.sha256(catalog).hexdigest(),
        encoder=encoder,
        fingerprint=fingerprint,
        dimension=dimension,
        modalities=list(modalities),
        normalized=True,
        micro_batch=32,
        chunk_rows=chunk_rows,
        chunk_bytes=1 << 25,
        fields=list(fields),
        limit=None,
        single_writer=False,
        device="cpu",
        libraries={},
    )
    put_if_absent(join(root, manifest_path(1)), manifest.to_bytes())
    return root


def _with_id(row: Row) -> dict[str, Any]:
    vectors = {c: np.asarray(v, np.float16) for c, v in row.items() if c.endswith("_embedding") and v is not None}
    return {"id": sample_id(row["shard"], row["row"]), "key": f"{row['shard']:05}{row['row']:04}", **row, **vectors}


def _catalog(shards: Sequence[tuple[str, int]]) -> pa.Table:
    rows = [{"shard": i, "url": url, "bytes": size, "etag": ""} for i, (url, size) in enumerate(shards)]
    return pa.Table.from_pylist(rows, schema=CATALOG)


def tied_vectors(n: int, dimension: int, seed: int = 0) -> np.ndarray:
    """float16 [n, d] of small eighths: every float32 sum is exact, many vectors are equal."""
    rng = np.random.default_rng(seed)
    distinct = rng.integers(-8, 9, (max(1, n // 4), dimension)) / 8
    return distinct[rng.integers(0, len(distinct), n)].astype(np.float16)
