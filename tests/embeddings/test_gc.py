"""What nothing refers to goes when it is old; what anything refers to never does."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from conftest import S3
from embedding_sets import embed_here
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import make_tar

from mmstream.embeddings.audit import audit
from mmstream.embeddings.gc import gc
from mmstream.errors import UsageError
from mmstream.schema import ChunkRecord, ShardRecord
from mmstream.storage.files import list_files, write_bytes, write_temporary

HOUR = 3600


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two shards of three chunks, with rejects, all of it two days old."""
    folder = tmp_path_factory.mktemp("made")
    for shard in range(2):
        files = [(f"{i}.txt" if i % 5 else f"{i}.xyz", b"words") for i in range(20)]
        (folder / f"{shard}.tar").write_bytes(make_tar(files))
    emb = Path(embed_here(folder / "*.tar", folder / "emb", chunk_rows=8))
    for file in files_of(emb):
        age(file, 48)
    return emb


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def age(file: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(file, (then, then))


@pytest.fixture
def emb(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "emb"))


def leave(emb: Path, name: str, hours: float) -> Path:
    file = emb / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"12345")
    age(file, hours)
    return file


def test_old_objects_without_a_record_and_old_temporaries_go_and_the_set_stays_whole(emb: Path) -> None:
    before = files_of(emb)
    leave(emb, "data/000000-000001-00ff00ff00ff.parquet", 25)
    leave(emb, "rejects/000007-000000-00ff00ff00ff.parquet", 25)
    temporary = write_temporary(emb / "commits/000000/000000.0.json", b"torn")
    age(temporary, 25)
    leave(emb, ".probe-0123456789abcdef", 25)
    everything = files_of(emb)
    tried = gc(str(emb), dry_run=True)
    assert files_of(emb) == everything
    report = gc(str(emb))
    assert (report.objects, report.temporaries, report.bytes) == (2, 2, 19)
    assert tried.model_dump(exclude={"dry_run", "next"}) == report.model_dump(exclude={"dry_run", "next"})
    assert files_of(emb) == before
    assert audit(str(emb)).ok
    assert gc(str(emb)).objects == 0


def test_what_is_younger_than_a_day_and_what_is_no_part_of_a_set_stays(emb: Path) -> None:
    kept = [
        leave(emb, "data/000000-000001-00ff00ff00ff.parquet", 23),
        leave(emb, "data/notes.parquet", 99),
        leave(emb, "data/.hidden", 99),
        leave(emb, "README", 99),
        leave(emb, "commits/000005.0.json", 99),
    ]
    report = gc(str(emb))
    assert (report.objects, report.temporaries, report.young) == (0, 0, 1)
    assert all(file.exists() for file in kept)


def test_objects_of_an_older_generation_stay(emb: Path) -> None:
    record = ShardRecord.model_validate_json(strip(emb / "commits/000000.0.json"))
    newer = record.model_copy(update={"chunks": [c.model_copy(update={"attempt": "0"}) for c in record.chunks[1:]]})
    (emb / "commits/000000.1.json").write_bytes(newer.to_bytes())
    before = files_of(emb)
    assert gc(str(emb)).objects == 0
    assert files_of(emb) == before


def strip(path: Path) -> bytes:
    """A record without the digest that it may carry."""
    import json

    document = json.loads(path.read_bytes())
    document.pop("sha256", None)
    return json.dumps(document).encode()


def test_where_a_newest_record_is_damaged_its_shard_keeps_everything(emb: Path) -> None:
    lost = leave(emb, "data/000000-000001-00ff00ff00ff.parquet", 48)
    other = leave(emb, "data/000001-000001-00ff00ff00ff.parquet", 48)
    (emb / "commits/000000.1.json").write_text('{"torn')
    report = gc(str(emb))
    assert (report.objects, report.unsure) == (1, 1)
    assert (lost.exists(), other.exists()) == (True, False)
    shutil.copy(emb / "commits/000000.0.json", emb / "commits/000000.2.json")
    assert gc(str(emb)).objects == 1, "a later generation has taken its place"


@pytest.mark.parametrize("lost", ["commits", "commits/000000*"])
def test_a_finished_set_that_lost_records_keeps_every_object(emb: Path, lost: str) -> None:
    leave(emb, "data/000000-000001-00ff00ff00ff.parquet", 48)
    objects = sorted((emb / "data").iterdir())
    for path in emb.glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = gc(str(emb))
    assert sorted((emb / "data").iterdir()) == objects
    assert report.objects == 0 < report.unsure and "mmstream repair" in report.next[0]


