"""Foreign files that break decoders and tar readers, through a real `embed`, each among good neighbours."""

from __future__ import annotations

import io
import re
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from peak import Peak
from PIL import Image
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import Reason, Rejected
from mmstream.media.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


def neighbour(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_every_bad_picture_ends_as_its_table_says_and_its_neighbours_embed(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "bad_inputs"
    lines = (folder / "EXPECTED.tsv").read_text().splitlines()[1:]
    expected = dict(line.split("\t") for line in lines if line.startswith("images/"))
    files = [(f"{i:03}a.png", neighbour(i)) for i in range(len(expected) + 1)]
    files += [(f"{i:03}b.jpg", (folder / name).read_bytes()) for i, name in enumerate(expected)]
    (tmp_path / "a.tar").write_bytes(make_tar(sorted(files)))
    start = time.monotonic()
    with Peak() as peak:
        report = mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
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


# What the table leaves out: an ordinary file without an image lies beside the sparse ones.
MORE_THAN_EXPECTED = {"sparse__test_read_format_gtar_sparse_1_17_posix10.tar": {Reason.MISSING_MEMBER}}


def test_every_bad_tar_ends_as_its_table_says_beside_a_good_one(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "bad_inputs"
    table = dict(line.split("\t") for line in (folder / "EXPECTED.tsv").read_text().splitlines()[1:])
    tars = sorted((folder / "tars").glob("*.tar"))
    for tar in tars:
        (tmp_path / tar.name).symlink_to(tar)
    (tmp_path / "good.tar").write_bytes(make_tar([("good.png", neighbour(0))]))
    report = mm.embed(str(tmp_path / "*.tar"), str(tmp_path / "emb"), model="fake:8", max_rejects=1.0)
    assert report.shards == len(tars) + 1
    emb = EmbeddingSet.open(report.dest)
    names = [Path(url).name for url in emb.catalog["url"].to_pylist()]
    rows = {names[s.shard]: s.num_rows for s in emb.shards}
    rejects = [r for t in emb.rejects() for r in t.to_pylist()]
    departures = []
    for tar in tars:
        said = re.sub(r"\(.*?\)", "", table[f"tars/{tar.name}"])
        found = {r["reason"]: r["key"] for r in rejects if names[r["shard"]] == tar.name}
        if tar.name == "packed__all_images.tar":
            said += " ".join(reason for name, reason in table.items() if name.startswith("images/"))
        allowed = {reason for reason in Reason if reason in said} | MORE_THAN_EXPECTED.get(tar.name, set())
        wanted = re.search(r"\b(\d+) rows", said)
        if not set(found) <= allowed or (wanted and rows[tar.name] != int(wanted[1])):
            departures.append((tar.name, said, found, rows[tar.name]))
    print(f"{len(tars)} tars, {len(departures)} departures, {report.rows} rows, rejects {report.rejects}")
    assert len(tars) == 20 and departures == []
    assert rows["good.tar"] == 1
    assert mm.audit(report.dest, source=True).ok


def test_the_longest_time_that_any_bad_picture_takes(shared: Path) -> None:
    seconds = {}
    with Sandbox() as child:
        child.picture(neighbour(0))
        for file in sorted((shared / "data" / "bad_inputs" / "images").iterdir()):
            start = time.monotonic()
            with suppress(Rejected):
                child.picture(file.read_bytes())
            seconds[file.name] = time.monotonic() - start
    longest = max(seconds, key=seconds.__getitem__)
    print(f"{len(seconds)} pictures in a sandbox, the longest: {longest}, {seconds[longest]:.2f} s of 10 s")
    assert len(seconds) == 54 and seconds[longest] < 10
