"""Was anything lost, doubled or changed? The objects of a finished set against what is known to be in its tars.

Nothing of mmstream is used to read them: names, records and Parquet are taken apart here on their own. The package's
`audit` is asked beside it, and both must be content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
from faults.job import Truth

from mmstream.embeddings.audit import audit
from mmstream.errors import MmstreamError

Objects = dict[str, bytes]
Hashes = dict[tuple[int, int], str]


@dataclass(frozen=True)
class Verdict:
    """`lost` and `doubled` are samples, `unequal` chunks whose data object is another, `other` whatever else."""

    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    unequal: tuple[tuple[int, int], ...] = ()
    other: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.unequal or self.other)


def objects_at(dest: str, endpoint: str | None = None) -> Objects:
    """Every object under a local folder or an S3 prefix, by its path in it."""
    if endpoint is None:
        files = (p for p in Path(dest).rglob("*") if p.is_file())
        return {str(p.relative_to(dest)): p.read_bytes() for p in files}
    bucket, prefix = dest.removeprefix("s3://").split("/", 1)
    client = boto3.client("s3", endpoint_url=endpoint)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {k.removeprefix(prefix + "/"): client.get_object(Bucket=bucket, Key=k)["Body"].read() for k in keys}


def folded_records(objects: Objects) -> dict[int, dict]:
    """The record of the highest generation of each finished shard that is what its own SHA-256 says."""
    found: dict[int, tuple[int, dict]] = {}
    for path, data in objects.items():
        if (match := re.fullmatch(r"commits/(\d+)\.(\d+)\.json", path)) and (record := sound(data)):
            shard, generation = map(int, match.groups())
            found[shard] = max(found.get(shard, (-1, {})), (generation, record), key=lambda f: f[0])
    return {shard: record for shard, (_, record) in found.items()}


def sound(data: bytes) -> dict | None:
    """A record, where its content is that of the SHA-256 in it."""
    try:
        record = json.loads(data)
        said = record.pop("sha256")
    except (ValueError, AttributeError, KeyError):
        return None
    content = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return record if hashlib.sha256(content).hexdigest() == said else None


def data_hashes(objects: Objects) -> Hashes:
    """SHA-256 of the data object of every chunk, of the bytes as they are and not as the record says."""
    records = folded_records(objects)
    places = [(c["shard"], c["chunk"], c["data"]["path"]) for r in records.values() for c in r["chunks"] if c["data"]]
    return {(s, c): hashlib.sha256(objects.get(path, b"")).hexdigest() for s, c, path in places}


def judge(objects: Objects, truth: Truth, undisturbed: Hashes) -> Verdict:
    """Every sample of `truth` is in one row or one reject, and every data object is the undisturbed run's."""
    expected, found, other = truth.ids(), Counter(), []
    for shard, record in folded_records(objects).items():
        for chunk in record["chunks"]:
            for kind in ("data", "rejects"):
                stored = chunk[kind]
                if stored is None:
                    continue
                if stored["path"] not in objects:
                    other.append(f"shard {shard} chunk {chunk['chunk']}: {kind} object is missing")
                    continue
                for row in pq.read_table(pa.BufferReader(objects[stored["path"]])).to_pylist():
                    if row["key"] is None:
                        continue  # stands for the unknown rest of a damaged shard
                    id = shard << 32 | row["row"]
                    found[id] += 1
                    if expected.get(id) != row["key"]:
                        other.append(f"id {id} has key {row['key']}, in the tar it is {expected.get(id)}")
    hashes = data_hashes(objects)
    places = sorted({*hashes, *undisturbed})
    return Verdict(
        lost=tuple(expected[id] for id in expected if not found[id]),
        doubled=tuple(expected[id] for id in expected if found[id] > 1),
        unequal=tuple(place for place in places if hashes.get(place) != undisturbed.get(place)),
        other=tuple(other),
    )


def audited(dest: str) -> tuple[str, ...]:
    """What the package's own audit finds wrong with a set that was run to the end."""
    try:
        return tuple(f"audit: {d.what}: {d.expected} / {d.found}" for d in audit(dest).differences)
    except MmstreamError as e:
        return (f"audit: {e}",)


def rewritten(before: Objects, after: Objects) -> tuple[str, ...]:
    """What was there at one time and is gone or different later: nothing that was published may ever be."""
    published = {p: d for p, d in before.items() if not Path(p).name.startswith(".")}
    return tuple(f"{p} is {'different' if p in after else 'gone'}" for p, d in published.items() if after.get(p) != d)
