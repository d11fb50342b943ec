"""Small embedding sets without Ray: written by hand, or from real shards with the real reader, encoder and writer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from mmstream.embeddings.layout import catalog_path, fold, manifest_path
from mmstream.embeddings.writer import ChunkResult, commit_chunk, commit_shard
from mmstream.encoders.build import load_encoder
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import ChunkInfo, chunks_of
from mmstream.schema import CATALOG, REJECT, ChunkRecord, Manifest, Totals, embedding_schema, sample_id
from mmstream.shards.catalog import build_catalog, to_parquet
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import join, write_bytes
from mmstream.timing import Stopwatch

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
    sizes = {shard: size for shard, (_, size) in enumerate(shards)}
    numbers = range(len(shards), max((r["shard"] for r in rows), default=0) + 1)
    shards = [*shards, *((f"/nowhere/{shard:05}.tar", 0) for shard in numbers)]
    records: dict[int, dict[int, ChunkRecord]] = {}
    for shard in sorted({r["shard"] for r in rows}):
        of_shard = [_with_id(r) for r in rows if r["shard"] == shard]
        starts = range(0, len(of_shard), chunk_rows)
        for chunk, start in enumerate(starts):
            part = of_shard[start : start + chunk_rows]
            result = ChunkResult(
                shard, chunk, start, len(part), pa.Table.from_pylist(part, schema=schema),
                REJECT.empty_table(), start == starts[-1], None, sizes.get(shard, 0), "",
            )  # fmt: skip
            records.setdefault(shard, {})[chunk] = commit_chunk(root, result, fingerprint)
    for chunks in records.values():
        folded = fold(chunks)
        assert folded is not None
        commit_shard(root, folded)
    _publish(root, to_parquet(_catalog(shards)), encoder=encoder, fingerprint=fingerprint, dimension=dimension,
             modalities=list(modalities), chunk_rows=chunk_rows, fields=list(fields), finished=finished)  # fmt: skip
    return root


def _publish(root: str, catalog: bytes, **about: Any) -> None:
    write_bytes(join(root, catalog_path(0)), catalog)
    usual = {"finished": True, "fields": [], "normalized": True, "micro_batch": 32, "chunk_bytes": 1 << 25}
    usual |= {"threads": 1, "dtype": "float32"}
    here = {"limit": None, "single_writer": False, "device": "cpu", "libraries": {}}
    digest = hashlib.sha256(catalog).hexdigest()
    manifest = Manifest(catalog=catalog_path(0), catalog_sha256=digest, **{**usual, **here, **about})
    put_if_absent(join(root, manifest_path(1)), manifest.to_bytes())


def embed_here(source: str | Path | pa.Table, dest: str | Path, *, chunk_rows: int = 8, dimension: int = 8) -> str:
    """What `embed` makes of a catalog, or the shards at `source`, with `fake:<dimension>`: in this process, in small
    chunks."""
    root, encoder = str(dest), load_encoder(f"fake:{dimension}")
    catalog = source if isinstance(source, pa.Table) else build_catalog(str(source))
    shards = []
    for entry, task in zip(catalog.to_pylist(), shard_tasks(catalog), strict=True):
        with ThreadPoolExecutor(1) as pool, patch("mmstream.pipelines.source.CHUNK_ROWS", chunk_rows):
            chunks = {}
            for chunk in chunks_of(task):
                at = (chunk.shard, chunk.number, chunk.first_row, chunk.num_samples)
                info = ChunkInfo(
                    *at, chunk.end, chunk.damage, entry["url"], entry["bytes"], entry["etag"], 0, 0.0, 0.0, 0
                )
                rows, rejects = encode_chunk(info, chunk.table, encoder, [], pool=pool, watch=Stopwatch())
                result = ChunkResult(*at, rows, rejects, chunk.end, chunk.damage, entry["bytes"], entry["etag"])
                chunks[chunk.number] = commit_chunk(root, result, encoder.fingerprint)
        folded = fold(chunks)
        assert folded is not None
        commit_shard(root, folded)
        shards.append(folded)
    totals = Totals(
        shards=len(shards),
        samples=sum(s.num_samples for s in shards),
        rows=sum(s.num_rows for s in shards),
        rejects=dict(sorted(sum((Counter(s.num_rejects) for s in shards), Counter()).items())),
        damaged=[s.shard for s in shards if s.damage],
    )
    _publish(root, to_parquet(catalog), encoder=encoder.spec, fingerprint=encoder.fingerprint, dimension=dimension,
             modalities=list(encoder.modalities), chunk_rows=chunk_rows, totals=totals)  # fmt: skip
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
