"""What an `embed` would do, found out on one chunk: how much, how fast, how long, how large, and the first rejects.

The chunk is read, decoded and encoded as in the real run, in this process and without Ray. Nothing is written.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from mmstream.embeddings.layout import Records, read_records
from mmstream.embeddings.writer import to_parquet
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.pipelines.embed import check_fields, limited
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.manifest import Asked, find, grown
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.resources import LOGICAL_CPUS, Shares, cores, shares_of
from mmstream.pipelines.source import ShardTask, chunks_of, from_row, to_row
from mmstream.shards.catalog import build_catalog
from mmstream.storage.files import absolute
from mmstream.telemetry import Report, Stopwatch

SHOWN_REJECTS = 5


class Sighted(BaseModel):
    """One sample of the chunk that would be set aside."""

    key: str | None
    reason: str
    detail: str


class DryRunReport(Report):
    """`shards`, `bytes` and what follows are of what is left to do; `committed_samples` are there already.

    `samples` is estimated from the bytes per sample of one chunk, `seconds` is that for `workers` encoders of this
    machine, without their start; `samples_per_second` is theirs together.
    """

    dest: str
    model: str
    shards: int
    bytes: int
    committed_samples: int
    samples: int
    workers: int
    samples_per_second: float
    seconds: float
    output_bytes: int
    looked_at: str | None
    samples_seen: int
    rejects: dict[str, int]
    first_rejects: list[Sighted]

    def title(self) -> str:
        return "dry run: nothing was written" if self.shards else "dry run: nothing is left to do"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("to do", f"{self.shards:,} shards, {self.bytes / 1e6:,.1f} MB, about {self.samples:,} samples")]
        if self.committed_samples:
            shown.append(("done before", f"{self.committed_samples:,} samples"))
        shown.append(("model", self.model))
        rate = f"{self.samples_per_second:,.0f} samples/s with {self.workers} encoders on this machine"
        shown.append(("time", f"about {self.seconds:,.0f} s: {rate}"))
        shown.append(("output", f"about {self.output_bytes / 1e6:,.1f} MB at {self.dest}"))
        shown.append(("looked at", f"{self.samples_seen:,} samples of {self.looked_at}"))
        shown.append(("rejects there", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        return [*shown, *((r.reason, f"{r.key}: {r.detail}") for r in self.first_rejects)]


def dry_run(
    source: str | Sequence[str],
    dest: str,
    model: str = DEFAULT_SPEC,
    *,
    fields: Sequence[str] = (),
    limit: int | None = None,
    append: bool = False,
) -> DryRunReport:
    """Looks at one chunk of what `embed` with these arguments would do.

    Raises:
        UsageError: a source is missing, or a model unknown.
        RefusedError: what `embed` would refuse.
        UnreachableError: a store does not answer.
    """
    dest = absolute(dest)
    check_fields(fields)
    asked = Asked(limited(build_catalog(source), limit), load_encoder(model), tuple(fields), limit)
    found = find(dest, asked)
    catalog = asked.catalog if found is None else grown(found, asked, append=append)
    records = Records({}, {}) if found is None else read_records(dest, catalog)
    whole = records.finished()
    tasks = [task for task in shard_tasks(catalog) if task.shard not in whole]
    shares = _shares(len(tasks), found.manifest.threads if found else None, asked.encoder)
    return DryRunReport(
        dest=dest,
        model=asked.encoder.spec,
        committed_samples=sum(c.num_samples for of_shard in records.by_chunk().values() for c in of_shard.values()),
        shards=len(tasks),
        bytes=sum(task.bytes for task in tasks),
        workers=shares.encoders,
        next=[_command(source, dest, model, fields, limit, append)],
        **(_measured(tasks, asked, shares) if tasks else _nothing()),
    )


def _command(
    source: str | Sequence[str], dest: str, model: str, fields: Sequence[str], limit: int | None, append: bool
) -> str:
    """The same without `--dry-run`."""
    options = [word for name in fields for word in ("--field", name)]
    options += ["--limit", str(limit)] if limit is not None else []
    options += ["--append"] if append else []
    sources = [source] if isinstance(source, str) else source
    return shlex.join(["mmstream", "embed", *sources, dest, "--model", model, *options])


def _shares(num_tasks: int, threads: int | None, encoder: Encoder) -> Shares:
    """The layout on this machine, as `resources.start_ray` would start it."""
    gpus = 0
    if encoder.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    cpus = max(LOGICAL_CPUS, cores())
    return shares_of(max(1, num_tasks), threads, cpus=cpus, physical=min(cpus, cores()), gpus=gpus)


def _measured(tasks: list[ShardTask], asked: Asked, shares: Shares) -> dict[str, Any]:
    import torch

    task, size = tasks[0], sum(task.bytes for task in tasks)
    torch.set_num_threads(shares.encoder_threads)
    chunk = next(chunks_of(task))
    info, samples = from_row(to_row(chunk, task, 0.0))
    start = time.perf_counter()
    with ThreadPoolExecutor(shares.encoder_threads) as pool:
        rows, rejects = encode_chunk(info, samples, asked.encoder, asked.fields, pool=pool, watch=Stopwatch())
    data = to_parquet(rows)
    seconds = time.perf_counter() - start
    share = size / chunk.bytes_read if chunk.bytes_read else 0.0
    num_samples = round(share * chunk.num_samples)
    if asked.limit is not None:
        num_samples = min(num_samples, asked.limit)
    rate = shares.encoders * chunk.num_samples / seconds
    return {
        "samples": num_samples,
        "samples_per_second": round(rate, 1),
        "seconds": round(num_samples / rate, 1) if rate else 0.0,
        "output_bytes": round(len(data) * num_samples / chunk.num_samples) if chunk.num_samples else 0,
        "looked_at": os.path.basename(task.url),  # noqa: PTH119
        "samples_seen": chunk.num_samples,
        **_rejects(rejects),
    }


def _rejects(rejects: pa.Table) -> dict[str, Any]:
    counts = Counter(rejects["reason"].to_pylist())
    first = [Sighted(**r) for r in rejects.select(["key", "reason", "detail"]).slice(0, SHOWN_REJECTS).to_pylist()]
    return {"rejects": dict(sorted(counts.items())), "first_rejects": first}


def _nothing() -> dict[str, Any]:
    counts = {"samples": 0, "samples_per_second": 0.0, "seconds": 0.0, "output_bytes": 0, "samples_seen": 0}
    return {**counts, "looked_at": None, "rejects": {}, "first_rejects": []}
