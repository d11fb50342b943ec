"""Foreign files that break decoders and tar readers, through a real `embed`, each among good neighbours."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


def neighbour(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


class Peak(threading.Thread):
    """The most memory of its own that any of Ray's actors held, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if b"MapWorker" in (process / "cmdline").read_bytes():
                        _, resident, shared, *_ = (process / "statm").read_text().split()
                        self.bytes = max(self.bytes, (int(resident) - int(shared)) * 4096)
                except (FileNotFoundError, ProcessLookupError):
                    continue


def test_every_bad_picture_ends_as_its_table_says_and_its_neighbours_embed(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "bad_inputs"
    lines = (folder / "EXPECTED.tsv").read_text().splitlines()[1:]
    expected = dict(line.split("\t") for line in lines if line.startswith("images/"))
    files = [(f"{i:03}a.png", neighbour(i)) for i in range(len(expected) + 1)]
    files += [(f"{i:03}b.jpg", (folder / name).read_bytes()) for i, name in enumerate(expected)]
    (tmp_path / "a.tar").write_bytes(make_tar(sorted(files)))
    peak, start = Peak(), time.monotonic()
    peak.start()
    report = mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    peak.over.set()
    emb = EmbeddingSet.open(report.dest)
    embedded = {k for t in emb.tables(["key"]) for k in t["key"].to_pylist()}
    rejected = {r["key"]: r["reason"] for t in emb.rejects() for r in t.to_pylist()}
    assert {f"{i:03}a" for i in range(len(expected) + 1)} <= embedded
    found = {n: rejected.get(f"{i:03}b", "embeds") for i, n in enumerate(expected)}
    departures = {n: r for n, r in found.items() if r not in expected[n].split("|")}
    seconds = time.monotonic() - start
    print(
        f"{len(found)} pictures, {len(departures)} departures, {seconds:.1f} s, peak {peak.bytes >> 20} MiB per worker"
    )
    assert len(found) == 54 and departures == {}
    assert 0 < peak.bytes < 1 << 30


def test_every_bad_tar_is_embedded_or_accounted_for_beside_a_good_one(shared: Path, tmp_path: Path) -> None:
    tars = sorted((shared / "data" / "bad_inputs" / "tars").glob("*.tar"))
    for tar in tars:
        (tmp_path / tar.name).symlink_to(tar)
    (tmp_path / "good.tar").write_bytes(make_tar([("good.png", neighbour(0))]))
    report = mm.embed(str(tmp_path / "*.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    assert report.shards == len(tars) + 1
    keys = {k for t in EmbeddingSet.open(report.dest).tables(["key"]) for k in t["key"].to_pylist()}
    assert "good" in keys
    assert mm.audit(report.dest).ok
    print(f"{len(tars)} tars, {report.rows} rows, rejects {report.rejects}, {len(report.damaged)} damaged")
