"""Shards in, one file of statistics out: a single streamed pass, on Ray, in which every sample is counted or rejected.

Each chunk becomes a small tally in a worker, decoded under the same guards as for `embed`; the driver merges tallies in
an order that is that of the shards and their chunks alone. So the file has the same bytes however many workers there
were. It is published at the end, whole, and never over another one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from mmstream.encoders.pipelined import prepared
from mmstream.errors import MmstreamError, RefusedError, Rejected, TooManyRejectsError, UsageError
from mmstream.media.decoding import Decoder
from mmstream.media.sample_statistics import Measured, MergedInOrder, SampleTally, Wanted, checked_kinds, measured
from mmstream.media.statistics_file import BrokenShard, StatisticsFile, read_statistics
from mmstream.pipelines.contain import Containment, containment
from mmstream.pipelines.embed import encode_stage, rows_of
from mmstream.pipelines.frozen import limited
from mmstream.pipelines.ledger import BUDGET_AT_END_FROM_SAMPLES, BUDGET_FROM_SAMPLES, MAX_REJECTS
from mmstream.pipelines.read import chunk_dataset, shard_tasks
from mmstream.pipelines.resources import encode_shares, our_errors, start_ray, streaming_context
from mmstream.pipelines.source import from_row
from mmstream.pipelines.statistics_report import StatsReport, report_of
from mmstream.schema import Damage
from mmstream.shards.catalog import build_catalog, named_sources, to_parquet
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import absolute, exists
from mmstream.telemetry import Progress

_AHEAD = 4  # samples a thread that are decoded and not yet counted


def stats(
    source: str | Sequence[str],
    dest: str,
    *,
    of: Sequence[str] = (),
    fields: Sequence[str] = (),
    limit: int | None = None,
    max_rejects: float = MAX_REJECTS,
) -> StatsReport:
    """Mean, standard deviation, extremes, quantiles and missing values of the samples of tar shards.

    Args:
        source: globs, braces, folders or URLs of WebDataset tar shards.
        dest: a file or URL that ends with .json; one with the same statistics is taken as it is.
        of: some of image (channels), audio (mel bands), numbers (JSON fields), captions (length); all by default.
        fields: JSON fields, dotted where they are in objects; all that hold numbers by default.
        limit: take at most this many samples, from the first shards on.
        max_rejects: share of samples that may be set aside before the run ends; judged from 1,000 samples on, and at
            the end from 100 on. 0 allows none, however few there are.

    Raises:
        UsageError: nothing matches, `dest` is no .json, an unknown kind, or no shard gave a sample.
        RefusedError: other statistics, or something else, are at `dest`.
        TooManyRejectsError: the share of rejects is over `max_rejects`; nothing is written.
        UnreachableError: a store does not answer.
    """
    start, dest = time.monotonic(), absolute(dest)
    if not dest.endswith(".json"):
        raise UsageError(f"{dest}: statistics are one file whose name ends with .json, such as statistics.json.")
    wanted = Wanted(checked_kinds(of), tuple(dict.fromkeys(fields)) or None)
    if wanted.fields and "numbers" not in wanted.of:
        raise UsageError(f"--field {wanted.fields[0]}: numbers are not asked for. Add --of numbers.")
    sources = named_sources(source)
    catalog = limited(build_catalog(sources), limit)
    digest = hashlib.sha256(to_parquet(catalog)).hexdigest()
    asked = SampleTally(wanted).file(digest, limit)
    if exists(dest):
        return report_of(dest, sources, _same(dest, asked), catalog.num_rows, already=True)
    tally, broken = _counted(catalog, wanted, max_rejects)
    if not tally.samples:
        why = f" (the first: {broken[0].reason}, {broken[0].detail})" if broken else ""
        raise UsageError(f"{' '.join(sources)}: no shard gave a sample{why}. Are these WebDataset tars?")
    _check_budget(tally, max_rejects, BUDGET_AT_END_FROM_SAMPLES)
    file = tally.file(digest, limit, broken)
    if not put_if_absent(dest, file.to_bytes()):
        _same(dest, asked)
    return report_of(dest, sources, file, catalog.num_rows, time.monotonic() - start)


def _same(dest: str, asked: StatisticsFile) -> StatisticsFile:
    """What is at `dest`, if it is what would be made.

    Raises:
        RefusedError: it is something else.
    """
    try:
        found = read_statistics(dest)
    except UsageError as e:
        raise RefusedError(f"{dest}: is there already, and no statistics ({e}). Choose another name.") from e
    for name in ("catalog_sha256", "limit", "of", "fields"):
        before, now = getattr(found, name), getattr(asked, name)
        if before != now:
            what = "is of other shards" if name == "catalog_sha256" else f"{name} was {before} and is now {now}"
            raise RefusedError(f"{dest}: {what}. Nothing is written over; choose another name, or remove the file.")
    return found


def _counted(catalog: pa.Table, wanted: Wanted, max_rejects: float) -> tuple[SampleTally, list[BrokenShard]]:
    tasks = shard_tasks(catalog)
    start_ray()
    shares = encode_shares(len(tasks), with_gpus=False)
    shards = _Shards(wanted, catalog)
    with (
        streaming_context(),
        our_errors(),
        containment() as contained,
        Progress("stats", len(tasks), "shards", rate_of="samples") as progress,
    ):
        settings = (wanted, shares.encoder_threads, contained)
        for row in rows_of(encode_stage(chunk_dataset(tasks, shares), _Count, settings, shares)):
            shards.add(row)
            _check_budget(shards.seen, max_rejects, BUDGET_FROM_SAMPLES)
            progress.update(shards.num_ended, samples=shards.seen.samples, rejects=shards.seen.rejects.total())
    return shards.total(), sorted(shards.broken, key=lambda b: b.shard)


def _check_budget(tally: SampleTally, max_rejects: float, from_samples: int) -> None:
    rejected = tally.rejects.total()
    is_judged = tally.samples >= from_samples or max_rejects == 0
    if not is_judged or rejected <= max_rejects * tally.samples:
        return
    counts = ", ".join(f"{reason} {n:,}" for reason, n in sorted(tally.rejects.items()))
    raise TooManyRejectsError(
        f"{rejected:,} of {tally.samples:,} samples were rejected ({counts}): more than --max-rejects "
        f"{max_rejects:.0%}. Nothing is written; mend the source, or raise --max-rejects."
    )


class _Count:
    """The counting stage's actor: a chunk in, its tally out as one small row."""

    def __init__(self, wanted: Wanted, threads: int, contained: Containment) -> None:
        self._wanted, self._contained, self._threads = wanted, contained, threads
        self._pool = ThreadPoolExecutor(threads, "decode")

    def __call__(self, row: pa.Table) -> pa.Table:
        info, samples = from_row(row)
        with self._contained.chunk(info) as decoder:
            tally = tally_of(samples, self._wanted, decoder, self._pool, self._threads)
        about = {"shard": info.shard, "chunk": info.chunk, "end": info.end}
        damage = info.damage.model_dump_json() if info.damage else None
        return pa.Table.from_pylist([{**about, "damage": damage, "tally": tally.to_json()}])


