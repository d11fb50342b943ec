"""Embedding through a real local Ray: what is promised about every sample, and about running it again."""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import S3
from PIL import Image
from tars import make_tar

import mmstream as mm
from mmstream import cli, timing
from mmstream.embeddings.layout import read_records
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.encoders.build import load_encoder
from mmstream.errors import DifferencesError, RefusedError, TooManyRejectsError, UsageError
from mmstream.pipelines.embed_report import NULLS
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.manifest import Asked, begin
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import chunks_of, from_row, to_row
from mmstream.schema import ShardRecord
from mmstream.shards.catalog import build_catalog
from mmstream.timing import ADVICE, Stopwatch

pytestmark = pytest.mark.usefixtures("ray_local")


def picture(seed: int, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sample(i: int) -> list[tuple[str, bytes]]:
    about = {"url": f"http://example.org/{i}.png", "fits": i % 3, "sha256": "x"}
    return [
        (f"{i:06}.png", picture(i)),
        (f"{i:06}.txt", b"picture number %d" % i),
        (f"{i:06}.json", json.dumps(about).encode()),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,300 samples in three shards, so that two of them have more than one chunk."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, rows in enumerate([range(0, 600), range(600, 1200), range(1200, 1300)]):
        (folder / f"{shard:05}.tar").write_bytes(make_tar(f for i in rows for f in sample(i)))
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("undisturbed") / "emb"
    report = mm.embed(str(folder), str(dest), model="fake:16", fields=["fits"])
    assert (report.rows, report.rejects, report.damaged) == (1300, {}, [])
    return dest


def stored_shards(dest: Path) -> dict[int, ShardRecord]:
    return read_records(str(dest), EmbeddingSet.open(str(dest)).catalog).shards


def data_hashes(dest: Path) -> dict[tuple[int, int], str]:
    shards = stored_shards(dest)
    return {(c.shard, c.chunk): c.data.sha256 for s in shards.values() for c in s.chunks if c.data}


def test_every_sample_is_a_row_with_its_own_vectors_caption_and_place(folder: Path, undisturbed: Path) -> None:
    rows = [r for t in EmbeddingSet.open(str(undisturbed)).tables() for r in t.to_pylist()]
    assert [r["key"] for r in rows] == [f"{i:06}" for i in range(1300)]
    assert [r["id"] for r in rows] == [r["shard"] << 32 | r["row"] for r in rows]
    encoder = load_encoder("fake:16")
    for i in (0, 511, 512, 599, 600, 1299):
        row = rows[i]
        assert (row["caption"], row["fits"]) == (f"picture number {i}", str(i % 3))
        assert (row["width"], row["height"], row["url"]) == (24, 24, f"http://example.org/{i}.png")
        image = encoder.encode_image([picture(i)])[0].astype(np.float16)
        text = encoder.encode_text([row["caption"]])[0].astype(np.float16)
        assert row["image_embedding"] == image.tolist()
        assert row["text_embedding"] == text.tolist()
        assert row["similarity"] == pytest.approx(float(image.astype(float) @ text.astype(float)), abs=1e-2)
        shard = (folder / f"{row['shard']:05}.tar").read_bytes()
        assert shard[row["image_offset"] : row["image_offset"] + row["image_bytes"]] == picture(i)


def test_the_audit_agrees_and_sees_a_lost_object_a_changed_one_and_a_lost_record(
    undisturbed: Path, tmp_path: Path
) -> None:
    assert mm.audit(str(undisturbed)).ok
    objects = sorted((undisturbed / "data").iterdir())
    damages = {
        "missing": lambda dest: (dest / "data" / objects[0].name).unlink(),
        "SHA-256": lambda dest: flip(dest / "data" / objects[1].name),
        "record of the shard": lambda dest: next((dest / "commits").glob("000002.*.json")).unlink(),
    }
    for name, damage in damages.items():
        copy = tmp_path / name.replace(" ", "-")
        for file in undisturbed.rglob("*"):
            if file.is_file():
                target = copy / file.relative_to(undisturbed)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        damage(copy)
        report = mm.audit(str(copy))
        assert not report.ok
        assert report.exit_code == 6
        assert any(name in f"{d.what} {d.found}" for d in report.differences)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_run_goes_on_from_what_is_committed_and_gives_the_same_bytes(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "emb"
    manifest = EmbeddingSet.open(str(undisturbed)).manifest.model_copy(update={"finished": False, "totals": None})
    for path, data in [
        ("manifest/000000.json", manifest.to_bytes()),
        (manifest.catalog, (undisturbed / manifest.catalog).read_bytes()),
    ]:
        (dest / path).parent.mkdir(parents=True, exist_ok=True)
        (dest / path).write_bytes(data)
    encoder = load_encoder("fake:16")
    before = {}
    for task in shard_tasks(build_catalog(str(folder)))[:2]:
        for chunk in chunks_of(task):
            if (chunk.shard, chunk.number) == (0, 0):
                continue  # the gap
            info, samples = from_row(to_row(chunk, task, 0.0))
            with ThreadPoolExecutor(1) as pool:
                rows, rejects = encode_chunk(info, samples, encoder, ["fits"], pool=pool, watch=Stopwatch())
            place = (info.shard, info.chunk, info.first_row, info.num_samples)
            result = ChunkResult(*place, rows, rejects, info.end, None, info.source_bytes, info.source_etag)
            before[info.shard, info.chunk] = commit_chunk(str(dest), result, encoder.fingerprint).attempt
    report = mm.embed(str(folder), str(dest), model="fake:16", fields=["fits"])
    assert report.rows == 1300
    shards = stored_shards(dest)
    after = {(c.shard, c.chunk): c.attempt for s in shards.values() for c in s.chunks}
    assert {place: after[place] for place in before} == before, "what was committed is not done again"
    assert report.resumed_samples > 0
    assert f"with {report.resumed_samples:,} samples committed by earlier runs" in str(report)
    assert data_hashes(dest) == data_hashes(undisturbed)
    assert mm.audit(str(dest)).ok


def test_a_finished_set_is_left_alone_and_another_encoder_source_or_field_is_refused(
    folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    files = sorted(p for p in undisturbed.rglob("*") if p.is_file())
    report = mm.embed(str(folder), str(undisturbed), model="fake:16", fields=["fits"])
    assert report.already_finished
    assert report.rows == 1300
    for what, model, source, fields in [
        ("fingerprint", "fake:17", folder, ["fits"]),
        ("fields", "fake:16", folder, []),
        ("catalog", "fake:16", folder / "00000.tar", ["fits"]),
    ]:
        with pytest.raises(RefusedError, match=what):
            mm.embed(str(source), str(undisturbed), model=model, fields=fields)
    assert sorted(p for p in undisturbed.rglob("*") if p.is_file()) == files


def test_checksums_given_later_count_for_shards_that_are_not_committed_yet(tmp_path: Path) -> None:
    for shard in range(2):
        (tmp_path / f"{shard}.tar").write_bytes(make_tar(f for i in range(3) for f in sample(3 * shard + i)))
    dest = str(tmp_path / "emb")
    begun = Asked(build_catalog(f"{tmp_path}/0.tar"), load_encoder("fake:8"))
    begin(dest, begun, 1)  # and killed before its first commit
    wrong = [{"url": f"{shard}.tar", "sha256": f"{shard}" * 64} for shard in range(2)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, wrong)))
    with pytest.raises(UsageError, match=r"no shard gave a sample .*checksum"):
        mm.embed(f"{tmp_path}/l.jsonl", dest, model="fake:8", append=True)


def test_a_limit_takes_the_first_samples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.01)
    report = mm.embed(str(folder), str(tmp_path / "emb"), model="fake:8", limit=700)
    assert 0 <= report.encoder_waited <= 1
    assert report.advice in ADVICE.values()
    assert report.waited_for in str(report) and report.advice in str(report)
    assert (report.rows, report.shards) == (700, 2)
    keys = [k for t in EmbeddingSet.open(report.dest).tables(["key"]) for k in t["key"].to_pylist()]
    assert keys == [f"{i:06}" for i in range(700)]
    assert mm.audit(report.dest).ok


def test_filtered_samples_are_no_failures_and_a_set_goes_on_with_its_own_filters_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["in English", "zwei", "three"]
    files = [(f"{i:04}.txt", f"{names[i % 3]} number {i}".encode()) for i in range(120)]
    (tmp_path / "a.tar").write_bytes(make_tar([*files, ("bad.txt", b"\xff")]))
    dest = str(tmp_path / "emb")
    command = ["embed", str(tmp_path / "a.tar"), dest, "--model", "fake:8", "--filter", "min_words=4", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert not ended.value.code
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["rejects"]) == (40, {"caption": 1, "filtered": 80})
    with pytest.raises(RefusedError, match=r"filters differs: the set was begun with \{'min_words': 4\}"):
        mm.embed(str(tmp_path / "a.tar"), dest, model="fake:8")
    assert mm.embed(str(tmp_path / "a.tar"), dest, model="fake:8", filters={"min_words": 4}).already_finished
    for lost in (tmp_path / "emb/data").iterdir():
        lost.unlink()
    assert mm.repair(dest).rows == 40
    assert mm.audit(dest, source=True).ok
    with pytest.raises(UsageError, match=r"unknown key 'min_word'; the nearest valid key is 'min_words'"):
        mm.embed(str(tmp_path / "a.tar"), dest, model="fake:8", filters={"min_word": 4})
    with pytest.raises(UsageError, match=r"min_seconds: fake:8 takes no audio"):
        mm.embed(str(tmp_path / "a.tar"), dest, model="fake:8", filters={"min_seconds": 4})


def test_bad_samples_are_rejects_with_a_reason_and_their_neighbours_embed(tmp_path: Path) -> None:
    files = [f for i in range(4) for f in sample(i)]
    files[0] = ("000000.png", b"<html>not found</html>")
    files[3] = ("000001.png", picture(1)[:-40])
    files[7] = ("000002.txt", b"\xff\xfe not UTF-8")
    files[11] = ("000003.json", b"{broken")
    files += [("blank.png", picture(9)), ("blank.txt", b"  \n"), ("nothing.xyz", b"?"), *sample(5)]
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    report = mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    expected = {"caption": 1, "image_truncated": 1, "metadata": 1, "missing_member": 1, "not_image": 1}
    assert report.rejects == expected
    emb = EmbeddingSet.open(report.dest)
    rows = [r for t in emb.tables() for r in t.to_pylist()]
    assert [(r["key"], r["caption"]) for r in rows] == [("blank", None), ("000005", "picture number 5")]
    assert rows[0]["text_embedding"] is None
    assert rows[0]["image_embedding"] is not None
    rejected = [r for t in emb.rejects() for r in t.to_pylist()]
    assert [r["key"] for r in rejected] == ["000000", "000001", "000002", "000003", "nothing"]
    assert all(r["detail"] for r in rejected)


def test_a_damaged_shard_keeps_its_good_rows_and_says_where_it_broke(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "00002.tar").read_bytes()
    broken = bytearray(whole)
    header = whole.index(b"001250.png")
    broken[header + 3] ^= 4
    (tmp_path / "a.tar").write_bytes(broken)
    (tmp_path / "b.tar").write_bytes(whole)
    report = mm.embed(str(tmp_path), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    assert (report.rows, report.rejects) == (150, {"tar_header": 1})
    assert [(d.shard, d.reason, d.offset, d.rows_seen) for d in report.damaged] == [(0, "tar_header", header, 50)]
    assert 45 <= report.damaged[0].rows_behind <= 55
    assert mm.audit(report.dest).ok, "damage at the source that is accounted for is no difference"
    with pytest.raises(TooManyRejectsError, match="about 50 samples lie behind damage"):
        mm.embed(str(tmp_path), str(tmp_path / "emb2"), model="fake:8")


def test_a_limit_does_not_hide_damage(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "00002.tar").read_bytes()
    broken = bytearray(whole)
    broken[whole.index(b"001250.png") + 3] ^= 4
    (tmp_path / "a.tar").write_bytes(broken)
    (tmp_path / "b.tar").write_bytes(whole)
    report = mm.embed(str(tmp_path), str(tmp_path / "emb"), model="fake:8", limit=90, max_rejects=1.0)
    assert report.rows == 90
    assert report.rejects == {"tar_header": 1}
    assert [d.shard for d in report.damaged] == [0]


def test_text_that_no_file_can_hold_is_a_reject_and_not_the_end_of_the_run(tmp_path: Path) -> None:
    files = [*sample(0), *sample(1), *sample(2)]
    files[2] = ("000000.json", b'{"url": "http://a/\\ud800"}')
    files[4:6] = [("000001.json", b'{"caption": "\\ud800"}')]
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    report = mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    assert (report.rows, report.rejects) == (1, {"caption": 1, "metadata": 1})


def test_fields_that_are_columns_already_are_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    for fields in (["url"], ["x", "x"], ["image_embedding"]):
        with pytest.raises(UsageError, match="A row has id, shard"):
            mm.embed(str(folder), str(tmp_path / "emb"), model="fake:8", fields=fields)
    assert not (tmp_path / "emb").exists()


def test_a_field_that_no_sample_had_is_named_on_stderr_and_in_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder / "00002.tar")
    report = mm.embed(source, str(tmp_path / "emb"), model="fake:8", fields=["fits", "fit"])
    assert report.absent_fields == ["fit"]
    assert ("field fit", NULLS) in report.lines()
    assert capsys.readouterr().err.count("--field fit: was in the JSON of no sample") == 1
    assert mm.embed(source, str(tmp_path / "emb"), model="fake:8", fields=["fits", "fit"]).absent_fields == []


def test_a_store_that_ignores_conditional_writes_is_said_at_every_start(
    folder: Path, tmp_path: Path, s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "this store ignores conditional writes: run one embed at a time on this folder."
    source, dest = str(folder / "00002.tar"), f"{s3.bucket('one-writer')}/emb"
    assert mm.embed(source, dest, model="fake:8").rows == 100
    assert says in capsys.readouterr().err
    assert EmbeddingSet.open(dest).manifest.single_writer
    mm.embed(str(folder / "0000[12].tar"), dest, model="fake:8", append=True)
    assert says in capsys.readouterr().err
    assert mm.audit(dest, source=True).ok
    mm.embed(source, str(tmp_path / "emb"), model="fake:8")
    assert says not in capsys.readouterr().err


def test_a_set_that_lost_a_record_is_never_read_as_if_it_were_whole(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "emb")
    (tmp_path / "emb" / "commits" / "000001.0.json").unlink()
    assert EmbeddingSet.open(str(tmp_path / "emb")).num_rows == 1300, "the records of its chunks are still there"
    (tmp_path / "emb" / "commits" / "000001" / "000000.0.json").unlink()
    with pytest.raises(
        DifferencesError, match="records of 2 shards with 700 rows and 0 rejects are there, the manifest says 3"
    ):
        mm.build_index(str(tmp_path / "emb"), str(tmp_path / "index"))


def test_a_shard_that_changes_between_two_runs_is_refused_and_not_mixed(folder: Path, tmp_path: Path) -> None:
    task = replace(shard_tasks(build_catalog(str(folder)))[0], etag="another", skip=frozenset({1}))
    with pytest.raises(RefusedError, match="part of it was read before"):
        list(chunks_of(task))


def test_shards_without_a_sample_are_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(UsageError, match=r"no shard gave a sample \(the first: not_tar"):
        mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model="fake:8")


def test_read_webdataset_yields_ordinary_samples(folder: Path) -> None:
    dataset = mm.read_webdataset(str(folder), columns=["id", "key", "text", "reason"])
    rows = sorted(dataset.take_all(), key=lambda r: r["id"])
    assert [r["key"] for r in rows] == [f"{i:06}" for i in range(1300)]
    assert all(r["reason"] is None for r in rows)
    assert rows[7] == {"id": 7, "key": "000007", "text": "picture number 7", "reason": None}


def test_read_webdataset_says_where_a_shard_broke(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "00002.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"001250.png") + 700])
    rows = sorted(mm.read_webdataset(str(tmp_path / "a.tar")).take_all(), key=lambda r: r["row"])
    assert [r["row"] for r in rows] == list(range(len(rows)))
    assert [(r["key"], r["reason"]) for r in rows[-1:]] == [(None, "tar_truncated")]


def test_objects_are_parquet_that_anyone_can_read(undisturbed: Path) -> None:
    table = pq.read_table(undisturbed / "data")
    assert table.num_rows == 1300
    assert str(table.schema.field("image_embedding").type) == "fixed_size_list<element: halffloat>[16]"
