"""Shards become batches that all ranks take together: read → decode → mix and cut, on Ray.

The dataset's rows are parts of batches: the W rows of a batch follow each other, each with exactly batch_size / W
samples, so that an equal split by rows hands every rank one part of every batch. What cannot be used leaves in the
decode stage, to `RUN/rejects/`. The order of batches is a function of (seed, catalog) alone, whatever W: a run that
goes on streams the same batches again and passes over those it has had.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from mmstream.embeddings.writer import to_parquet
from mmstream.errors import MmstreamError, UsageError
from mmstream.media.text import Tokenizer
from mmstream.models.card import Preprocessing
from mmstream.pipelines.contain import Containment
from mmstream.pipelines.read import chunk_dataset, shard_order, shard_tasks
from mmstream.pipelines.resources import Shares, cores
from mmstream.pipelines.source import ChunkInfo, ShardTask, from_row
from mmstream.schema import REJECT
from mmstream.storage.files import join, write_bytes
from mmstream.telemetry import counted
from mmstream.train.data import Batch, Batcher, Prepare
from mmstream.train.recipe import Recipe

FED = ("store", "tar", "decode")  # the stages of the feed whose seconds go along with the batches
WORKER_CPUS, DECODER_CPUS, CUTTER_CPUS = 0.5, 0.5, 0.25


def feed_shares(workers: int) -> Shares:
    """Decoders beside `workers` ranks: one on a laptop, more where cores are left. A decoder reads its shards itself.

    Raises:
        UsageError: the cluster is too small for all of them at once.
    """
    cpus = ray.cluster_resources().get("CPU", 0.0)
    decoders = max(1, min(int(cpus), cores()) - workers) if cpus > 4 else 1
    needed = decoders * DECODER_CPUS + CUTTER_CPUS + workers * WORKER_CPUS
    if needed > cpus:
        raise UsageError(
            f"{counted(workers, 'worker')} and what feeds them need {needed:g} CPUs and Ray has {cpus:g}: they would "
            "wait for ever. Give fewer workers (workers=N) or start Ray with more --num-cpus (they are logical)."
        )
    return Shares(decoders, DECODER_CPUS, decoders, DECODER_CPUS, 0.0, encoder_threads=1)


def batch_dataset(
    catalog: pa.Table,
    recipe: Recipe,
    tokenizer: Tokenizer,
    run: str,
    shares: Shares,
    contained: Containment,
    *,
    skip_batches: int,
) -> Dataset:
    """All epochs as one dataset of parts of batches (see `part_of`), without the first `skip_batches` batches.

    Call it under `resources.streaming_context()`.
    """
    tasks = [task for epoch in range(recipe.epochs) for task in _shuffled(catalog, recipe.seed, epoch)]
    # As many CPUs as the readers have: Ray fuses the two, and pixels take one hop less. Decoding is CPU work, too.
    decoded = chunk_dataset(tasks, shares).map_batches(
        _Decode,
        fn_constructor_args=(recipe, tokenizer.to_json(), run, contained),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=shares.encoder_cpus,
        compute=ActorPoolStrategy(size=shares.encoders, max_tasks_in_flight_per_actor=2),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")  # Ray 2.60 offers nothing in its place
        return decoded.map_batches(
            _Cut,
            fn_constructor_args=(recipe, catalog["shard"].to_pylist(), skip_batches),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=CUTTER_CPUS,
            compute=ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2),
            max_restarts=0,  # what it holds back is lost with it: the run goes on from its checkpoint instead
        )


def _shuffled(catalog: pa.Table, seed: int, epoch: int) -> list[ShardTask]:
    tasks = shard_tasks(catalog, epoch=epoch)
    return [tasks[i] for i in shard_order(len(tasks), seed, epoch)]


def to_part(batch: Batch, **about: int) -> pa.Table:
    """A batch as one row of Arrow: its arrays as bytes, without a copy, and a few numbers beside them."""
    arrays = {"pixels": batch.pixels, "tokens": batch.tokens, "ids": batch.ids}
    columns = {name: _as_bytes(array) for name, array in arrays.items()}
    shapes = {"num_samples": len(batch), "size": batch.pixels.shape[1], "length": batch.tokens.shape[1]}
    numbers = {name: pa.array([value], pa.int64()) for name, value in {**shapes, **about}.items()}
    return pa.table({**columns, **numbers})


def part_of(row: pa.Table) -> Batch:
    """The batch that `to_part` made a row of; its arrays are read-only views."""
    n, size, length = (row[name][0].as_py() for name in ("num_samples", "size", "length"))
    return Batch(
        _from_bytes(row["pixels"], np.uint8).reshape(n, size, size, 3),
        _from_bytes(row["tokens"], np.int32).reshape(n, length),
        _from_bytes(row["ids"], np.int64),
    )


def _as_bytes(array: np.ndarray) -> pa.Array:
    data = pa.py_buffer(np.ascontiguousarray(array))
    offsets = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _from_bytes(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    return np.frombuffer(column[0].as_buffer(), dtype)


class Feed:
    """This rank's parts of batches, from rows that `to_part` made: `number` `first`, `first` + 1, …

    Raises:
        MmstreamError: on iteration, another batch came: a step on parts of different batches would go unnoticed.
    """

    def __init__(self, rows: Iterable[pa.Table], first: int, decoders: int, *, otherwise: str = "") -> None:
        self._rows, self._next, self._decoders, self._otherwise = rows, first, decoders, otherwise
        self._spent_ns = dict.fromkeys(FED, 0)

    def __iter__(self) -> Iterator[Batch]:
        is_first = True
        for table in self._rows:
            for n in range(table.num_rows):
                row = table.slice(n, 1)
                if (number := row["number"][0].as_py()) != self._next:
                    raise MmstreamError(
                        f"a part of batch {number} came where one of batch {self._next} was due. {self._otherwise}"
                    )
                if not is_first:  # what was spent before it is the start, for which nobody waits while training
                    for stage in FED:
                        self._spent_ns[stage] += row[f"{stage}_ns"][0].as_py()
                is_first = False
                yield part_of(row)
                self._next += 1

    def spent(self) -> dict[str, float]:
        """Seconds by stage of the batches since this was last asked, of each decoder: as many work side by side."""
        spent = {stage: ns / 1e9 / self._decoders for stage, ns in self._spent_ns.items()}
        self._spent_ns = dict.fromkeys(FED, 0)
        return spent


@dataclass
class _Decode:
    """The decode stage's actor: a chunk in, its usable samples out as one row; rejects are written in epoch 0."""

    recipe: Recipe
    tokenizer_json: bytes
    run: str
    contained: Containment

    def __post_init__(self) -> None:
        model = self.recipe.model
        self._prepare = Prepare(
            Preprocessing(size=model.image.size),
            Tokenizer.from_json(self.tokenizer_json),
            model.text.length,
            self.recipe.data.captions,
            self.recipe.seed,
            self.recipe.data.augment,
        )

    def __call__(self, row: pa.Table) -> pa.Table:
        start = time.perf_counter()
        info, samples = from_row(row)
        with self.contained.chunk(info) as decoder:
            batch, rejects = self._prepare(samples, info.epoch, decoder)
        if info.damage:
            about = {"shard": info.shard, "row": info.first_row + info.num_samples, "offset": info.damage.offset}
            why = {"reason": info.damage.reason, "detail": info.damage.detail}
            rejects.append({**dict.fromkeys(REJECT.names), **about, **why})
        if rejects and info.epoch == 0:
            self._write(info, rejects)
        decode = time.perf_counter() - start
        spent = {"store": info.store_seconds, "tar": info.read_seconds - info.store_seconds, "decode": decode}
        place = {"epoch": info.epoch, "shard": info.shard, "chunk": info.chunk, "end": int(info.end)}
        return to_part(batch, **place, **{f"{stage}_ns": int(1e9 * s) for stage, s in spent.items()})

    def _write(self, info: ChunkInfo, rejects: list[dict]) -> None:
        # One name for a chunk, whoever writes it: every attempt has the same rejects.
        name = f"{info.shard:06d}-{info.chunk:06d}.parquet"
        write_bytes(join(self.run, "rejects", name), to_parquet(pa.Table.from_pylist(rejects, schema=REJECT)))


