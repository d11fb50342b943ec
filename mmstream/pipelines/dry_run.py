"""What an `embed` would do, found out on one chunk: how much, how fast, how long, how large, and the first rejects.

The chunk is read, decoded and encoded as in the real run, in this process and without Ray. Nothing is written.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from mmstream.embeddings.layout import read_records
from mmstream.embeddings.writer import to_parquet
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.errors import ExitCode, Reason
from mmstream.media.filters import Filters
from mmstream.pipelines.contain import watched
from mmstream.pipelines.destination import check_records, check_vacant
from mmstream.pipelines.embed import check_fields, checked_filters
from mmstream.pipelines.embed_report import is_next
from mmstream.pipelines.encode import columns_of, encode_chunk
from mmstream.pipelines.frozen import limited
from mmstream.pipelines.ledger import BUDGET_AT_END_FROM_SAMPLES, MAX_REJECTS
from mmstream.pipelines.manifest import Asked, fitting, grown, open_set
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.resources import LOGICAL_CPUS, Shares, cores, shares_of
from mmstream.pipelines.source import ShardTask, chunks_of, from_row, to_row
from mmstream.shards.catalog import build_catalog, named_sources
from mmstream.shards.group import Chunk
from mmstream.storage.files import absolute
from mmstream.telemetry import Report, counted
from mmstream.timing import Stopwatch

SHOWN_REJECTS = 5
START_SECONDS = 10.0  # of a local Ray and its workers, before they load the model: measured on two cores


class Sighted(BaseModel):
    """One sample of the chunk that would be set aside."""

    key: str | None
    reason: str
    detail: str


class DryRunReport(Report):
    """`shards`, `bytes` and what follows are of what is left to do; `committed_samples` are there already.

    `samples` is estimated from the bytes per sample of one chunk, `seconds` is that for `workers` encoders of this
    machine, `start_seconds` of it until the first sample; `samples_per_second` is theirs together, without the start.
    `over_budget` is whether `embed` would end with too many rejects, were all the rest like the chunk.
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
    start_seconds: float
    output_bytes: int
    looked_at: str | None
    samples_seen: int
    rejects: dict[str, int]
    first_rejects: list[Sighted]
    max_rejects: float
    over_budget: bool
    absent_fields: list[str]  # that no row of the chunk has
    finished: bool  # nothing is left to do

    def title(self) -> str:
        return "dry run: everything is done, this set is finished" if self.finished else "dry run: nothing was written"

    def lines(self) -> list[tuple[str, str]]:
        if not self.shards:
            left = "nothing" if self.finished else "all is committed, embed only has to say that it is finished"
            done = ("done before", counted(self.committed_samples, "sample"))
            return [("to do", left), done, ("model", self.model), ("where", self.dest)]
        shards, samples = counted(self.shards, "shard"), counted(self.samples, "sample")
        shown = [("to do", f"{shards}, {self.bytes / 1e6:,.1f} MB, about {samples}")]
        if self.committed_samples:
            shown.append(("done before", counted(self.committed_samples, "sample")))
        shown.append(("model", self.model))
        rate = f"{self.samples_per_second:,.0f} samples/s with {counted(self.workers, 'encoder')} on this machine"
        shown.append(("time", f"about {self.seconds:,.0f} s: {self.start_seconds:,.0f} s to start, then {rate}"))
        shown.append(("output", f"about {self.output_bytes / 1e6:,.1f} MB at {self.dest}"))
        shown.append(("looked at", f"{counted(self.samples_seen, 'sample')} of {self.looked_at}"))
        shown.append(("rejects there", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        shown += [(r.reason, f"{r.key}: {r.detail}") for r in self.first_rejects]
        if self.over_budget:
            code, budget = int(ExitCode.TOO_MANY_REJECTS), f"--max-rejects {self.max_rejects:.0%}"
            shown.append(("budget", f"were all the rest like this, embed would end with exit code {code}: {budget}"))
        return shown + [(f"field {name}", "is in the JSON of none of these samples") for name in self.absent_fields]


def dry_run(
    source: str | Sequence[str],
    dest: str,
    model: str = DEFAULT_SPEC,
    *,
    fields: Sequence[str] = (),
    filters: Filters | Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_rejects: float = MAX_REJECTS,
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
    listed, stored = build_catalog(source), open_set(dest)
    asked_catalog, start = limited(listed, limit, stored.catalog if stored else None), time.perf_counter()
    encoder = load_encoder(model)
    asked = Asked(asked_catalog, encoder, tuple(fields), limit, checked_filters(filters, encoder))
    load_seconds = time.perf_counter() - start
    found = fitting(stored, asked)
    if found is None:
        check_vacant(dest)
        check_records(dest, asked)
    catalog = asked.catalog if found is None else grown(found, asked, append=append)
    records = read_records(dest, catalog)  # also where their manifest was lost: embed takes them up
    whole = records.finished()
    if found and found.manifest.finished:
        found.check_whole(whole)
    tasks = [task for task in shard_tasks(catalog) if task.shard not in whole]
    is_done = found is not None and found.manifest.finished and catalog.equals(found.catalog) and not tasks
    shares = _shares(len(tasks), found.manifest.threads if found else None, asked.encoder)
    return DryRunReport(
        dest=dest,
        model=asked.encoder.spec,
        committed_samples=sum(c.num_samples for of_shard in records.by_chunk().values() for c in of_shard.values()),
        shards=len(tasks),
        bytes=sum(task.bytes for task in tasks),
        workers=shares.encoders,
        max_rejects=max_rejects,
        finished=is_done,
        next=is_next(dest) if is_done else [_command(source, dest, model, asked, max_rejects, append)],
        **(_measured(tasks, asked, shares, max_rejects, START_SECONDS + load_seconds) if tasks else _nothing()),
    )


def _command(
    source: str | Sequence[str],
    dest: str,
    model: str,
    asked: Asked,
    max_rejects: float,
    append: bool,
) -> str:
    """The same without `--dry-run`."""
    options = [word for name in asked.fields for word in ("--field", name)]
    options += asked.filters.options()
    options += ["--limit", str(asked.limit)] if asked.limit is not None else []
    options += ["--max-rejects", f"{max_rejects:g}"] if max_rejects != MAX_REJECTS else []
    options += ["--append"] if append else []
    sources = named_sources(source)
    return shlex.join(["mmstream", "embed", *sources, dest, "--model", model, *options])


def _shares(num_tasks: int, threads: int | None, encoder: Encoder) -> Shares:
    """The layout on this machine, as `resources.start_ray` would start it."""
    gpus = 0
    if encoder.device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    cpus = max(LOGICAL_CPUS, cores())
    return shares_of(max(1, num_tasks), threads, cpus=cpus, physical=min(cpus, cores()), gpus=gpus)


def _measured(
    tasks: list[ShardTask], asked: Asked, shares: Shares, max_rejects: float, start_seconds: float
) -> dict[str, Any]:
    import torch

    task, size = tasks[0], sum(task.bytes for task in tasks)
    torch.set_num_threads(shares.encoder_threads)
    chunk = next(chunks_of(task, columns_of(asked.encoder)))
    info, samples = from_row(to_row(chunk, task, 0.0))
    start = time.perf_counter()
    with ThreadPoolExecutor(shares.encoder_threads) as pool, watched("embed would set that one aside") as decoder:
        settings = {"pool": pool, "watch": Stopwatch(), "decoder": decoder, "filters": asked.filters}
        rows, rejects = encode_chunk(info, samples, asked.encoder, asked.fields, **settings)
    num_bad = sum(reason != Reason.FILTERED for reason in rejects["reason"].to_pylist())
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
        "seconds": round(start_seconds + num_samples / rate, 1) if rate else 0.0,
        "start_seconds": round(start_seconds, 1),
        "output_bytes": round(len(data) * num_samples / chunk.num_samples) if chunk.num_samples else 0,
        "looked_at": os.path.basename(task.url),  # noqa: PTH119
        "samples_seen": chunk.num_samples,
        "over_budget": _is_over(max_rejects, num_samples, chunk, num_bad, task.bytes),
        "absent_fields": [f for f in asked.fields if rows.num_rows and rows[f].null_count == rows.num_rows],
        **_rejects(rejects),
    }


def _is_over(max_rejects: float, num_samples: int, chunk: Chunk, num_rejects: int, shard_bytes: int) -> bool:
    """Whether the budget of `num_samples` would be spent, were they all like those of the chunk; what lies behind
    damage is counted by the bytes per sample before it, as `embed` does."""
    behind = 0
    if chunk.damage:
        num_rejects -= 1  # it stands for the unknown rest
        behind = int((shard_bytes - chunk.damage.offset) * chunk.num_samples / max(1, chunk.damage.offset))
    if num_samples + behind < BUDGET_AT_END_FROM_SAMPLES and max_rejects > 0:
        return False
    rejected = num_samples * num_rejects / max(1, chunk.num_samples)
    return rejected + behind > max_rejects * (num_samples + behind)


def _rejects(rejects: pa.Table) -> dict[str, Any]:
    counts = Counter(rejects["reason"].to_pylist())
    first = [Sighted(**r) for r in rejects.select(["key", "reason", "detail"]).slice(0, SHOWN_REJECTS).to_pylist()]
    return {"rejects": dict(sorted(counts.items())), "first_rejects": first}


def _nothing() -> dict[str, Any]:
    counts = {"samples": 0, "samples_per_second": 0.0, "seconds": 0.0, "output_bytes": 0, "samples_seen": 0}
    found = {"rejects": {}, "first_rejects": [], "over_budget": False, "absent_fields": []}
    return {**counts, "start_seconds": 0.0, "looked_at": None, **found}
