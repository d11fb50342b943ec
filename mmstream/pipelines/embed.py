"""Shards in, an embedding set out: read → encode and commit on Ray, with a record for every chunk.

The driver freezes the catalog, plans what is not committed yet, and folds the records of finished shards. Readers and
encoders are separate Ray stages; an encoder writes its chunk and record itself and hands back one small row, so the
driver sees a few numbers per chunk and never a sample. Run it again after any kill: it goes on.
"""

from __future__ import annotations

import hashlib
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import pyarrow as pa
from pydantic import BaseModel
from ray.data import ActorPoolStrategy, Dataset

from mmstream.embeddings.layout import catalog_path, latest_manifest, manifest_path, parse
from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.errors import RefusedError, UsageError
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.ledger import Ledger
from mmstream.pipelines.read import chunk_dataset
from mmstream.pipelines.resources import Shares, encode_shares, our_errors, start_ray, streaming_context
from mmstream.pipelines.source import CHUNK_BYTES, CHUNK_ROWS, ShardTask, from_row, num_rows
from mmstream.schema import METADATA, ChunkRecord, Manifest
from mmstream.shards.catalog import build_catalog, check_same, from_parquet, to_parquet
from mmstream.storage.commit import honours_put_if_absent, put_if_absent
from mmstream.storage.files import absolute, join, read_bytes
from mmstream.telemetry import Progress, Report, Stopwatch, slowest, stderr

_LIBRARIES = ("mmstream", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pillow", "numpy")
_SETTINGS = ("format", "fingerprint", "dimension", "modalities", "normalized", "fields", "limit")
_SAME_CHUNKS = ("chunk_rows", "chunk_bytes")  # of another release: its records have other boundaries


class DamagedShard(BaseModel):
    """A shard that broke. It gave `rows_seen` samples before `offset`; the rest is unknown."""

    shard: int
    url: str
    reason: str
    offset: int
    detail: str
    rows_seen: int


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
    model: str
    fingerprint: str

    def title(self) -> str:
        return "nothing to do: this set is finished" if self.already_finished else "embedded"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("rows", f"{self.rows:,} from {self.shards:,} shards"), ("model", self.model), ("where", self.dest)]
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        if not self.already_finished:
            shown.append(("time", f"{self.seconds:.1f} s, {self.samples_per_second:,.0f} samples/s"))
        if self.waited_for:
            shown.append(("waited for", self.waited_for))
        for d in self.damaged:
            shown.append(
                ("damaged", f"{d.url}: {d.reason} at byte {d.offset:,} after {d.rows_seen:,} samples ({d.detail})")
            )
        return shown


@dataclass
class _Encode:
    """The encoder stage's actor: a chunk in, its commit out as one small row."""

    spec: str
    fingerprint: str
    root: str
    fields: tuple[str, ...]
    threads: int
    encoder: Encoder = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    idle_since: float = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = load_on_worker(self.spec, self.fingerprint, self.threads)
        self.pool = ThreadPoolExecutor(self.threads, "decode")
        self.idle_since = time.perf_counter()

    def __call__(self, row: pa.Table) -> pa.Table:
        watch = Stopwatch()
        watch.add("read", time.perf_counter() - self.idle_since)
        info, samples = from_row(row)
        rows, rejects = encode_chunk(info, samples, self.encoder, self.fields, pool=self.pool, watch=watch)
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
            record = commit_chunk(self.root, result, self.fingerprint)
        self.idle_since = time.perf_counter()
        done = {"record": record.model_dump_json(), "bytes": info.read_bytes}
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
    max_rejects: float = 0.05,
) -> EmbedReport:
    """Embeds the samples of tar shards into the embedding set at `dest`; resumes one that was begun.

    Args:
        source: globs, braces, folders or URLs of WebDataset tar shards.
        dest: a folder or URL.
        model: a model spec, see `encoders.build`.
        fields: names of JSON fields to keep beside the vectors, as strings.
        limit: take at most this many samples, from the first shards on.
        max_rejects: share of samples that may be set aside before the run ends; judged from 1,000 samples on.

    Raises:
        UsageError: a source is missing, a model unknown, or no shard gave a sample.
        RefusedError: `dest` holds a set of another encoder, catalog or format.
        TooManyRejectsError: the share of rejects is over `max_rejects`; what was committed stays.
        UnreachableError: a store does not answer.
    """
    start, dest = time.monotonic(), absolute(dest)
    _check_fields(fields)
    catalog = limited(build_catalog(source), limit)
    encoder = load_encoder(model)
    number, manifest = _begin(dest, catalog, encoder, tuple(fields), limit)
    if manifest.finished:
        finished = Ledger(dest, catalog, encoder.fingerprint, max_rejects)
        return _report(dest, manifest, finished, catalog, already=True)
    ledger = Ledger(dest, catalog, encoder.fingerprint, max_rejects)
    seconds: dict[str, float] = {}
    if tasks := ledger.plan():
        start_ray()
        seconds = _run(ledger, tasks, encoder, tuple(fields), catalog.num_rows)
    totals = ledger.finish(source if isinstance(source, str) else " ".join(source))
    manifest = manifest.model_copy(update={"finished": True, "totals": totals})
    _publish_manifest(dest, number + 1, manifest)
    return _report(dest, manifest, ledger, catalog, time.monotonic() - start, slowest(seconds))


