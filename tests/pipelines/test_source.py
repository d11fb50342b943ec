"""Chunks through Ray: they arrive as they left."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from faulty_server import Fault, FaultyServer
from ray.data import ActorPoolStrategy
from tars import make_tar

from mmstream.errors import RefusedError
from mmstream.pipelines.embed import encode_stage, tables_of
from mmstream.pipelines.read import chunk_dataset, shard_tasks
from mmstream.pipelines.resources import Shares, encode_shares, streaming_context
from mmstream.pipelines.source import ShardSource, ShardTask, chunks_of, from_row, num_rows, read_rows, to_row
from mmstream.shards.catalog import build_catalog


@pytest.fixture
def tasks(tmp_path: Path) -> list[ShardTask]:
    """Shards of 0 to 3 chunks, small and large samples mixed."""
    for shard, rows in enumerate([3, 512, 513, 1200, 0, 700]):
        files = [(f"{i:05}.txt", bytes([65 + i % 26]) * (i % 97 * 40)) for i in range(rows)]
        (tmp_path / f"{shard}.tar").write_bytes(make_tar(files))
    return shard_tasks(build_catalog(str(tmp_path)))


def what_arrives() -> type:
    """An actor class of its own, so that Ray ships it by value: workers do not see this folder."""

    class Seen:
        """An actor that says what arrived."""

        def __call__(self, row: pa.Table) -> pa.Table:
            assert row.num_rows == 1
            info, samples = from_row(row)
            arrived = {"shard": info.shard, "chunk": info.chunk, "first": info.first_row, "rows": samples.num_rows}
            arrived |= (
                {"reader": row["reader"][0].as_py(), "encoder": os.getpid()} if "reader" in row.schema.names else {}
            )
            arrived["text"] = "".join(t[:1] for t in samples["text"].to_pylist() if t)
            return pa.Table.from_pylist([{**arrived, "end": info.end, "keys": ",".join(samples["key"].to_pylist())}])

    return Seen


def sent(tasks: list[ShardTask]) -> Iterator[tuple]:
    for task in tasks:
        for chunk in chunks_of(task):
            text = "".join(t[:1] for t in chunk.table["text"].to_pylist() if t)
            keys = ",".join(chunk.table["key"].to_pylist())
            yield (chunk.shard, chunk.number, chunk.first_row, chunk.num_samples, text, chunk.end, keys)


@pytest.mark.usefixtures("ray_local")
def test_chunks_arrive_at_the_encoder_as_they_left_the_reader(tasks: list[ShardTask]) -> None:
    shares = Shares(2, 0.5, 2, 1.0, 0.0, 1)
    with streaming_context():
        dataset = chunk_dataset(tasks, shares).map_batches(
            what_arrives(), batch_size=None, batch_format="pyarrow", num_cpus=1, compute=ActorPoolStrategy(size=2)
        )
        rows = [r for t in tables_of(dataset) for r in t.to_pylist()]
    assert sorted(tuple(r.values()) for r in rows) == sorted(sent(tasks))
    assert len(rows) == 1 + 1 + 2 + 3 + 1 + 2


def rows_that_wait(flag: Path) -> Callable[[ShardTask], Iterator[pa.Table]]:
    """A read function of its own, shipped by value, that says who it is and does not end before `flag` is there."""

    def read(task: ShardTask) -> Iterator[pa.Table]:
        for row in read_rows(task):
            yield row.append_column("reader", pa.array([os.getpid()]))
        until = time.monotonic() + 60
        while not flag.exists() and time.monotonic() < until:
            time.sleep(0.05)

    return read


@pytest.mark.parametrize("victim", ["reader", pytest.param("encoder", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray_local")
def test_chunks_arrive_as_they_left_though_a_worker_dies_in_mid_stream(
    tasks: list[ShardTask], victim: str, tmp_path: Path
) -> None:
    flag = tmp_path / "killed"
    with streaming_context():
        source = ray.data.read_datasource(
            ShardSource(tasks, rows_that_wait(flag)), override_num_blocks=len(tasks), num_cpus=0.5
        )
        dataset = source.map_batches(
            what_arrives(), batch_size=None, batch_format="pyarrow", num_cpus=1, compute=ActorPoolStrategy(size=2)
        )
        rows, killed = [], None
        for table in tables_of(dataset):
            rows += table.to_pylist()
            if killed is None:
                killed = rows[0][victim]
                os.kill(killed, signal.SIGKILL)
                flag.touch()
    workers = {r.pop("reader") for r in rows} | {r.pop("encoder") for r in rows}
    assert sorted(tuple(r.values()) for r in rows) == sorted(sent(tasks))
    assert len(workers) >= 3  # the killed one, and others went on


@pytest.mark.usefixtures("ray_local")
def test_read_and_encode_are_separate_operators_without_a_gpu_too(tasks: list[ShardTask]) -> None:
    shares = encode_shares(len(tasks))
    assert not shares.encoder_gpus
    with streaming_context():
        dataset = encode_stage(chunk_dataset(tasks[:2], shares), what_arrives(), (), shares)
        rows = [r for t in tables_of(dataset) for r in t.to_pylist()]
    operators = re.findall(r"Operator \d+ (.+?):", dataset.stats())
    assert [("Read" in o, "Seen" in o) for o in operators] == [(True, False), (False, True)], dataset.stats()
    assert len(rows) == 2


def test_a_row_gives_back_its_chunk(tasks: list[ShardTask]) -> None:
    for task in tasks:
        for chunk in chunks_of(task):
            info, samples = from_row(to_row(chunk, task, 1.5))
            assert samples.equals(chunk.table)
            assert (info.chunk, info.first_row, info.end) == (chunk.number, chunk.first_row, chunk.end)
            assert (info.source_url, info.source_bytes, info.read_seconds) == (task.url, task.bytes, 1.5)


def test_a_shard_that_went_away_is_one_empty_chunk_that_says_so(tasks: list[ShardTask]) -> None:
    Path(tasks[1].url).unlink()
    chunks = list(chunks_of(tasks[1]))
    assert [(c.num_samples, c.end, c.damage.reason if c.damage else None) for c in chunks] == [(0, True, "unreadable")]


def test_a_shard_that_is_not_its_checksum_gives_no_row(tasks: list[ShardTask]) -> None:
    right = replace(tasks[3], sha256=hashlib.sha256(Path(tasks[3].url).read_bytes()).hexdigest())
    assert list(chunks_of(right)) == list(chunks_of(tasks[3]))
    wrong = replace(right, sha256="0" * 64)
    (chunk,) = chunks_of(wrong)
    assert chunk.damage and (chunk.damage.reason, chunk.damage.offset) == ("checksum", 0)
    assert (chunk.num_samples, chunk.end) == (0, True)
    assert (num_rows(right), num_rows(wrong)) == (num_rows(tasks[3]), 0), "a limit is not spent on it"
    with pytest.raises(RefusedError, match="read before"):
        list(chunks_of(replace(wrong, skip=frozenset({0}))))


def test_a_bit_that_is_flipped_on_the_way_costs_a_shard_with_a_checksum_nothing() -> None:
    tar = make_tar((f"{i}.txt", b"words") for i in range(3))
    with FaultyServer({"a.tar": tar}) as server:
        task = ShardTask(0, f"{server.url}/a.tar", len(tar), "", sha256=hashlib.sha256(tar).hexdigest())
        server.faults.append(Fault("flip", 600))
        (chunk,) = chunks_of(task)
        assert chunk.table["text"].to_pylist() == ["words"] * 3
        server.faults.extend([Fault("flip", 600)] * 2)
        (chunk,) = chunks_of(task)
        assert chunk.damage and chunk.damage.reason == "checksum", "twice is no accident"


@pytest.mark.usefixtures("ray_local")
def test_no_more_encoders_are_started_than_there_are_tasks() -> None:
    assert encode_shares(1).encoders == 1
    assert encode_shares(100).cpus <= 4
