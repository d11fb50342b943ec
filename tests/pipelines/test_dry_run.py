"""A dry run foretells what the run would say: its time with the start, a spent budget, fields that are nowhere."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from tars import make_tar

from mmstream.errors import RefusedError
from mmstream.pipelines.dry_run import START_SECONDS, dry_run


def tar_of(path: Path, rows: int, bad: int) -> str:
    """Every `rows // bad`-th picture is none; all have a JSON with `topic`."""
    out = io.BytesIO()
    Image.new("RGB", (24, 24)).save(out, "PNG")
    pictures = [b"no picture" if bad and i % (rows // bad) == 0 else out.getvalue() for i in range(rows)]
    about = json.dumps({"topic": "x", "nothing": None}).encode()
    path.write_bytes(make_tar(f for i in range(rows) for f in [(f"{i:04}.png", pictures[i]), (f"{i:04}.json", about)]))
    return str(path)


def test_the_time_counts_the_start(tmp_path: Path) -> None:
    report = dry_run(tar_of(tmp_path / "a.tar", 20, 0), str(tmp_path / "emb"), "fake:8")
    assert START_SECONDS <= report.start_seconds <= report.seconds
    assert "s to start, then" in str(report)


@pytest.mark.parametrize(
    ("rows", "bad", "max_rejects", "is_over"),
    [(200, 20, 0.05, True), (200, 20, 0.2, False), (200, 5, 0.05, False), (60, 20, 0.05, False)],
    ids=["over", "a larger budget", "within", "too few to judge"],
)
def test_a_budget_that_the_first_chunk_spends_is_foretold(
    tmp_path: Path, rows: int, bad: int, max_rejects: float, is_over: bool
) -> None:
    source = tar_of(tmp_path / "a.tar", rows, bad)
    report = dry_run(source, str(tmp_path / "emb"), "fake:8", max_rejects=max_rejects)
    assert (report.over_budget, report.rejects) == (is_over, {"not_image": bad})
    assert ("embed would end with exit code 4" in str(report)) == is_over
    assert ("--max-rejects 0.2" in report.next[0]) == (max_rejects == 0.2)


def test_what_lies_behind_damage_counts_in_the_budget_that_is_foretold(tmp_path: Path) -> None:
    path = Path(tar_of(tmp_path / "a.tar", 400, 0))
    data = bytearray(path.read_bytes())
    data[data.index(b"0300.png") + 2] ^= 4
    path.write_bytes(data)
    assert dry_run(str(path), str(tmp_path / "emb"), "fake:8").over_budget
    assert not dry_run(str(path), str(tmp_path / "emb"), "fake:8", max_rejects=0.3).over_budget


def test_a_field_that_no_sample_has_is_named(tmp_path: Path) -> None:
    source = tar_of(tmp_path / "a.tar", 20, 0)
    report = dry_run(source, str(tmp_path / "emb"), "fake:8", fields=["topic", "topics", "nothing"])
    assert report.absent_fields == ["topics", "nothing"]
    assert "field topics" in str(report)


def test_a_folder_that_embed_would_refuse_is_refused(tmp_path: Path) -> None:
    source = tar_of(tmp_path / "a.tar", 3, 0)
    with pytest.raises(RefusedError, match=r"holds other things than an embedding set: a\.tar"):
        dry_run(source, str(tmp_path), "fake:8")
