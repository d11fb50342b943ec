"""A set is compared with its tars, counted again: what was left out, moved, lost or mended since is named."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pyarrow as pa
from audited_sets import CHUNK, SAMPLES, SHARDS, keys_of, rewrite, said, swapped, tar_of, without
from embedding_sets import embed_here
from faulty_server import FaultyServer
from PIL import Image
from tars import make_tar

from mmstream.embeddings.audit import Counted, audit
from mmstream.shards.catalog import build_catalog


def test_a_row_that_a_lying_writer_left_out_is_named(emb: Path) -> None:
    rewrite(emb, without(3), samples=-1)
    assert said(audit(str(emb))) == [], "the lie is perfect: only the shard knows better"
    report = audit(str(emb), source=True)
    assert said(report) == [
        (0, 1, "key of row 11 (there and 3 times more stands the next row's)"),
        (0, 2, "key of row 15 (there and 3 times more stands the next row's)"),
        (0, None, "samples of the source in the set"),
    ]
    assert (report.differences[0].expected, report.differences[0].found) == ("0011", "0012")
    assert (report.differences[2].expected, report.differences[2].found) == ("20", "19")


def test_rows_that_changed_places_are_named(emb: Path) -> None:
    rewrite(emb, swapped(2, 5))
    assert said(audit(str(emb))) == []
    assert said(audit(str(emb), source=True)) == [(0, 1, "key of row 10 (swapped with row 13)")]


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
        (1, None, "samples of the source in the set"),
    ]


def test_a_shard_that_is_gone_is_named(own: Path) -> None:
    (own.parent / "tars/0.tar").unlink()
    assert said(audit(str(own), source=True)) == [(0, None, "source")]


def test_a_shard_that_the_store_refuses_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    with FaultyServer({f"{n}.tar": tar_of(keys_of(n)) for n in range(SHARDS)}) as server:
        catalog = build_catalog([f"{server.url}/{n}.tar" for n in range(SHARDS)])
        emb = embed_here(catalog, tmp_path / "emb", chunk_rows=CHUNK)
        server.refused = {"0.tar"}
        report = audit(emb, source=True)
    assert said(report, unchecked=True) == []
    assert [(u.shard, u.what) for u in report.unchecked] == [(0, "source")]
    assert "0.tar: access denied" in report.unchecked[0].why
    assert report.rows == SHARDS * SAMPLES
    assert report.source == Counted(shards=1, samples=SAMPLES)


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
    assert said(audit(str(emb), source=True))[1:] == [
        (0, None, "samples of the source in the set"),
        (0, None, "damage"),
    ]


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
        (shard, None, what) for shard in range(3) for what in ("samples of the source in the set", "damage")
    ]


def test_every_bad_tar_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/bad_inputs/tars"
    emb = embed_here(source, tmp_path / "emb", chunk_rows=50)
    assert said(audit(emb, source=True)) == []
