"""`read_webdataset` in the place of Ray's: selection, order, and what becomes of shards that break or go away."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from faulty_server import Fault, FaultyServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tars import make_tar

from mmstream.errors import RefusedError, UnreachableError, UsageError
from mmstream.pipelines import source
from mmstream.pipelines.read import mixed_tasks, read_webdataset, shard_order, shard_tasks
from mmstream.pipelines.source import ShardSource, ShardTask, read_samples
from mmstream.schema import SAMPLE
from mmstream.shards.catalog import build_catalog
from mmstream.storage import ranges

KEYS = "abcde"


def shard(number: int) -> bytes:
    files = []
    for key in KEYS:
        files += [(f"{number}{key}.jpg", key.encode() * 900), (f"{number}{key}.txt", f"about {key}".encode())]
        files += [(f"{number}{key}.json", json.dumps({"n": number}).encode())]
    return make_tar(files)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(shard(number))
    return tmp_path


def local_rows(source: str, columns: list[str] | None = None) -> list[dict]:
    tasks = shard_tasks(build_catalog(source))
    return [r for t in tasks for table in read_samples(t, columns=columns or SAMPLE.names) for r in table.to_pylist()]


@pytest.mark.usefixtures("ray_local")
def test_samples_are_rows_of_the_schema_and_selection_changes_none_of_them(folder: Path) -> None:
    data = read_webdataset(str(folder))
    assert data.schema().base_schema == SAMPLE
    rows = sorted(data.take_all(), key=lambda r: r["id"])
    assert rows == local_rows(str(folder)) and len(rows) == 20
    some = read_webdataset(str(folder), columns=["text", "key", "image"], keys={"1b", "3e", "none"}).take_all()
    assert sorted(some, key=lambda r: r["key"]) == [
        {"text": "about b", "key": "1b", "image": b"b" * 900},
        {"text": "about e", "key": "3e", "image": b"e" * 900},
    ]


@pytest.mark.usefixtures("ray_local")
def test_a_shard_that_breaks_or_goes_away_is_a_row_that_says_so(folder: Path) -> None:
    damaged = bytearray(shard(1))
    damaged[3 * (1024 + 512 + 2 * 1024)] ^= 1  # in the name of the fourth sample's first member
    (folder / "1.tar").write_bytes(damaged)
    data = read_webdataset(str(folder), keys=["1a", "0a", "2a"])
    (folder / "2.tar").unlink()
    (folder / "3.tar").write_bytes(b"another")
    rows = sorted(data.take_all(), key=lambda r: r["id"])
    assert [(r["key"], r["reason"]) for r in rows] == [
        ("0a", None),
        ("1a", None),
        (None, "tar_header"),
        (None, "unreadable"),
        (None, "source_changed"),
    ]
    assert "2.tar is gone" in rows[3]["detail"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("becomes", ["another", "nothing"])
def test_a_shard_that_changes_before_a_dead_readers_task_is_repeated_loses_no_row_without_a_word(
    folder: Path, becomes: str
) -> None:
    path, whole = folder / "0.tar", shard(0)  # a worker has the closure and does not know this module

    def read(task: ShardTask) -> Iterator[pa.Table]:
        for table in read_samples(task, columns=SAMPLE.names):
            yield table
            if path.read_bytes() == whole:  # the first time
                path.write_bytes(b"another") if becomes == "another" else path.unlink()
                time.sleep(1)  # until the block has gone
                os._exit(1)

    tasks = shard_tasks(build_catalog(str(path)))
    with pytest.raises(RefusedError, match=r"0\.tar.* and the worker that had begun to read it died"):
        ray.data.read_datasource(ShardSource(tasks, read)).take_all()


def test_only_a_repeated_task_takes_a_change_for_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = shard_tasks(build_catalog(f"{folder}/0.tar"))[0]
    (folder / "0.tar").write_bytes(b"another")
    assert [t["reason"].to_pylist() for t in read_samples(task, columns=SAMPLE.names)] == [[], ["source_changed"]]
    monkeypatch.setattr(source, "_is_repeated", lambda: True)
    with pytest.raises(RefusedError, match="worker that had begun"):
        list(read_samples(task, columns=SAMPLE.names))


@pytest.mark.usefixtures("ray_local")
def test_shards_come_in_the_order_of_seed_and_epoch(folder: Path) -> None:
    context = ray.data.DataContext.get_current()
    before, context.execution_options.preserve_order = context.execution_options.preserve_order, True
    try:
        for epoch in (0, 1):
            rows = read_webdataset(str(folder), columns=["shard", "row"], shuffle_shards=7, epoch=epoch).take_all()
            assert [r["shard"] for r in rows[::5]] == shard_order(4, 7, epoch)
            assert [r["row"] for r in rows] == [0, 1, 2, 3, 4] * 4
    finally:
        context.execution_options.preserve_order = before


@pytest.mark.usefixtures("ray_local")
def test_every_row_of_a_mixture_is_there_as_often_as_its_weight_says_with_the_id_it_has_alone(folder: Path) -> None:
    (folder / "3.tar").write_bytes(shard(3)[:-3_000])  # cut in its last sample: that one and the rest say so
    weights = {f"{folder}/{{0,1}}.tar": 0.5, f"{folder}/{{2,3}}.tar": 1.5}
    alone = {r["id"]: r for r in local_rows(str(folder))}
    assert [r["reason"] for r in alone.values()] == [None] * 19 + ["tar_truncated"] * 2
    epochs = [read_webdataset(weights, shuffle_shards=7, epoch=epoch).take_all() for epoch in (4, 5)]
    assert all(row == alone[row["id"]] for rows in epochs for row in rows)
    times = [Counter(row["id"] for row in rows) for rows in epochs]
    assert sorted(counts.total() for counts in times) == [5 + 5 + 5 + 6, 5 + 5 + 6 + 6], "1 shard and 3 per epoch"
    assert times[0] + times[1] == {i: 1 if r["shard"] < 2 else 3 for i, r in alone.items()}


def test_a_mixture_of_one_source_is_the_source_and_says_what_an_epoch_reads(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = shard_tasks(build_catalog(str(folder)))
    for epoch in (0, 1):
        assert mixed_tasks({f"{folder}": 1}, 7, epoch) == [tasks[i] for i in shard_order(4, 7, epoch)]
    reads = mixed_tasks({f"{folder}/[01].tar": 2.5, f"{folder}/[23].tar": 1}, 7, 0)
    assert Counter(Counter(task.shard for task in reads).values()) == {1: 2, 2: 1, 3: 1}
    said = "".join(capsys.readouterr().err.split())
    assert f"epoch0reads7shards:5of{folder}/[01].tar(has2),2of{folder}/[23].tar(has2)" in said


def test_the_order_of_shards_is_a_function_of_its_arguments_alone() -> None:
    assert shard_order(6, 7, 0) == [1, 4, 3, 0, 2, 5]  # as ever: a stored order must not change with a release
    orders = {tuple(shard_order(60, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16 and all(sorted(order) == list(range(60)) for order in orders)


def test_ray_is_told_sizes_from_the_catalog(folder: Path) -> None:
    every = ShardSource(shard_tasks(build_catalog(str(folder))))
    assert every.estimate_inmemory_data_size() == sum(path.stat().st_size for path in folder.glob("*.tar"))
    first, *_ = every.get_read_tasks(1)
    assert (first.metadata.size_bytes, first.metadata.input_files) == (len(shard(0)), (f"{folder}/0.tar",))


def test_what_cannot_be_selected_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown columns .*'images'"):
        read_webdataset(str(folder), columns=["images"])
    with pytest.raises(UsageError, match=r"\['0a'\]"):
        read_webdataset(str(folder), keys="0a")
    with pytest.raises(UsageError, match=r"seed: give shuffle_shards=0"):
        read_webdataset({str(folder): 1})
    nothing: list[Any] = [5, [], {}, "", [5], folder]
    for none in nothing:
        with pytest.raises(UsageError, match=re.escape(f"{none!r}: is no source of shards. Give")):
            read_webdataset(none)


FAULTS = st.lists(
    st.one_of(
        st.just(Fault()),
        st.builds(Fault, st.just("status"), st.sampled_from([500, 503])),
        st.builds(Fault, st.sampled_from(["cut", "reset", "short"]), st.integers(0, 9_000)),
        st.builds(Fault, st.sampled_from(["whole", "elsewhere"])),
    ),
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS)
def test_whatever_a_server_does_rows_are_those_of_an_undisturbed_read_or_it_is_unreachable(
    faults: list[Fault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 4_000)
    with FaultyServer({"0.tar": shard(0)}) as server:
        (task,) = shard_tasks(build_catalog(f"{server.url}/0.tar"))
        whole = pa.concat_tables(read_samples(task, columns=SAMPLE.names))
        assert whole.num_rows == len(KEYS) and whole["reason"].null_count == len(KEYS)
        server.faults = deque(faults)
        try:
            disturbed = pa.concat_tables(read_samples(task, columns=SAMPLE.names))
        except UnreachableError:
            return
        assert disturbed.equals(whole)


def test_a_server_that_stays_away_ends_the_read_and_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "FIRST_WAIT_SECONDS", 0.001)
    with FaultyServer({"0.tar": shard(0)}) as server:
        (task,) = shard_tasks(build_catalog(f"{server.url}/0.tar"))
        server.faults = deque([Fault("status", 503)] * 100)
        with pytest.raises(UnreachableError, match=r"0\.tar"):
            list(read_samples(task, columns=SAMPLE.names))
