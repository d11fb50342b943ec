"""Records, manifests and catalogs that were lost after a set was finished, and commands that run side by side."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tars import make_tar
from without_ray import without_ray

import mmstream as mm
from mmstream.embeddings import layout
from mmstream.embeddings.layout import manifest_path
from mmstream.embeddings.listing import chunk_record_path, shard_record_path
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import DifferencesError, RefusedError
from mmstream.pipelines.dry_run import dry_run
from mmstream.pipelines.manifest import open_set
from mmstream.pipelines.repair import repair, replay
from mmstream.shards.catalog import build_catalog, to_parquet
from mmstream.storage.files import write_bytes

ROWS, CHUNK = 12, 4  # of each shard


def tar(shard: int, rows: int = ROWS, bad: int | None = None) -> bytes:
    """`bad` is the row whose caption is no text; it is as long as the good one."""
    return make_tar((f"{shard}{i:03}.txt", b"\xff" * 9 if i == bad else b"words %03d" % i) for i in range(rows))


def in_place(path: Path, data: bytes) -> None:
    """The source is another, and nobody can know: size and time are as they were."""
    stat = path.stat()
    path.write_bytes(data)
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Path]:
    """`tars/0.tar` to `2.tar`, of which row 5 of the first is set aside, and what `embed` makes of them, `emb`."""
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        (tmp_path / f"tars/{shard}.tar").write_bytes(tar(shard, bad=5 if shard == 0 else None))
    with without_ray(CHUNK):
        assert embed(tmp_path).rejects == {"caption": 1}
        yield tmp_path


@pytest.fixture
def replayed(made: Path) -> Path:
    """The reject was mended and replayed: chunk 1 of shard 0 has a record of generation 1, as the shard has."""
    in_place(made / "tars/0.tar", tar(0))
    assert replay(str(made / "emb")).rows_gained == 1
    assert mm.audit(str(made / "emb"), source=True).differences == []
    return made


def embed(root: Path, **options) -> mm.pipelines.embed.EmbedReport:
    return mm.embed(str(root / "tars"), str(root / "emb"), model="fake:8", max_rejects=1.0, **options)


def keys(root: Path) -> list[str]:
    return [k for t in EmbeddingSet.open(str(root / "emb")).tables(["key"]) for k in t["key"].to_pylist()]


ALL = [f"{shard}{i:03}" for shard in range(3) for i in range(ROWS)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("lose", [flip, Path.unlink])
def test_a_lost_folded_record_uncovers_no_row_that_a_replay_had_given(replayed: Path, lose) -> None:
    emb = replayed / "emb"
    lose(emb / shard_record_path(0, 1))
    assert keys(replayed) == ALL
    assert [d.shard for d in mm.audit(str(emb)).differences] == [0]
    report = repair(str(emb))
    assert (report.shards_folded, report.chunks_recomputed, report.rows) == (1, 0, 3 * ROWS)
    assert mm.audit(str(emb)).differences == []
    assert (keys(replayed), embed(replayed).already_finished) == (ALL, True)


@pytest.mark.parametrize("lose", [flip, Path.unlink])
def test_what_a_replay_gave_is_recomputed_where_its_chunk_records_were_lost_too(replayed: Path, lose) -> None:
    emb = replayed / "emb"
    lose(emb / shard_record_path(0, 1))
    lose(emb / chunk_record_path(0, 1, 1))
    for command in (
        lambda: keys(replayed),
        lambda: embed(replayed),
        lambda: dry_run(str(replayed / "tars"), str(emb), "fake:8"),
        lambda: replay(str(emb), ["caption"]),
    ):
        with pytest.raises(DifferencesError, match=r"35 rows and 1 reject are there, .* 36 and 0"):
            command()
    assert "repair" in mm.audit(str(emb)).next[0]
    report = repair(str(emb))
    assert (report.chunks_recomputed, report.rows, report.rows_before) == (1, 3 * ROWS, None)
    assert mm.audit(str(emb), source=True).differences == []
    assert (keys(replayed), embed(replayed).already_finished) == (ALL, True)


def test_shards_are_not_appended_to_a_set_that_lost_something(replayed: Path) -> None:
    (replayed / "emb" / shard_record_path(0, 1)).unlink()
    (replayed / "emb" / chunk_record_path(0, 1, 1)).unlink()
    (replayed / "tars/3.tar").write_bytes(tar(3))
    with pytest.raises(DifferencesError, match="repair"):
        embed(replayed, append=True)
    repair(str(replayed / "emb"))
    assert embed(replayed, append=True).rows == 4 * ROWS


def test_records_that_cannot_be_made_anew_are_refused_by_the_name_of_their_source(replayed: Path) -> None:
    emb = replayed / "emb"
    (emb / shard_record_path(0, 1)).unlink()
    (emb / chunk_record_path(0, 1, 1)).unlink()
    (replayed / "tars/0.tar").write_bytes(tar(0, rows=ROWS + 1))
    with pytest.raises(RefusedError, match=r"records were lost .* source differs: .*0\.tar .* --replay"):
        repair(str(emb))
    replay(str(emb))
    assert keys(replayed) == sorted([*ALL, "0012"])
    assert mm.audit(str(emb), source=True).differences == []


def test_an_older_manifest_that_counts_again_gets_totals_of_what_is_there(replayed: Path) -> None:
    emb = replayed / "emb"
    for manifest in sorted((emb / "manifest").iterdir())[2:]:
        manifest.unlink()
    with pytest.raises(DifferencesError, match="repair"):
        embed(replayed)
    report = repair(str(emb))
    assert (report.rows, report.rows_before) == (3 * ROWS, 3 * ROWS - 1)
    assert "said 35 rows" in str(report.lines())
    assert mm.audit(str(emb)).differences == []
    assert keys(replayed) == ALL


def test_a_damaged_manifest_above_one_that_says_the_same_is_written_over(made: Path) -> None:
    emb = made / "emb"
    newest = emb / "manifest/000001.json"
    (emb / "manifest/000002.json").write_bytes(newest.read_bytes()[:-9])
    assert mm.audit(str(emb)).differences
    repair(str(emb))
    assert mm.audit(str(emb)).differences == []


@pytest.mark.parametrize("torn", [chunk_record_path(0, 1, 1), shard_record_path(0, 1)])
def test_a_newer_record_that_is_damaged_is_left_behind(made: Path, torn: str) -> None:
    emb = made / "emb"
    (emb / torn).write_bytes(b"torn")
    assert [d.shard for d in mm.audit(str(emb)).differences] == [0]
    assert repair(str(emb)).shards_folded == 1
    assert mm.audit(str(emb)).differences == []


def test_a_reader_that_was_opened_before_a_replay_or_append_is_told_to_open_it_again(made: Path) -> None:
    before_replay = EmbeddingSet.open(str(made / "emb"))
    in_place(made / "tars/0.tar", tar(0))
    replay(str(made / "emb"))
    with pytest.raises(RefusedError, match="changed meanwhile"):
        list(before_replay.tables())
    before_append = EmbeddingSet.open(str(made / "emb"))
    (made / "tars/3.tar").write_bytes(tar(3))
    embed(made, append=True)
    assert before_append.num_rows == 3 * ROWS, "what it was opened for is still there"
    assert len(keys(made)) == 4 * ROWS


def test_a_repair_whose_records_came_second_does_not_say_that_it_repaired(made: Path) -> None:
    emb = made / "emb"
    names, lost = layout.list_records(str(emb)), layout.read_records(str(emb), open_set(str(emb)).catalog).shards[0]
    (emb / lost.chunks[0].data.path).unlink()
    theirs = emb / shard_record_path(0, names[0].next)

    def meanwhile(_) -> None:  # a replay folds, of which the repair knew nothing
        theirs.write_bytes(lost.model_copy(update={"num_rejects": {}}).to_bytes())

    with without_ray(CHUNK, meanwhile), pytest.raises(RefusedError, match=r"another command wrote .* shard 0"):
        repair(str(emb))
    assert repair(str(emb)).chunks_recomputed == 1
    assert mm.audit(str(emb)).differences == []


def test_a_set_that_two_commands_finish_with_other_totals_is_not_taken_for_ours(made: Path) -> None:
    ours, theirs = open_set(str(made / "emb")), open_set(str(made / "emb"))
    totals = ours.manifest.totals
    theirs.unfinished().finished(totals.model_copy(update={"rows": 7}))
    with pytest.raises(RefusedError, match="totals differ"):
        ours.unfinished().finished(totals)


def test_a_limit_is_that_of_the_shards_as_they_were_taken(made: Path) -> None:
    def limited(append: bool = False):
        emb = str(made / "limited")
        return mm.embed(str(made / "tars"), emb, model="fake:8", limit=2 * ROWS - 2, max_rejects=1.0, append=append)

    assert (limited().rows, limited().already_finished) == (2 * ROWS - 3, True)
    (made / "tars/0.tar").write_bytes(tar(0, rows=ROWS + 5))
    assert replay(str(made / "limited")).rows_gained == 6
    (made / "tars/2a.tar").write_bytes(tar(4))
    for append in (False, True):
        assert limited(append).already_finished
    look = dry_run(str(made / "tars"), str(made / "limited"), "fake:8", limit=2 * ROWS - 2)
    assert look.shards == 0
    assert mm.audit(str(made / "limited"), source=True).differences == []


def test_a_limit_that_was_not_reached_lets_new_shards_in(made: Path) -> None:
    def limited(append: bool = False):
        return mm.embed(str(made / "tars"), str(made / "emb2"), model="fake:8", limit=40, append=append)

    assert limited().rows == 3 * ROWS - 1
    (made / "tars/00.tar").write_bytes(tar(4))
    with pytest.raises(RefusedError, match="--append"):
        limited()
    assert limited(append=True).rows == 39
    assert limited().already_finished


def test_rejects_of_a_shard_that_is_still_gone_are_made_again_and_no_others(made: Path) -> None:
    emb, gone = made / "emb2", made / "tars/1.tar"
    catalog = made / "shards.parquet"
    write_bytes(str(catalog), to_parquet(build_catalog(str(made / "tars"))))
    content, stat = gone.read_bytes(), gone.stat()
    gone.unlink()
    assert mm.embed(str(catalog), str(emb), model="fake:8", max_rejects=1.0).rejects == {"caption": 1, "unreadable": 1}
    stored = layout.read_records(str(emb), open_set(str(emb)).catalog).shards[1].chunks[0].rejects
    (emb / stored.path).unlink()
    report = repair(str(emb))
    assert (report.chunks_recomputed, report.different) == (1, [])
    assert mm.audit(str(emb), source=True).differences == []
    stored = layout.read_records(str(emb), open_set(str(emb)).catalog).shards[1].chunks[0].rejects
    (emb / stored.path).unlink()
    gone.write_bytes(content + bytes(512))
    with pytest.raises(RefusedError, match=r"source differs: .*1\.tar"):
        repair(str(emb))
    gone.write_bytes(content)
    os.utime(gone, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert repair(str(emb)).rows == 3 * ROWS - 1, "it is back: its rows are taken"
    assert mm.audit(str(emb), source=True).differences == []


@pytest.mark.parametrize("lose", [flip, Path.unlink])
def test_the_command_that_audit_names_makes_a_lost_catalog_again(made: Path, lose) -> None:
    emb = made / "emb"
    lose(emb / "catalog/000000.parquet")
    command = shlex.split(mm.audit(str(emb)).next[0])
    assert command == ["mmstream", "repair", str(emb), "--source", "SRC"]
    with pytest.raises(DifferencesError, match=r"repair .* --source SRC"):
        repair(str(emb))
    with pytest.raises(DifferencesError, match="list now is another one"):
        repair(str(emb), [str(made / "tars/0.tar")])
    assert "the catalog is made again" in repair(str(emb), [str(made / "tars")]).title()
    assert "nothing to repair" in repair(str(emb)).title()
    assert mm.audit(str(emb), source=True).differences == []


@pytest.mark.parametrize("lose", [flip, Path.unlink])
def test_a_catalog_of_a_set_that_was_mended_and_has_grown_is_made_again(made: Path, lose) -> None:
    emb = made / "emb"
    (made / "tars/0.tar").write_bytes(tar(0, rows=ROWS + 1))
    replay(str(emb))
    lose(emb / "catalog/000001.parquet")
    assert embed(made).already_finished, "embed knows the shards itself"
    (made / "tars/00.tar").write_bytes(tar(3))
    embed(made, append=True)
    lose(max((emb / "catalog").iterdir()))
    repair(str(emb), [str(made / "tars")])
    assert mm.audit(str(emb), source=True).differences == []
    assert len(keys(made)) == 4 * ROWS + 1


def test_without_a_valid_manifest_the_error_says_what_to_do_and_that_works(made: Path) -> None:
    emb = made / "emb"
    for manifest in (emb / "manifest").iterdir():
        flip(manifest)
    for command in (lambda: repair(str(emb)), lambda: embed(made)):
        with pytest.raises(RefusedError, match=r"move .*/emb/manifest away and run the same embed command again"):
            command()
    assert mm.audit(str(emb)).next == []
    (emb / "manifest").rename(made / "aside")
    assert mm.audit(str(emb)).next[0] == f"mmstream embed {emb}/catalog/000000.parquet {emb} --model SPEC"
    report = embed(made)
    assert (report.rows, report.resumed_samples) == (3 * ROWS - 1, 3 * ROWS)
    assert mm.audit(str(emb)).differences == []


@pytest.fixture
def appended(made: Path) -> Path:
    """A fourth shard was appended, by manifests 2 and 3 and catalog 1."""
    (made / "tars/3.tar").write_bytes(tar(3))
    embed(made, append=True)
    assert sorted(p.name for p in (made / "emb/manifest").iterdir()) == [f"00000{n}.json" for n in range(4)]
    return made


EVERY = [*ALL, *(f"3{i:03}" for i in range(ROWS))]
EVERY.remove("0005")  # was set aside


def test_damaged_manifests_above_a_finished_one_hide_no_shard_that_was_appended(appended: Path) -> None:
    emb = appended / "emb"
    for newest in ("000003", "000002"):
        flip(emb / f"manifest/{newest}.json")
    with pytest.raises(DifferencesError, match=r"manifest/000003\.json: is damaged, and newer than .*repair"):
        keys(appended)
    assert f"mmstream repair {emb}" in mm.audit(str(emb)).next
    assert "repaired: the manifest says now what is there" in repair(str(emb)).title()
    assert keys(appended) == EVERY
    assert mm.audit(str(emb), source=True).differences == []
    assert "nothing to repair" in repair(str(emb)).title()


def test_the_embed_that_appended_goes_on_over_damaged_manifests(appended: Path) -> None:
    for newest in ("000003", "000002"):
        flip(appended / f"emb/manifest/{newest}.json")
    assert embed(appended).already_finished is False
    assert keys(appended) == EVERY
    assert mm.audit(str(appended / "emb"), source=True).differences == []


@pytest.mark.parametrize("lose", [lambda path: path.write_bytes(b"torn"), Path.unlink])
def test_records_that_no_manifest_speaks_of_any_more_are_missed_and_taken_up_again(appended: Path, lose) -> None:
    emb = appended / "emb"
    for newest in ("000003", "000002"):
        lose(emb / f"manifest/{newest}.json")
    with pytest.raises(DifferencesError):
        keys(appended)
    for command in (repair, replay):
        with pytest.raises(DifferencesError, match=r"shard 3 has a record and is not in the catalog.* with --append"):
            command(str(emb))
    report = embed(appended, append=True)
    assert (report.rows, report.resumed_samples) == (4 * ROWS - 1, 4 * ROWS)
    assert keys(appended) == EVERY
    assert mm.audit(str(emb), source=True).differences == []


def test_without_manifests_only_the_command_that_made_the_records_takes_them_up(made: Path) -> None:
    emb = made / "emb"
    shutil.rmtree(emb / "manifest")
    with pytest.raises(RefusedError, match=r"manifests were lost, and their fingerprint is .* Name the encoder"):
        mm.embed(str(made / "tars"), str(emb), model="fake:4")
    with pytest.raises(RefusedError, match=r"its rows have nothing more; asked for are licence\. Give the --field"):
        embed(made, fields=["licence"])
    look = dry_run(str(made / "tars"), str(emb), "fake:8")
    assert (look.shards, look.committed_samples, look.finished) == (0, 3 * ROWS, False)
    assert "all is committed" in str(look) and look.next[0].startswith("mmstream embed")
    assert not (emb / "manifest").exists()
    assert embed(made).resumed_samples == 3 * ROWS


def test_a_replay_that_an_embed_outran_is_finished_by_the_next_one(made: Path) -> None:
    emb, whole = made / "emb", open_set(str(made / "emb"))
    in_place(made / "tars/0.tar", tar(0))
    replay(str(emb))
    said_before = whole.manifest.model_copy(update={"libraries": {}})  # as an embed had seen it that ended after
    (emb / manifest_path(4)).write_bytes(said_before.to_bytes())
    with pytest.raises(DifferencesError, match="3 shards with 36 rows and 0 rejects are there, the manifest says"):
        keys(made)
    assert "replayed 0 chunks" in replay(str(emb)).title()
    assert keys(made) == ALL
    assert mm.audit(str(emb), source=True).differences == []


def test_an_unfinished_set_that_lost_something_is_repaired_and_not_gone_on_with(made: Path) -> None:
    emb = made / "emb"
    flip(emb / "manifest/000001.json")
    next((emb / "data").iterdir()).unlink()
    report = mm.audit(str(emb))
    assert report.next == [f"mmstream repair {emb}"] and "unfinished" not in report.title()
    assert repair(str(emb)).chunks_recomputed == 1
    assert mm.audit(str(emb), source=True).ok


def test_readers_of_a_set_without_manifests_or_catalog_say_what_makes_it_whole(made: Path) -> None:
    emb = made / "emb"
    (emb / "catalog/000000.parquet").rename(made / "aside.parquet")
    with pytest.raises(DifferencesError, match=r"catalog is lost.* `mmstream repair .*/emb --source SRC`"):
        keys(made)
    (made / "aside.parquet").rename(emb / "catalog/000000.parquet")
    shutil.rmtree(emb / "manifest")
    for command in (keys, lambda root: repair(str(root / "emb"))):
        with pytest.raises(DifferencesError, match=r"manifests .* are lost, its records are there"):
            command(made)


def test_a_source_that_only_has_another_time_is_given_the_old_one_back_by_what_the_message_says(made: Path) -> None:
    tar_path, emb = made / "tars/1.tar", made / "emb"
    os.utime(tar_path)
    next((emb / "data").glob("000001-*")).unlink()
    hints = []
    for command in (lambda: embed(made, append=True), lambda: repair(str(emb))):
        with pytest.raises(RefusedError, match=r"`touch -d @\d+\.\d+ .*/1\.tar`") as refused:
            command()
        hints.append(str(refused.value).split("`")[-2])
    audited = [d for d in mm.audit(str(emb), source=True).differences if d.what.startswith("source since")]
    assert hints[0] == hints[1] and hints[0] in audited[0].found
    subprocess.run(shlex.split(hints[0]), check=True)
    assert repair(str(emb)).chunks_recomputed == 1
    assert mm.audit(str(emb), source=True).ok and embed(made).already_finished
