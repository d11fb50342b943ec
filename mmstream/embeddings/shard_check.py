"""One shard of an embedding set: its record, its objects and, if asked for, its tar.

Every figure is counted anew from the objects. Chunks are loaded one after the other, so memory is one chunk, and
nothing in a record is believed before it was looked at: paths, numbers and objects may be anyone's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.findings import Findings
from mmstream.embeddings.source_check import SourceCheck
from mmstream.errors import UnreachableError, UsageError
from mmstream.schema import REJECT, ChunkRecord, Damage, Manifest, ShardRecord, StoredObject, embedding_schema
from mmstream.storage.files import join, read_bytes

_OBJECT = re.compile(r"(data|rejects)/([0-9]{6,10})-([0-9]{6,10})-[0-9a-f]+\.parquet")
_MAX_ROW = 1 << 31


@dataclass(frozen=True)
class Terms:
    """What all shards of the set at `root` are measured by. Without a manifest that can be read less is known."""

    root: str
    manifest: Manifest | None
    with_source: bool = False

    @property
    def row_schema(self) -> pa.Schema | None:
        m = self.manifest
        return embedding_schema(m.modalities, m.dimension, m.fields) if m else None


def check_shard(terms: Terms, record: ShardRecord, shard: int, entry: Mapping[str, Any] | None) -> Findings:
    """Checks the record that lies under the number `shard`; `entry` is the shard's row of the catalog, if it has one.

    Raises:
        UnreachableError: a store does not answer at all, see `Findings.cannot_read`.
    """
    return _ShardCheck(terms, record, shard, entry).run()


class _ShardCheck:
    def __init__(self, terms: Terms, record: ShardRecord, shard: int, entry: Mapping[str, Any] | None) -> None:
        self.terms, self.record, self.shard, self.entry = terms, record, shard, entry
        self.findings = Findings(shard, num_shards=1)

    def run(self) -> Findings:
        with self._source() as source:
            next_row = 0
            for number, chunk in enumerate(self.record.chunks):
                if not self._check_place(chunk, number, next_row):
                    continue
                self._check_origin(chunk)
                try:
                    self._check_content(chunk, source)
                except UnreachableError as e:
                    self.findings.cannot_read("objects", e, number)
                next_row = chunk.first_row + chunk.num_samples
                self.findings.num_samples += chunk.num_samples
            if source:
                source.finish(self.findings.num_samples)
        self._check_record()
        return self.findings

    def _source(self):
        if not self.terms.with_source or self.entry is None:
            return nullcontext()
        return SourceCheck(self.entry, self.record.damage, self.findings)

    def _check_place(self, chunk: ChunkRecord, number: int, next_row: int) -> bool:
        """Whether the chunk's own numbers can be gone by; differences where they are not what comes next."""
        place = (chunk.shard, chunk.chunk, chunk.first_row)
        if place != (self.shard, number, next_row):
            expected = (self.shard, number, next_row)
            self.findings.differ("place of the chunk (shard, chunk, first row)", expected, place, number)
        is_possible = 0 <= chunk.first_row <= _MAX_ROW and 0 <= chunk.num_samples <= _MAX_ROW - chunk.first_row
        if not is_possible:
            found = (chunk.first_row, chunk.num_samples)
            self.findings.differ("first row and number of samples", "numbers of rows", found, number)
        return is_possible

    def _check_origin(self, chunk: ChunkRecord) -> None:
        manifest, entry = self.terms.manifest, self.entry
        if manifest and chunk.fingerprint != manifest.fingerprint:
            self.findings.differ("fingerprint", manifest.fingerprint, chunk.fingerprint, chunk.chunk)
        found = (chunk.source_bytes, chunk.source_etag)
        if entry and found != (entry["bytes"], entry["etag"]):
            self.findings.differ("source (bytes, etag)", (entry["bytes"], entry["etag"]), found, chunk.chunk)

    def _check_content(self, chunk: ChunkRecord, source: SourceCheck | None) -> None:
        wanted = ["id", "shard", "row", "key", *(["image_offset", "image_bytes"] if source else [])]
        rows = self._table(chunk, "data", chunk.data, self.terms.row_schema, wanted)
        rejects = self._table(chunk, "rejects", chunk.rejects, REJECT, REJECT.names)
        is_rest = rejects["key"].is_null().to_numpy(zero_copy_only=False) if rejects else np.zeros(0, bool)
        row_numbers = _integers(rows, "row")
        rejected_rows = _integers(rejects, "row")
        self._check_counts(chunk, len(row_numbers), rejects)
        if rows and (_integers(rows, "id") != (self.shard << 32 | row_numbers)).any():
            wrong = row_numbers[_integers(rows, "id") != (self.shard << 32 | row_numbers)]
            self.findings.differ("ids", "shard << 32 | row", f"others in rows {wrong[:3].tolist()}", chunk.chunk)
        for name, table in (("rows", rows), ("rejects", rejects)):
            if table and (_integers(table, "shard") != self.shard).any():
                self.findings.differ(f"shard in the {name}", self.shard, "others", chunk.chunk)
        self._check_coverage(chunk, np.concatenate([row_numbers, rejected_rows[~is_rest]]))
        self._check_rest(chunk, rejects.filter(pa.array(is_rest)) if rejects else None)
        if source:
            keys = {**_keys(row_numbers, rows), **_keys(rejected_rows, rejects)}
            source.chunk(chunk, keys, _pictures(row_numbers, rows))

    def _table(
        self, chunk: ChunkRecord, kind: str, stored: StoredObject | None, schema: pa.Schema | None, columns: list[str]
    ) -> pa.Table | None:
        """The object's columns; None where there is none, or none that can be gone by."""
        if stored is None:
            return None
        name = _OBJECT.fullmatch(stored.path)
        if name is None or (name[1], int(name[2]), int(name[3])) != (kind, self.shard, chunk.chunk):
            expected = f"{kind}/{self.shard:06}-{chunk.chunk:06}-….parquet"
            self.findings.differ("path of an object", expected, stored.path, chunk.chunk)
            return None
        try:
            data = read_bytes(join(self.terms.root, stored.path))
        except UsageError:
            self.findings.differ(f"{kind} object {stored.path}", "there", "missing", chunk.chunk)
            return None
        if (found := hashlib.sha256(data).hexdigest()) != stored.sha256 or len(data) != stored.bytes:
            expected = f"{stored.sha256} ({stored.bytes:,} bytes)"
            self.findings.differ(f"SHA-256 of {stored.path}", expected, f"{found} ({len(data):,} bytes)", chunk.chunk)
            return None
        return self._parsed(data, stored.path, schema, columns, chunk.chunk)

    def _parsed(
        self, data: bytes, path: str, schema: pa.Schema | None, columns: list[str], chunk: int
    ) -> pa.Table | None:
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            if schema is not None and not file.schema_arrow.equals(schema):
                self.findings.differ(f"columns of {path}", _described(schema), _described(file.schema_arrow), chunk)
                return None
            return file.read(columns)
        except (pa.ArrowException, OSError) as e:
            self.findings.differ(path, "Parquet", e, chunk)
            return None

    def _check_counts(self, chunk: ChunkRecord, num_rows: int, rejects: pa.Table | None) -> None:
        counted = Counter(rejects["reason"].to_pylist() if rejects else [])
        self.findings.num_rows += num_rows
        self.findings.rejects.update(counted)
        if num_rows != chunk.num_rows:
            self.findings.differ("rows", chunk.num_rows, num_rows, chunk.chunk)
        if counted != Counter(chunk.num_rejects):
            self.findings.differ("rejects", _as_json(chunk.num_rejects), _as_json(counted), chunk.chunk)

    def _check_coverage(self, chunk: ChunkRecord, seen: np.ndarray) -> None:
        """Each of the chunk's samples is in rows or rejects, once. `seen` is int64 [rows and rejects]."""
        seen = np.sort(seen)
        end = chunk.first_row + chunk.num_samples
        # A record may claim any number of samples: no more are looked for than can name what is missing.
        expected = np.arange(chunk.first_row, min(end, chunk.first_row + len(seen) + 5))
        if chunk.num_samples == len(seen) and (seen == expected[: len(seen)]).all():
            return
        found = {
            "missing": np.setdiff1d(expected, seen),
            "unexpected": seen[(seen < chunk.first_row) | (seen >= end)],
            "doubled": seen[1:][seen[1:] == seen[:-1]],
        }
        rows = "; ".join(f"{name} {rows[:5].tolist()}" for name, rows in found.items() if len(rows))
        expected_rows = f"each of {chunk.num_samples:,} from row {chunk.first_row:,} on, once"
        self.findings.differ("samples in rows or rejects", expected_rows, f"{len(seen):,}, {rows}", chunk.chunk)

    def _check_rest(self, chunk: ChunkRecord, rest: pa.Table | None) -> None:
        """One reject without a key stands for what lies behind damage, and only for that."""
        found = [(r["row"], r["reason"], r["offset"]) for r in rest.to_pylist()] if rest else []
        damage = chunk.damage
        expected = [(chunk.first_row + chunk.num_samples, damage.reason, damage.offset)] if damage else []
        if found != expected:
            what = "reject for the rest of the shard (row, reason, offset)"
            self.findings.differ(what, expected or "none", found or "none", chunk.chunk)

    def _check_record(self) -> None:
        record, found = self.record, self.findings
        if record.shard != self.shard:
            found.differ("shard of the record", self.shard, record.shard)
        ends = [c.chunk for c in record.chunks if c.end]
        if ends != [len(record.chunks) - 1]:
            found.differ("chunks that end the shard", [len(record.chunks) - 1], ends)
        damage: list[Damage] = [c.damage for c in record.chunks if c.damage]
        if damage != ([record.damage] if record.damage else []):
            found.differ("damage in the record", record.damage, damage)
        if record.damage:
            url = self.entry["url"] if self.entry else None
            found.damaged.append({"shard": self.shard, "url": url, **record.damage.told()})
        for name in ("num_samples", "num_rows"):
            if (total := sum(getattr(c, name) for c in record.chunks)) != getattr(record, name):
                found.differ(f"{name} of the shard", getattr(record, name), total)
        rejects = sum((Counter(c.num_rejects) for c in record.chunks), Counter())
        if rejects != Counter(record.num_rejects):
            found.differ("num_rejects of the shard", _as_json(record.num_rejects), _as_json(rejects))


def _integers(table: pa.Table | None, column: str) -> np.ndarray:
    """int64 [n]; a null is -1, which is no row."""
    if table is None:
        return np.zeros(0, np.int64)
    return table[column].fill_null(-1).to_numpy().astype(np.int64)


def _keys(rows: np.ndarray, table: pa.Table | None) -> dict[int, str | None]:
    return dict(zip(rows.tolist(), table["key"].to_pylist(), strict=True)) if table else {}


def _pictures(rows: np.ndarray, table: pa.Table | None) -> dict[int, tuple[int, int]]:
    """(offset, bytes) in the shard by row, of the rows that have a picture."""
    if not table:
        return {}
    places = zip(table["image_offset"].to_pylist(), table["image_bytes"].to_pylist(), strict=True)
    return {row: place for row, place in zip(rows.tolist(), places, strict=True) if place != (None, None)}


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}" for f in schema)


def _as_json(counts: Mapping[str, int]) -> str:
    return json.dumps(dict(sorted(counts.items())))
