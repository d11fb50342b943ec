"""Catalogs become Ray datasets: of whole chunks for our own stages, of ordinary samples for everyone.

`read_webdataset` is made to stand in the place of `ray.data.read_webdataset`, which loses samples silently: here a
bad sample is a row with a reason, and a damaged shard ends in a row that says where it broke.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from random import Random

import pyarrow as pa
import ray
from ray.data import Dataset, TaskPoolStrategy

from mmstream.errors import UsageError
from mmstream.pipelines.resources import Shares, start_ray
from mmstream.pipelines.source import ShardSource, ShardTask, read_samples
from mmstream.schema import SAMPLE
from mmstream.shards.catalog import build_catalog


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


def chunk_dataset(tasks: list[ShardTask], shares: Shares) -> Dataset:
    """A dataset whose rows are chunks (see `source.from_row`). Reads are capped: every new worker costs a second.

    Call it under `resources.streaming_context()`, and add the stages of the pipeline there too.
    """
    return ray.data.read_datasource(
        ShardSource(tasks),
        override_num_blocks=len(tasks),
        num_cpus=shares.reader_cpus,
        compute=TaskPoolStrategy(size=shares.readers),
    )


def read_webdataset(
    source: str | Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    keys: Collection[str] | None = None,
    shuffle_shards: int | None = None,
    epoch: int = 0,
) -> Dataset:
    """The samples of WebDataset shards as a Ray dataset in the schema `schema.SAMPLE`.

    Args:
        source: globs, braces, folders, lists, URLs of tar shards, or a stored catalog.
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
        UsageError: nothing matches, or an unknown column.
        UnreachableError: a store does not answer. While the dataset is read, a store that stops answering ends it with
            an error of Ray that says so: rows of that shard would be missing.
    """
    if unknown := set(columns or ()) - set(SAMPLE.names):
        raise UsageError(f"unknown columns {sorted(unknown)}. A sample has {', '.join(SAMPLE.names)}.")
    if isinstance(keys, str):
        raise UsageError(f"keys={keys!r}: give a collection of keys, such as [{keys!r}].")
    tasks = shard_tasks(build_catalog(source))
    if shuffle_shards is not None:
        tasks = [tasks[i] for i in shard_order(len(tasks), shuffle_shards, epoch)]
    wanted = None if keys is None else frozenset(keys)
    read = partial(read_samples, columns=list(columns or SAMPLE.names), keys=wanted)
    start_ray()
    return ray.data.read_datasource(ShardSource(tasks, read), override_num_blocks=len(tasks))
