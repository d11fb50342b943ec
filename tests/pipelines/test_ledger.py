"""What a run goes on from, without Ray: real shards, real records, any order of what happened before."""

from __future__ import annotations

import gzip
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from tars import make_tar

from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.encoders.build import load_encoder
from mmstream.errors import Reason, RefusedError, TooManyRejectsError
from mmstream.pipelines import source
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.ledger import Ledger
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import ShardTask, chunks_of, from_row, to_row
from mmstream.schema import Damage
from mmstream.shards.catalog import build_catalog
from mmstream.timing import Stopwatch

SAMPLES, CHUNKS = 40, 5
ENCODER = load_encoder("fake:4")


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    monkeypatch.setattr(source, "CHUNK_ROWS", SAMPLES // CHUNKS)
    (tmp_path / "a.tar").write_bytes(make_tar((f"{i:02}.txt", b"words " * 4000) for i in range(SAMPLES)))
    return build_catalog(str(tmp_path / "a.tar"))


def results(task: ShardTask) -> list[ChunkResult]:
    made = []
    for chunk in chunks_of(task):
        info, samples = from_row(to_row(chunk, task, 0.0))
        with ThreadPoolExecutor(1) as pool:
            rows, rejects = encode_chunk(info, samples, ENCODER, (), pool=pool, watch=Stopwatch())
        place = (info.shard, info.chunk, info.first_row, info.num_samples)
        made.append(ChunkResult(*place, rows, rejects, info.end, info.damage, info.source_bytes, info.source_etag))
    return made


def go_on(dest: Path, catalog: pa.Table) -> Ledger:
    ledger = Ledger(str(dest), catalog, ENCODER.fingerprint, 1.0)
    for task in ledger.plan():
        for result in results(task):
            generation = ledger.generations.get(result.shard, 0)
            ledger.add(commit_chunk(str(dest), result, ENCODER.fingerprint, generation))
    return ledger


def test_an_end_that_was_the_source_s_state_of_a_moment_is_taken_back_when_it_is_itself_again(
    catalog: pa.Table, tmp_path: Path
) -> None:
    done = results(shard_tasks(catalog)[0])
    gone = Damage(reason=Reason.SOURCE_CHANGED, offset=done[4].first_row, detail="its etag was another for a moment")
    # Chunk 0 was still at work when the run was killed.
    for result in [done[1], done[2], replace(done[3], end=True, damage=gone)]:
        commit_chunk(str(tmp_path / "emb"), result, ENCODER.fingerprint)
    assert go_on(tmp_path / "emb", catalog).finish("a.tar").rows == SAMPLES
    assert go_on(tmp_path / "emb", catalog).damaged == {}


def test_chunks_of_two_attempts_that_saw_different_bytes_are_all_made_anew(catalog: pa.Table, tmp_path: Path) -> None:
    done = results(shard_tasks(catalog)[0])
    for result in [*done[:2], replace(done[2], first_row=17), *done[3:]]:
        commit_chunk(str(tmp_path / "emb"), result, ENCODER.fingerprint)
    ledger = go_on(tmp_path / "emb", catalog)
    assert ledger.finish("a.tar").rows == ledger.num_encoded == SAMPLES


def test_a_chunk_that_ray_hands_on_twice_counts_once(catalog: pa.Table, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), catalog, ENCODER.fingerprint, 1.0)
    for record in [commit_chunk(str(tmp_path), r, ENCODER.fingerprint) for r in results(ledger.plan()[0])]:
        ledger.add(record)
        ledger.add(record)
    assert (ledger.num_samples, ledger.num_rows, ledger.num_encoded, ledger.num_folded) == (SAMPLES,) * 3 + (1,)


def test_a_set_with_gaps_has_no_totals(catalog: pa.Table, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), catalog, ENCODER.fingerprint, 1.0)
    for result in results(ledger.plan()[0])[1:]:
        ledger.add(commit_chunk(str(tmp_path), result, ENCODER.fingerprint))
    with pytest.raises(RefusedError, match="1 shard with gaps, first 0"):
        ledger.finish("a.tar")


