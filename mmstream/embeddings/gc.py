"""What killed and outrun writers left in an embedding set is removed: objects that no record refers to, temporaries.

Objects go before their record, so an unreferenced one may belong to a writer at work: only what is older than a day
goes, by the clock of the store. What any valid record of any generation refers to stays, whatever counts now; and where
the newest record of a shard or chunk is damaged, all of that shard's objects stay, since it may have referred to them;
where a finished set's records are not those that its manifest vouches for, every object stays.
Records, catalogs and manifests are never touched, nor is a file that is no part of a set.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import NamedTuple

from mmstream.embeddings.layout import parse
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.schema import ChunkRecord, ShardRecord
from mmstream.storage.files import (
    FileInfo,
    absolute,
    below,
    join,
    list_files,
    modified,
    read_bytes,
    remove,
    write_bytes,
)
from mmstream.telemetry import Progress, Report, counted

MIN_AGE = timedelta(days=1)
THREADS = 8

# Of a path below the root: sets may lie within one another, and what is another's is never touched.
_OBJECT = re.compile(r"((?:data|rejects)/([0-9]{6,10})-[0-9]{6,10}-[0-9a-f]+\.parquet)")
_TEMPORARY = re.compile(
    r"(?:(?:data|rejects|manifest|catalog|commits(?:/[0-9]+)?)/)?\.[^/]+\.[0-9]+-[0-9a-f]{12}|\.probe-[0-9a-f]{16}"
)
_MANIFEST = re.compile(r"manifest/[0-9]+\.json")
_RECORD = re.compile(r"commits/([0-9]{6,10})(?:/([0-9]{6,10}))?\.([0-9]+)\.json")
# Of one shard: chunk, or None for the folded ones → generation → URL.
Records = dict[int | None, dict[int, str]]


class GcReport(Report):
    dest: str
    dry_run: bool
    objects: int  # removed, or to be removed
    temporaries: int
    bytes: int
    young: int  # unreferenced too, but not for a day yet
    unsure: int  # objects that a damaged or lost record may have referred to

    def title(self) -> str:
        done = "would remove" if self.dry_run else "removed"
        return f"gc: {done} {counted(self.objects + self.temporaries, 'file')}, {counted(self.bytes, 'byte')}"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("objects", f"{self.objects:,}"), ("temporaries", f"{self.temporaries:,}")]
        if self.young:
            shown.append(("kept", f"{self.young:,} that nothing refers to, but which are younger than a day"))
        if self.unsure:
            what = f"{counted(self.unsure, 'object')} that a damaged or lost record may refer to"
            shown.append(("kept", f"{what}; repair the set first"))
        return shown


def gc(dest: str, *, dry_run: bool = False) -> GcReport:
    """Removes what nothing refers to from the embedding set at `dest`; with `dry_run` it only counts.

    Raises:
        UsageError: there is no embedding set, or its store does not tell times.
        UnreachableError: the store does not answer, or may not be written to.
    """
    root = absolute(dest)
    # First the objects, then the records: what is committed in between is not among the objects.
    files = list_files(root)
    records = _list_records(root)
    if not any(_MANIFEST.fullmatch(below(root, f.url)) for f in files):
        raise UsageError(f"{root}: no embedding set is there.")
    deadline = _now(root) - MIN_AGE
    temporaries = [f for f in files if _TEMPORARY.fullmatch(below(root, f.url))]
    objects, unsure = _unreferenced(root, files, records)
    if objects and not _is_whole(root):
        objects, unsure = [], unsure + len(objects)
    with ThreadPoolExecutor(THREADS) as pool, Progress("gc", len(objects) + len(temporaries), "files") as progress:
        old: list[list[FileInfo]] = []
        for group in (objects, temporaries):
            is_old = pool.map(lambda f: _written_before(f, deadline), group)
            old.append([f for f, goes in zip(group, is_old, strict=True) if goes])
        old_objects, old_temporaries = old
        if not dry_run:
            for _ in pool.map(lambda f: remove(f.url), [*old_objects, *old_temporaries]):
                progress.update(progress.done + 1)
    going = [*old_objects, *old_temporaries]
    return GcReport(
        dest=root,
        dry_run=dry_run,
        objects=len(old_objects),
        temporaries=len(old_temporaries),
        bytes=sum(f.bytes for f in going),
        young=len(objects) + len(temporaries) - len(going),
        unsure=unsure,
        next=[shlex.join(["mmstream", "repair" if unsure else "gc" if dry_run and going else "audit", root])],
    )


def _is_whole(root: str) -> bool:
    """Whether the records are those that the manifest vouches for; a set that is not finished vouches for none."""
    try:
        emb = EmbeddingSet.open(root, finished=False)
        return not emb.manifest.finished or bool(emb.shards)
    except (DifferencesError, RefusedError):
        return False


def _now(root: str) -> datetime:
    """The store's clock, asked by writing a small object and reading its time."""
    probe = join(root, f".probe-{secrets.token_hex(8)}")
    write_bytes(probe, b"")
    try:
        return modified(probe)
    finally:
        remove(probe)


def _written_before(file: FileInfo, deadline: datetime) -> bool:
    try:
        return modified(file.url) < deadline
    except UsageError:
        return False  # another has removed it


def _list_records(root: str) -> dict[int, Records]:
    found: dict[int, Records] = {}
    for file in list_files(join(root, "commits")):
        if name := _RECORD.fullmatch(below(root, file.url)):
            chunk = int(name[2]) if name[2] else None
            found.setdefault(int(name[1]), {}).setdefault(chunk, {})[int(name[3])] = file.url
    return found


def _unreferenced(root: str, files: Iterable[FileInfo], records: Mapping[int, Records]) -> tuple[list[FileInfo], int]:
    """Objects that no valid record refers to, and how many are kept since a record of their shard is damaged.

    The records of chunks are read only where the folded ones leave something over.
    """
    by_shard: dict[int, dict[str, FileInfo]] = {}
    for file in files:
        if name := _OBJECT.fullmatch(below(root, file.url)):
            by_shard.setdefault(int(name[2]), {})[name[1]] = file
    unreferenced, unsure = [], 0
    with ThreadPoolExecutor(THREADS) as pool:
        for shard, objects in by_shard.items():
            of_chunks = dict(records.get(shard, {}))
            found = [_references(ShardRecord, of_chunks.pop(None, {}))]
            if not objects.keys() <= found[0].paths:
                found += pool.map(lambda generations: _references(ChunkRecord, generations), of_chunks.values())
            left = objects.keys() - set().union(*(f.paths for f in found))
            if all(f.are_all for f in found):
                unreferenced += [objects[path] for path in sorted(left)]
            else:
                unsure += len(left)
    return unreferenced, unsure


class _References(NamedTuple):
    """The objects that the records under one name refer to, and whether the newest of these could be read."""

    paths: frozenset[str]
    are_all: bool


def _references(kind: type[ChunkRecord] | type[ShardRecord], generations: Mapping[int, str]) -> _References:
    paths: set[str] = set()
    is_newest_valid = True
    for generation, url in generations.items():
        try:
            record = parse(kind, read_bytes(url), url)
        except RefusedError:  # damaged, or of another version: what it refers to cannot be known
            is_newest_valid &= generation < max(generations)
            continue
        chunks = record.chunks if isinstance(record, ShardRecord) else [record]
        paths.update(o.path for c in chunks for o in (c.data, c.rejects) if o)
    return _References(frozenset(paths), is_newest_valid)
