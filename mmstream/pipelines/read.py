"""Catalogs become Ray datasets: of whole chunks for our own stages, of ordinary samples for everyone.

`read_webdataset` is made to stand in the place of `ray.data.read_webdataset`, which loses samples silently: here a
bad sample is a row with a reason, and a damaged shard ends in a row that says where it broke.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import ray
from ray.data import Dataset, TaskPoolStrategy

from mmstream.errors import UsageError
from mmstream.pipelines.resources import Shares, start_ray
from mmstream.pipelines.source import ShardSource, ShardTask
from mmstream.schema import SAMPLE
from mmstream.shards.catalog import build_catalog


def shard_tasks(catalog: pa.Table, *, epoch: int = 0) -> list[ShardTask]:
    """One task per shard of a catalog, in its order."""
    return [
        ShardTask(c["shard"], c["url"], c["bytes"], c["etag"], c["max_rows"], epoch=epoch) for c in catalog.to_pylist()
    ]


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


def read_webdataset(source: str | Sequence[str], *, columns: list[str] | None = None) -> Dataset:
    """The samples of WebDataset shards as a Ray dataset in the schema `schema.SAMPLE`.

    Args:
        source: globs, braces, folders or URLs of tar shards.
        columns: which of the schema's columns; all by default.

    Absent members are null; a sample that cannot be used has `reason` and `detail`.

    Raises:
        UsageError: nothing matches, or an unknown column.
        UnreachableError: a store does not answer.
    """
    unknown = set(columns or ()) - set(SAMPLE.names)
    if unknown:
        raise UsageError(f"unknown columns {sorted(unknown)}. A sample has {', '.join(SAMPLE.names)}.")
    tasks = shard_tasks(build_catalog(source))
    start_ray()
    return ray.data.read_datasource(
        ShardSource(tasks, whole_chunks=False, columns=columns), override_num_blocks=len(tasks)
    )
