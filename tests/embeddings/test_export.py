"""An export holds its set's rows, aligned, for the tools it is meant for, and never looks finished before it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import S3
from embedding_sets import write_set

from mmstream.embeddings.export import _work_folder, export
from mmstream.embeddings.layout import latest_manifest, manifest_path
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.storage.files import read_bytes, write_bytes

D = 8
PEERS = os.environ.get("MMSTREAM_PEERS", "")


def rows() -> list[dict[str, Any]]:
    """700 rows of two shards; every tenth has no caption, every 15th no picture."""
    made = []
    for i in range(700):
        vector = np.random.default_rng(i).standard_normal((2, D))
        image, text = (None if i % 15 == 7 else vector[0]), (None if i % 10 == 3 else vector[1])
        place = {"shard": i // 400, "row": i % 400}
        made.append(
            {**place, "caption": f"«{i}»", "image_embedding": image, "text_embedding": text, "topic": f"{i % 3}"}
        )
    return made


COMPLETE = [i for i in range(700) if i % 15 != 7 and i % 10 != 3]


@pytest.fixture(scope="module")
def emb(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("set") / "emb")
    shards = [("/nowhere/0.tar", 0), ("/nowhere/1.tar", 0)]
    return write_set(root, rows(), dimension=D, shards=shards, fields=["topic"], chunk_rows=64)


def expected(emb: str) -> Iterator[dict[str, Any]]:
    for table in EmbeddingSet.open(emb).tables():
        for row in table.to_pylist():
            if row["image_embedding"] is not None and row["text_embedding"] is not None:
                yield row


def parts(out: Path, name: str) -> list[Path]:
    return sorted((out / name).iterdir())


def test_rows_are_aligned_over_all_files_and_parts_and_are_the_sets(emb: str, tmp_path: Path) -> None:
    report = export(emb, str(tmp_path / "out"), rows_per_file=60)
    out, wanted = tmp_path / "out", list(expected(emb))
    assert (report.rows, report.left_out, report.parts) == (len(COMPLETE), 700 - len(COMPLETE), 10)
    assert [p.name for p in parts(out, "img_emb")][:2] == ["img_emb_00.npy", "img_emb_01.npy"]
    images = [np.load(p) for p in parts(out, "img_emb")]
    texts = [np.load(p) for p in parts(out, "text_emb")]
    metadata = [pq.read_table(p) for p in parts(out, "metadata")]
    assert [len(a) for a in images] == [len(a) for a in texts] == [t.num_rows for t in metadata] == [60] * 9 + [43]
    assert {a.dtype for a in images + texts} == {np.dtype(np.float16)}
    for name, arrays in (("image", images), ("text", texts)):
        assert np.array_equal(np.concatenate(arrays), np.array([r[f"{name}_embedding"] for r in wanted], np.float16))
    flat = [row for table in metadata for row in table.to_pylist()]
    assert flat == [{k: v for k, v in r.items() if not k.endswith("_embedding")} for r in wanted]


def test_one_kind_of_vectors_alone_keeps_every_row_that_has_it(emb: str, tmp_path: Path) -> None:
    report = export(emb, str(tmp_path), of="image")
    assert (report.rows, report.left_out, report.parts) == (653, 47, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.json", "img_emb", "metadata"]
    with pytest.raises(UsageError, match="no audio vectors"):
        export(emb, str(tmp_path / "other"), of="audio")


def test_the_real_embedding_reader_reads_it_row_by_row(emb: str, tmp_path: Path) -> None:
    python = Path(PEERS) / "embedding-reader/bin/python"
    if not PEERS or not python.exists():
        pytest.skip("MMSTREAM_PEERS names no folder with embedding-reader/, an environment with embedding-reader in it")
    export(emb, str(tmp_path / "out"), rows_per_file=60)
    program = """
import json, sys
from embedding_reader import EmbeddingReader
out, rows = sys.argv[1], []
for folder in ("img_emb", "text_emb"):
    reader = EmbeddingReader(f"{out}/{folder}", file_format="parquet_npy", metadata_folder=f"{out}/metadata",
                             meta_columns=["id", "key", "caption", "topic"])
    rows.append([[v.tolist(), *m] for vectors, meta in reader(batch_size=50, show_progress=False)
                 for v, m in zip(vectors, meta[["id", "key", "caption", "topic"]].values.tolist())])
