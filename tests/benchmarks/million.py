"""What a set of very many shards costs its driver: `PYTHONPATH=tests python tests/benchmarks/million.py`.

A list of 1,000,000 shards with sizes and etags (nothing is asked of their store), and an embedding set in which half
of them are finished: real folded records, made by `schema` and laid down as plain files, in a folder that should be in
memory (`--folder`; half a million files are 2 GB of a tmpfs). Each step runs in a process of its own, whose peak of
resident memory is kept by the kernel; importing alone is a step too. The last line is the table as JSON.

`--full` adds a reader, which holds the record of every chunk as repair does too; every shard has one then.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

FINGERPRINT = "sha256:synthetic"
LIMIT_SECONDS, LIMIT_BYTES = 60, 3 << 29


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--chunks", type=int, default=1, help="in the record of each finished shard")
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measured(args.step, args.folder, args.shards)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="million-") as folder:
        lay_down(folder, args.shards)
        print("| step | s | CPU s | peak MiB | |\n|---|---|---|---|---|", flush=True)
        rows = [run_step(step, folder, args.shards) for step in ("imports", "catalog", "plan")]
        write_records(folder, range(args.shards // 2), args.chunks)
        rows.append(run_step("resume", folder, args.shards))
        if args.full:
            write_records(folder, range(args.shards // 2, args.shards), args.chunks)
            rows.append(run_step("reader", folder, args.shards))
        print(json.dumps({"shards": args.shards, "chunks": args.chunks, "steps": rows}))
    late = [r["step"] for r in rows[:4] if r["seconds"] > LIMIT_SECONDS or r["peak_bytes"] > LIMIT_BYTES]
    if late:
        sys.exit(f"over {LIMIT_SECONDS} s or {LIMIT_BYTES >> 20:,} MiB: {', '.join(late)}")


def url(shard: int) -> str:
    return f"s3://bucket/laion/part-{shard // 1000:04}/{shard:07}.tar"


def source(shard: int) -> tuple[int, str]:
    return 300_000_000 + shard, f"{shard * 2654435761 % 2**64:032x}"


def lay_down(folder: str, shards: int) -> None:
    """The list, and a set that was begun and has no record yet."""
    from embedding_sets import _publish

    from mmstream.shards.catalog import build_catalog, to_parquet

    with Path(folder, "shards.jsonl").open("w") as f:
        for shard in range(shards):
            size, etag = source(shard)
            f.write(json.dumps({"url": url(shard), "bytes": size, "etag": etag}) + "\n")
    about = {"encoder": "fake:8", "fingerprint": FINGERPRINT, "dimension": 8, "modalities": ["image", "text"]}
    catalog = to_parquet(build_catalog(f"{folder}/shards.jsonl"))
    _publish(f"{folder}/emb", catalog, chunk_rows=512, finished=False, **about)


def write_records(folder: str, shards: range, chunks: int) -> None:
    Path(folder, "emb/commits").mkdir(exist_ok=True)
    parts = [shards[i : i + 10_000] for i in range(0, len(shards), 10_000)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write_part, repeat(folder), parts, repeat(chunks)):
            pass


def write_part(folder: str, shards: range, chunks: int) -> None:
    from mmstream.embeddings.listing import shard_record_path

    for shard in shards:
        # Not by commit_shard, which syncs every file: a set of this size was synced over weeks.
        Path(folder, "emb", shard_record_path(shard)).write_bytes(record_of(shard, chunks).to_bytes())


def record_of(shard: int, chunks: int) -> Any:
    from mmstream.embeddings.layout import fold, object_path
    from mmstream.schema import ChunkRecord, StoredObject

    size, etag = source(shard)
    made = {}
    for n in range(chunks):
        attempt = f"{(shard * 1000 + n) * 40503 % 2**48:012x}"
        data = StoredObject(path=object_path("data", shard, n, attempt), bytes=1_234_567, sha256=f"{shard + n:064x}")
        made[n] = ChunkRecord(
            shard=shard, chunk=n, first_row=n * 512, num_samples=512, num_rows=511, num_rejects={"image_truncated": 1},
            data=data, rejects=None, end=n == chunks - 1, source_bytes=size, source_etag=etag, fingerprint=FINGERPRINT,
            attempt=attempt,
        )  # fmt: skip
    folded = fold(made)
    assert folded is not None
    return folded


def run_step(step: str, folder: str, shards: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, "--folder", folder, "--shards", str(shards)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{step}: ended with {done.returncode}")
    row = json.loads(done.stdout.splitlines()[-1])
    print(
        f"| {step} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_bytes'] >> 20:,} | {row['found']} |",
        flush=True,
    )
    return row


def measured(step: str, folder: str, shards: int) -> dict[str, Any]:
    import mmstream.pipelines.embed  # what a driver imports, outside the clock

    assert mmstream
    start, cpu, parts, before = time.perf_counter(), time.process_time(), {}, 0.0
    found = ""
    for name in STEPS[step](folder, shards):
        now = time.perf_counter() - start
        parts[name], before, found = round(now - before, 1), now, name
    # Not getrusage, whose peak begins with what the parent held when it forked.
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
    taken = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "peak_bytes": peak}
    return {"step": step, **taken, "parts": parts, "found": found}


def imports(folder: str, shards: int) -> Iterator[str]:
    yield "what a driver imports"


def catalog(folder: str, shards: int) -> Iterator[str]:
    """The list is frozen, stored, and read back as a source."""
    from mmstream.shards.catalog import build_catalog, to_parquet
    from mmstream.storage.files import write_bytes

    listed = build_catalog(f"{folder}/shards.jsonl")
    yield f"{listed.num_rows:,} shards of a list"
    data = to_parquet(listed)
    write_bytes(f"{folder}/again.parquet", data)
    yield f"{len(data) / shards:.0f} bytes a shard stored"
    again = build_catalog(f"{folder}/again.parquet")
    assert again.equals(listed)
    yield f"{again.num_rows:,} shards of a stored catalog, {len(data) / shards:.0f} bytes each"


def plan(folder: str, shards: int) -> Iterator[str]:
    """As `embed` begins, up to the first task: the list, the set that is there, its ledger."""
    from mmstream.pipelines.ledger import Ledger
    from mmstream.pipelines.manifest import open_set
    from mmstream.shards.catalog import build_catalog, extend_catalog

    listed = build_catalog(f"{folder}/shards.jsonl")
    yield "catalog of the list"
    opened = open_set(f"{folder}/emb")
    assert opened is not None
    yield "stored catalog"
    grown = extend_catalog(opened.catalog, listed, opened.dest)
    yield "compared"
    ledger = Ledger(opened.dest, grown, FINGERPRINT, 0.05)
    yield f"{len(ledger.shards):,} records"
    tasks = ledger.plan()
    assert len(tasks) + len(ledger.shards) == shards
    yield f"{len(tasks):,} tasks, {len(ledger.shards):,} shards of {ledger.num_rows:,} rows finished"


def reader(folder: str, shards: int) -> Iterator[str]:
    from mmstream.embeddings.layout import read_records
    from mmstream.pipelines.manifest import open_set

    opened = open_set(f"{folder}/emb")
    assert opened is not None
    records = read_records(opened.dest, opened.catalog)
    yield f"{len(records.shards):,} records whole"
    yield f"{sum(1 for s in records.shards.values() for _ in s.chunks):,} chunks held"


STEPS = {"imports": imports, "catalog": catalog, "plan": plan, "resume": plan, "reader": reader}

if __name__ == "__main__":
    main()
