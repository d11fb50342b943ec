"""A new version appears at once or not at all: files first, then its manifest, then one small record.

Nothing is renamed, replaced or deleted: a kill before the record leaves files that nobody refers to, and whoever
reads an older version goes on reading it. Two builders at once get two numbers, unless the store ignores
put-if-absent: there the later one wins, as whole as the other.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping

from mmstream.index.store import MANIFEST, IndexVersion, highest_number, version_path
from mmstream.schema import IndexManifest, StoredObject, VersionRecord
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import join, write_bytes


def publish(
    url: str, files: Mapping[str, bytes], manifest: Callable[[dict[str, StoredObject]], IndexManifest]
) -> IndexVersion:
    """Writes `files` into a folder of their own, and makes them the current version of the index at `url`.

    Args:
        manifest: makes the version's manifest from the stored files, by name.

    Raises:
        UnreachableError: the store does not answer, or may not be written to.
    """
    folder = f"v={secrets.token_hex(6)}"
    stored = {name: _write(url, f"{folder}/{name}", data) for name, data in files.items()}
    made = manifest(stored)
    sha256 = _write(url, f"{folder}/{MANIFEST}", made.to_bytes()).sha256
    number = highest_number(url)
    while True:
        number += 1
        record = VersionRecord(version=number, path=folder, manifest_sha256=sha256)
        if put_if_absent(join(url, version_path(number)), record.to_bytes()):
            return IndexVersion(url, record, made)


def _write(url: str, path: str, data: bytes) -> StoredObject:
    write_bytes(join(url, path), data)
    return StoredObject(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