def tally_of(
    samples: pa.Table, wanted: Wanted, decoder: Decoder, pool: ThreadPoolExecutor, threads: int
) -> SampleTally:
    """The samples of one chunk, counted in their order while `pool` decodes those that follow."""
    columns = {name: samples[name].combine_chunks() for name in samples.column_names}
    tally = SampleTally(wanted)
    look = partial(_measured, columns=columns, wanted=wanted, decoder=decoder)
    for sample in prepared(range(samples.num_rows), look, pool, _AHEAD * threads):
        tally.add(sample)
    tally.flush()
    return tally


def _measured(row: int, *, columns: dict[str, Any], wanted: Wanted, decoder: Decoder) -> Measured | Rejected:
    sample = {name: column[row].as_py() for name, column in columns.items()}
    try:
        return measured(sample, wanted, decoder)
    except Rejected as e:
        return e


class _Shards:
    """What the driver knows: tallies of chunks become those of shards, and these the whole."""

    def __init__(self, wanted: Wanted, catalog: pa.Table) -> None:
        self._wanted, self._urls = wanted, catalog["url"].to_pylist()
        self._chunks: dict[int, tuple[MergedInOrder, set[int]]] = {}
        self._lengths: dict[int, int] = {}  # of shards whose last chunk came: how many they have
        self._whole, self._ended = MergedInOrder(), set[int]()
        self.seen, self.broken = SampleTally(wanted), list[BrokenShard]()

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    def add(self, row: dict[str, Any]) -> None:
        """Takes in a chunk, in whatever order they come; one that Ray hands on twice counts once."""
        shard, chunk = row["shard"], row["chunk"]
        merged, came = self._chunks.setdefault(shard, (MergedInOrder(), set()))
        if shard in self._ended or chunk in came:
            return
        tally = SampleTally.of_json(row["tally"], self._wanted)
        self.seen.samples += tally.samples
        self.seen.rejects.update(tally.rejects)
        came.add(chunk)
        merged.add(chunk, tally)
        if row["damage"]:
            damage = Damage.model_validate_json(row["damage"])
            self.broken.append(BrokenShard(shard=shard, url=self._urls[shard], **damage.told()))
        if row["end"]:
            self._lengths[shard] = chunk + 1
        if self._lengths.get(shard) == len(came):
            self._whole.add(shard, merged.total(SampleTally(self._wanted)))
            self._ended.add(shard)
            del self._chunks[shard]

    def total(self) -> SampleTally:
        """
        Raises:
            MmstreamError: a chunk never came.
        """
        if missing := [url for shard, url in enumerate(self._urls) if shard not in self._ended]:
            raise MmstreamError(f"{missing[0]}: a part of it was never counted. Run the same command again.")
        return self._whole.total(SampleTally(self._wanted))
