"""What training must know before its first step: how many samples there are, and a tokenizer learned from captions.

One pass over the shards, by Ray where they are large; the driver gets a number per chunk, and captions of a bounded
number of shards. The result is kept in the run (`survey.json`, `tokenizer.json`) and belongs to the catalog it was made
from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

import pyarrow as pa

from mmstream.errors import RefusedError, Rejected, UsageError
from mmstream.media.text import Tokenizer, train_tokenizer
from mmstream.pipelines.embed import tables_of
from mmstream.pipelines.feed import feed_shares
from mmstream.pipelines.read import chunk_dataset, shard_tasks
from mmstream.pipelines.resources import streaming_context
from mmstream.pipelines.source import ShardTask, from_row, read_rows
from mmstream.schema import Record
from mmstream.shards.catalog import to_parquet
from mmstream.storage.files import exists, join, read_bytes, write_bytes
from mmstream.telemetry import Progress
from mmstream.train.data import captions_of
from mmstream.train.recipe import Recipe

TOKENIZER_SHARDS = 64
LOCAL_BYTES = 256 << 20  # read by the driver sooner than Ray has started to


class SurveyRecord(Record):
    """`num_rows` of the shards, damaged samples counted; `num_samples` of them have a caption and an image member."""

    catalog_sha256: str
    num_rows: int
    num_samples: int


@dataclass(frozen=True)
class Survey:
    num_rows: int
    num_samples: int
    tokenizer: Tokenizer

    @classmethod
    def read(cls, run: str) -> Survey:
        record = SurveyRecord.model_validate_json(read_bytes(join(run, "survey.json")))
        url = join(run, "tokenizer.json")
        return cls(record.num_rows, record.num_samples, Tokenizer.from_json(read_bytes(url), url))


def surveyed(run: str, catalog: pa.Table, recipe: Recipe) -> Survey:
    """The run's survey, made now if there is none. Ray is running.

    Raises:
        RefusedError: the run was begun with other shards.
        UsageError: no shard gave a sample with an image and a caption.
    """
    url, digest = join(run, "survey.json"), hashlib.sha256(to_parquet(catalog)).hexdigest()
    if exists(url):
        stored = SurveyRecord.model_validate_json(read_bytes(url))
        if stored.catalog_sha256 != digest:
            raise RefusedError(
                f"{run}: the shards of {recipe.data.train} (names, sizes or --limit) are not those that this run was "
                "begun with. Give --out another folder."
            )
        return Survey.read(run)
    num_rows, num_samples, tokenizer = _surveyed_now(catalog, recipe)
    if not num_samples:
        raise UsageError(f"{recipe.data.train}: none of {num_rows:,} samples has both an image and a caption.")
    write_bytes(join(run, "tokenizer.json"), tokenizer.to_json())
    record = SurveyRecord(catalog_sha256=digest, num_rows=num_rows, num_samples=num_samples)
    write_bytes(url, record.to_bytes())
    return Survey(num_rows, num_samples, tokenizer)


def _surveyed_now(catalog: pa.Table, recipe: Recipe) -> tuple[int, int, Tokenizer]:
    tasks = shard_tasks(catalog)
    read_by_tokenizer = {t.shard for t in Random(recipe.seed).sample(tasks, min(TOKENIZER_SHARDS, len(tasks)))}
    counts = [0, 0]
    count = partial(_captions, field=recipe.data.captions, wanted=frozenset(read_by_tokenizer))
    with streaming_context(), Progress("captions", len(tasks), "shards", rate_of="samples") as progress:

        def captions() -> Iterator[str]:
            num_ended = 0
            for row in _over_chunks(tasks, count, recipe.workers):
                counts[0] += row["num_rows"][0].as_py()
                counts[1] += row["num_samples"][0].as_py()
                num_ended += row["end"][0].as_py()
                progress.update(num_ended, samples=counts[0])
                yield from row["captions"][0].as_py()

        # The tokenizer takes all captions in the order of shards, whichever chunk comes first.
        tokenizer = train_tokenizer(sorted(captions()), recipe.model.text.vocab_size)
    return counts[0], counts[1], tokenizer


def _over_chunks(tasks: list[ShardTask], count: Callable[[pa.Table], pa.Table], workers: int) -> Iterator[pa.Table]:
    """`count` of every chunk, as they are finished."""
    if sum(task.bytes for task in tasks) < LOCAL_BYTES:
        yield from (count(row) for task in tasks for row in read_rows(task))
        return
    shares = feed_shares(workers)
    yield from tables_of(
        chunk_dataset(tasks, shares).map_batches(
            count, batch_size=None, batch_format="pyarrow", num_cpus=shares.reader_cpus
        )
    )


def _captions(row: pa.Table, *, field: str | None, wanted: frozenset[int]) -> pa.Table:
    info, samples = from_row(row)
    num_samples, captions = 0, []
    for sample in samples.drop_columns("image").append_column("has_image", samples["image"].is_valid()).to_pylist():
        try:
            found = captions_of(sample, field)
        except Rejected:
            continue
        num_samples += sample["has_image"]
        captions += found
    kept = captions if info.shard in wanted else []
    return pa.table(
        {
            "num_rows": [info.num_samples],
            "num_samples": [num_samples],
            "end": [info.end],
            "captions": pa.array([kept], pa.list_(pa.large_string())),
        }
    )