def _check_fields(fields: Sequence[str]) -> None:
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
        task = ShardTask(entry["shard"], entry["url"], entry["bytes"], entry["etag"], max_rows=left)
        rows = num_rows(task)
        # A shard that is taken whole keeps no bound: behind one, damage at its end would go unseen.
        kept.append({**entry, "max_rows": left if rows >= left else None})
        left -= rows
        if left <= 0:
            break
    return pa.Table.from_pylist(kept, schema=catalog.schema)


def _begin(
    dest: str, catalog: pa.Table, encoder: Encoder, fields: tuple[str, ...], limit: int | None
) -> tuple[int, Manifest]:
    """The manifest of the set at `dest`, written now if there is none; refuses one that does not fit."""
    found = latest_manifest(dest)
    if found is None:
        manifest = _first_manifest(dest, catalog, encoder, fields, limit)
        if not put_if_absent(join(dest, manifest.catalog), to_parquet(catalog)):
            check_same(_stored_catalog(dest, manifest), catalog, dest)  # a run that was killed here began the set
        _publish_manifest(dest, 0, manifest)
        found = latest_manifest(dest)
        assert found is not None
    number, stored, _ = found
    ours = _first_manifest(dest, catalog, encoder, fields, limit, single_writer=stored.single_writer)
    for name in (*_SETTINGS, *_SAME_CHUNKS):
        before, now = getattr(stored, name), getattr(ours, name)
        if before != now:
            raise RefusedError(
                f"{dest}: {name} differs: the set was begun with {before} ({stored.encoder}) and is asked for with "
                f"{now} ({encoder.spec}). Use the same settings to go on, or another folder for a new set."
            )
    check_same(_stored_catalog(dest, stored), catalog, dest)
    return number, stored


def _stored_catalog(dest: str, manifest: Manifest) -> pa.Table:
    return from_parquet(read_bytes(join(dest, manifest.catalog)), dest)


def _first_manifest(
    dest: str,
    catalog: pa.Table,
    encoder: Encoder,
    fields: tuple[str, ...],
    limit: int | None,
    single_writer: bool | None = None,
) -> Manifest:
    if single_writer is None:
        single_writer = not honours_put_if_absent(dest)
        if single_writer:
            stderr().print(
                f"[yellow]{dest}: this store ignores conditional writes; run one embed at a time on this folder.[/]"
            )
    return Manifest(
        finished=False,
        catalog=catalog_path(0),
        catalog_sha256=hashlib.sha256(to_parquet(catalog)).hexdigest(),
        encoder=encoder.spec,
        fingerprint=encoder.fingerprint,
        dimension=encoder.dimension,
        modalities=list(encoder.modalities),
        normalized=True,
        micro_batch=encoder.micro_batch,
        chunk_rows=CHUNK_ROWS,
        chunk_bytes=CHUNK_BYTES,
        fields=list(fields),
        limit=limit,
        single_writer=single_writer,
        device=encoder.device,
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _publish_manifest(dest: str, number: int, manifest: Manifest) -> None:
    """A manifest that another driver published first is as good as ours: the checks that follow read what is there."""
    put_if_absent(join(dest, manifest_path(number)), manifest.to_bytes())


def _run(
    ledger: Ledger, tasks: list[ShardTask], encoder: Encoder, fields: tuple[str, ...], num_shards: int
) -> dict[str, float]:
    """Carries out the tasks; returns the encoders' seconds by stage."""
    shares = encode_shares(len(tasks))
    settings = (encoder.spec, encoder.fingerprint, ledger.dest, fields, shares.encoder_threads)
    seconds = dict.fromkeys(STAGES, 0.0)
    num_bytes = 0
    with streaming_context(), our_errors():
        results = encode_stage(chunk_dataset(tasks, shares), _Encode, settings, shares)
        with Progress("embed", num_shards, "shards", rate_of="samples") as progress:
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

    Another number of CPUs than the readers' keeps Ray from fusing the two stages. Retries are bounded: a chunk that
    kills its worker again and again must end the run, not repeat for ever.
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
            max_restarts=4,
            max_task_retries=4,
            **gpus,
        )


def _report(
    dest: str,
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
        DamagedShard(shard=s.shard, url=urls[s.shard], rows_seen=s.num_samples, **s.damage.model_dump())
        for s in ledger.shards.values()
        if s.damage
    ]
    return EmbedReport(
        dest=dest,
        shards=len(ledger.shards),
        rows=ledger.num_rows,
        rejects=dict(sorted(ledger.rejects.items())),
        damaged=damaged,
        seconds=round(seconds, 2),
        samples_per_second=round(ledger.num_encoded / seconds, 1) if seconds else 0.0,
        waited_for=waited_for,
        already_finished=already,
        model=manifest.encoder,
        fingerprint=manifest.fingerprint,
        next=[
            shlex.join(["mmstream", "audit", dest]),
            shlex.join(["mmstream", "index", "build", dest, f"{dest}-index"]),
        ],
    )
