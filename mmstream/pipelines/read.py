"""Catalogs become Ray datasets: of whole chunks for our own stages, of ordinary samples for everyone.

`read_webdataset` is made to stand in the place of `ray.data.read_webdataset`, which loses samples silently: here a
bad sample is a row with a reason, and a damaged shard ends in a row that says where it broke.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from random import Random

import pyarrow as pa
import ray
from ray.data import Dataset, TaskPoolStrategy
from rich.markup import escape

from mmstream.errors import UsageError
from mmstream.pipelines.resources import Shares, start_ray
from mmstream.pipelines.source import ShardSource, ShardTask, read_rows, read_samples
from mmstream.schema import SAMPLE
from mmstream.shards.catalog import build_catalog
from mmstream.shards.group import PAYLOADS
from mmstream.shards.mixture import build_mixture
from mmstream.telemetry import counted, say


def shard_tasks(catalog: pa.Table, *, epoch: int = 0) -> list[ShardTask]:
    """One task per shard of a catalog, in its order."""
    return list(each_task(catalog, epoch=epoch))


def each_task(catalog: pa.Table, *, epoch: int = 0) -> Iterator[ShardTask]:
    """As `shard_tasks`, one by one: of a million shards the rows alone would be a gigabyte."""
    for some in catalog.to_batches(max_chunksize=1 << 12):
        for c in some.to_pylist():
            yield ShardTask(c["shard"], c["url"], c["bytes"], c["etag"], c["max_rows"], c["sha256"], epoch=epoch)


def shard_order(num_shards: int, seed: int, epoch: int) -> list[int]:
    """The order in which an epoch takes its shards: a permutation that depends on nothing but the arguments."""
    order = list(range(num_shards))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def chunk_dataset(tasks: list[ShardTask], shares: Shares, columns: Collection[str] = PAYLOADS) -> Dataset:
    """A dataset whose rows are chunks (see `source.from_row`), with the payloads of `columns`. Reads are capped:
    every new worker costs a second.

    Call it under `resources.streaming_context()`, and add the stages of the pipeline there too.
    """
    return ray.data.read_datasource(
        ShardSource(tasks, partial(read_rows, columns=columns)),
        override_num_blocks=len(tasks),
        num_cpus=shares.reader_cpus,
        compute=TaskPoolStrategy(size=shares.readers),
    )


def mixed_tasks(weights: Mapping[str, float], seed: int, epoch: int) -> list[ShardTask]:
    """The tasks of one epoch of a mixture (see `shards.mixture`) in their order: a shard that is read twice is two."""
    mixture = build_mixture(weights)
    reads = mixture.reads(seed, epoch)
    counts = [f"{len(r):,} of {p.source} (has {len(p.shards):,})" for p, r in zip(mixture.parts, reads, strict=True)]
    say(escape(f"epoch {epoch} reads {counted(sum(map(len, reads)), 'shard')}: {', '.join(counts)}"))
    tasks, numbers = shard_tasks(mixture.catalog), sorted(shard for part in reads for shard in part)
    return [tasks[numbers[i]] for i in shard_order(len(numbers), seed, epoch)]


def read_webdataset(
    source: str | Sequence[str] | Mapping[str, float],
    *,
    columns: Sequence[str] | None = None,
    keys: Collection[str] | None = None,
    shuffle_shards: int | None = None,
    epoch: int = 0,
) -> Dataset:
    """The samples of WebDataset shards as a Ray dataset in the schema `schema.SAMPLE`.

    Args:
        source: globs, braces, folders, lists, URLs of tar shards, or a stored catalog; or a mixture of them,
            `{source: weight, …}`, where a weight is how many times an epoch reads the source: 1 every shard once, 2
            twice, 0.3 three tenths of the shards. The next epoch goes on with the shards that come after those, so
            that over E epochs that follow each other every shard is read ⌊E·weight⌋ or ⌈E·weight⌉ times, as long as
            the source names the same shards (a list keeps them). Weights count readings of a source and are not its
            share of the rows: that is weight × rows of the source, over the sum of these. `shuffle_shards` is needed.
            All sources are numbered together, in the order of their URLs: a sample has the same id in every epoch,
            and in an epoch that reads it twice it has it twice.
        columns: which of the schema's columns, and in which order; all by default. Members that no column wants are
            walked over, not read (but for the JSON beside an image that is, which may hold its SHA-256), and not
            judged. Keep `reason`, or bad samples look like empty ones.
        keys: only samples with one of these keys (the path in the tar up to the first dot of the file's name), and
            the rows that say where a shard broke. Members of others are walked over, not read: an image whose SHA-256
            differs is then told only where another one that was asked for shows what the digests are of.
        shuffle_shards: a seed. Shards come in the order `shard_order(number of shards, seed, epoch)`, a permutation
            that depends on nothing else; samples keep their order in the shard, and their ids. Ray reads several at
            once and hands on what is ready, unless `DataContext.execution_options.preserve_order` is set.
        epoch: another order of the same seed.

    Absent members are null. A sample that cannot be used has `reason` and `detail`; where a shard broke, is gone or
    has changed, one row without a key says so. The shards are listed once, now.

    Raises:
        UsageError: there is no source, or nothing matches one; or an unknown column.
        UnreachableError: a store does not answer. While the dataset is read, a store that stops answering ends it with
            an error of Ray that says so: rows of that shard would be missing.
    """
    if unknown := set(columns or ()) - set(SAMPLE.names):
        raise UsageError(f"unknown columns {sorted(unknown)}. A sample has {', '.join(SAMPLE.names)}.")
    if isinstance(keys, str):
        raise UsageError(f"keys={keys!r}: give a collection of keys, such as [{keys!r}].")
    tasks = _tasks(source, shuffle_shards, epoch)
    wanted = None if keys is None else frozenset(keys)
    read = partial(read_samples, columns=list(columns or SAMPLE.names), keys=wanted)
    start_ray()
    return ray.data.read_datasource(ShardSource(tasks, read), override_num_blocks=len(tasks))


def _tasks(source: str | Sequence[str] | Mapping[str, float], seed: int | None, epoch: int) -> list[ShardTask]:
    if isinstance(source, Mapping) and source:
        if seed is None:
            raise UsageError("which shards of a mixture an epoch reads depends on a seed: give shuffle_shards=0, say.")
        return mixed_tasks(source, seed, epoch)
    tasks = shard_tasks(build_catalog(source))
    return tasks if seed is None else [tasks[i] for i in shard_order(len(tasks), seed, epoch)]
