"""Every boundary, declared once: tables as Arrow schemas, records as typed JSON.

Tables: `SAMPLE` (what a reader yields), `REJECT` (samples set aside), `CATALOG` (the frozen shards), `METADATA` (what
an index knows of a vector beside it) and `embedding_schema` (what embed writes; its columns depend on the encoder).
Records: `ChunkRecord`, `ShardRecord`, `Manifest` of an embedding set, `IndexManifest` and `VersionRecord` of an index.
A sample's id is `shard << 32 | row`: 64 bits that never change, since catalogs only grow at the end.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from mmstream.errors import RefusedError

FORMAT = "mmstream/1"
MAX_JSON_BYTES = 8 << 20  # of a sample's JSON: parsed, it may take fifty times the memory
MODALITIES = ("image", "text", "audio", "video")

SAMPLE = pa.schema(
    [
        ("id", pa.int64()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("offset", pa.int64()),  # of the sample's first header in the shard
        ("image", pa.large_binary()),
        ("audio", pa.large_binary()),
        ("video", pa.large_binary()),
        ("text", pa.large_string()),
        ("json", pa.large_string()),
        ("cls", pa.large_string()),
        ("reason", pa.string()),  # null, or why this sample cannot be used
        ("detail", pa.string()),
    ]
)

REJECT = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("key", pa.string()),  # null where the row stands for the unknown rest of a damaged shard
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

CATALOG = pa.schema(
    [
        ("shard", pa.int32()),
        ("url", pa.string()),
        ("bytes", pa.int64()),
        ("etag", pa.string()),
        ("max_rows", pa.int64()),  # null, or how many rows of this shard `--limit` takes
        ("sha256", pa.string()),  # null, or of the whole shard: it is verified before its first chunk is handed on
    ]
)

_ABOUT = [
    ("id", pa.int64()),
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("key", pa.string()),
    ("caption", pa.large_string()),
    ("url", pa.string()),  # the picture's own, from the sample's JSON
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("image_offset", pa.int64()),  # of the member's bytes in the shard, so that it can be read back
    ("image_bytes", pa.int32()),
]


def embedding_schema(modalities: list[str], dimension: int, fields: list[str]) -> pa.Schema:
    """Columns of one data object: what is known of a row, `<modality>_embedding` float16 [d] for each of
    `modalities`, `similarity` where there are both image and text, and the chosen JSON `fields` as strings."""
    vectors = [(f"{m}_embedding", pa.list_(pa.float16(), dimension)) for m in modalities]
    similarity = [("similarity", pa.float32())] if {"image", "text"} <= set(modalities) else []
    return pa.schema([*_ABOUT, *vectors, *similarity, *((f, pa.large_string()) for f in fields)])


METADATA = pa.schema(_ABOUT)


def sample_id(shard: int, row: int) -> int:
    return shard << 32 | row


class Record(BaseModel):
    """Base of everything that is stored as JSON: closed, frozen, and written the same way every time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()


class Sealed(Record):
    """A record that carries the SHA-256 of its own content: one that was torn, or changed in any bit, is noticed."""

    format: str = FORMAT

    def to_bytes(self) -> bytes:
        document = self.model_dump(mode="json")
        return (json.dumps({**document, "sha256": canonical_sha256(document)}, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """
        Raises:
            ValueError: `data` is not what `to_bytes` once gave.
            RefusedError: it is, in a format that this version does not read.
        """
        document = from_json(data)  # a driver reads a record for every shard: json.loads takes twice as long
        if not isinstance(document, dict) or "sha256" not in document:
            raise ValueError("no SHA-256 of its own")
        if document.pop("sha256") != canonical_sha256(document):
            raise ValueError("its content is not that of its SHA-256")
        if document.get("format") != FORMAT:
            raise RefusedError(f"format is {document.get('format')}, this version reads {FORMAT}.")
        return cls.model_validate(document)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def canonical_sha256(document: dict[str, Any]) -> str:
    """Of a JSON document, whatever the order of its keys and its white space."""
    return hashlib.sha256(_canonical(document).encode()).hexdigest()


class StoredObject(Record):
    """A file that a record vouches for. `path` is relative to the root of the set or index."""

    path: str
    bytes: int
    sha256: str


class Damage(Record):
    """Where a shard broke. What was complete before `offset` is committed, one reject row stands for the rest.
    `unpacked_bytes` are all that a compressed shard holds, of which `offset` is one."""

    reason: str
    offset: int
    detail: str
    unpacked_bytes: int | None = None

    def told(self) -> dict[str, Any]:
        """What reports say of it."""
        return {"reason": self.reason, "offset": self.offset, "detail": self.detail}


class ChunkRecord(Sealed):
    """One committed chunk: rows `first_row .. first_row + num_samples - 1` of a shard, each in `data` or in `rejects`.

    The last chunk of a shard has `end`, and `damage` where the shard broke; the row that stands for the unknown
    rest is in `rejects` but not in `num_samples`.
    """

    shard: int
    chunk: int
    first_row: int
    num_samples: int
    num_rows: int
    num_rejects: dict[str, int]
    data: StoredObject | None
    rejects: StoredObject | None
    end: bool
    damage: Damage | None = None
    source_bytes: int
    source_etag: str
    fingerprint: str
    attempt: str

    @property
    def source(self) -> tuple[int, str]:
        """Size and etag of the shard that was read."""
        return self.source_bytes, self.source_etag


class ShardRecord(Sealed):
    """All chunks of a finished shard, folded into one record so that a resume reads O(shards) records."""

    shard: int
    num_samples: int
    num_rows: int
    num_rejects: dict[str, int]
    damage: Damage | None
    chunks: list[ChunkRecord] = Field(min_length=1)

    @property
    def source(self) -> tuple[int, str]:
        """Size and etag of the shard that was read."""
        return self.chunks[0].source


class Totals(Record):
    shards: int
    samples: int
    rows: int
    rejects: dict[str, int]
    damaged: list[int]


class Manifest(Sealed):
    """What an embedding set is. One is written before the first sample, the next when nothing is missing; what is
    added or mended later makes further ones. The highest valid one counts."""

    finished: bool
    catalog: str
    catalog_sha256: str
    encoder: str
    fingerprint: str
    dimension: int
    modalities: list[str]
    normalized: bool
    micro_batch: int
    threads: int  # of each encoder, and `dtype` is what it computes in: both can change a last bit
    dtype: str
    chunk_rows: int
    chunk_bytes: int
    fields: list[str]
    filters: dict[str, Any] = Field(default_factory=dict)  # media.filters: the limits that are set
    limit: int | None
    single_writer: bool  # the store does not honour put-if-absent
    device: str
    libraries: dict[str, str]
    totals: Totals | None = None


class ExportRecord(Record):
    """What lies in an exported folder, written last. The files come in the order of parts; `left_out` rows lack one of
    the exported vectors."""

    format: str = FORMAT
    dest: str
    manifest_sha256: str
    export_format: str
    modalities: list[str]
    rows_per_file: int
    rows: int
    left_out: int
    files: list[StoredObject]


class IndexManifest(Record):
    """What one version of an index is made of. Every file is named with its SHA-256."""

    format: str = FORMAT
    factory: str
    metric: str
    dimension: int
    num_vectors: int
    of: str  # the modality that was indexed
    encoder: str
    fingerprint: str
    normalized: bool
    embeddings: str
    embeddings_manifest_sha256: str
    files: dict[str, StoredObject]
    libraries: dict[str, str]


class VersionRecord(Record):
    """`versions/<n>.json`: the highest valid one is current."""

    format: str = FORMAT
    version: int
    path: str
    manifest_sha256: str
