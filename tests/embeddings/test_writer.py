"""Commits without Ray: generations, writers in several processes, and a kill between any two of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from mmstream.embeddings.layout import fold, read_records
from mmstream.embeddings.listing import chunk_record_path, list_records
from mmstream.embeddings.reader import is_sound
from mmstream.embeddings.writer import ChunkResult, commit_chunk, commit_shard
from mmstream.errors import RefusedError
from mmstream.schema import CATALOG, REJECT, embedding_schema, sample_id

CHUNKS, ROWS = 12, 20
ETAG = "e"


def result(chunk: int, etag: str = ETAG) -> ChunkResult:
    numbers = range(chunk * ROWS, (chunk + 1) * ROWS)
    rows = [{"id": sample_id(0, n), "shard": 0, "row": n, "key": str(n), "text_embedding": [n % 7, 1]} for n in numbers]
    table = pa.Table.from_pylist(rows, schema=embedding_schema(["text"], 2, []))
    end = chunk == CHUNKS - 1
    return ChunkResult(0, chunk, chunk * ROWS, ROWS, table, REJECT.empty_table(), end, None, 1, etag)


def catalog(etag: str = ETAG) -> pa.Table:
    return pa.Table.from_pylist([{"shard": 0, "url": "/nowhere/a.tar", "bytes": 1, "etag": etag}], schema=CATALOG)


def commit_all(root: str, kill_at: int = -1) -> None:
    """What a driver does with one shard; it is killed, if at all, at its `kill_at`th commit, behind the data."""
    from mmstream.embeddings import writer

    committed = read_records(root, catalog()).by_chunk().get(0, {})
    for i, chunk in enumerate(n for n in range(CHUNKS) if n not in committed):
        if i == kill_at:
            writer.put_if_absent = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        commit_chunk(root, result(chunk), "f")
    folded = fold(read_records(root, catalog()).by_chunk()[0])
    assert folded
    commit_shard(root, folded)


def hashes(root: Path) -> list[str]:
    record = read_records(str(root), catalog()).shards[0]
    assert all(is_sound(str(root), c) for c in record.chunks)
    return [c.data.sha256 for c in record.chunks if c.data]


def in_processes(*calls: tuple) -> list[int | None]:
    processes = [multiprocessing.get_context("fork").Process(target=commit_all, args=call) for call in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_two_processes_at_once_make_one_set(tmp_path: Path) -> None:
    commit_all(str(tmp_path / "alone"))
    for i in range(3):
        root = tmp_path / str(i)
        assert in_processes((str(root),), (str(root),)) == [0, 0]
        assert hashes(root) == hashes(tmp_path / "alone")
        names = list_records(str(root))[0]
        assert ([g for g, _ in names.folded], names.next) == ([0], 1), "one record each, of one generation"


def test_killed_between_data_and_record_again_and_again_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    commit_all(str(tmp_path / "alone"))
    root, kills = tmp_path / "killed", 0
    while (code := in_processes((str(root), 1))[0]) != 0:
        assert code == -signal.SIGKILL
        kills += 1
    assert kills == CHUNKS - 1
    assert hashes(root) == hashes(tmp_path / "alone")


def test_a_damaged_record_is_never_replaced_and_the_next_generation_of_it_counts(tmp_path: Path) -> None:
    root, damaged = str(tmp_path), tmp_path / chunk_record_path(0, 0)
    first = commit_chunk(root, result(0), "f")
    assert commit_chunk(root, result(0), "f") == first, "the second writer takes what is there"
    damaged.write_bytes(b"torn")
    second = commit_chunk(root, result(0), "f")
    assert damaged.read_bytes() == b"torn"
    assert read_records(root, catalog()).chunks[0][0] == second != first


def test_a_record_of_another_source_gives_way_and_one_of_another_encoder_does_not(tmp_path: Path) -> None:
    commit_chunk(str(tmp_path), result(0), "f")
    mended = commit_chunk(str(tmp_path), result(0, etag="mended"), "f")
    assert read_records(str(tmp_path), catalog("mended")).chunks[0][0] == mended
    with pytest.raises(RefusedError, match="fingerprint of shard 0 chunk 0 is f, ours is g"):
        commit_chunk(str(tmp_path), result(0), "g")
