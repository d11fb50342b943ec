"""Shards in, an embedding set out: read → encode and commit on Ray, with a record for every chunk.

The driver freezes the catalog, plans what is not committed yet, and folds the records of finished shards. Readers and
encoders are separate Ray stages; an encoder writes its chunk and record itself and hands back one small row, so the
driver sees a few numbers per chunk and never a sample. Run it again after any kill: it goes on.
"""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from mmstream.embeddings.layout import parse
from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.errors import RefusedError, UsageError
from mmstream.media.filters import Filters
from mmstream.pipelines.contain import Containment, containment
from mmstream.pipelines.destination import check_records, check_vacant
from mmstream.pipelines.embed_report import NULLS, EmbedReport, report_of
from mmstream.pipelines.encode import columns_of, encode_chunk
from mmstream.pipelines.frozen import limited
from mmstream.pipelines.ledger import MAX_REJECTS, Ledger
from mmstream.pipelines.manifest import Asked, OpenSet, begin, fitting, grown, open_set, say_what_matters
from mmstream.pipelines.read import chunk_dataset
from mmstream.pipelines.resources import Shares, encode_shares, our_errors, start_ray, streaming_context
from mmstream.pipelines.source import ChunkInfo, ShardTask, from_row
from mmstream.schema import METADATA, ChunkRecord
from mmstream.shards.catalog import build_catalog, named_sources
from mmstream.storage.files import absolute
from mmstream.telemetry import Progress, warn
from mmstream.timing import Diagnosis, Stopwatch, diagnosed

CALLS = 3  # chunks at hand in an actor: one is encoded, while those before it are written


