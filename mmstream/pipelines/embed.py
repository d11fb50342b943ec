"""Shards in, an embedding set out: read → encode and commit on Ray, with a record for every chunk.

The driver freezes the catalog, plans what is not committed yet, and folds the records of finished shards. Readers and
encoders are separate Ray stages; an encoder writes its chunk and record itself and hands back one small row, so the
driver sees a few numbers per chunk and never a sample. Run it again after any kill: it goes on.
"""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import BaseModel
from ray.data import ActorPoolStrategy, Dataset

from mmstream.embeddings.layout import parse
from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.errors import RefusedError, UsageError
from mmstream.pipelines.contain import Containment, containment
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.ledger import MAX_REJECTS, Ledger
from mmstream.pipelines.manifest import Asked, OpenSet, begin, find, grown, say_what_matters
from mmstream.pipelines.read import chunk_dataset
from mmstream.pipelines.resources import Shares, encode_shares, our_errors, start_ray, streaming_context
from mmstream.pipelines.source import ShardTask, from_row, num_rows
from mmstream.schema import METADATA, ChunkRecord, Manifest
from mmstream.shards.catalog import build_catalog
from mmstream.storage.files import absolute
from mmstream.telemetry import Progress, Report, Stopwatch, slowest


class DamagedShard(BaseModel):
    """A shard that broke. It gave `rows_seen` samples before `offset`; the rest is unknown, about `rows_behind`."""

    shard: int
    url: str
    reason: str
    offset: int
    detail: str
    rows_seen: int
    rows_behind: int


class EmbedReport(Report):
    dest: str
    shards: int
    rows: int
    rejects: dict[str, int]
    damaged: list[DamagedShard]
    seconds: float
    samples_per_second: float
    waited_for: str | None
    already_finished: bool = False
    resumed_samples: int = 0  # that earlier runs had committed
    model: str
    fingerprint: str

    def title(self) -> str:
        return "nothing to do: this set is finished" if self.already_finished else "embedded"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("rows", f"{self.rows:,} from {self.shards:,} shards"), ("model", self.model), ("where", self.dest)]
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        if not self.already_finished:
            if self.resumed_samples:
                shown.append(("went on", f"{self.resumed_samples:,} samples were committed by earlier runs"))
            speed = f", {self.samples_per_second:,.0f} samples/s" if self.samples_per_second else ""
            shown.append(("time", f"{self.seconds:.1f} s{speed}"))
        if self.waited_for:
            shown.append(("waited for", self.waited_for))
        for d in self.damaged:
            where = f"{d.url}: {d.reason} at byte {d.offset:,} ({d.detail})"
            lost = f"at least {d.rows_seen:,} samples, and about {d.rows_behind:,} lie behind the damage"
            shown.append(("damaged", f"{where}: {lost}"))
        return shown


@dataclass
class _Encode:
    """The encoder stage's actor: a chunk in, its commit out as one small row."""

    spec: str
    fingerprint: str
    root: str
    fields: tuple[str, ...]
    threads: int
    micro_batch: int
    generations: Mapping[int, int]
    contained: Containment
    encoder: Encoder = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    idle_since: float = field(init=False)

    def __post_init__(self) -> None:
        with self.contained.loading(self.spec):
            self.encoder = load_on_worker(self.spec, self.fingerprint, self.threads)
        self.encoder.micro_batch = self.micro_batch
        self.pool = ThreadPoolExecutor(self.threads, "decode")
        self.idle_since = time.perf_counter()

    def __call__(self, row: pa.Table) -> pa.Table:
        watch = Stopwatch()
        watch.add("read", time.perf_counter() - self.idle_since)
        info, samples = from_row(row)
        with self.contained.chunk(info) as pictures:
            rows, rejects = encode_chunk(
                info, samples, self.encoder, self.fields, pool=self.pool, watch=watch, pictures=pictures
            )
            with watch("write"):
                result = ChunkResult(
                    shard=info.shard,
                    chunk=info.chunk,
                    first_row=info.first_row,
                    num_samples=info.num_samples,
                    rows=rows,
                    rejects=rejects,
                    end=info.end,
                    damage=info.damage,
                    source_bytes=info.source_bytes,
                    source_etag=info.source_etag,
                )
                record = commit_chunk(self.root, result, self.fingerprint, self.generations.get(info.shard, 0))
        self.idle_since = time.perf_counter()
        done = {"record": record.to_bytes().decode(), "bytes": info.read_bytes}
        return pa.Table.from_pylist([{**done, **{f"{k}_seconds": watch.seconds.get(k, 0.0) for k in STAGES}}])


