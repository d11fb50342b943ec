"""Embedding sets that grow, lose parts, and get back what was set aside: through a real local Ray."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from embedding_sets import embed_here
from PIL import Image
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.layout import read_records
from mmstream.embeddings.listing import chunk_record_path, shard_record_path
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import RefusedError, TooManyRejectsError, UsageError
from mmstream.pipelines.dry_run import dry_run
from mmstream.pipelines.manifest import open_set
from mmstream.pipelines.repair import repair, replay
from mmstream.schema import ChunkRecord
from mmstream.shards.catalog import build_catalog

ROWS = 600  # of each shard: two chunks


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (i % 256, i // 256, 7)).save(out, "PNG")
    return out.getvalue()


def shard(first: int, rows: int = ROWS, bad: int | None = None) -> bytes:
    """`bad` is the number of a sample whose picture is an error page."""
    files = []
    for i in range(first, first + rows):
        image = b"<html>not found</html>" if i == bad else picture(i)
        files += [(f"{i:06}.png", image), (f"{i:06}.txt", b"picture number %d" % i)]
    return make_tar(files)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Path:
    """Two shards, `tars/a.tar` with a bad sample in its second chunk, and what `embed` makes of them, `emb`."""
    root = tmp_path_factory.mktemp("made")
    (root / "tars").mkdir()
    (root / "tars/a.tar").write_bytes(shard(0, bad=550))
    (root / "tars/b.tar").write_bytes(shard(ROWS))
    report = mm.embed(str(root / "tars"), str(root / "emb"), model="fake:8")
    assert (report.rows, report.rejects) == (2 * ROWS - 1, {"not_image": 1})
    return root


@pytest.fixture
def emb(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "emb", tmp_path / "emb"))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def chunks_of(emb: Path) -> dict[tuple[int, int], ChunkRecord]:
    records = read_records(str(emb), EmbeddingSet.open(str(emb)).catalog).by_chunk()
    return {(shard, n): c for shard, chunks in records.items() for n, c in chunks.items()}


def hashes(emb: Path) -> dict[tuple[int, int], str | None]:
    return {place: c.data.sha256 if c.data else None for place, c in chunks_of(emb).items()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_sound_set_has_nothing_to_repair_and_nothing_is_written(emb: Path) -> None:
    before = files_of(emb)
    report = repair(str(emb))
    assert (report.chunks_checked, report.chunks_recomputed, report.shards_folded) == (4, 0, 0)
    assert "nothing to repair" in report.title()
    assert files_of(emb) == before


def test_a_damaged_folded_record_and_manifest_are_made_again_without_computing(emb: Path) -> None:
    flip(emb / shard_record_path(0))
    flip(emb / "manifest/000001.json")
    report = repair(str(emb))
    assert (report.chunks_recomputed, report.shards_folded) == (0, 1)
    assert (emb / shard_record_path(0, 1)).exists()
    assert (emb / "manifest/000002.json").exists()
    assert mm.audit(str(emb)).differences == []


def test_lost_and_changed_objects_and_records_are_recomputed_to_the_same_bytes_and_nothing_else(
    made: Path, emb: Path
) -> None:
    chunks, wanted = chunks_of(emb), hashes(made / "emb")
    lost, changed = chunks[0, 0].data, chunks[0, 1].rejects
    assert lost and changed
    (emb / lost.path).unlink()
    flip(emb / changed.path)
    (emb / shard_record_path(1)).unlink()
    (emb / chunk_record_path(1, 1)).unlink()
    report = repair(str(emb))
    assert (report.chunks_recomputed, report.shards_folded, report.different) == (3, 2, [])
    assert mm.audit(str(emb)).differences == []
    assert hashes(emb) == wanted
    assert chunks_of(emb)[1, 0].attempt == chunks[1, 0].attempt, "what was sound is not made again"
    assert repair(str(emb)).chunks_recomputed == 0


def test_a_repair_that_was_killed_before_folding_is_gone_on_with(emb: Path) -> None:
    old = chunks_of(emb)[0, 0]
    assert old.data
    twin = old.data.model_copy(update={"path": "data/000000-000000-0123456789ab.parquet"})
    (emb / old.data.path).rename(emb / twin.path)
    made_again = old.model_copy(update={"data": twin, "attempt": "0123456789ab"})
    (emb / chunk_record_path(0, 0, 1)).write_bytes(made_again.to_bytes())
    report = repair(str(emb))
    assert (report.chunks_recomputed, report.shards_folded) == (0, 1)
    assert mm.audit(str(emb)).differences == []


def test_a_source_that_changed_is_refused_by_name_and_the_rest_is_repaired(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "tars", tmp_path / "tars")
    emb = Path(embed_here(tmp_path / "tars", tmp_path / "emb", chunk_rows=512))
    for record in chunks_of(emb).values():
        if record.chunk == 0 and record.data:
            (emb / record.data.path).unlink()
    (tmp_path / "tars/b.tar").write_bytes(shard(ROWS, rows=10))
    with pytest.raises(RefusedError, match=r"source differs: .*b\.tar changed or went away"):
        repair(str(emb))
    assert {d.shard for d in mm.audit(str(emb)).differences} - {None} == {1}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """`broken/a.tar` and `b.tar`, of which sample 3 is set aside, and what `embed` makes of them, `emb`."""
    (tmp_path / "broken").mkdir()
    for name, data in (("a.tar", shard(0, bad=3)), ("b.tar", shard(ROWS))):
        (tmp_path / "broken" / name).write_bytes(data)
    embed_here(tmp_path / "broken", tmp_path / "emb", chunk_rows=512)
    return tmp_path


def keys_of(emb: Path) -> list[str]:
    return [k for t in EmbeddingSet.open(str(emb)).tables(["key"]) for k in t["key"].to_pylist()]


def test_replay_gives_rows_where_the_code_can_read_now_what_it_set_aside(broken: Path, ray_local: None) -> None:
    emb, tar = broken / "emb", broken / "broken/a.tar"
    before, stat = chunks_of(emb), tar.stat()
    tar.write_bytes(shard(0))  # of the same size and, after the next line, time: to us, the same source
    os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert tar.stat().st_size == stat.st_size
    report = replay(str(emb), ["not_image"])
    assert (report.chunks_recomputed, report.rows_gained, report.rejects, report.mended) == (1, 1, {}, [])
    assert keys_of(emb) == [f"{i:06}" for i in range(2 * ROWS)]
    after = chunks_of(emb)
    assert [place for place in before if after[place] != before[place]] == [(0, 0)]
    assert mm.audit(str(emb), source=True).differences == []


def test_replay_takes_in_a_mended_shard_as_a_whole_under_a_new_catalog(broken: Path, ray_local: None) -> None:
    emb = broken / "emb"
    (broken / "broken/a.tar").write_bytes(shard(0, rows=ROWS + 5))
    assert replay(str(emb), ["caption"]).chunks_recomputed == 0
    report = replay(str(emb), ["not_image"])
    assert (report.rejects_before, report.rejects, report.rows_gained) == ({"not_image": 1}, {}, 6)
    assert [Path(url).name for url in report.mended] == ["a.tar"]
    assert keys_of(emb) == [f"{i:06}" for i in range(ROWS + 5)] + [f"{i:06}" for i in range(ROWS, 2 * ROWS)]
    rows = pa.concat_tables(mm.EmbeddingSet.open(str(emb)).tables(["id", "key"]))  # as the README has it
    assert duckdb.sql("select count(distinct id) from rows").fetchall() == [(2 * ROWS + 5,)] == [(rows.num_rows,)]
    [(of_all_files,)] = duckdb.sql(f"select count(*) from '{emb}/data/*.parquet'").fetchall()
    assert of_all_files > rows.num_rows
    assert mm.audit(str(emb), source=True).differences == []
    assert mm.embed(str(broken / "broken"), str(emb), model="fake:8").already_finished


def test_replay_of_what_is_still_bad_changes_no_row_and_leaves_a_clean_set(made: Path, emb: Path) -> None:
    report = replay(str(emb))
    assert (report.chunks_recomputed, report.rows_gained, report.rejects) == (1, 0, {"not_image": 1})
    assert hashes(emb) == hashes(made / "emb")
    assert mm.audit(str(emb), source=True).differences == []
    with pytest.raises(UsageError, match="no such reason"):
        replay(str(emb), ["nonsense"])


def test_append_embeds_only_new_shards_and_keeps_every_number(made: Path, emb: Path, tmp_path: Path) -> None:
    tars = Path(shutil.copytree(made / "tars", tmp_path / "tars", copy_function=os.link))
    source = [str(made / "tars"), str(tars / "0.tar")]
    (tars / "0.tar").write_bytes(shard(2 * ROWS, rows=20))
    before = chunks_of(emb)
    with pytest.raises(RefusedError, match=r"catalog differs: the source has 1 more shard, .*0\.tar.*--append"):
        mm.embed(source, str(emb), model="fake:8")
    for model, fields, what in (("fake:9", [], "fingerprint"), ("fake:8", ["x"], "fields")):
        with pytest.raises(RefusedError, match=f"{what} differs"):
            mm.embed(source, str(emb), model=model, fields=fields, append=True)
    with pytest.raises(RefusedError, match="catalog differs"):
        mm.embed(str(tars / "0.tar"), str(emb), model="fake:8", append=True)
    look = dry_run(source, str(emb), "fake:8", append=True)
    assert (look.shards, look.committed_samples, look.samples_seen) == (1, 2 * ROWS, 20)
    assert mm.embed(source, str(emb), model="fake:8", append=True).rows == 2 * ROWS + 19
    after = chunks_of(emb)
    assert {place: after[place] for place in before} == before
    assert set(after) - set(before) == {(2, 0)}
    assert mm.audit(str(emb), source=True).differences == []
    assert mm.embed(source, str(emb), model="fake:8").already_finished


def kill(emb: Path, what: str) -> None:
    """As an appending run leaves it that was killed behind its catalog, its manifest, or its records."""
    records = ["manifest/000003"]
    manifest = [*records, "commits/000002", "data/000002"]
    behind = {"records": records, "manifest": manifest, "catalog": [*manifest, "manifest/000002"]}
    for file in sorted(emb.rglob("*"), reverse=True):
        if file.is_file() and str(file.relative_to(emb)).startswith(tuple(behind[what])):
            file.unlink()


def test_an_append_that_was_killed_goes_on(made: Path, emb: Path, tmp_path: Path) -> None:
    (tmp_path / "c.tar").write_bytes(shard(2 * ROWS, rows=20))
    source = [str(made / "tars"), str(tmp_path / "c.tar")]
    mm.embed(source, str(emb), model="fake:8", append=True)
    wanted = hashes(emb)
    for what in ("records", "manifest", "catalog"):
        kill(emb, what)
        mm.embed(source, str(emb), model="fake:8", append=True)
        assert hashes(emb) == wanted
        assert mm.audit(str(emb)).differences == []


def test_a_dry_run_writes_nothing_and_says_what_to_expect(made: Path, emb: Path, tmp_path: Path) -> None:
    report = dry_run(str(made / "tars"), str(tmp_path / "absent"), "fake:8")
    assert not (tmp_path / "absent").exists()
    assert (report.shards, report.samples_seen, report.committed_samples) == (2, 512, 0)
    assert report.samples == pytest.approx(2 * ROWS, rel=0.1)
    assert report.samples_per_second > 0 and report.seconds > 0 and report.output_bytes > 0
    before = files_of(emb)
    done = dry_run(str(made / "tars"), str(emb), "fake:8")
    assert (done.shards, done.finished) == (0, True)
    assert "everything is done" in str(done) and "None" not in str(done)
    assert done.next[0] == f"mmstream audit {emb}"
    with pytest.raises(RefusedError, match="fingerprint differs"):
        dry_run(str(made / "tars"), str(emb), "fake:9")
    assert files_of(emb) == before


def test_a_dry_run_counts_a_shard_with_a_gap_though_its_end_is_there(made: Path, emb: Path) -> None:
    (emb / "manifest/000001.json").unlink()
    (emb / shard_record_path(0)).unlink()
    (emb / chunk_record_path(0, 0)).unlink()
    report = dry_run(str(made / "tars"), str(emb), "fake:8")
    assert (report.shards, report.committed_samples) == (1, ROWS + ROWS - 512)
    assert report.next == [f"mmstream embed {made / 'tars'} {emb} --model fake:8"]


def test_a_dry_run_shows_the_first_rejects(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(shard(0, rows=5, bad=2))
    report = dry_run(str(tmp_path / "a.tar"), str(tmp_path / "emb"), "fake:8")
    assert report.rejects == {"not_image": 1}
    assert [(r.key, r.reason) for r in report.first_rejects] == [("000002", "not_image")]
    assert report.to_json()["samples"] == 5


def test_a_replay_that_was_killed_is_finished_by_the_same_command(made: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(shard(0, 100, bad=50))
    emb = embed_here(tmp_path / "a.tar", tmp_path / "emb", chunk_rows=512)
    (tmp_path / "a.tar").write_bytes(shard(0, 100))
    opened = open_set(emb)
    assert opened is not None
    opened.with_catalog(build_catalog(str(tmp_path / "a.tar")))  # and killed here
    replay(emb)
    report = mm.audit(emb, source=True)
    assert (report.finished, report.differences, report.rows, report.rejects) == (True, [], 100, {})


def test_repair_does_not_finish_a_set_whose_error_budget_is_spent(made: Path, tmp_path: Path) -> None:
    files = [(f"{i:03}.png", picture(i) if i % 4 == 0 else b"no picture") for i in range(200)]
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    emb = str(tmp_path / "emb")
    for call in (lambda: mm.embed(str(tmp_path / "a.tar"), emb, model="fake:8"), lambda: repair(emb)):
        with pytest.raises(TooManyRejectsError):
            call()
    assert not mm.audit(emb).finished
