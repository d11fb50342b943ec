"""What an embedding set is: begun, checked, grown and finished, each by a further generation of catalog and manifest.

Nothing that is stored is changed: a catalog or a manifest is written under the next free number and the highest valid
manifest counts, so that a kill between any two writes leaves a set that the same command takes up again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from mmstream.embeddings.layout import catalog_path, latest_manifest, manifest_path
from mmstream.encoders.base import Encoder
from mmstream.encoders.build import load_encoder
from mmstream.errors import DifferencesError, RefusedError
from mmstream.pipelines.source import CHUNK_BYTES, CHUNK_ROWS
from mmstream.schema import Manifest, Totals
from mmstream.shards.catalog import extend_catalog, from_parquet, to_parquet
from mmstream.storage.commit import honours_put_if_absent, put_if_absent
from mmstream.storage.files import join, read_bytes
from mmstream.telemetry import stderr

_LIBRARIES = ("mmstream", "ray", "torch", "transformers", "tokenizers", "pyarrow", "pillow", "numpy")
_SETTINGS = ("fingerprint", "dimension", "modalities", "normalized", "dtype", "fields", "limit")
_SAME_CHUNKS = ("chunk_rows", "chunk_bytes")  # of another release: its records have other boundaries


@dataclass(frozen=True)
class Asked:
    """What a command asks of a set: these shards, by this encoder, with these settings."""

    catalog: pa.Table
    encoder: Encoder
    fields: tuple[str, ...] = ()
    limit: int | None = None

    def settings(self) -> dict[str, Any]:
        """What must be the same for all of a set."""
        return {
            "fingerprint": self.encoder.fingerprint,
            "dimension": self.encoder.dimension,
            "modalities": list(self.encoder.modalities),
            "normalized": True,
            "dtype": self.encoder.dtype,
            "fields": list(self.fields),
            "limit": self.limit,
            "chunk_rows": CHUNK_ROWS,
            "chunk_bytes": CHUNK_BYTES,
        }


@dataclass(frozen=True)
class OpenSet:
    """The set at `dest` as it is to be gone on with: its manifest, and the shards that this names."""

    dest: str
    manifest: Manifest
    catalog: pa.Table
    next_number: int

    def with_manifest(self, **changes: Any) -> OpenSet:
        """The next generation of the manifest, published; above one that another driver of the same set was first with.

        Raises:
            RefusedError: another driver gave the set other shards meanwhile.
        """
        manifest = self.manifest.model_copy(update=changes)
        number = self.next_number
        while not put_if_absent(join(self.dest, manifest_path(number)), manifest.to_bytes()):
            other = latest_manifest(self.dest)
            if other and other.number >= number and other.manifest.catalog_sha256 != manifest.catalog_sha256:
                raise RefusedError(
                    f"{self.dest}: catalog differs: another run gave the set other shards meanwhile. "
                    "What was committed stays; run the same command again."
                )
            number += 1
        return OpenSet(self.dest, manifest, self.catalog, number + 1)

    def with_catalog(self, catalog: pa.Table) -> OpenSet:
        """The next generation of the catalog, and an unfinished manifest that names it, published."""
        number = int(self.manifest.catalog.rsplit("/", 1)[1].split(".")[0]) + 1
        path, sha256 = _publish_catalog(self.dest, catalog, number)
        grown = OpenSet(self.dest, self.manifest, catalog, self.next_number)
        return grown.with_manifest(
            catalog=path, catalog_sha256=sha256, finished=False, totals=None, libraries=libraries()
        )

    def unfinished(self) -> OpenSet:
        """As it is, or by a further manifest: nobody is to take it for whole while records are made anew."""
        return self.with_manifest(finished=False, totals=None) if self.manifest.finished else self

    def finished(self, totals: Totals) -> OpenSet:
        """With a manifest that says that nothing is missing; the one that is there, where it says just that."""
        if self.manifest.finished and self.manifest.totals == totals:
            return self
        return self.with_manifest(finished=True, totals=totals)


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
    begun = find(dest, asked)  # what another run published first is as good as ours, if it fits
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


def find(dest: str, asked: Asked) -> OpenSet | None:
    """The set at `dest`, if one was begun there, with the settings that are asked for; nothing is written.

    Raises:
        RefusedError: the set was begun with other settings, or no manifest there is valid.
        DifferencesError: the stored catalog is damaged.
    """
    found = open_set(dest)
    if found is None:
        return None
    for name, now in asked.settings().items():
        before = getattr(found.manifest, name)
        if before != now:
            raise RefusedError(
                f"{dest}: {name} differs: the set was begun with {before} ({found.manifest.encoder}) and is asked for "
                f"with {now} ({asked.encoder.spec}). Use the same settings to go on, or another folder for a new set."
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
            f"{found.dest}: catalog differs: the source has {new:,} more shards, the first of them "
            f"{catalog['url'][catalog.num_rows - new].as_py()}. Add them with --append, or embed into another folder."
        )
    return catalog


def open_set(dest: str) -> OpenSet | None:
    """The set at `dest` as it is stored; None where there is none.

    Raises:
        RefusedError: no manifest there is valid.
        DifferencesError: the catalog is damaged.
    """
    found = latest_manifest(dest)
    if found is None:
        return None
    data = read_bytes(join(dest, found.manifest.catalog))
    if hashlib.sha256(data).hexdigest() != found.manifest.catalog_sha256:
        raise DifferencesError(
            f"{join(dest, found.manifest.catalog)}: the catalog is not the one that the manifest vouches for. It was "
            "damaged or replaced: restore it, or embed into another folder."
        )
    return OpenSet(dest, found.manifest, from_parquet(data, dest), found.next_number)


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
