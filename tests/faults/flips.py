"""Part 3: one bit is flipped in a shard, a record or an output. Who notices, before it is used?

Detected: the sample or shard is set aside with a reason, or the reader or `embed` refuses, or the audit names it.
Foreign: it is noticed, but by an error that is none of ours and says nothing to a person; a violation.
Harmless: nobody notices and everything that is read is what it was (padding, an object that is no longer read).
Silent: nobody notices and something is different. In the bytes of a picture, caption or JSON member this is told,
since a tar has no checksum for them; anywhere else, and wherever a checksum is there, it is a violation.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from faults.job import MODEL, encoded
from faults.judge import audited, folded_records, judge, objects_at
from faults.kills import prepare, run_to_the_end
from faults.places import Place
from PIL import Image
from tars import make_tar

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import load_encoder
from mmstream.errors import MmstreamError
from mmstream.pipelines.read import shard_tasks
from mmstream.shards.catalog import build_catalog


class Fate(StrEnum):
    DETECTED = "detected"
    FOREIGN = "foreign error"
    HARMLESS = "harmless"
    SILENT = "silent"


@dataclass
class Flips:
    """How many flips of each target met which fate."""

    fates: Counter[tuple[str, Fate]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def saw(self, target: str, fate: Fate, what: str, *, told: bool = False) -> None:
        self.fates[target, fate] += 1
        if fate is Fate.FOREIGN or (fate is Fate.SILENT and not told):
            self.violations.append(f"{target}: {what}: {fate}")

    def targets(self) -> list[str]:
        return list(dict.fromkeys(target for target, _ in self.fates))


def flipped(data: bytes, bit: int) -> bytes:
    out = bytearray(data)
    out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


# ---------------------------------------------------------------------------------------------------------- shards


@dataclass(frozen=True)
class Protection:
    """What vouches for a shard's payloads: `covers` are the regions in which no flip may be silent."""

    name: str
    in_json: bool
    in_catalog: bool
    covers: frozenset[str]


_ALWAYS = frozenset({"header", "padding", "end"})
PROTECTIONS = (
    Protection("shard", False, False, _ALWAYS),
    Protection("shard, SHA-256 in its JSON", True, False, _ALWAYS | {"jpg"}),
    Protection("shard, SHA-256 in the catalog", False, True, _ALWAYS | {"jpg", "txt", "json"}),
)


def flip_shards(folder: Path, protection: Protection, num_flips: int, seed: int, found: Flips) -> None:
    """Flips bits of a shard of twenty samples, as many in each region; each time it is read and encoded anew."""
    data = _shard(protection.in_json)
    path, digest = folder / "00000.tar", sha256(data).hexdigest() if protection.in_catalog else None
    path.write_bytes(data)
    before, regions, rng = _content(path, digest), _regions(data), random.Random(seed)
    for i in range(num_flips):
        region = list(regions)[i % len(regions)]
        bit = rng.choice(regions[region]) * 8 + rng.randrange(8)
        path.write_bytes(flipped(data, bit))
        now = _content(path, digest)
        told = region not in protection.covers
        found.saw(f"{protection.name}: {region}", _fate_of_rows(before, now), f"bit {bit}", told=told)


def _shard(in_json: bool) -> bytes:
    """Twenty sound samples with a JPEG of about 3 kB each, as scraped pictures have: nothing in it is a checksum."""
    files = []
    for i in range(20):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        about = {"url": f"http://example.org/{i}.jpg"}
        if in_json:
            about["sha256"] = sha256(out.getvalue()).hexdigest()
        caption = f"picture number {i}, of eight by eight patches in many colours".encode()
        files += [
            (f"{i:06}.jpg", out.getvalue()),
            (f"{i:06}.txt", caption),
            (f"{i:06}.json", json.dumps(about).encode()),
        ]
    return make_tar(files)


def _regions(tar: bytes) -> dict[str, list[int]]:
    """The bytes of a sound tar by where they are: `header`, the payloads by suffix, `padding`, and the `end`."""
    regions: dict[str, list[int]] = {}
    end = 0
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        for member in members:
            payload = range(member.offset_data, member.offset_data + member.size)
            end = payload.stop + -payload.stop % 512
            regions.setdefault("header", []).extend(range(member.offset, payload.start))
            regions.setdefault(member.name.rsplit(".", 1)[1], []).extend(payload)
            regions.setdefault("padding", []).extend(range(payload.stop, end))
    return {**regions, "end": list(range(end, len(tar)))}


@dataclass(frozen=True)
class _Content:
    """Rows and rejects of a shard by row number; `reaches` is the number of samples seen, all of it if undamaged."""

    rows: dict[int, dict[str, Any]]
    rejects: dict[int, tuple[str | None, str]]
    reaches: int
    damaged: bool


