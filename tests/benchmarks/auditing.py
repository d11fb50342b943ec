"""How fast a set is audited, and its tars recounted: `PYTHONPATH=tests python tests/benchmarks/auditing.py`.

The set is made by the real writer: image and text vectors of 512 dimensions, chunks of 512 rows, 10,000 rows a shard.
The recount walks one tar of three files a sample. Both are on the local disk, warm in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from embedding_sets import _publish
from tars import make_tar

from mmstream.embeddings.audit import audit
from mmstream.embeddings.layout import fold
from mmstream.embeddings.recount import Recount
from mmstream.embeddings.source_check import LOCAL_BLOCK_BYTES
from mmstream.embeddings.writer import ChunkResult, commit_chunk, commit_shard
from mmstream.schema import CATALOG, REJECT, ShardRecord, Totals, embedding_schema, sample_id
from mmstream.shards.catalog import to_parquet
from mmstream.storage.ranges import RangeReader

DIMENSION, SHARD_ROWS, CHUNK_ROWS = 512, 10_000, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=30)
    shards = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as folder:
        root = write_set(f"{folder}/emb", shards)
        start, cpu = time.perf_counter(), time.process_time()
        report = audit(root)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert report.ok, report.differences[:3]
        print("| rows | s | CPU s | rows per s |\n|---|---|---|---|")
        print(f"| {report.rows:,} | {seconds:.1f} | {cpu:.1f} | {report.rows / seconds:,.0f} |")
        print(f"\nrecount: {recounted_per_second(Path(folder)):,.0f} samples of three files per second")


def write_set(root: str, shards: int) -> str:
    vectors = np.random.default_rng(0).standard_normal((2 * CHUNK_ROWS, DIMENSION)).astype(np.float16)
    for shard in range(shards):
        commit_shard(root, write_shard(root, shard, np.roll(vectors, shard, 0)))
    entries = [{"shard": s, "url": f"/nowhere/{s:05}.tar", "bytes": 1, "etag": "e"} for s in range(shards)]
    totals = Totals(shards=shards, samples=shards * SHARD_ROWS, rows=shards * SHARD_ROWS, rejects={}, damaged=[])
    catalog = to_parquet(pa.Table.from_pylist(entries, schema=CATALOG))
    about = {"encoder": "fake:512", "fingerprint": "f", "dimension": DIMENSION, "modalities": ["image", "text"]}
    _publish(root, catalog, chunk_rows=CHUNK_ROWS, totals=totals, **about)
    return root


def write_shard(root: str, shard: int, vectors: np.ndarray) -> ShardRecord:
    schema = embedding_schema(["image", "text"], DIMENSION, [])
    chunks = {}
    for chunk, first in enumerate(range(0, SHARD_ROWS, CHUNK_ROWS)):
        rows = range(first, min(first + CHUNK_ROWS, SHARD_ROWS))
        n = len(rows)
        known = {
            "id": [sample_id(shard, row) for row in rows],
            "shard": [shard] * n,
            "row": list(rows),
            "key": [f"{shard:05}{row:04}" for row in rows],
            "caption": [f"caption {row} of shard {shard}" for row in rows],
            "image_embedding": as_lists(vectors[:n]),
            "text_embedding": as_lists(vectors[CHUNK_ROWS:][:n]),
        }
        table = pa.table([known.get(f.name, pa.nulls(n, f.type)) for f in schema], schema=schema)
        is_end = rows.stop == SHARD_ROWS
        result = ChunkResult(shard, chunk, first, n, table, REJECT.empty_table(), is_end, None, 1, "e")
        chunks[chunk] = commit_chunk(root, result, "f")
    record = fold(chunks)
    assert record is not None
    return record


def as_lists(vectors: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMENSION)


def recounted_per_second(folder: Path) -> float:
    files = ((f"{i:06}.{suffix}", bytes(size)) for i in range(5_000) for suffix, size in
             (("jpg", 40_000), ("txt", 60), ("json", 200)))  # fmt: skip
    tar = folder / "a.tar"
    tar.write_bytes(make_tar(files))
    start = time.perf_counter()
    with RangeReader(str(tar), block_bytes=LOCAL_BLOCK_BYTES) as reader:
        num_samples = sum(1 for _ in Recount(reader))
    assert num_samples == 5_000
    return num_samples / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