@dataclass
class _Encode:
    """The encoder stage's actor: a chunk in, its commit out as one small row.

    `CALLS` threads of Ray call it. One thread encodes, chunk after chunk, so that the model has a single user and a
    chunk that is marked as at work is the one that a crash of a decoder is about; the callers write what it made, under
    marks of their own.
    """

    spec: str
    fingerprint: str
    root: str
    fields: tuple[str, ...]
    filters: Filters
    threads: int
    micro_batch: int
    generations: Mapping[int, int]
    contained: Containment
    encoder: Encoder = field(init=False)
    pool: ThreadPoolExecutor = field(init=False)
    turn: ThreadPoolExecutor = field(init=False)
    writing: _Writing = field(init=False)
    idle_since: float = field(init=False)
    is_first: bool = True

    def __post_init__(self) -> None:
        with self.contained.loading(self.spec):
            self.encoder = load_on_worker(self.spec, self.fingerprint, self.threads)
        self.encoder.micro_batch = self.micro_batch
        self.pool = ThreadPoolExecutor(self.threads, "decode")
        self.turn = ThreadPoolExecutor(1, "encode")
        self.writing = _Writing()
        self.idle_since = time.perf_counter()

    def __call__(self, row: pa.Table) -> pa.Table:
        info, samples = from_row(row)
        watch = Stopwatch()
        result = self.turn.submit(self._encoded, info, samples, watch).result()
        with self.writing, self.contained.writing(info):
            record = commit_chunk(self.root, result, self.fingerprint, self.generations.get(info.shard, 0))
        had = [f for f in self.fields if result.rows[f].null_count < result.rows.num_rows]
        done = {"record": record.to_bytes().decode(), "bytes": info.read_bytes, "fields": json.dumps(had)}
        return pa.Table.from_pylist([{**done, **{f"{k}_seconds": watch.seconds.get(k, 0.0) for k in STAGES}}])

    def _encoded(self, info: ChunkInfo, samples: pa.Table, watch: Stopwatch) -> ChunkResult:
        self._waited(watch, time.perf_counter() - self.idle_since, info)
        with self.contained.chunk(info) as decoder:
            rows, rejects = encode_chunk(
                info,
                samples,
                self.encoder,
                self.fields,
                pool=self.pool,
                watch=watch,
                decoder=decoder,
                filters=self.filters,
            )
        self.idle_since = time.perf_counter()
        return ChunkResult(
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

    def _waited(self, watch: Stopwatch, idle: float, info: ChunkInfo) -> None:
        """Divides the time without a chunk: while all calls were writing, that was at fault; else the store and what
        else reading takes, as the reader's time was."""
        blocked = min(idle, self.writing.blocked_seconds())
        watch.add("write", blocked)
        idle -= blocked
        if self.is_first:  # the rest of the first wait is the start of the readers
            idle, self.is_first = min(idle, info.read_seconds), False
        of_store = min(1.0, info.store_seconds / info.read_seconds) if info.read_seconds > 0 else 0.0
        watch.add("store", idle * of_store)
        watch.add("tar", idle * (1 - of_store))


class _Writing:
    """How long all `CALLS` were writing at once, so that no chunk could be encoded."""

    def __init__(self) -> None:
        self._lock, self._num, self._blocked, self._since = threading.Lock(), 0, 0.0, 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._num += 1
            self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._num == CALLS:
                self._blocked += time.perf_counter() - self._since
            self._num -= 1

    def blocked_seconds(self) -> float:
        """Since this was last asked."""
        with self._lock:
            blocked, self._blocked = self._blocked, 0.0
        return blocked


STAGES = ("store", "tar", "decode", "transfer", "model", "write")


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
    filters: Filters | Mapping[str, Any] | None = None,
    limit: int | None = None,
    max_rejects: float = MAX_REJECTS,
    append: bool = False,
) -> EmbedReport:
    """Embeds the samples of tar shards into the embedding set at `dest`; resumes one that was begun.

    Args:
        source: globs, braces, folders or URLs of WebDataset tar shards.
        dest: a folder or URL.
        model: a model spec, see `encoders.build`.
        fields: names of JSON fields to keep beside the vectors, as strings; `image_sha256` and `image_phash` are made
            of the picture (see `media.duplicates`).
        filters: which samples are wanted, limits of `media.filters.Filters`; the others become rejects, `filtered`,
            which `max_rejects` does not count.
        limit: take at most this many samples, from the first shards on.
        max_rejects: share of samples that may be set aside before the run ends; judged from 1,000 samples on, and at
            the end from 100 on. 0 allows none, however few there are.
        append: take in the shards that the source gained since; those that were there keep their numbers.

    Raises:
        UsageError: a source is missing, a model unknown, or no shard gave a sample.
        RefusedError: `dest` holds a set of another encoder, catalog or format, or one whose source has grown, without
            `append`; or it holds other things.
        DifferencesError: `dest` holds a finished set that has lost something since; `repair` makes that anew.
        TooManyRejectsError: the share of rejects is over `max_rejects`; what was committed stays.
        UnreachableError: a store does not answer.
    """
    start, dest = time.monotonic(), absolute(dest)
    check_fields(fields)
    sources = named_sources(source)
    listed, stored = build_catalog(sources), open_set(dest, sources)
    encoder = load_encoder(model)
    if encoder.spec.startswith("fused:") and encoder.group == 1:
        warn(
            f"{encoder.spec}: no GPU with nvImageCodec (the extra gpu) is on this machine. Where the workers have none "
            "either, each picture is decoded and resized on the CPU, slower than without fused:."
        )
    wanted = checked_filters(filters, encoder)
    asked = Asked(limited(listed, limit, stored.catalog if stored else None), encoder, tuple(fields), limit, wanted)
    opened = fitting(stored, asked)
    if opened is None:
        check_vacant(dest)
        check_records(dest, asked)
        start_ray()
        opened = begin(dest, asked, encode_shares(asked.catalog.num_rows).encoder_threads)
    catalog = grown(opened, asked, append=append)
    ledger = Ledger(dest, catalog, encoder.fingerprint, max_rejects)
    tasks = ledger.plan()
    if opened.manifest.finished:
        opened.check_whole(ledger.shards)
        if not tasks and catalog.equals(opened.catalog):
            return report_of(opened.manifest, ledger, catalog, already=True)
    if not catalog.equals(opened.catalog):
        opened = opened.with_catalog(catalog)
    ran = run(opened, ledger, tasks, encoder)
    opened = opened.finished(ledger.finish(" ".join(sources)))
    absent = [f for f in fields if f not in ran.fields] if ran.num_rows else []
    for name in absent:
        warn(f"--field {name}: {NULLS}. Is it spelt as in the JSON?")
    found = diagnosed(ran.seconds)
    return report_of(opened.manifest, ledger, catalog, time.monotonic() - start, found, absent_fields=absent)


