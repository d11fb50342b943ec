"""Compressed shards from end to end: as their plain ones, or not at all."""

from __future__ import annotations

import gzip
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import UsageError
from mmstream.index.build import build_index
from mmstream.pipelines.rejects import rejects
from mmstream.pipelines.source import ShardTask, num_rows
from mmstream.search.pictures import read_picture
from mmstream.search.searcher import open_index
from mmstream.shards.catalog import build_catalog, known_successes

pytestmark = pytest.mark.usefixtures("ray_local")

NUM_SAMPLES = 40


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def shard() -> bytes:
    files = [(f"{i:03}.{s}", d) for i in range(NUM_SAMPLES) for s, d in (("png", picture(i)), ("txt", b"no. %d" % i))]
    files[6] = ("003.png", b"no picture")
    return make_tar(files)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples three times, and once in a shard that was cut."""
    folder, tar = tmp_path_factory.mktemp("shards"), shard()
    (folder / "0.tar").write_bytes(tar)
    (folder / "1.tar.gz").write_bytes(gzip.compress(tar[:5000]) + gzip.compress(tar[5000:]))
    (folder / "2.tar.zst").write_bytes(pa.Codec("zstd").compress(tar, asbytes=True))
    (folder / "3.tgz").write_bytes(gzip.compress(tar)[:-100])
    return folder


@pytest.fixture(scope="module")
def emb(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    dest = str(tmp_path_factory.mktemp("emb") / "emb")
    report = mm.embed([f"{folder}/*.tar*", f"{folder}/3.tgz"], dest, model="fake:16", max_rejects=1.0)
    assert report.rows == 3 * (NUM_SAMPLES - 1)
    assert report.rejects == {"compression": 1, "not_image": 3}
    assert [(Path(d.url).name, d.rows_seen) for d in report.damaged] == [("3.tgz", 0)]
    return dest


def test_a_compressed_shard_gives_the_rows_of_the_plain_one(emb: str) -> None:
    rows: dict[int, list] = {0: [], 1: [], 2: []}
    for table in EmbeddingSet.open(emb).tables():
        for row in table.drop_columns(["id"]).to_pylist():
            rows[row.pop("shard")].append(row)
    assert rows[0] == rows[1] == rows[2]


def test_the_audit_recounts_what_is_packed_and_finds_the_shard_that_was_cut_as_it_was(emb: str, folder: Path) -> None:
    report = mm.audit(emb, source=True)
    assert report.ok and report.source and (report.source.shards, report.source.samples) == (3, 3 * NUM_SAMPLES)
    changed = folder / "2.tar.zst"
    before, stat = changed.read_bytes(), changed.stat()
    try:
        changed.write_bytes(pa.Codec("zstd").compress(shard()[: 2 * 1024 * 5], asbytes=True))
        assert not mm.audit(emb, source=True).ok
    finally:
        changed.write_bytes(before)
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_pictures_and_rejects_are_found_at_their_place_in_what_is_packed(emb: str, tmp_path: Path) -> None:
    build_index(emb, str(tmp_path / "index"))
    index = open_index(str(tmp_path / "index"))
    for number in range(3):
        assert read_picture(index, index.search(id=number << 32 | 7, k=1)[0]) == picture(7)
    report = rejects(emb, html=str(tmp_path / "rejects.html"))
    assert [(r.shard, r.reason) for r in report.shown] == [(3, "compression"), *((n, "not_image") for n in range(3))]
    page = (tmp_path / "rejects.html").read_text()
    assert page.count("6e 6f 20 70") == 3  # the first bytes of each


def test_a_damaged_one_counts_as_none_and_a_folder_takes_plain_ones_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = folder / "3.tgz"
    assert num_rows(ShardTask(0, str(cut), cut.stat().st_size, "")) == 0
    assert num_rows(ShardTask(0, str(folder / "1.tar.gz"), (folder / "1.tar.gz").stat().st_size, "")) == NUM_SAMPLES
    assert [Path(u).name for u in build_catalog(str(folder))["url"].to_pylist()] == ["0.tar"]
    assert "passes over 3 files" in capfd.readouterr().err
    shutil.copy(folder / "1.tar.gz", tmp_path)
    with pytest.raises(UsageError, match="no shard matches"):
        build_catalog(str(tmp_path))
    (tmp_path / "1_stats.json").write_text('{"successes": 41}')
    assert known_successes(str(tmp_path / "1.tar.gz")) == 41