@dataclass
class _Cut:
    """The only actor of the last stage: decoded chunks in, epoch by epoch; parts of whole batches out.

    Ray may run the calls of an actor in another order than they were made in, whatever order its queues keep: a chunk
    that comes early waits here for those before it.
    """

    recipe: Recipe
    shards: list[int]
    skip_batches: int

    def __post_init__(self) -> None:
        self._batcher = Batcher(self.recipe.batch_size, self.recipe.data.shuffle_rows, self.recipe.seed)
        self._early: dict[tuple[int, int, int], pa.Table] = {}  # (epoch, shard, chunk)
        self._places = self._in_order()
        self._next = next(self._places)
        self._num_batches = 0
        self._spent_ns = dict.fromkeys(FED, 0)  # on the chunks since the last batch

    def __call__(self, row: pa.Table) -> Iterator[pa.Table]:
        epoch, shard, chunk = (row[name][0].as_py() for name in ("epoch", "shard", "chunk"))
        self._early[epoch, shard, chunk] = row
        while (due := self._early.pop(self._next, None)) is not None:
            yield from self._add(due)

    def _in_order(self) -> Generator[tuple[int, int, int], bool]:
        """(epoch, shard, chunk) of the next chunk; is sent whether that one ended its shard."""
        for epoch in range(self.recipe.epochs):
            for i in shard_order(len(self.shards), self.recipe.seed, epoch):
                chunk = 0
                while not (yield epoch, self.shards[i], chunk):
                    chunk += 1
        yield self.recipe.epochs, 0, 0

    def _add(self, row: pa.Table) -> Iterator[pa.Table]:
        epoch = self._next[0]
        for stage in FED:
            self._spent_ns[stage] += row[f"{stage}_ns"][0].as_py()
        yield from self._parts(self._batcher.add(part_of(row)))
        self._next = self._places.send(bool(row["end"][0].as_py()))
        if self._next[0] != epoch:
            yield from self._parts(self._batcher.end_epoch(epoch))

    def _parts(self, batches: Iterator[Batch]) -> Iterator[pa.Table]:
        rows = self.recipe.batch_size // self.recipe.workers
        for batch in batches:
            self._num_batches += 1
            if self._num_batches <= self.skip_batches:
                continue
            for rank in range(self.recipe.workers):  # the first of which is told what the batch has cost
                spent = {f"{stage}_ns": ns for stage, ns in self._spent_ns.items()}
                self._spent_ns = dict.fromkeys(FED, 0)
                yield to_part(batch.take(slice(rank * rows, (rank + 1) * rows)), number=self._num_batches, **spent)