def check_fields(fields: Sequence[str]) -> None:
    taken = [f for f in fields if f in METADATA.names or f == "similarity" or f.endswith("_embedding")]
    if taken or len(set(fields)) < len(fields):
        what = f"{taken[0]} is a column already" if taken else "a name is given twice"
        raise UsageError(f"--field {' --field '.join(fields)}: {what}. A row has {', '.join(METADATA.names)} anyway.")


def checked_filters(filters: Filters | Mapping[str, Any] | None, encoder: Encoder) -> Filters:
    """
    Raises:
        UsageError: no such limit, one for something that this encoder does not decode, or a package is missing.
    """
    found = filters if isinstance(filters, Filters) else Filters.checked(dict(filters or {}), where="filters")
    needs = {"side": "image", "pixels": "image", "aspect": "image", "seconds": "audio"}
    has = {*encoder.modalities, "text", *(("audio",) if encoder.num_frames else ())}  # videos have a length, too
    for limit in found.set:
        if (modality := needs.get(limit.rsplit("_", 1)[-1], "text")) not in has:
            raise UsageError(f"--filter {limit}: {encoder.spec} takes no {modality}, so none is decoded for it.")
    found.caption("a caption")
    return found


@dataclass
class Ran:
    """What a run did: rows written, the fields that any of them had, the encoders' seconds by stage."""

    num_rows: int = 0
    fields: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


def run(opened: OpenSet, ledger: Ledger, tasks: list[ShardTask], encoder: Encoder, title: str = "embed") -> Ran:
    """Carries out the tasks of a set's ledger. Ray is started if need be."""
    ran = Ran()
    if not tasks:
        return ran
    start_ray()
    manifest = opened.manifest
    say_what_matters(manifest, encoder)
    shares = encode_shares(len(tasks), manifest.threads)
    filters = Filters.model_validate(manifest.filters)
    settings = (encoder.spec, encoder.fingerprint, opened.dest, tuple(manifest.fields), filters)
    settings += (shares.encoder_threads, manifest.micro_batch, dict(ledger.generations))
    num_bytes = 0
    with streaming_context(), our_errors(), containment() as contained:
        chunks = chunk_dataset(tasks, shares, columns_of(encoder))
        results = encode_stage(chunks, _Encode, (*settings, contained), shares, calls=CALLS)
        with Progress(title, opened.catalog.num_rows, "shards", rate_of="samples") as progress:
            progress.update(len(ledger.shards))
            for done in rows_of(results):
                record = parse(ChunkRecord, done["record"].encode(), ledger.dest)
                ledger.add(record)
                num_bytes += done["bytes"]
                ran.num_rows += record.num_rows
                ran.fields.update(json.loads(done["fields"]))
                for stage in STAGES:
                    ran.seconds[stage] += done[f"{stage}_seconds"]
                progress.update(
                    len(ledger.shards),
                    samples=ledger.num_encoded,
                    MB=num_bytes >> 20,
                    rejects=ledger.rejects.total(),
                    encoder_waited=_waited_so_far(diagnosed(ran.seconds)),
                )
    return ran


def _waited_so_far(found: Diagnosis | None) -> str:
    if found is None:
        return "for the start"
    return f"{100 * found.waited:.0f} %, {'limit' if found.stage == 'model' else 'for'}: {found.most}"


def rows_of(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a dataset as they are finished."""
    for table in tables_of(dataset):
        yield from table.to_pylist()


def tables_of(dataset: Dataset) -> Iterator[pa.Table]:
    """The blocks of a dataset as they are finished."""
    tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    yield from tables


def encode_stage(dataset, actor: type, settings: tuple, shares: Shares, *, calls: int = 1):
    """`actor(*settings)` on each chunk of `dataset`, as a stage of its own with the encoder's share of the machine.
    `calls` threads call each actor.

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
            compute=ActorPoolStrategy(
                size=shares.encoders,
                max_tasks_in_flight_per_actor=3 + calls,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=calls > 1,
            ),
            max_restarts=-1,
            max_task_retries=-1,
            **gpus,
        )