STAGES = ("read", "decode", "model", "write")


def load_on_worker(spec: str, fingerprint: str, threads: int) -> Encoder:
    """The encoder in a Ray worker, on `threads` CPU threads.

    Raises:
        RefusedError: what the worker loads is not what the driver planned with.
    """
    import torch

    torch.set_num_threads(threads)
    encoder = load_encoder(spec)
    if encoder.fingerprint != fingerprint:
        raise RefusedError(
            f"{spec}: fingerprint is {encoder.fingerprint} on a worker and {fingerprint} on the driver. "
            "Every node must load the same weights and preprocessing."
        )
    return encoder


def embed(
    source: str | Sequence[str],
    dest: str,
    model: str = DEFAULT_SPEC,
    *,
    fields: Sequence[str] = (),
    limit: int | None = None,
    max_rejects: float = MAX_REJECTS,
    append: bool = False,
) -> EmbedReport:
    """Embeds the samples of tar shards into the embedding set at `dest`; resumes one that was begun.

    Args:
        source: globs, braces, folders or URLs of WebDataset tar shards.
        dest: a folder or URL.
        model: a model spec, see `encoders.build`.
        fields: names of JSON fields to keep beside the vectors, as strings.
        limit: take at most this many samples, from the first shards on.
        max_rejects: share of samples that may be set aside before the run ends; judged from 1,000 samples on.
        append: take in the shards that the source gained since; those that were there keep their numbers.

    Raises:
        UsageError: a source is missing, a model unknown, or no shard gave a sample.
        RefusedError: `dest` holds a set of another encoder, catalog or format, or one whose source has grown, without
            `append`.
        TooManyRejectsError: the share of rejects is over `max_rejects`; what was committed stays.
        UnreachableError: a store does not answer.
    """
    start, dest = time.monotonic(), absolute(dest)
    check_fields(fields)
    catalog = limited(build_catalog(source), limit)
    encoder = load_encoder(model)
    asked = Asked(catalog, encoder, tuple(fields), limit)
    opened = find(dest, asked)
    if opened is None:
        start_ray()
        opened = begin(dest, asked, encode_shares(catalog.num_rows).encoder_threads)
    catalog = grown(opened, asked, append=append)
    is_whole = opened.manifest.finished and catalog.num_rows == opened.catalog.num_rows
    if not is_whole and not catalog.equals(opened.catalog):
        opened = opened.with_catalog(catalog)
    ledger = Ledger(dest, catalog, encoder.fingerprint, max_rejects)
    if opened.manifest.finished and len(ledger.shards) == catalog.num_rows:
        return _report(opened.manifest, ledger, catalog, already=True)
    seconds = run(opened, ledger, ledger.plan(), encoder)
    opened = opened.finished(ledger.finish(source if isinstance(source, str) else " ".join(source)))
    return _report(opened.manifest, ledger, catalog, time.monotonic() - start, slowest(seconds))


def check_fields(fields: Sequence[str]) -> None:
    taken = [f for f in fields if f in METADATA.names or f == "similarity" or f.endswith("_embedding")]
    if taken or len(set(fields)) < len(fields):
        what = f"{taken[0]} is a column already" if taken else "a name is given twice"
        raise UsageError(f"--field {' --field '.join(fields)}: {what}. A row has {', '.join(METADATA.names)} anyway.")


def limited(catalog: pa.Table, limit: int | None) -> pa.Table:
    """The catalog cut to the first shards that hold `limit` samples; the last of them has `max_rows`."""
    if limit is None:
        return catalog
    if limit < 1:
        raise UsageError(f"--limit {limit}: give a number of at least 1.")
    kept, left = [], limit
    for entry in catalog.to_pylist():
        task = ShardTask(entry["shard"], entry["url"], entry["bytes"], entry["etag"], left, entry["sha256"])
        rows = num_rows(task)
        # A shard that is taken whole keeps no bound: behind one, damage at its end would go unseen.
        kept.append({**entry, "max_rows": left if rows >= left else None})
        left -= rows
        if left <= 0:
            break
    return pa.Table.from_pylist(kept, schema=catalog.schema)


