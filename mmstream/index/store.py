"""Where everything of an index lies, and how a version is opened: every byte that is used was vouched for.

    INDEX/versions/<n>.json      which version is which; the highest valid one is current
    INDEX/v=<id>/manifest.json   what the version is, its files with their SHA-256; its own is in the record
    INDEX/v=<id>/vectors.f16     float16 little-endian [num_vectors, dimension], in the order of ids
    INDEX/v=<id>/ids.i64         int64 little-endian [num_vectors], ascending
    INDEX/v=<id>/metadata.parquet  schema.METADATA and the chosen JSON fields, one row per vector, same order
    INDEX/v=<id>/catalog.parquet   schema.CATALOG: the shards that hold the pictures

Vectors lie as plain arrays, which any tool can map, and which are exactly FAISS's fp16 codes: no FAISS parser ever
reads bytes from storage. A version is written once and never changed.
"""

from __future__ import annotations

import hashlib
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from mmstream.errors import RefusedError, UsageError
from mmstream.schema import FORMAT, IndexManifest, VersionRecord
from mmstream.storage.files import absolute, exists, join, list_files, read_bytes
from mmstream.telemetry import Report

VECTORS, IDS, METADATA, CATALOG = "vectors.f16", "ids.i64", "metadata.parquet", "catalog.parquet"
MANIFEST = "manifest.json"
_REBUILD = "The file was damaged or replaced: build the index again with `mmstream index build`."
_log = logging.getLogger(__name__)
R = TypeVar("R", IndexManifest, VersionRecord)


class IndexInfo(Report):
    """What a version of an index is, for people and as JSON."""

    index: str
    version: int
    versions: list[int]
    of: str
    num_vectors: int
    dimension: int
    factory: str
    metric: str
    encoder: str
    fingerprint: str
    embeddings: str
    bytes: int

    def title(self) -> str:
        return "index"


@dataclass(frozen=True)
class IndexVersion:
    """One opened version. Files are read, and checked, when asked for."""

    url: str
    record: VersionRecord
    manifest: IndexManifest

    def read(self, name: str) -> bytes:
        """The whole file of that name.

        Raises:
            RefusedError: the version has no such file, or it is not the one that the manifest vouches for.
            UsageError: it is gone.
        """
        stored = self.manifest.files.get(name)
        if stored is None:
            raise RefusedError(f"{join(self.url, self.record.path)}: the manifest names no file {name}. {_REBUILD}")
        url = join(self.url, stored.path)
        data = read_bytes(url)
        _check_hash(url, data, stored.sha256)
        return data

    def vectors(self) -> np.ndarray:
        """float16 [num_vectors, dimension], read-only."""
        return self._array(VECTORS, "<f2", (self.manifest.num_vectors, self.manifest.dimension))

    def ids(self) -> np.ndarray:
        """int64 [num_vectors], ascending, read-only."""
        return self._array(IDS, "<i8", (self.manifest.num_vectors,))

    def _array(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.frombuffer(self.read(name), np.uint8)
        expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if array.nbytes != expected:
            where = join(self.url, self.record.path, name)
            raise RefusedError(f"{where}: {array.nbytes:,} bytes, its manifest needs {expected:,}. {_REBUILD}")
        return array.view(dtype).reshape(shape)

    def info(self) -> IndexInfo:
        m = self.manifest
        return IndexInfo(
            index=self.url,
            version=self.record.version,
            versions=sorted(number for number, _ in _numbered(self.url)),
            of=m.of,
            num_vectors=m.num_vectors,
            dimension=m.dimension,
            factory=m.factory,
            metric=m.metric,
            encoder=m.encoder,
            fingerprint=m.fingerprint,
            embeddings=m.embeddings,
            bytes=sum(f.bytes for f in m.files.values()),
            next=[shlex.join(["mmstream", "search", self.url, "a few words"])],
        )


def open_version(url: str, version: int | None = None) -> IndexVersion:
    """The current version of the index at `url`, or the one of that number.

    Raises:
        UsageError: no index is there, or no version of that number.
        RefusedError: the record or the manifest is damaged, or of another format.
    """
    url = absolute(url)
    record = _current(url) if version is None else _numbered_record(url, version)
    where = join(url, record.path, MANIFEST)
    data = read_bytes(where)
    _check_hash(where, data, record.manifest_sha256)
    return IndexVersion(url, record, _parse(IndexManifest, data, where))


def version_path(number: int) -> str:
    return f"versions/{number:06}.json"


def highest_number(url: str) -> int:
    """Of all version records at `url`, damaged ones too; 0 where there is none."""
    return max((number for number, _ in _numbered(url)), default=0)


def _current(url: str) -> VersionRecord:
    refusal = None
    for _, where in sorted(_numbered(url), reverse=True):
        try:
            return _parse(VersionRecord, read_bytes(where), where)
        except RefusedError as e:
            _log.warning("%s The version before it is used.", e)
            refusal = refusal or e
    if refusal:
        raise refusal
    if exists(join(url, "commits")):
        raise UsageError(f"{url}: an embedding set, and no index. Make one: `mmstream index build {url} INDEX`.")
    raise UsageError(f"{url}: no index is there. Make one with `mmstream index build EMB {url}`.")


def _numbered_record(url: str, version: int) -> VersionRecord:
    found = dict(_numbered(url))
    if version not in found:
        has = f"it has {', '.join(map(str, sorted(found)))}" if found else "no index is there"
        raise UsageError(f"{url}: there is no version {version}; {has}.")
    return _parse(VersionRecord, read_bytes(found[version]), found[version])


def _numbered(url: str) -> Iterator[tuple[int, str]]:
    for file in list_files(join(url, "versions")):
        number, _, suffix = file.url.rsplit("/", 1)[1].partition(".")
        if number.isdecimal() and suffix == "json":
            yield int(number), file.url


def _parse(record: type[R], data: bytes, where: str) -> R:
    try:
        parsed = record.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, first["loc"])) or "JSON"
        raise RefusedError(f"{where}: not a {record.__name__} ({field}: {first['msg']}). {_REBUILD}") from e
    written = getattr(parsed, "format", FORMAT)
    if written != FORMAT:
        raise RefusedError(f"{where}: format is {written}, this version reads {FORMAT}.")
    return parsed


def _check_hash(where: str, data: bytes, expected: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise RefusedError(f"{where}: SHA-256 is {found[:16]}…, it should be {expected[:16]}…. {_REBUILD}")