def _content(path: Path, digest: str | None) -> _Content:
    catalog = build_catalog(str(path))
    if digest:
        column = catalog.column_names.index("sha256")
        catalog = catalog.set_column(column, "sha256", pa.array([digest]))
    rows, rejects, reaches, damaged = {}, {}, 0, False
    for info, good, bad in encoded(shard_tasks(catalog), load_encoder(MODEL)):
        rows.update({r["row"]: r for r in good.to_pylist()})
        rejects.update({r["row"]: (r["key"], r["reason"]) for r in bad.to_pylist()})
        reaches, damaged = info.first_row + info.num_samples, damaged or info.damage is not None
    return _Content(rows, rejects, reaches, damaged)


def _fate_of_rows(before: _Content, now: _Content) -> Fate:
    if now == before:
        return Fate.HARMLESS
    if any(before.rows.get(row) != value for row, value in now.rows.items()):
        return Fate.SILENT  # a row that is other than it was
    gone = before.rows.keys() - now.rows.keys()
    if all(row in now.rejects or (now.damaged and row >= now.reaches) for row in gone):
        return Fate.DETECTED
    return Fate.SILENT


# ------------------------------------------------------------------------------------------- records and outputs


def flip_finished_set(place: Place, num_flips: int, seed: int, found: Flips) -> None:
    """Flips bits of the objects of a finished set; the reader reads all of it and the audit looks at it."""
    prepare(place)
    dest, rng = Path(place.job("undisturbed").dest), random.Random(seed)
    before = _read_all(str(dest))
    for target, files in _finished_targets(dest).items():
        for _ in range(num_flips):
            file = rng.choice(files)
            data = file.read_bytes()
            bit = rng.randrange(len(data) * 8)
            file.write_bytes(flipped(data, bit))
            found.saw(f"finished set: {target}", _fate_of_set(str(dest), before), f"bit {bit} of {file.name}")
            file.write_bytes(data)


def _finished_targets(dest: Path) -> dict[str, list[Path]]:
    return {
        "data": sorted((dest / "data").glob("*.parquet")),
        "rejects": sorted((dest / "rejects").glob("*.parquet")),
        "folded records": sorted((dest / "commits").glob("*.json")),
        "manifest": sorted((dest / "manifest").glob("*.json"))[-1:],
        "catalog": sorted((dest / "catalog").glob("*.parquet")),
    }


def _read_all(dest: str) -> Any:
    """All that a user of the set can read."""
    opened = EmbeddingSet.open(dest)
    rows = [row for table in opened.tables() for row in table.to_pylist()]
    rejects = [row for table in opened.rejects() for row in table.to_pylist()]
    return opened.manifest, opened.catalog.to_pylist(), opened.shards, rows, rejects


def _fate_of_set(dest: str, before: Any) -> Fate:
    try:
        now = _read_all(dest)
    except MmstreamError:
        return Fate.DETECTED
    except Exception:  # whatever it is, it is counted
        return Fate.FOREIGN
    if audited(dest):
        return Fate.DETECTED
    return Fate.HARMLESS if now == before else Fate.SILENT


def flip_begun_set(place: Place, num_flips: int, seed: int, found: Flips) -> None:
    """Flips bits of the records of a set that was begun and not finished; the same job then goes on."""
    truth, undisturbed = prepare(place)
    whole, job, rng = Path(place.job("undisturbed").dest), place.job("begun"), random.Random(seed)
    dest = Path(job.dest)
    expected = _records(objects_at(str(whole)))
    for target, pattern in {
        "chunk records": "commits/*/*.json",
        "manifest": "manifest/*",
        "catalog": "catalog/*",
    }.items():
        for _ in range(num_flips):
            _begin_from(whole, dest)
            file = rng.choice(sorted(dest.glob(pattern)))
            bit = rng.randrange(file.stat().st_size * 8)
            file.write_bytes(flipped(file.read_bytes(), bit))
            fate = Fate.DETECTED
            problem = run_to_the_end(job)
            if problem and problem.startswith("exit code 1:"):
                fate = Fate.FOREIGN
            elif problem is None and not audited(job.dest):
                objects = objects_at(job.dest)
                same = judge(objects, truth, undisturbed).ok and _records(objects) == expected
                fate = Fate.HARMLESS if same else Fate.SILENT
            found.saw(f"begun set: {target}", fate, f"bit {bit} of {file.relative_to(dest)}")


def _begin_from(whole: Path, dest: Path) -> None:
    """A copy of a finished set as it was before the first shard was folded, without the last shard's chunks."""
    shutil.rmtree(dest, ignore_errors=True)
    shutil.copytree(whole, dest)
    for file in [*dest.glob("commits/*.json"), *sorted(dest.glob("manifest/*"))[1:]]:
        file.unlink()
    shutil.rmtree(max(dest.glob("commits/*")))


def _records(objects: dict[str, bytes]) -> Any:
    """What the folded records say, but for the attempts and what follows from them."""
    return {shard: list(_without_attempt(record["chunks"])) for shard, record in folded_records(objects).items()}


def _without_attempt(chunks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        stored = {k: v and {**v, "path": None} for k, v in chunk.items() if k in ("data", "rejects")}
        yield {**chunk, **stored, "attempt": None, "sha256": None, "generation": None}
