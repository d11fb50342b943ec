"""Does an embedding set hold what its records say? Records, row counts, row ranges and hashes, from outside.

This shares with the writer only the files and the declared schema: names are taken apart here again, and every
figure is counted anew from the objects, so that a mistake in the writer cannot hide itself.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from mmstream.errors import ExitCode, UsageError
from mmstream.schema import CATALOG, ChunkRecord, Manifest, ShardRecord
from mmstream.storage.files import absolute, join, list_files, read_bytes
from mmstream.telemetry import Progress, Report

READ_THREADS = 8
_BUILD = ("mmstream", "index", "build")


class Difference(BaseModel):
    """One thing that is not as it should be."""

    shard: int | None
    chunk: int | None
    what: str
    expected: str
    found: str


class AuditReport(Report):
    ok: bool
    dest: str
    shards: int
    rows: int
    rejects: dict[str, int]
    damaged: list[dict[str, Any]]
    differences: list[Difference]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.DONE if self.ok else ExitCode.DIFFERENCES

    def title(self) -> str:
        return "audit: everything agrees" if self.ok else f"audit: {len(self.differences)} differences"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rows", f"{self.rows:,} in {self.shards:,} shards")]
        shown.append(("rejects", ", ".join(f"{r} {n:,}" for r, n in self.rejects.items()) or "none"))
        for d in self.damaged:
            shown.append(("damaged at the source", f"shard {d['shard']}: {d['reason']} at byte {d['offset']:,}"))
        for d in self.differences:
            where = f"shard {d.shard} chunk {d.chunk}" if d.shard is not None else "set"
            shown.append(("difference", f"{where}: {d.what}: expected {d.expected}, found {d.found}"))
        return shown


def audit(dest: str) -> AuditReport:
    """Checks the embedding set at `dest`.

    Raises:
        UsageError: there is no embedding set.
        UnreachableError: the store does not answer.
    """
    return _Audit(absolute(dest)).run()


class _Audit:
    def __init__(self, root: str) -> None:
        self.root = root
        self.differences: list[Difference] = []
        self.rows = 0
        self.rejects: Counter[str] = Counter()
        self.damaged: list[dict[str, Any]] = []

    def differ(self, what: str, expected: object, found: object, chunk: ChunkRecord | None = None) -> None:
        shard, number = (chunk.shard, chunk.chunk) if chunk else (None, None)
        self.differences.append(
            Difference(shard=shard, chunk=number, what=what, expected=str(expected), found=str(found))
        )

    def run(self) -> AuditReport:
        manifest = self._manifest()
        catalog = self._catalog(manifest)
        records = self._shard_records()
        with Progress("audit", catalog.num_rows, "shards", rate_of="rows") as progress:
            for entry in catalog.to_pylist():
                record = records.get(entry["shard"])
                if record is None:
                    self.differ(f"record of shard {entry['shard']}", "one", "none")
                else:
                    self._check_shard(record, entry, manifest)
                progress.update(progress.done + 1, rows=self.rows, differences=len(self.differences))
        self._check_totals(manifest, records)
        return AuditReport(
            ok=not self.differences,
            dest=self.root,
            shards=len(records),
            rows=self.rows,
            rejects=dict(sorted(self.rejects.items())),
            damaged=self.damaged,
            differences=self.differences,
            next=[] if self.differences else [shlex.join([*_BUILD, self.root, f"{self.root}-index"])],
        )

    def _manifest(self) -> Manifest:
        names = [f.url for f in list_files(join(self.root, "manifest")) if f.url.endswith(".json")]
        if not names:
            raise UsageError(f"{self.root}: no embedding set is there. Make one with `mmstream embed SRC {self.root}`.")
        latest = max(names, key=lambda url: int(url.rsplit("/", 1)[1].removesuffix(".json")))
        try:
            manifest = Manifest.model_validate_json(read_bytes(latest))
        except ValidationError as e:
            raise UsageError(f"{latest}: not a manifest ({e.errors()[0]['msg']}). The set cannot be audited.") from e
        if not manifest.finished:
            self.differ("manifest", "finished", "unfinished")
        return manifest

    def _catalog(self, manifest: Manifest) -> pa.Table:
        data = read_bytes(join(self.root, manifest.catalog))
        if (found := hashlib.sha256(data).hexdigest()) != manifest.catalog_sha256:
            self.differ("SHA-256 of the catalog", manifest.catalog_sha256, found)
        try:
            return pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as e:
            self.differ("catalog", "Parquet", str(e))
            return CATALOG.empty_table()

    def _shard_records(self) -> dict[int, ShardRecord]:
        latest: dict[int, tuple[int, str]] = {}
        prefix = join(self.root, "commits") + "/"
        for file in list_files(join(self.root, "commits")):
            name = file.url.split(prefix, 1)[-1]
            if "/" not in name and name.endswith(".json"):
                shard, generation, _ = name.split(".")
                latest[int(shard)] = max(latest.get(int(shard), (-1, "")), (int(generation), file.url))
        records = {}
        for shard, (_, url) in sorted(latest.items()):
            try:
                records[shard] = ShardRecord.model_validate_json(read_bytes(url))
            except ValidationError as e:
                self.differ(f"record {url}", "valid", e.errors()[0]["msg"])
        return records

    def _check_shard(self, record: ShardRecord, entry: dict[str, Any], manifest: Manifest) -> None:
        next_row = 0
        for number, chunk in enumerate(record.chunks):
            if chunk.chunk != number or chunk.first_row != next_row or chunk.shard != record.shard:
                self.differ("place of the chunk", (record.shard, number, next_row), _place(chunk), chunk)
            if chunk.fingerprint != manifest.fingerprint:
                self.differ("fingerprint", manifest.fingerprint, chunk.fingerprint, chunk)
            if (chunk.source_bytes, chunk.source_etag) != (entry["bytes"], entry["etag"]):
                self.differ("source", (entry["bytes"], entry["etag"]), (chunk.source_bytes, chunk.source_etag), chunk)
            next_row = chunk.first_row + chunk.num_samples
        ends = [c.end for c in record.chunks]
        if not ends or not ends[-1] or any(ends[:-1]):
            self.differ(f"end of shard {record.shard}", "its last chunk", ends)
        if record.damage:
            self.damaged.append({"shard": record.shard, "url": entry["url"], **record.damage.model_dump()})
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for chunk, rows, rejects in pool.map(self._load, record.chunks):
                self._check_chunk(chunk, rows, rejects, entry["shard"])

    def _load(self, chunk: ChunkRecord) -> tuple[ChunkRecord, pa.Table | None, pa.Table | None]:
        rows = self._object(chunk, "data", ["id", "shard", "row"])
        return chunk, rows, self._object(chunk, "rejects", ["shard", "row", "key", "reason"])

    def _object(self, chunk: ChunkRecord, kind: str, columns: list[str]) -> pa.Table | None:
        stored = chunk.data if kind == "data" else chunk.rejects
        if stored is None:
            return None
        try:
            data = read_bytes(join(self.root, stored.path))
        except UsageError:
            self.differ(f"{kind} object {stored.path}", "there", "missing", chunk)
            return None
        if (found := hashlib.sha256(data).hexdigest()) != stored.sha256 or len(data) != stored.bytes:
            self.differ(f"SHA-256 of {stored.path}", stored.sha256, found, chunk)
            return None
        try:
            return pq.read_table(pa.BufferReader(data), columns=columns)
        except (pa.ArrowException, OSError) as e:
            self.differ(f"{kind} object {stored.path}", "Parquet", str(e), chunk)
            return None

    def _check_chunk(self, chunk: ChunkRecord, rows: pa.Table | None, rejects: pa.Table | None, shard: int) -> None:
        row_numbers = rows["row"].to_pylist() if rows is not None else []
        rejected = list(_rejected(rejects)) if rejects is not None else []
        self.rows += len(row_numbers)
        self.rejects.update(reason for _, _, reason in rejected)
        if len(row_numbers) != chunk.num_rows:
            self.differ("rows", chunk.num_rows, len(row_numbers), chunk)
        counted = dict(sorted(Counter(reason for _, _, reason in rejected).items()))
        if counted != chunk.num_rejects:
            self.differ("rejects", json.dumps(chunk.num_rejects), json.dumps(counted), chunk)
        if rows is not None:
            wrong = [i for i, r in zip(rows["id"].to_pylist(), row_numbers, strict=True) if i != shard << 32 | r]
            if wrong:
                self.differ("ids", "shard << 32 | row", wrong[:3], chunk)
        seen = Counter(row_numbers) + Counter(row for row, key, _ in rejected if key is not None)
        expected = set(range(chunk.first_row, chunk.first_row + chunk.num_samples))
        if missing := sorted(expected - set(seen)):
            self.differ("samples in rows or rejects", "each", f"missing {missing[:5]}", chunk)
        if extra := sorted(set(seen) - expected):
            self.differ("samples in rows or rejects", f"{len(expected)}", f"unexpected {extra[:5]}", chunk)
        if doubled := sorted(row for row, n in seen.items() if n > 1):
            self.differ("samples in rows or rejects", "each once", f"doubled {doubled[:5]}", chunk)

    def _check_totals(self, manifest: Manifest, records: dict[int, ShardRecord]) -> None:
        if manifest.totals is None:
            return
        found = {"shards": len(records), "rows": self.rows, "rejects": dict(sorted(self.rejects.items()))}
        for name, value in found.items():
            expected = getattr(manifest.totals, name)
            if expected != value:
                self.differ(f"total {name}", expected, value)


def _place(chunk: ChunkRecord) -> tuple[int, int, int]:
    return chunk.shard, chunk.chunk, chunk.first_row


def _rejected(table: pa.Table) -> Iterator[tuple[int, str | None, str]]:
    yield from zip(table["row"].to_pylist(), table["key"].to_pylist(), table["reason"].to_pylist(), strict=True)
