"""The audit names every difference between a set's records, its objects and its shards, and survives anything in it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_sets import embed_here
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import make_tar

from mmstream.embeddings.audit import AuditReport, audit
from mmstream.embeddings.writer import to_parquet
from mmstream.errors import UsageError
from mmstream.schema import ChunkRecord, Damage, Manifest, Record, ShardRecord, StoredObject
from mmstream.shards.catalog import build_catalog

SHARDS, SAMPLES, CHUNK = 2, 20, 8
RECORD = "commits/000000.0.json"


def tar_of(keys: Sequence[str]) -> bytes:
    return make_tar((f"{key}.txt", f"caption of {key}".encode()) for key in keys)


def keys_of(shard: int) -> list[str]:
    return [f"{shard}{i:03}" for i in range(SAMPLES)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "tars").mkdir()
    for shard in range(SHARDS):
        (folder / "tars" / f"{shard}.tar").write_bytes(tar_of(keys_of(shard)))
    embed_here(folder / "tars", folder / "emb", chunk_rows=CHUNK)
    return folder


@pytest.fixture
def emb(made: Path, tmp_path: Path) -> Path:
    """A copy of the set; its shards are the module's."""
    return Path(shutil.copytree(made / "emb", tmp_path / "emb"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set whose shards may be changed."""
    (tmp_path / "tars").mkdir()
    for shard in range(SHARDS):
        (tmp_path / "tars" / f"{shard}.tar").write_bytes(tar_of(keys_of(shard)))
    return Path(embed_here(tmp_path / "tars", tmp_path / "emb", chunk_rows=CHUNK))


def said(report: AuditReport) -> list[tuple[int | None, int | None, str]]:
    assert report.exit_code == (6 if report.differences else 0)
    return [(d.shard, d.chunk, d.what) for d in report.differences]


def test_a_sound_set_agrees_with_itself_and_with_its_shards(made: Path) -> None:
    for source in (False, True):
        report = audit(str(made / "emb"), source=source)
        assert said(report) == []
        assert (report.shards, report.rows, report.rejects, report.damaged) == (SHARDS, SHARDS * SAMPLES, {}, [])
    assert set(report.to_json()) >= {"ok", "shards", "rows", "rejects", "damaged", "differences"}


# An adversary's tools: whatever he changes, hashes, counts and totals agree again afterwards.


def rewrite(root: Path, change: Callable[[pa.Table], pa.Table], *, samples: int = 0) -> None:
    """Chunk 1 of shard 0 gets other rows, and `samples` more samples; everything else is made to fit."""
    record = ShardRecord.from_bytes((root / RECORD).read_bytes())
    chunks = list(record.chunks)
    before = chunks[1]
    assert before.data
    data = to_parquet(change(pq.read_table(root / before.data.path)))
    stored = StoredObject(path=before.data.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (root / stored.path).write_bytes(data)
    num_rows = pq.read_table(root / stored.path).num_rows
    chunks[1] = replaced(before, data=stored, num_rows=num_rows, num_samples=before.num_samples + samples)
    for i in range(2, len(chunks)):
        chunks[i] = replaced(chunks[i], first_row=chunks[i].first_row + samples)
        shift(root, chunks, i, samples)
    more = num_rows - before.num_rows
    put(root / RECORD, replaced(record, chunks=chunks, num_samples=record.num_samples + samples,
                                num_rows=record.num_rows + more))  # fmt: skip
    manifest = Manifest.from_bytes((root / "manifest/000001.json").read_bytes())
    assert manifest.totals
    totals = replaced(manifest.totals, samples=manifest.totals.samples + samples, rows=manifest.totals.rows + more)
    put(root / "manifest/000001.json", replaced(manifest, totals=totals))


def shift(root: Path, chunks: list[ChunkRecord], i: int, by: int) -> None:
    stored = chunks[i].data
    assert stored
    table = pq.read_table(root / stored.path)
    data = to_parquet(moved(table, by))
    (root / stored.path).write_bytes(data)
    new = StoredObject(path=stored.path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    chunks[i] = replaced(chunks[i], data=new)


def moved(table: pa.Table, by: int) -> pa.Table:
    rows = [{**r, "row": r["row"] + by, "id": r["id"] + by} for r in table.to_pylist()]
    return pa.Table.from_pylist(rows, schema=table.schema)


def put(path: Path, record: Record) -> None:
    path.write_bytes(record.to_bytes())


def replaced(record, **values):
    return type(record).model_validate({**record.model_dump(), **{k: dumped(v) for k, v in values.items()}})


def dumped(value):
    if isinstance(value, list):
        return [dumped(v) for v in value]
    return value.model_dump() if isinstance(value, Record) else value


def without(i: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: pa.concat_tables([table.slice(0, i), moved(table.slice(i + 1), -1)])


def swapped(i: int, j: int) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        keys = table["key"].to_pylist()
        keys[i], keys[j] = keys[j], keys[i]
        return table.set_column(table.schema.get_field_index("key"), "key", pa.array(keys, pa.string()))

    return change


def test_a_row_that_a_lying_writer_left_out_is_named(emb: Path) -> None:
    rewrite(emb, without(3), samples=-1)
    assert said(audit(str(emb))) == [], "the lie is perfect: only the shard knows better"
    report = audit(str(emb), source=True)
    assert said(report) == [
        (0, 1, "key of row 11 (there and 3 times more stands the next row's)"),
        (0, 2, "key of row 15 (there and 3 times more stands the next row's)"),
        (0, None, "samples in the source"),
    ]
    assert (report.differences[0].expected, report.differences[0].found) == ("0011", "0012")
    assert (report.differences[2].expected, report.differences[2].found) == ("20", "19")


def test_rows_that_changed_places_are_named(emb: Path) -> None:
    rewrite(emb, swapped(2, 5))
    assert said(audit(str(emb))) == []
    assert said(audit(str(emb), source=True)) == [(0, 1, "key of row 10 (swapped with row 13)")]


def test_a_row_without_a_record_of_it_a_doubled_one_and_a_wrong_id_are_named_without_the_source(emb: Path) -> None:
    rewrite(emb, lambda t: t.slice(1))
    assert said(audit(str(emb))) == [(0, 1, "samples in rows or rejects")]
    assert "missing [8]" in audit(str(emb)).differences[0].found


def test_a_doubled_row_and_a_wrong_id_are_named(emb: Path) -> None:
    rewrite(emb, lambda t: pa.concat_tables([t, t.slice(0, 1)]))
    report = audit(str(emb))
    assert said(report) == [(0, 1, "samples in rows or rejects")]
    assert "doubled [8]" in report.differences[0].found


def test_ids_that_are_not_of_their_row_are_named(emb: Path) -> None:
    rewrite(emb, lambda t: t.set_column(0, "id", pa.array([*range(7), 99], pa.int64())))
    assert (0, 1, "ids") in said(audit(str(emb)))


def test_other_columns_than_declared_are_named(emb: Path) -> None:
    rewrite(emb, lambda t: t.drop_columns(["similarity"]))
    assert said(audit(str(emb)))[0][2].startswith("columns of data/000000-000001-")


def test_a_picture_that_lies_elsewhere_is_named(tmp_path: Path) -> None:
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "PNG")
    (tmp_path / "0.tar").write_bytes(make_tar((f"{i:03}.png", pixels.getvalue()) for i in range(20)))
    emb = Path(embed_here(tmp_path / "0.tar", tmp_path / "emb", chunk_rows=CHUNK))
    assert said(audit(str(emb), source=True)) == []

    def change(table: pa.Table) -> pa.Table:
        i = table.schema.get_field_index("image_offset")
        places = table["image_offset"].to_pylist()
        return table.set_column(i, "image_offset", pa.array([*places[:3], places[4], *places[4:]], pa.int64()))

    rewrite(emb, change)
    assert said(audit(str(emb), source=True)) == [(0, 1, "place of the picture of row 11 (offset, bytes)")]


def test_records_whose_own_figures_do_not_agree_are_named(emb: Path) -> None:
    record = ShardRecord.from_bytes((emb / RECORD).read_bytes())
    damage = Damage(reason="tar_header", offset=5, detail="-")
    chunks = [
        replaced(record.chunks[0], fingerprint="sha256:another"),
        replaced(record.chunks[1], source_etag="another"),
        replaced(record.chunks[2], damage=damage),
    ]
    put(emb / RECORD, replaced(record, chunks=chunks, num_rows=19, num_rejects={"caption": 1}))
    assert said(audit(str(emb))) == [
        (0, 0, "fingerprint"),
        (0, 1, "source (bytes, etag)"),
        (0, 2, "reject for the rest of the shard (row, reason, offset)"),
        (0, None, "damage in the record"),
        (0, None, "num_rows of the shard"),
        (0, None, "num_rejects of the shard"),
    ]


# The source, later.


def test_a_shard_that_was_replaced_afterwards_is_named_with_every_row_that_differs(own: Path) -> None:
    (own.parent / "tars/1.tar").write_bytes(tar_of([*keys_of(1)[:12], "new", *keys_of(1)[13:]]))
    assert said(audit(str(own))) == []
    assert said(audit(str(own), source=True)) == [
        (1, None, "source since it was embedded (bytes, etag)"),
        (1, 1, "key of row 12"),
    ]


def test_samples_appended_to_a_shard_afterwards_are_named(own: Path) -> None:
    (own.parent / "tars/1.tar").write_bytes(tar_of([*keys_of(1), "new"]))
    assert said(audit(str(own), source=True)) == [
        (1, None, "source since it was embedded (bytes, etag)"),
        (1, None, "samples in the source"),
    ]


def test_a_shard_that_is_gone_is_named(own: Path) -> None:
    (own.parent / "tars/0.tar").unlink()
    assert said(audit(str(own), source=True)) == [(0, None, "source")]


def test_a_shard_cut_at_a_sample_is_seen_by_the_stats_beside_it(own: Path) -> None:
    (own.parent / "tars/0_stats.json").write_text(json.dumps({"successes": SAMPLES + 3}))
    (own.parent / "tars/1_stats.json").write_text("no JSON")
    report = audit(str(own), source=True)
    assert said(report) == [(0, None, "samples by the _stats.json beside the shard")]
    assert report.differences[0].expected == "23"


def test_damage_that_is_accounted_for_is_no_difference_and_a_lie_about_it_is(tmp_path: Path) -> None:
    whole = tar_of(keys_of(0))
    hurt = bytearray(whole)
    place = hurt.index(b"0012.txt")
    hurt[place + 2] ^= 4
    (tmp_path / "0.tar").write_bytes(hurt)
    (tmp_path / "1.tar").write_bytes(whole)
    emb = Path(embed_here(tmp_path / "*.tar", tmp_path / "emb", chunk_rows=CHUNK))
    report = audit(str(emb), source=True)
    assert said(report) == []
    assert [(d["shard"], d["offset"], d["reason"]) for d in report.damaged] == [(0, place, "tar_header")]

    (tmp_path / "0.tar").write_bytes(whole)  # mended
    assert said(audit(str(emb), source=True))[1:] == [(0, None, "samples in the source"), (0, None, "damage")]


def test_a_shard_that_was_lost_before_it_was_read_is_accounted_for_until_it_is_back(tmp_path: Path) -> None:
    whole = tar_of(keys_of(0))
    for name in ("gone", "changed", "hurt"):
        (tmp_path / f"{name}.tar").write_bytes(whole)
    catalog = build_catalog(str(tmp_path / "*.tar"), checksums=True)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.tar")}

    def spoil() -> None:
        (tmp_path / "gone.tar").unlink()
        (tmp_path / "changed.tar").write_bytes(whole + bytes(512))
        (tmp_path / "hurt.tar").write_bytes(whole.replace(b"caption of 0012", b"caption of 9912"))
        os.utime(tmp_path / "hurt.tar", ns=(0, times[tmp_path / "hurt.tar"]))

    spoil()
    emb = embed_here(catalog, tmp_path / "emb", chunk_rows=CHUNK)
    report = audit(emb, source=True)
    assert said(report) == []
    assert [d["reason"] for d in report.damaged] == ["source_changed", "unreadable", "checksum"]

    for path, then in times.items():
        path.write_bytes(whole)
        os.utime(path, ns=(0, then))
    assert said(audit(emb, source=True)) == [
        (shard, None, what) for shard in range(3) for what in ("samples in the source", "damage")
    ]


def test_every_bad_tar_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/bad_inputs/tars"
    emb = embed_here(source, tmp_path / "emb", chunk_rows=50)
    assert said(audit(emb, source=True)) == []


# Whatever may lie in a set.


def test_a_torn_record_hides_no_valid_one_below_it_and_is_named(emb: Path) -> None:
    (emb / "commits/000000.1.json").write_text('{"format": "mmst')
    report = audit(str(emb))
    assert report.rows == SHARDS * SAMPLES
    assert [d.what.rsplit("/", 1)[1] for d in report.differences] == ["000000.1.json"]
    shutil.copy(emb / RECORD, emb / "commits/000000.2.json")
    assert said(audit(str(emb))) == [], "a later generation has taken its place"


def test_a_record_of_a_source_that_the_catalog_does_not_name_waits_for_its_catalog(emb: Path) -> None:
    record = ShardRecord.from_bytes((emb / RECORD).read_bytes())
    later = replaced(record, chunks=[replaced(c, source_etag="mended") for c in record.chunks])
    put(emb / "commits/000000.1.json", later)
    assert said(audit(str(emb))) == []
    (emb / RECORD).unlink()
    shutil.rmtree(emb / "commits/000000")
    assert said(audit(str(emb))) == [(0, chunk, "source (bytes, etag)") for chunk in range(3)]


def test_an_older_folded_record_stands_in_where_the_newest_is_damaged_and_chunk_records_have_gaps(emb: Path) -> None:
    (emb / "commits/000000.1.json").write_text("{}")
    (emb / "commits/000000/000001.0.json").unlink()
    report = audit(str(emb))
    assert report.rows == SHARDS * SAMPLES
    assert [d.what.rsplit("/", 1)[1] for d in report.differences] == ["000000.1.json"]


def test_chunk_records_stand_in_for_a_folded_one_that_was_lost(emb: Path) -> None:
    (emb / RECORD).unlink()
    report = audit(str(emb))
    assert report.rows == SHARDS * SAMPLES
    assert said(report) == [(0, None, "record of the shard")]


def test_a_shard_without_any_record_is_named(emb: Path) -> None:
    (emb / RECORD).unlink()
    shutil.rmtree(emb / "commits/000000")
    assert said(audit(str(emb))) == [
        (0, None, "record of the shard"),
        (None, None, "total shards"),
        (None, None, "total samples"),
        (None, None, "total rows"),
    ]


def test_objects_that_are_missing_changed_or_no_parquet_are_named(emb: Path) -> None:
    objects = sorted((emb / "data").iterdir())
    objects[0].unlink()
    objects[1].write_bytes(objects[1].read_bytes()[:-1])
    whats = [what for _, _, what in said(audit(str(emb), source=True))]
    assert f"data object data/{objects[0].name}" in whats
    assert f"SHA-256 of data/{objects[1].name}" in whats


def test_a_set_without_its_catalog_or_with_another_one_is_checked_as_far_as_it_goes(emb: Path) -> None:
    catalog = emb / "catalog/000000.parquet"
    catalog.write_bytes(catalog.read_bytes() + b"x")
    report = audit(str(emb), source=True)
    assert report.rows == SHARDS * SAMPLES
    assert said(report)[0][2] == "SHA-256 of catalog/000000.parquet"
    catalog.unlink()
    assert said(audit(str(emb), source=True))[0][2] == "catalog catalog/000000.parquet"


def test_a_set_without_a_valid_manifest_is_checked_as_far_as_it_goes(emb: Path) -> None:
    (emb / "manifest/000001.json").write_bytes(b"\xff\xfe")
    report = audit(str(emb))
    assert (report.rows, len(report.differences)) == (SHARDS * SAMPLES, 2)
    assert said(report)[1] == (None, None, "manifests")
    shutil.rmtree(emb / "manifest")
    assert said(audit(str(emb))) == [(None, None, "manifests")]


def test_strange_files_are_named_and_do_no_harm(emb: Path) -> None:
    for name in ("commits/notes.json", "commits/000000/x.y.z", "data/_SUCCESS", "README", "commits/٣٣٣٣٣٣.0.json"):
        (emb / name).write_bytes(b"\0")
    report = audit(str(emb))
    assert said(report) == []
    assert len(report.unknown) == 5
    with pytest.raises(UsageError, match="no embedding set is there"):
        audit(str(emb / "nothing"))


def test_records_that_claim_absurd_numbers_or_strange_paths_are_named(emb: Path) -> None:
    record = ShardRecord.from_bytes((emb / RECORD).read_bytes())
    lies = [
        replaced(record.chunks[0], num_samples=10**30),
        replaced(record.chunks[1], shard=10**30, chunk=-1),
        replaced(record.chunks[2], data=StoredObject(path="../../../etc/passwd", bytes=1, sha256="")),
    ]
    put(emb / RECORD, replaced(record, chunks=lies))
    whats = {what for _, _, what in said(audit(str(emb), source=True))}
    assert {"first row and number of samples", "place of the chunk (shard, chunk, first row)"} <= whats
    assert "path of an object" in whats


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_bit_flip_and_no_cut_of_any_file_ends_the_audit_and_none_that_matters_is_missed(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    emb = Path(shutil.copytree(made / "emb", tmp_path_factory.mktemp("flipped") / "emb"))
    files = sorted(p for p in emb.rglob("*") if p.is_file())
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    file.write_bytes(content)
    report = audit(str(emb), source=True)
    if file.parent.name in ("data", "catalog"):
        assert not report.ok, file
