"""A finished embedding set is read back: tables in the order of shards and rows, every object's hash checked.

Readers follow the records, never a listing of data objects: what a killed attempt left behind is not seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.layout import (
    StoredManifest,
    check_known,
    check_newest,
    check_there,
    check_totals,
    latest_manifest,
    read_records,
    totals_of,
)
from mmstream.embeddings.listing import list_records
from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.schema import ChunkRecord, Manifest, ShardRecord, StoredObject
from mmstream.storage.files import absolute, join, read_bytes


def read_object(root: str, stored: StoredObject) -> bytes:
    """The bytes of an object.

    Raises:
        DifferencesError: it is not there, or its bytes are not those that the record vouches for.
    """
    try:
        data = read_bytes(join(root, stored.path))
    except UsageError as e:
        raise DifferencesError(
            f"{join(root, stored.path)}: is not there, and a record of the set refers to it. `mmstream audit {root}` "
            f"names everything that is affected, `mmstream repair {root}` makes it anew."
        ) from e
    found = hashlib.sha256(data).hexdigest()
    if found != stored.sha256:
        raise DifferencesError(
            f"{join(root, stored.path)}: SHA-256 is {found[:16]}…, its record says {stored.sha256[:16]}…. "
            f"The object was damaged or replaced; `mmstream audit {root}` names everything that is affected, `mmstream "
            f"repair {root}` makes it anew."
        )
    return data


def is_sound(root: str, record: ChunkRecord) -> bool:
    """Whether all objects of a chunk are there, and are those that its record vouches for."""
    try:
        for stored in (record.data, record.rejects):
            if stored is not None:
                read_object(root, stored)
    except DifferencesError:
        return False
    return True


@dataclass(frozen=True)
class EmbeddingSet:
    """A folder that `embed` filled. Opening reads one manifest; records and data are read when asked for."""

    url: str
    stored: StoredManifest

    @property
    def manifest(self) -> Manifest:
        return self.stored.manifest

    @property
    def manifest_sha256(self) -> str:
        return self.stored.sha256

    @staticmethod
    def open(url: str, *, finished: bool = True) -> EmbeddingSet:
        """
        Raises:
            UsageError: there is no embedding set at `url`.
            RefusedError: it is unfinished and `finished` is asked for.
            DifferencesError: a newer manifest than the one that is valid is damaged.
        """
        url = absolute(url)
        found = latest_manifest(url)
        check_there(url, found)
        assert found is not None
        check_newest(url, found)
        if finished and not found.manifest.finished:
            lost = f", since {join(url, found.damaged[0])} is damaged" if found.damaged else ""
            raise RefusedError(
                f"{url}: this embedding set is unfinished (manifest: finished is false{lost}). "
                "Run the same `mmstream embed` again: it goes on where it stopped."
            )
        return EmbeddingSet(url, found)

    @cached_property
    def catalog(self) -> pa.Table:
        """The frozen shards, a table of schema.CATALOG.

        Raises:
            DifferencesError: it is not the one that the manifest vouches for.
        """
        try:
            data = read_bytes(join(self.url, self.manifest.catalog))
        except UsageError:
            data = b""
        if hashlib.sha256(data).hexdigest() != self.manifest.catalog_sha256:
            raise DifferencesError(
                f"{join(self.url, self.manifest.catalog)}: the catalog is lost, or not the one that the manifest "
                "vouches for. Name the shards as they were named to embed, and it is made again: `mmstream repair "
                f"{self.url} --source SRC`."
            )
        return pq.read_table(pa.BufferReader(data))

    @cached_property
    def shards(self) -> list[ShardRecord]:
        """
        Raises:
            DifferencesError: they are not what the manifest vouches for.
            RefusedError: nor is that manifest the newest any more.
        """
        names = list_records(self.url)
        check_known(self.url, self.stored, self.catalog, names)
        records = list(read_records(self.url, self.catalog, names).finished().values())
        check_totals(self.url, self.stored, totals_of(records))
        return records

    @property
    def num_rows(self) -> int:
        return sum(s.num_rows for s in self.shards)

    def chunks(self) -> Iterator[ChunkRecord]:
        for shard in self.shards:
            yield from shard.chunks

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows, one table per chunk, in the order of ids. A few objects are fetched ahead.

        Raises:
            DifferencesError: an object is not what its record says.
        """
        objects = [c.data for c in self.chunks() if c.data is not None]
        with ThreadPoolExecutor(4) as pool:
            window = [pool.submit(read_object, self.url, o) for o in objects[:4]]
            for following in range(4, len(objects) + 4):
                data = window.pop(0).result() if window else None
                if following < len(objects):
                    window.append(pool.submit(read_object, self.url, objects[following]))
                if data is not None:
                    yield pq.read_table(pa.BufferReader(data), columns=columns)

    def rejects(self) -> Iterator[pa.Table]:
        """The samples that were set aside, one table of schema.REJECT per chunk that has any."""
        for chunk in self.chunks():
            if chunk.rejects is not None:
                yield pq.read_table(pa.BufferReader(read_object(self.url, chunk.rejects)))