def run(
    opened: OpenSet, ledger: Ledger, tasks: list[ShardTask], encoder: Encoder, title: str = "embed"
) -> dict[str, float]:
    """Carries out the tasks of a set's ledger; returns the encoders' seconds by stage. Ray is started if need be."""
    if not tasks:
        return {}
    start_ray()
    manifest = opened.manifest
    say_what_matters(manifest, encoder)
    shares = encode_shares(len(tasks), manifest.threads)
    settings = (encoder.spec, encoder.fingerprint, opened.dest, tuple(manifest.fields))
    settings += (shares.encoder_threads, manifest.micro_batch, dict(ledger.generations))
    seconds = dict.fromkeys(STAGES, 0.0)
    num_bytes = 0
    with streaming_context(), our_errors(), containment() as contained:
        results = encode_stage(chunk_dataset(tasks, shares), _Encode, (*settings, contained), shares)
        with Progress(title, opened.catalog.num_rows, "shards", rate_of="samples") as progress:
            progress.update(len(ledger.shards))
            for done in rows_of(results):
                ledger.add(parse(ChunkRecord, done["record"].encode(), ledger.dest))
                num_bytes += done["bytes"]
                for stage in STAGES:
                    seconds[stage] += done[f"{stage}_seconds"]
                progress.update(
                    len(ledger.shards),
                    samples=ledger.num_encoded,
                    MB=num_bytes >> 20,
                    rejects=ledger.rejects.total(),
                    waits_for=slowest(seconds) or "start",
                )
    return seconds


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they are finished."""
    for table in tables_of(dataset):
        yield from table.to_pylist()


def tables_of(dataset: Dataset) -> Iterator[pa.Table]:
    """The blocks of a dataset as they are finished."""
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    yield from tables


def encode_stage(dataset, actor: type, settings: tuple, shares: Shares):
    """`actor(*settings)` on each chunk of `dataset`, as a stage of its own with the encoder's share of the machine.

    Another number of CPUs than the readers' keeps Ray from fusing the two stages. Ray restarts an actor that died and
    repeats what it had at hand, without end: every such actor uses `Containment`, which sees to an end.
    """
    gpus = {"num_gpus": shares.encoder_gpus} if shares.encoder_gpus else {}
    with warnings.catch_warnings():
        # Ray 2.60 warns of these two and offers nothing in their place.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        return dataset.map_batches(
            actor,
            fn_constructor_args=settings,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=shares.encoder_cpus,
            compute=ActorPoolStrategy(size=shares.encoders, max_tasks_in_flight_per_actor=4),
            max_restarts=-1,
            max_task_retries=-1,
            **gpus,
        )


def _report(
    manifest: Manifest,
    ledger: Ledger,
    catalog: pa.Table,
    seconds: float = 0.0,
    waited_for: str | None = None,
    *,
    already: bool = False,
) -> EmbedReport:
    urls = catalog["url"].to_pylist()
    damaged = [
        DamagedShard(
            shard=s.shard,
            url=urls[s.shard],
            rows_seen=s.num_samples,
            rows_behind=ledger.damaged[s.shard],
            **s.damage.model_dump(),
        )
        for s in ledger.shards.values()
        if s.damage
    ]
    return EmbedReport(
        dest=ledger.dest,
        shards=len(ledger.shards),
        rows=ledger.num_rows,
        rejects=dict(sorted(ledger.rejects.items())),
        damaged=damaged,
        seconds=round(seconds, 2),
        samples_per_second=round(ledger.num_encoded / seconds, 1) if seconds else 0.0,
        waited_for=waited_for,
        already_finished=already,
        resumed_samples=0 if already else ledger.num_samples - ledger.num_encoded,
        model=manifest.encoder,
        fingerprint=manifest.fingerprint,
        next=[
            *([shlex.join(["mmstream", "rejects", ledger.dest])] if ledger.rejects else []),
            shlex.join(["mmstream", "audit", ledger.dest]),
            shlex.join(["mmstream", "index", "build", ledger.dest, f"{ledger.dest}-index"]),
        ],
    )
