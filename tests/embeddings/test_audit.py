"""The audit names every difference between a set's records, its objects and its shards, and survives anything in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from audited_sets import RECORD, SAMPLES, SHARDS, put, replaced, rewrite, said
from hypothesis import given, settings
from hypothesis import strategies as st

from mmstream.embeddings.audit import Counted, audit
from mmstream.errors import UnreachableError, UsageError
from mmstream.schema import Damage, Manifest, ShardRecord, StoredObject


def test_a_sound_set_agrees_with_itself_and_with_its_shards(made: Path) -> None:
    for source in (False, True):
        report = audit(str(made / "emb"), source=source)
        assert said(report) == []
        assert (report.shards, report.rows, report.rejects, report.damaged) == (SHARDS, SHARDS * SAMPLES, {}, [])
        assert report.source == (Counted(shards=SHARDS, samples=SHARDS * SAMPLES) if source else None)
        assert ("40 samples counted in 2 shards" in str(report)) == source
    assert set(report.to_json()) >= {"ok", "shards", "rows", "rejects", "damaged", "differences"}


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


def unreadable(path: Path) -> None:
    """A bad sector: the file is there, and reading it is an I/O error (also to root, whom no permission stops)."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def test_what_the_store_does_not_give_out_is_named_and_all_else_is_checked(emb: Path) -> None:
    objects = sorted((emb / "data").iterdir())
    unreadable(objects[1])
    report = audit(str(emb), source=True)
    assert (report.ok, report.differences, report.exit_code) == (False, [], 5)
    assert [(u.shard, u.chunk, u.what) for u in report.unchecked] == [(0, 1, "objects")]
    assert objects[1].name in report.unchecked[0].why
    assert report.rows == SHARDS * SAMPLES - 8
    assert report.title() == "audit: 1 unchecked"
    assert report.next == [f"mmstream audit {emb} --source"]
    objects[5].unlink()
    report = audit(str(emb))
    assert (len(report.unchecked), report.exit_code) == (1, 6)
    assert report.differences[0].what == f"data object data/{objects[5].name}"


@pytest.mark.parametrize(
    ("name", "what", "rows"),
    [
        (RECORD, "record of the shard", 40),  # those of its chunks say the same
        ("commits/000001/000001.0.json", None, 40),  # nobody needs it
        ("catalog/000000.parquet", "catalog catalog/000000.parquet", 40),
        ("manifest/000001.json", "manifest", 40),
    ],
)
def test_a_record_that_cannot_be_read_makes_no_false_difference(
    emb: Path, name: str, what: str | None, rows: int
) -> None:
    unreadable(emb / name)
    report = audit(str(emb), source=True)
    assert said(report, unchecked=what is not None) == []
    assert [u.what for u in report.unchecked] == ([what] if what else [])
    assert report.rows == rows


def test_records_of_which_none_can_be_read_leave_their_shard_unchecked(emb: Path) -> None:
    unreadable(emb / RECORD)
    unreadable(emb / "commits/000000/000001.0.json")
    report = audit(str(emb))
    assert said(report, unchecked=True) == []
    assert [u.what for u in report.unchecked] == ["record of the shard", "records"]
    assert (report.shards, report.rows) == (1, SAMPLES)


def test_a_store_that_gives_out_nothing_any_more_ends_the_audit(emb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmstream.embeddings.findings.MAX_SILENT", 3)
    for file in (emb / "data").iterdir():
        unreadable(file)
    with pytest.raises(UnreachableError, match=r"6 objects gave no answer; the last: .*/data/"):
        audit(str(emb))


def test_an_unfinished_set_is_gone_on_with_by_the_command_that_its_audit_prints(own: Path) -> None:
    path = own / "manifest/000001.json"
    manifest = Manifest.from_bytes(path.read_bytes())
    put(path, replaced(manifest, finished=False, fields=["a b"], limit=30))
    report = audit(str(own))
    command = f"mmstream embed {own}/catalog/000000.parquet {own} --model fake:8 --field 'a b' --limit 30"
    assert (report.exit_code, report.next) == (6, [command])


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