print(json.dumps(rows))
"""
    done = subprocess.run(
        [str(python), "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    for name, found in zip(("image", "text"), json.loads(done.stdout), strict=True):
        assert found == [[r[f"{name}_embedding"], r["id"], r["key"], r["caption"], r["topic"]] for r in expected(emb)]


def test_sets_and_exports_are_read_back_by_duckdb_and_pandas(emb: str, tmp_path: Path) -> None:
    export(emb, str(tmp_path / "out"), rows_per_file=200)
    every = [r for t in EmbeddingSet.open(emb).tables() for r in t.to_pylist()]
    both = list(expected(emb))
    with duckdb.connect() as db:
        columns = "id, key, caption, topic, image_embedding"
        found = db.sql(f"select {columns} from '{emb}/data/*.parquet' order by id").fetchall()
        assert [r[:4] for r in found] == [(r["id"], r["key"], r["caption"], r["topic"]) for r in every]
        assert [None if r[4] is None else list(r[4]) for r in found] == [r["image_embedding"] for r in every]
        found = db.sql(f"select id, caption from '{tmp_path}/out/metadata/*.parquet' order by id").fetchall()
        assert found == [(r["id"], r["caption"]) for r in both]
    frame = pd.read_parquet(f"{emb}/data").sort_values("id")
    assert frame["caption"].tolist() == [r["caption"] for r in every]
    vectors = [None if v is None else list(v) for v in frame["text_embedding"]]
    assert vectors == [r["text_embedding"] for r in every]
    assert pd.read_parquet(tmp_path / "out/metadata")["key"].tolist() == [r["key"] for r in both]


def test_a_finished_export_is_left_alone_and_another_one_on_it_is_refused(emb: str, tmp_path: Path) -> None:
    out = str(tmp_path)
    export(emb, out, rows_per_file=200)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert export(emb, out, rows_per_file=200).already_finished
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    with pytest.raises(RefusedError, match="rows_per_file of the export there is 200, not 100"):
        export(emb, out, rows_per_file=100)


def test_an_export_of_a_set_that_changed_since_says_so_and_what_to_do(tmp_path: Path) -> None:
    emb, out = write_set(str(tmp_path / "emb"), rows()[:9], dimension=D), str(tmp_path / "out")
    assert export(emb, out).next[0].startswith(f"autofaiss build_index --embeddings {out}/img_emb --index_path ")
    stored = latest_manifest(emb)
    assert stored
    newer = stored.manifest.model_copy(update={"libraries": {"pyarrow": "1"}})
    write_bytes(f"{emb}/{manifest_path(stored.next_number)}", newer.to_bytes())
    with pytest.raises(RefusedError, match=r"has changed since .* had 9 rows then and has 9 now\. Export it into"):
        export(emb, out)


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")])
def test_a_finished_export_that_lost_a_part_is_made_whole(emb: str, tmp_path: Path, lose, capsys) -> None:
    export(emb, str(tmp_path), rows_per_file=200)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    lose(tmp_path / "metadata/metadata_1.parquet")
    assert not export(emb, str(tmp_path), rows_per_file=200).already_finished
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    assert "lost or damaged since: 1 part, first metadata/metadata_1" in " ".join(capsys.readouterr().err.split())


def test_parts_of_another_export_never_become_part_of_this_one(emb: str, tmp_path: Path) -> None:
    export(emb, str(tmp_path), rows_per_file=100)
    (tmp_path / "export.json").unlink()
    with pytest.raises(RefusedError, match=r"parts of another export, first img_emb/img_emb_3\.npy"):
        export(emb, str(tmp_path), rows_per_file=200)
    assert not (tmp_path / "export.json").exists()


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    emb = write_set(str(tmp_path / "emb"), rows()[:10], dimension=D, fields=["topic"], finished=False)
    with pytest.raises(RefusedError, match="unfinished"):
        export(emb, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_set_that_lost_an_object_is_a_difference_and_says_what_to_do(tmp_path: Path) -> None:
    emb = write_set(str(tmp_path / "emb"), rows()[:10], dimension=D, fields=["topic"])
    lost = next((tmp_path / "emb/data").iterdir())
    lost.unlink()
    with pytest.raises(DifferencesError, match=rf"{lost.name}: is not there, .*`mmstream repair {emb}`"):
        export(emb, str(tmp_path / "out"))


def test_a_killed_export_does_not_look_finished_and_the_same_command_finishes_it(emb: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmstream", "export", emb, str(out), "--format", "clip-retrieval",
               "--rows-per-file", "3"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (out / "metadata").exists() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(parts(out, "img_emb")) < 200
    assert not (out / "export.json").exists()
    assert len(list(out.glob(".export-*"))) == 1
    report = export(emb, str(out), rows_per_file=3)
    assert sorted(p.name for p in out.iterdir()) == ["export.json", "img_emb", "metadata", "text_emb"]
    assert (report.rows, report.parts) == (len(COMPLETE), 195)
    assert len(parts(out, "text_emb")) == 195


def test_the_folder_of_an_export_at_work_is_left_to_it(emb: str, tmp_path: Path) -> None:
    with _work_folder(str(tmp_path)) as folder:
        export(emb, str(tmp_path), rows_per_file=200)
        assert list(tmp_path.glob(".export-*")) == [folder]
    assert list(tmp_path.glob(".export-*")) == []


def test_an_export_goes_to_object_storage(emb: str, s3: S3) -> None:
    out = f"{s3.bucket('export')}/clip"
    report = export(emb, out, rows_per_file=500)
    assert json.loads(read_bytes(f"{out}/export.json"))["rows"] == report.rows == len(COMPLETE)
    assert len(np.load(s3.root / "export/clip/img_emb/img_emb_1.npy")) == len(COMPLETE) - 500
