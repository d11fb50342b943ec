"""Records: what is folded, and which of several generations counts when some of them were torn or changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from mmstream.embeddings.layout import (
    InvalidRecordError,
    Records,
    fold,
    latest_manifest,
    manifest_path,
    next_generations,
    parse,
    read_records,
)
from mmstream.embeddings.listing import chunk_record_path, list_records, shard_record_path
from mmstream.errors import RefusedError
from mmstream.schema import CATALOG, ChunkRecord, Manifest, Sealed, ShardRecord

SHARD = 0


def record(chunk: int, first_row: int, num_samples: int, end: bool = False, attempt: str = "a") -> ChunkRecord:
    return ChunkRecord(
        shard=SHARD,
        chunk=chunk,
        first_row=first_row,
        num_samples=num_samples,
        num_rows=num_samples - 1,
        num_rejects={"caption": 1},
        data=None,
        rejects=None,
        end=end,
        source_bytes=1,
        source_etag="e",
        fingerprint="f",
        attempt=attempt,
    )


def chunks_of(attempt: str = "a") -> dict[int, ChunkRecord]:
    places = [(0, 0, 5, False), (1, 5, 5, False), (2, 10, 2, True)]
    return {place[0]: record(*place, attempt=attempt) for place in places}


def folded(attempt: str = "a") -> ShardRecord:
    made = fold(chunks_of(attempt))
    assert made is not None
    return made


def manifest(finished: bool) -> Manifest:
    return Manifest(
        finished=finished, catalog="catalog/000000.parquet", catalog_sha256="0", encoder="fake:8", fingerprint="f",
        dimension=8, modalities=["image"], normalized=True, micro_batch=32, threads=1, dtype="float32", chunk_rows=5,
        chunk_bytes=9, fields=[], limit=None, single_writer=False, device="cpu", libraries={},
    )  # fmt: skip


def put(root: Path, path: str, data: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def flipped(data: bytes) -> bytes:
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def read(root: Path, etag: str = "e") -> Records:
    source = [{"shard": SHARD, "url": "/nowhere/a.tar", "bytes": 1, "etag": etag}]
    return read_records(str(root), pa.Table.from_pylist(source, schema=CATALOG))


def test_a_shard_folds_when_its_last_gap_closes() -> None:
    chunks = chunks_of()
    assert fold({}) is None
    assert fold({n: chunks[n] for n in (0, 2)}) is None
    assert fold({n: chunks[n] for n in (0, 1)}) is None
    made = fold(chunks)
    assert made is not None
    assert (made.num_samples, made.num_rows, made.num_rejects) == (12, 9, {"caption": 3})


@pytest.mark.parametrize("second", [record(1, 6, 5), record(1, 4, 5), record(1, 5, 5, end=True)])
def test_chunks_that_do_not_adjoin_are_never_folded(second: ChunkRecord) -> None:
    with pytest.raises(RefusedError, match="two attempts saw different bytes"):
        fold({0: record(0, 0, 5), 1: second, 2: record(2, second.first_row + 5, 2, end=True)})


def every_flip(data: bytes) -> Iterator[bytes]:
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@pytest.mark.parametrize("stored", [record(0, 0, 5), folded(), manifest(True)], ids=lambda r: type(r).__name__)
def test_every_flipped_bit_and_every_cut_of_a_record_is_noticed(stored: Sealed) -> None:
    data = stored.to_bytes()
    assert parse(type(stored), data, "url") == stored
    for changed in [*every_flip(data), *(data[:n] for n in range(len(data) - 1))]:
        with pytest.raises(InvalidRecordError, match="not a "):
            parse(type(stored), changed, "url")


def test_a_record_of_another_format_is_refused_and_not_taken_for_a_damaged_one() -> None:
    newer = record(0, 0, 5).model_copy(update={"format": "mmstream/9"})
    with pytest.raises(RefusedError, match="format is mmstream/9, this version reads mmstream/1") as e:
        parse(ChunkRecord, newer.to_bytes(), "url")
    assert not isinstance(e.value, InvalidRecordError)


def test_the_highest_valid_manifest_counts_and_no_taken_number_is_given_out(tmp_path: Path) -> None:
    assert latest_manifest(str(tmp_path)) is None
    put(tmp_path, manifest_path(0), manifest(False).to_bytes())
    put(tmp_path, manifest_path(1), manifest(True).to_bytes())
    put(tmp_path, manifest_path(2), flipped(manifest(True).to_bytes()))
    put(tmp_path, "manifest/notes.json", b"{}")
    found = latest_manifest(str(tmp_path))
    assert found is not None
    assert (found.number, found.next_number, found.manifest.finished) == (1, 3, True)
    for number in (0, 1):
        put(tmp_path, manifest_path(number), b"")
    with pytest.raises(InvalidRecordError, match=r"000002\.json: not a Manifest"):
        latest_manifest(str(tmp_path))


def test_the_highest_folded_record_counts_and_chunk_records_below_it_are_not_read(tmp_path: Path) -> None:
    put(tmp_path, shard_record_path(SHARD, 0), folded("old").to_bytes())
    put(tmp_path, shard_record_path(SHARD, 1), folded("new").to_bytes())
    put(tmp_path, chunk_record_path(SHARD, 0, 0), b"garbage")
    found = read(tmp_path)
    assert [c.attempt for c in found.shards[SHARD].chunks] == ["new"] * 3
    assert found.chunks == {}
    assert list_records(str(tmp_path))[SHARD].next == 2


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:100], lambda data: b""], ids=["flip", "cut", "empty"])
def test_a_damaged_folded_record_is_made_again_from_chunk_records(tmp_path: Path, damage) -> None:
    put(tmp_path, shard_record_path(SHARD, 0), folded("old").to_bytes())
    put(tmp_path, shard_record_path(SHARD, 1), damage(folded("new").to_bytes()))
    for n, chunk in chunks_of("old").items():
        put(tmp_path, chunk_record_path(SHARD, n, 0), chunk.to_bytes())
    put(tmp_path, chunk_record_path(SHARD, 1, 1), chunks_of("new")[1].to_bytes())
    found = read(tmp_path)
    assert found.shards == {}
    assert [c.attempt for c in found.finished()[SHARD].chunks] == ["old", "new", "old"]


@pytest.mark.parametrize("newest", [b"torn", None], ids=["damaged", "gone"])
def test_newer_chunk_records_count_before_an_older_folded_one_and_it_stands_in_for_the_others(
    tmp_path: Path, newest: bytes | None
) -> None:
    put(tmp_path, shard_record_path(SHARD, 0), folded("old").to_bytes())
    if newest:
        put(tmp_path, shard_record_path(SHARD, 1), newest)
    put(tmp_path, chunk_record_path(SHARD, 1, 0), chunks_of("older than it")[1].to_bytes())
    assert [c.attempt for c in read(tmp_path).finished()[SHARD].chunks] == ["old"] * 3
    put(tmp_path, chunk_record_path(SHARD, 0, 1), chunks_of("new")[0].to_bytes())
    found = read(tmp_path)
    assert [c.attempt for c in found.finished()[SHARD].chunks] == ["new", "old", "old"]
    assert next_generations(list_records(str(tmp_path)), found) == {SHARD: 2}, "the old one is in the way of a new one"


def test_newer_chunk_records_that_do_not_adjoin_leave_the_folded_one_as_it_is(tmp_path: Path) -> None:
    put(tmp_path, shard_record_path(SHARD, 0), folded("old").to_bytes())
    put(tmp_path, chunk_record_path(SHARD, 1, 1), record(1, 6, 5).to_bytes())
    assert read(tmp_path).shards == {SHARD: folded("old")}


def test_of_a_shard_that_is_not_folded_the_highest_valid_chunk_records_count(tmp_path: Path) -> None:
    for generation, chunk in [(0, chunks_of("0")[0]), (2, chunks_of("2")[0])]:
        put(tmp_path, chunk_record_path(SHARD, 0, generation), chunk.to_bytes())
    put(tmp_path, chunk_record_path(SHARD, 0, 3), flipped(chunks_of("3")[0].to_bytes()))
    put(tmp_path, chunk_record_path(SHARD, 1, 0), chunks_of()[2].to_bytes())  # under a name that is not its own
    found = read(tmp_path)
    assert {n: c.attempt for n, c in found.chunks[SHARD].items()} == {0: "2"}
    assert found.finished() == {}


def test_records_of_another_source_than_the_catalogs_and_of_shards_it_lacks_do_not_count(tmp_path: Path) -> None:
    put(tmp_path, shard_record_path(SHARD, 0), folded().to_bytes())
    put(tmp_path, shard_record_path(1, 0), folded().model_copy(update={"shard": 1}).to_bytes())
    assert list(read(tmp_path).shards) == [SHARD]
    assert read(tmp_path, etag="mended").finished() == {}