def test_records_of_another_encoder_are_not_gone_on_from(catalog: pa.Table, tmp_path: Path) -> None:
    (chunk, *_), of_chunk, of_shard = results(shard_tasks(catalog)[0]), tmp_path / "chunk", tmp_path / "shard"
    commit_chunk(str(of_chunk), chunk, "sha256:another")
    go_on(of_shard, catalog)
    for dest in (of_chunk, of_shard):
        with pytest.raises(RefusedError, match=r"fingerprint of shard 0 chunk 0 is .*, the encoder's is sha256:third"):
            Ledger(str(dest), catalog, "sha256:third", 1.0)


def test_a_source_that_changes_while_a_resumed_run_reads_it_ends_the_run(catalog: pa.Table) -> None:
    task = shard_tasks(catalog)[0]
    path = Path(task.url)
    reading = chunks_of(replace(task, skip=frozenset({0})))
    next(reading)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(RefusedError, match="though part of it was read before"):
        list(reading)


def test_what_the_driver_holds_of_finished_shards_does_not_grow_with_their_samples(
    catalog: pa.Table, tmp_path: Path
) -> None:
    go_on(tmp_path / "emb", catalog)
    tracemalloc.start()
    ledger = Ledger(str(tmp_path / "emb"), pa.concat_tables([catalog]), ENCODER.fingerprint, 1.0)
    for shard in range(1, 1_000):
        ledger.shards[shard] = ledger.shards[0].model_copy(deep=True)
    num_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert [s.chunks for s in ledger.shards.values()] == [[]] * 1_000
    assert num_bytes / 1_000 <= 1_100


@pytest.mark.parametrize("broken", [[0, 1, 2, 3], [1, 2, 3, 4]])
def test_the_error_budget_does_not_depend_on_which_shard_is_finished_first(tmp_path: Path, broken: list[int]) -> None:
    for i in range(5):
        tar = make_tar((f"{i}{n:03}.txt", b"words") for n in range(100))
        (tmp_path / f"{i}.tar").write_bytes(tar)
    catalog = build_catalog(str(tmp_path / "*.tar"))
    sums = pa.array(["0" * 64 if i in broken else None for i in range(5)], pa.string())
    catalog = catalog.set_column(catalog.schema.get_field_index("sha256"), "sha256", sums)
    ledger = go_on(tmp_path / "emb", catalog)
    assert ledger.damaged == dict.fromkeys(broken, 100)
    ledger.max_rejects = 0.05
    with pytest.raises(TooManyRejectsError, match="about 400 samples lie behind damage"):
        ledger.finish("here")


def test_what_lies_behind_damage_in_a_compressed_shard_is_counted_as_in_a_plain_one(tmp_path: Path) -> None:
    """A place in what it holds lies far behind its own size, where that is compressed well."""
    damaged = []
    for suffix, pack in ((".tar", bytes), (".tar.gz", gzip.compress)):
        folder = tmp_path / suffix
        folder.mkdir()
        for i in range(4):
            tar = bytearray(make_tar((f"{n:03}.txt", b"words " * 300) for n in range(100)))
            if i:
                tar[30 * 2560 + 150] ^= 0x55  # in the header of sample 30
            (folder / f"{i}{suffix}").write_bytes(pack(bytes(tar)))
        ledger = go_on(folder / "emb", build_catalog(str(folder / f"*{suffix}")))
        assert ledger.num_samples == 100 + 3 * 30
        damaged.append(ledger.damaged)
        with pytest.raises(TooManyRejectsError, match=r"about 2\d\d samples lie behind damage"):
            ledger.max_rejects = 0.05
            ledger.finish("here")
    for behind in damaged:
        assert behind.keys() == {1, 2, 3} and all(65 <= n <= 72 for n in behind.values())