def test_what_is_committed_while_gc_looks_around_stays(emb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that was asleep for two days commits between gc's two listings."""
    record = ChunkRecord.from_bytes((emb / "commits/000000/000001.0.json").read_bytes())
    assert record.data
    new = record.data.model_copy(update={"path": "data/000000-000001-00ff00ff00ff.parquet"})
    leave(emb, new.path, 48)

    def then_committed(root: str) -> list:
        found = list_files(root)
        newer = record.model_copy(update={"data": new, "attempt": "00ff00ff00ff"})
        write_bytes(str(emb / "commits/000000/000001.1.json"), newer.to_bytes())
        return found

    monkeypatch.setattr("mmstream.embeddings.gc.list_files", then_committed)
    assert gc(str(emb)).objects == 0
    assert (emb / new.path).exists()


def test_a_folder_that_is_no_set_is_left_alone(tmp_path: Path) -> None:
    file = leave(tmp_path, "data/000000-000001-00ff00ff00ff.parquet", 48)
    with pytest.raises(UsageError, match="no embedding set is there"):
        gc(str(tmp_path))
    assert file.exists()


NAMES = st.one_of(
    st.builds("{}/{:06}-{:06}-{}.parquet".format, st.sampled_from(["data", "rejects"]), st.integers(0, 3),
              st.integers(0, 3), st.text("0123456789abcdef", min_size=12, max_size=12)),
    st.builds("{}/.{}.{}-{:012x}".format, st.sampled_from(["data", "commits/000000", "manifest"]),
              st.sampled_from(["a.parquet", "000000.0.json"]), st.integers(1, 99999), st.integers(0, 2**48 - 1)),
    st.sampled_from(["x", "data/x.parquet", "catalog/000001.parquet", "data/000000-000000-.parquet", "data/a/b"]),
)  # fmt: skip


@given(st.dictionaries(NAMES, st.floats(0, 72), max_size=8), st.integers(0, 2), st.sets(st.integers(0, 20), max_size=3))
@settings(max_examples=60, deadline=None)
def test_nothing_that_is_referred_to_ever_goes_whatever_lies_around(
    made: Path, tmp_path_factory: pytest.TempPathFactory, extra: dict[str, float], mode: int, hurt: set[int]
) -> None:
    emb = Path(shutil.copytree(made, tmp_path_factory.mktemp("gc") / "emb"))
    own = files_of(emb)
    for name, hours in extra.items():
        if not (emb / name).exists():
            leave(emb, name, hours)
    records = sorted((emb / "commits").rglob("*.json"))
    for i in hurt:  # torn, or gone
        record = records[i % len(records)]
        if mode == 0 and record.exists():
            record.write_bytes(record.read_bytes()[:-9])
        elif mode == 1:
            record.unlink(missing_ok=True)
    referenced = {emb / o for o in referred_to(emb)}
    before = set(files_of(emb))
    report = gc(str(emb))
    gone = before - set(files_of(emb))
    assert len(gone) == report.objects + report.temporaries
    assert not gone & referenced
    if mode == 2:
        old = {emb / n for n, hours in extra.items() if hours > 24 and is_litter(n)}
        assert {f for f in gone if f not in own} == gone
        assert gone == old


def is_litter(name: str) -> bool:
    return name.rsplit("/", 1)[-1].startswith(".") or (name.count("-") == 2 and not name.endswith("-.parquet"))


def referred_to(emb: Path) -> set[str]:
    """By every record that is JSON, read without our own code."""
    found = set()
    for path in (emb / "commits").rglob("*.json"):
        try:
            kind = ChunkRecord if path.parent.name.isdigit() else ShardRecord
            record = kind.model_validate_json(strip(path))
        except ValueError:
            continue
        for chunk in record.chunks if isinstance(record, ShardRecord) else [record]:
            found |= {o.path for o in (chunk.data, chunk.rejects) if o}
    return found


def test_on_object_storage_the_stores_clock_decides(emb: Path, s3: S3) -> None:
    bucket = s3.bucket("gc-test")
    for file in files_of(emb):
        write_bytes(f"{bucket}/emb/{file.relative_to(emb)}", file.read_bytes())
    for name in ("data/000000-000001-00ff00ff00ff.parquet", "data/000000-000002-00ff00ff00ff.parquet"):
        write_bytes(f"{bucket}/emb/{name}", b"12345")
    old = s3.root / "gc-test/emb/data/000000-000001-00ff00ff00ff.parquet"
    age(old, 30)
    report = gc(f"{bucket}/emb")
    assert (report.objects, report.young, report.bytes) == (1, 1, 5)
    assert not old.exists()
    assert audit(f"{bucket}/emb").ok


def test_what_belongs_to_another_set_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("a.txt", b"words")]))
    one = embed_here(tmp_path / "a.tar", tmp_path / "sets" / "one")
    two = embed_here(tmp_path / "a.tar", tmp_path / "sets" / "one" / "two")
    for path in (tmp_path / "sets").rglob("*"):
        os.utime(path, (0, 0))
    files = sorted((tmp_path / "sets").rglob("*"))
    with pytest.raises(UsageError, match="no embedding set is there"):
        gc(str(tmp_path / "sets"))
    assert gc(one).objects == 0
    assert audit(one).ok
    assert audit(two).ok
    assert sorted((tmp_path / "sets").rglob("*")) == files
