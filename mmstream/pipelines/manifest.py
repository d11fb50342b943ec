"""What an embedding set is: begun, checked, grown and finished, each by a further generation of catalog and manifest.

Nothing that is stored is changed: a catalog or a manifest is written under the next free number and the highest valid
manifest counts, so that a kill between any two writes leaves a set that the same command takes up again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from mmstream.embeddings.layout import (
    InvalidRecordError,
    StoredManifest,
    catalog_path,
    check_totals,
    latest_manifest,
    manifest_path,
    totals_of,
)
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import load_encoder
from mmstream.errors import RefusedError, UsageError
from mmstream.media.filters import Filters
from mmstream.pipelines.frozen import restored
from mmstream.pipelines.source import CHUNK_BYTES, CHUNK_ROWS
from mmstream.schema import Manifest, ShardRecord, Totals
from mmstream.shards.catalog import extend_catalog, from_parquet, to_parquet
from mmstream.storage.commit import honours_put_if_absent, put_if_absent
from mmstream.storage.files import join, list_files, read_bytes
from mmstream.telemetry import counted, stderr

_NO_FILTERS = Filters()
_LIBRARIES = ("mmstream", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pillow", "numpy")
_SAME_CHUNKS = ("chunk_rows", "chunk_bytes")  # of another release: its records have other boundaries


@dataclass(frozen=True)
class Asked:
    """What a command asks of a set: these shards, by this encoder, with these settings."""

    catalog: pa.Table
    encoder: Encoder
    fields: tuple[str, ...] = ()
    limit: int | None = None
    filters: Filters = _NO_FILTERS

    def settings(self) -> dict[str, Any]:
        """What must be the same for all of a set."""
        return {
            "fingerprint": self.encoder.fingerprint,
            "dimension": self.encoder.dimension,
            "modalities": list(self.encoder.modalities),
            "normalized": True,
            "dtype": self.encoder.dtype,
            "fields": list(self.fields),
            "filters": self.filters.set,
            "limit": self.limit,
            "chunk_rows": CHUNK_ROWS,
            "chunk_bytes": CHUNK_BYTES,
        }


@dataclass(frozen=True)
class OpenSet:
    """The set at `dest` as it is to be gone on with: its manifest, and the shards that this names."""

    dest: str
    stored: StoredManifest
    catalog: pa.Table

    @property
    def manifest(self) -> Manifest:
        return self.stored.manifest

    def check_whole(self, shards: Mapping[int, ShardRecord]) -> None:
        """Whether what is there of a finished set is what its manifest vouches for; `shards` may have others, too.

        Raises:
            DifferencesError: it is not.
            RefusedError: the set was changed meanwhile.
        """
        mine = (record for shard, record in shards.items() if shard < self.catalog.num_rows)
        check_totals(self.dest, self.stored, totals_of(mine))

    def with_manifest(self, **changes: Any) -> OpenSet:
        """The next generation of the manifest, published; above one that another driver of the same set was first with.

        Raises:
            RefusedError: another driver gave the set other shards meanwhile, or finished it with other totals.
        """
        manifest = self.manifest.model_copy(update=changes)
        number, data = self.stored.next_number, manifest.to_bytes()
        while not put_if_absent(join(self.dest, manifest_path(number)), data):
            other = latest_manifest(self.dest)
            if other and other.number >= number:
                _check_agreed(self.dest, other.manifest, manifest)
            number += 1
        stored = StoredManifest(number, number + 1, manifest, hashlib.sha256(data).hexdigest())
        return OpenSet(self.dest, stored, self.catalog)

    def with_catalog(self, catalog: pa.Table) -> OpenSet:
        """The next generation of the catalog, and an unfinished manifest that names it, published."""
        path, sha256 = _publish_catalog(self.dest, catalog, _number(self.manifest.catalog) + 1)
        return OpenSet(self.dest, self.stored, catalog).with_manifest(
            catalog=path, catalog_sha256=sha256, finished=False, totals=None, libraries=libraries()
        )

    def unfinished(self) -> OpenSet:
        """As it is, or by a further manifest: nobody is to take it for whole while records are made anew."""
        return self.with_manifest(finished=False, totals=None) if self.manifest.finished else self

    def finished(self, totals: Totals) -> OpenSet:
        """With a manifest that says that nothing is missing; the one that is there, where it says just that and no
        damaged one lies above it."""
        is_said = self.manifest.finished and self.manifest.totals == totals
        return self if is_said and not self.stored.damaged else self.with_manifest(finished=True, totals=totals)


def _check_agreed(dest: str, theirs: Manifest, ours: Manifest) -> None:
    """
    Raises:
        RefusedError: another driver said something else of the set.
    """
    what = None
    if theirs.catalog_sha256 != ours.catalog_sha256:
        what = "catalog differs: another run gave the set other shards meanwhile"
    elif theirs.finished and ours.finished and theirs.totals != ours.totals:
        what = "totals differ: another run finished the set meanwhile, with other records"
    if what:
        raise RefusedError(f"{dest}: {what}. What was committed stays; run the same command again.")


def begin(dest: str, asked: Asked, threads: int) -> OpenSet:
    """The first catalog and manifest of a set are written, unless another run wrote the same meanwhile.

    Args:
        threads: of each encoder, for as long as the set grows.

    Raises:
        RefusedError: another run began another set there meanwhile.
        UnreachableError: the store does not answer, or may not be written to.
    """
    path, sha256 = _publish_catalog(dest, asked.catalog, 0)
    manifest = Manifest(
        finished=False,
        catalog=path,
        catalog_sha256=sha256,
        encoder=asked.encoder.spec,
        micro_batch=asked.encoder.micro_batch,
        threads=threads,
        single_writer=not honours_put_if_absent(dest),
        device=asked.encoder.device,
        libraries=libraries(),
        **asked.settings(),
    )
    put_if_absent(join(dest, manifest_path(0)), manifest.to_bytes())
    begun = fitting(open_set(dest), asked)  # what another run published first is as good as ours, if it fits
    assert begun is not None
    return begun


def _publish_catalog(dest: str, catalog: pa.Table, number: int) -> tuple[str, str]:
    """Path and SHA-256 of the catalog, under the first number from `number` on that is free or holds just it.

    A taken number is that of a run which was killed before its manifest.
    """
    data = to_parquet(catalog)
    while not put_if_absent(join(dest, catalog_path(number)), data):
        number += 1
    return catalog_path(number), hashlib.sha256(data).hexdigest()


def _number(catalog: str) -> int:
    return int(catalog.rsplit("/", 1)[1].split(".")[0])


def fitting(found: OpenSet | None, asked: Asked) -> OpenSet | None:
    """The set that was found, if it was begun with the settings that are asked for.

    Raises:
        RefusedError: it was begun with others.
    """
    if found is None:
        return None
    for name, now in asked.settings().items():
        before = getattr(found.manifest, name)
        if before != now:
            raise RefusedError(
                f"{found.dest}: {name} differs: the set was begun with {before} ({found.manifest.encoder}) and is "
                f"asked for with {now} ({asked.encoder.spec}). Use the same settings to go on, or another folder for "
                "a new set."
            )
    return found


def grown(found: OpenSet, asked: Asked, *, append: bool) -> pa.Table:
    """The catalog of a set with the shards that the source has gained at its end; nothing is written.

    Checksums that are given now and were not when the set was begun are in it: shards of which nothing is committed
    are held against them, and one of which a part is committed ends the run if it does not fit.

    Raises:
        RefusedError: an old shard is gone or changed, or there are new ones without `append`.
    """
    catalog = extend_catalog(found.catalog, asked.catalog, found.dest)
    new = catalog.num_rows - found.catalog.num_rows
    if new and not append:
        raise RefusedError(
            f"{found.dest}: catalog differs: the source has {counted(new, 'more shard')}, the first of them "
            f"{catalog['url'][catalog.num_rows - new].as_py()}. Add them with --append, or embed into another folder."
        )
    return catalog


def open_set(dest: str, sources: Sequence[str] | None = None) -> OpenSet | None:
    """The set at `dest` as it is to be gone on with; None where there is none. With `sources`, none or some, a lost
    catalog is made again and published, see `frozen.restored`; without, nothing is written.

    Raises:
        RefusedError: no manifest there is valid.
        DifferencesError: the catalog is lost or damaged.
    """
    try:
        found = latest_manifest(dest)
    except InvalidRecordError as e:
        raise RefusedError(
            f"{e} No manifest of the set is valid: move {join(dest, 'manifest')} away and run the same embed command "
            "again, which takes up all records that fit. If shards were appended or mended since it was begun, name "
            f"the newest file of {join(dest, 'catalog')} as its source."
        ) from e
    if found is None:
        return None
    found = _with_what_was_said_last(dest, found)
    try:
        data = read_bytes(join(dest, found.manifest.catalog))
    except UsageError:
        data = b""
    if hashlib.sha256(data).hexdigest() == found.manifest.catalog_sha256:
        return OpenSet(dest, found, from_parquet(data, dest))
    opened = OpenSet(dest, found, restored(dest, found.manifest, sources or ()))
    if sources is None:
        return opened
    path, _ = _publish_catalog(dest, opened.catalog, _number(found.manifest.catalog))
    return opened if path == found.manifest.catalog else opened.with_manifest(catalog=path)


def _with_what_was_said_last(dest: str, found: StoredManifest) -> StoredManifest:
    """Where manifests above the one that counts are damaged: it, unfinished, with the catalog that the newest of them
    named, if that can still be told. A SHA-256 is no accident: a file whose own stands in the damaged bytes was meant.
    """
    catalogs = [file.url for file in reversed(list_files(join(dest, "catalog")))] if found.damaged else []
    stored = {hashlib.sha256(read_bytes(url)).hexdigest(): catalog_path(_number(url)) for url in catalogs}
    for path in found.damaged:
        data = read_bytes(join(dest, path))
        for sha256, catalog in stored.items():
            if sha256.encode() in data:
                if sha256 == found.manifest.catalog_sha256:
                    return found
                changes = {"catalog": catalog, "catalog_sha256": sha256, "finished": False, "totals": None}
                return replace(found, manifest=found.manifest.model_copy(update=changes))
    return found


def stored_encoder(opened: OpenSet) -> Encoder:
    """The encoder that made the set, to make parts of it anew.

    Raises:
        RefusedError: what its spec gives today is another one, or this version cuts other chunks.
    """
    manifest = opened.manifest
    encoder = load_encoder(manifest.encoder)
    now = {"fingerprint": encoder.fingerprint, "chunk_rows": CHUNK_ROWS, "chunk_bytes": CHUNK_BYTES}
    for name, value in now.items():
        if getattr(manifest, name) != value:
            raise RefusedError(
                f"{opened.dest}: {name} differs: the set was made with {getattr(manifest, name)}, {manifest.encoder} "
                f"gives {value} now. Restore what made it, or embed into a new folder."
            )
    return encoder


def say_what_matters(manifest: Manifest, encoder: Encoder) -> None:
    """What a person should know before the work begins, on stderr: one writer only, another device."""
    if manifest.single_writer:
        stderr().print("[yellow]this store ignores conditional writes: run one embed at a time on this folder.[/]")
    if manifest.device != encoder.device:
        stderr().print(f"[yellow]begun on {manifest.device}, going on on {encoder.device}: last bits may differ.[/]")


def libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}
