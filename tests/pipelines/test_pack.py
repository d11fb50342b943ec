"""`pack`: tables and folders become shards that embed, audit and other readers take, and no row is lost on the way."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from conftest import S3
from faulty_server import FaultyServer
from PIL import Image
from samples import photographs
from sounds import encoded, tones

import mmstream as mm
from mmstream.errors import RefusedError, Rejected, TooManyRejectsError, UsageError
from mmstream.pipelines.packing import found
from mmstream.schema import REJECT
from mmstream.storage.files import list_names, read_bytes, write_bytes

PICTURES = photographs()


def table(folder: Path, num_rows: int) -> str:
    """A CSV of pictures with captions, widths and labels, and the pictures beside it."""
    (folder / "img").mkdir(parents=True)
    with (folder / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "width", "label", "note"])
        for i in range(num_rows):
            name = f"img/{i}.{'png' if i % len(PICTURES) % 2 else 'jpg'}"
            (folder / name).write_bytes(PICTURES[i % len(PICTURES)])
            rows.writerow([name, f"picture {i}", 10 * i, ["dog", "cat"][i % 2], ""])
    return str(folder / "data.csv")


def tars(dest: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(dest).glob("*.tar"))}


def member(tar: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        return file.extractfile(name).read()


@pytest.mark.usefixtures("ray_local")
def test_a_table_is_embedded_from_its_shards_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    source = table(tmp_path / "data", 120)
    (tmp_path / "data" / "img" / "7.jpg").unlink()
    (tmp_path / "data" / "img" / "8.png").write_bytes(b"no picture")  # pack looks at no pixels, embed does
    dest = str(tmp_path / "shards")
    report = mm.pack(source, dest, sha256=True, samples_per_shard=50, numbers=["width"])
    assert (report.rows, report.samples, report.shards, report.rejects) == (120, 119, 3, {"unreadable": 1})
    (reject,) = pq.read_table(f"{dest}/rejects.parquet").to_pylist()
    assert (reject["row"], reject["key"], reject["reason"]) == (7, "000000007", "unreadable")
    assert "7.jpg" in reject["detail"] and pq.read_schema(f"{dest}/rejects.parquet").equals(REJECT)
    stats = [json.loads(Path(f"{dest}/{i:05}_stats.json").read_text()) for i in range(3)]
    assert [(s["count"], s["successes"], s["rejected"]) for s in stats] == [(51, 50, 1), (50, 50, 0), (19, 19, 0)]
    embedded = mm.embed(dest, str(tmp_path / "emb"), model="fake:8", fields=["label"])
    assert (embedded.rows, embedded.rejects) == (118, {"not_image": 1})
    audited = mm.audit(embedded.dest, source=True)
    assert audited.ok and audited.rows + sum(audited.rejects.values()) == report.samples


def test_the_webdataset_package_reads_what_was_packed(tmp_path: Path) -> None:
    source = table(tmp_path / "data", 7)
    report = mm.pack(source, str(tmp_path / "shards"), samples_per_shard=4)
    assert report.columns == {"image": "image", "text": "caption", "label": "label"} and report.classes == 2
    assert json.loads((tmp_path / "shards" / "classes.json").read_text()) == ["cat", "dog"]
    urls = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [s["__key__"] for s in samples] == [f"{i:09}" for i in range(7)]
    for i, sample in enumerate(samples):
        kind = "png" if i % len(PICTURES) % 2 else "jpg"
        assert (sample["txt"], sample["cls"]) == (f"picture {i}", 1 - i % 2)
        assert sample["json"] == {"width": 10 * i, "label": ["dog", "cat"][i % 2]}
        assert sample[kind].size == Image.open(io.BytesIO(PICTURES[i % len(PICTURES)])).size


def test_a_folder_is_packed_by_stems_with_its_folders_as_labels(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    for name, data in {
        "cats/a.1.jpg": PICTURES[0],
        "cats/a.1.txt": b"a cat",
        "cats/a.1.json": b'{"w": 3}',
        "dogs/b.flac": encoded("flac", tones(0.1)),
        "dogs/b.txt": b"a bark",
        "dogs/both.jpg": PICTURES[0],
        "dogs/both.png": PICTURES[1],
        "dogs/broken.jpg": PICTURES[0],
        "dogs/broken.json": b"{",
        "top.png": PICTURES[1],
        "notes.pdf2": b"?",
        ".hidden/x.jpg": PICTURES[0],
        "cats/._a.jpg": b"leftover",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    dest = str(root / "shards")  # inside of what is packed: never packed itself
    report = mm.pack(str(root), dest, label_folders=True, sha256=True)
    assert (report.rows, report.samples) == (6, 3)
    assert report.rejects == {"duplicate_key": 1, "format": 1, "metadata": 1}
    (tar,) = tars(dest).values()
    with tarfile.open(fileobj=io.BytesIO(tar)) as file:
        names = file.getnames()
    assert names == [f"cats/a_1.{s}" for s in ("cls", "jpg", "json", "txt")] + [
        *(f"dogs/b.{s}" for s in ("cls", "flac", "json", "txt")),
        *(f"top.{s}" for s in ("json", "png")),
    ]
    about = json.loads(member(tar, "cats/a_1.json"))
    assert about.pop("sha256") and about == {"w": 3, "label": "cats"} and member(tar, "dogs/b.cls") == b"1"
    assert mm.pack(str(root), dest, label_folders=True, sha256=True).already_finished


def test_a_run_that_was_killed_is_finished_by_the_same_command_with_the_same_bytes(tmp_path: Path) -> None:
    source, dest = table(tmp_path / "data", 30), tmp_path / "shards"
    mm.pack(source, str(tmp_path / "undisturbed"), samples_per_shard=8)
    mm.pack(source, str(dest), samples_per_shard=8)
    for lost in ("packed.json", "00001.tar", "00003_stats.json", "classes.json"):
        (dest / lost).unlink()
    report = mm.pack(source, str(dest), samples_per_shard=8)
    assert not report.already_finished and report.samples == 30
    assert tars(str(dest)) == tars(str(tmp_path / "undisturbed")) and len(tars(str(dest))) == 4
    assert sorted(p.name for p in dest.iterdir()) == sorted(p.name for p in (tmp_path / "undisturbed").iterdir())


def test_nothing_foreign_is_written_over(tmp_path: Path) -> None:
    source, dest = table(tmp_path / "data", 30), tmp_path / "shards"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "00000.tar").write_bytes(b"mine")
    with pytest.raises(RefusedError, match=r"other things .*00000\.tar"):
        mm.pack(source, str(tmp_path / "foreign"))
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["00000.tar"]
    mm.pack(source, str(dest), samples_per_shard=8)
    with pytest.raises(RefusedError, match="samples_per_shard was 8 and is now 9"):
        mm.pack(source, str(dest), samples_per_shard=9)
    (dest / "packed.json").unlink()
    (dest / "00001.tar").write_bytes(b"changed")
    with pytest.raises(RefusedError, match=r"00001\.tar: is there, and is not what this run would write"):
        mm.pack(source, str(dest), samples_per_shard=8)
    with Path(source).open("a") as file:
        file.write("img/0.jpg,one more,1,dog,\n")
    with pytest.raises(RefusedError, match="has changed since"):
        mm.pack(source, str(dest), samples_per_shard=8)
    (dest / "pack.json").write_text("{}")
    with pytest.raises(RefusedError, match="is not what pack writes"):
        mm.pack(source, str(dest), samples_per_shard=8)


def test_too_many_bad_rows_end_the_run_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    source = table(tmp_path / "data", 110)
    for i in range(0, 110, 10):
        next((tmp_path / "data" / "img").glob(f"{i}.*")).unlink()
    dest = str(tmp_path / "shards")
    with pytest.raises(TooManyRejectsError, match=r"11 of 110 rows .*unreadable 11.* first is row 0"):
        mm.pack(source, dest, samples_per_shard=20)
    report = mm.pack(source, dest, samples_per_shard=20, max_rejects=0.2)
    assert (report.samples, report.rejects) == (99, {"unreadable": 11})


def test_parquet_with_pictures_in_it_goes_to_a_store_and_back(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket("pack")
    rows = [{"bytes": p, "path": None} for p in PICTURES]
    columns = {"image": rows, "text": [f"t{i}" for i in range(5)], "label": [3, 1, 2, 1, 0], "raw": [b"x"] * 5}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    write_bytes(f"{bucket}/data/t.parquet", out.getvalue())
    report = mm.pack(f"{bucket}/data/t.parquet", f"{bucket}/shards", shard_bytes=20_000)
    assert report.left_out == ["raw"] and report.classes is None and report.samples == 5
    assert list_names(f"{bucket}/shards")[-2:] == ["pack.json", "packed.json"] and report.shards > 1
    assert member(read_bytes(f"{bucket}/shards/00000.tar"), "000000000.cls") == b"3"
    again = mm.pack(f"{bucket}/data/t.parquet", str(tmp_path / "local"), shard_bytes=20_000)
    assert list(tars(again.dest).values()) == [read_bytes(f"{bucket}/shards/{i:05}.tar") for i in range(report.shards)]


def test_a_web_server_that_has_a_picture_gives_it_and_one_that_has_not_costs_a_row(tmp_path: Path) -> None:
    with FaultyServer({"a.jpg": PICTURES[0]}) as server:
        urls = [f"{server.url}/a.jpg", f"{server.url}/none.jpg", "http://127.0.0.1:9/x.jpg", "http://u:p@h/x.jpg"]
        lines = [json.dumps({"url": url, "caption": "c"}) for url in urls]
        (tmp_path / "t.jsonl").write_text("\n".join(lines))
        report = mm.pack(str(tmp_path / "t.jsonl"), str(tmp_path / "shards"))
    assert (report.samples, report.rejects) == (1, {"unreadable": 2, "unsafe_member": 1})
    assert member(tars(report.dest)["00000.tar"], "000000000.jpg") == PICTURES[0]


def test_a_table_of_a_store_names_no_local_files(tmp_path: Path) -> None:
    assert found("a/../b.jpg", "/data/t.csv") == "/data/b.jpg" and found("/x.jpg", "/data/t.csv") == "/x.jpg"
    assert found("a/b.jpg", "s3://bucket/x/t.csv") == "s3://bucket/x/a/b.jpg"
    assert found("s3://other/b.jpg", "s3://bucket/x/t.csv") == "s3://other/b.jpg"
    for path in (
        "/etc/passwd",
        "file:///etc/passwd",
        "../y/b.jpg",
        "simplecache::file:///etc/passwd",
        "local:///x",
        "git://x/.ssh",
    ):
        with pytest.raises(Rejected, match="unsafe_member"):
            found(path, "s3://bucket/x/t.csv")


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,n\nnone.jpg,1\n")
    with pytest.raises(UsageError, match=r"no row gave a sample .*none\.jpg"):
        mm.pack(str(tmp_path / "t.csv"), str(tmp_path / "a"), columns={"image": "image"})
    with pytest.raises(UsageError, match="--label-folders"):
        mm.pack(str(tmp_path / "t.csv"), str(tmp_path / "b"), label_folders=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither a table"):
        mm.pack(str(tmp_path / "empty"), str(tmp_path / "b"))
    with pytest.raises(UsageError, match="--image: names a column"):
        mm.pack(str(tmp_path / "empty"), str(tmp_path / "b"), columns={"image": "x"})
    assert not (tmp_path / "b").exists()
