"""Where everything of an embedding set lies, and how its records are read back.

    DEST/catalog/<n>.parquet                     the frozen shards
    DEST/manifest/<n>.json                       what the set is
    DEST/data/<shard>-<chunk>-<attempt>.parquet  rows, written once
    DEST/rejects/<shard>-<chunk>-<attempt>.parquet
    DEST/commits/<shard>/<chunk>.<g>.json        one record per chunk, written last
    DEST/commits/<shard>.<g>.json                the records of a finished shard, folded

Names are made and taken apart here and in `listing` only. Everything is written once; n and g are generations, of which
the highest valid one counts. Valid is what carries the right SHA-256 of itself and, of records, speaks of the source
that the catalog names. A chunk's record of a higher generation than its shard's folded one counts before what that says
of the chunk: a folded record that was lost or damaged hides nothing that was committed since the one before it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from mmstream.embeddings.absent import no_set
from mmstream.embeddings.listing import Generations, list_records
from mmstream.errors import DifferencesError, Reason, RefusedError, UsageError
from mmstream.schema import ChunkRecord, Manifest, Sealed, ShardRecord, Totals
from mmstream.storage.files import join, list_files, read_bytes
from mmstream.telemetry import counted

READ_THREADS = 16
READ_AT_ONCE = 256  # shards, by one thread
_PASSING = (Reason.SOURCE_CHANGED, Reason.UNREADABLE)  # damage that was of the moment, not in the bytes

_MANIFEST = re.compile(r"/manifest/([0-9]+)\.json$")
R = TypeVar("R", bound=Sealed)
C = TypeVar("C", ChunkRecord, ShardRecord)


def catalog_path(n: int) -> str:
    return f"catalog/{n:06}.parquet"


def manifest_path(n: int) -> str:
    return f"manifest/{n:06}.json"


def object_path(kind: str, shard: int, chunk: int, attempt: str) -> str:
    """`kind` is `data` or `rejects`; the attempt keeps two writers of one chunk apart."""
    return f"{kind}/{shard:06}-{chunk:06}-{attempt}.parquet"


class InvalidRecordError(RefusedError):
    """A record is not what was once written: it is torn, or a bit of it changed. A lower generation may be valid."""


def parse(record: type[R], data: bytes, url: str) -> R:
    """A stored record, checked.

    Raises:
        InvalidRecordError: it is not what was written.
        RefusedError: it is of a format that this version does not read.
    """
    try:
        return record.from_bytes(data)
    except RefusedError as e:
        raise RefusedError(f"{url}: {e}") from e
    except ValueError as e:
        why = str(e).splitlines()[0]
        raise InvalidRecordError(
            f"{url}: not a {record.__name__} ({why}). "
            "It was damaged or written by another version; `mmstream audit` names what is affected."
        ) from e


@dataclass(frozen=True)
class StoredManifest:
    """The manifest that counts. No generation from `next_number` on is taken, by a valid one or another."""

    number: int
    next_number: int
    manifest: Manifest
    sha256: str  # of its bytes

    @property
    def damaged(self) -> list[str]:
        """Where the damaged ones above it lie, from the newest down. What they said is not what it says."""
        return [manifest_path(number) for number in range(self.next_number - 1, self.number, -1)]


def latest_manifest(root: str) -> StoredManifest | None:
    """The highest valid generation; None where there is none at all.

    Raises:
        InvalidRecordError: there are some, and none is valid.
    """
    urls = {int(m[1]): f.url for f in list_files(join(root, "manifest")) if (m := _MANIFEST.search(f.url))}
    invalid: InvalidRecordError | None = None
    for number in sorted(urls, reverse=True):
        data = read_bytes(urls[number])
        try:
            manifest = parse(Manifest, data, urls[number])
        except InvalidRecordError as e:
            invalid = invalid or e
            continue
        return StoredManifest(number, max(urls) + 1, manifest, hashlib.sha256(data).hexdigest())
    if invalid is not None:
        raise invalid
    return None


def check_there(root: str, found: object) -> None:
    """
    Raises:
        DifferencesError: no manifest was `found`, and records are there.
        UsageError: nor are these.
    """
    if found is not None:
        return
    if next(iter(list_records(root)), None) is not None:
        raise DifferencesError(
            f"{root}: the manifests of this embedding set are lost, its records are there. The embed command that made "
            f"it takes up all that fit; where shards were appended, name the newest file of {join(root, 'catalog')} as "
            "its source, which keeps their numbers."
        )
    raise no_set(root)


def was_finished(root: str) -> bool:
    """Whether any valid generation of the manifest says that nothing was missing."""
    for file in list_files(join(root, "manifest")):
        if _MANIFEST.search(file.url):
            try:
                if parse(Manifest, read_bytes(file.url), file.url).finished:
                    return True
            except InvalidRecordError:
                continue
    return False


@dataclass(frozen=True)
class Records:
    """What is committed: `shards` folded, `chunks` by shard and chunk of those shards that are not (yet)."""

    shards: dict[int, ShardRecord]
    chunks: dict[int, dict[int, ChunkRecord]]

    def by_chunk(self) -> dict[int, dict[int, ChunkRecord]]:
        """All records of chunks, by shard and chunk, both in order."""
        every = {shard: {c.chunk: c for c in record.chunks} for shard, record in self.shards.items()} | self.chunks
        return {shard: dict(sorted(of_shard.items())) for shard, of_shard in sorted(every.items())}

    def finished(self) -> dict[int, ShardRecord]:
        """The shards without gaps, folded here where they are not in storage."""
        made = {shard: record for shard, chunks in self.chunks.items() if (record := fold(chunks))}
        return dict(sorted({**self.shards, **made}.items()))


def read_records(
    root: str,
    catalog: pa.Table,
    listed: Mapping[int, Generations] | None = None,
    *,
    kept: Callable[[ShardRecord], ShardRecord] = lambda record: record,
) -> Records:
    """The records of the catalog's shards that count; `listed` saves the listing where it was made before.

    It reads one record per finished shard, and chunk records of the others only. `kept` says what is to be kept of a
    folded record: the whole of it grows with the shard.

    Raises:
        RefusedError: a record is of another format.
    """
    names = list_records(root) if listed is None else listed
    places = range(0, catalog.num_rows, READ_AT_ONCE)
    shards: dict[int, ShardRecord] = {}
    chunks: dict[int, dict[int, ChunkRecord]] = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for part in pool.map(lambda i: _read_part(catalog.slice(i, READ_AT_ONCE), names, kept), places):
            for shard, found in part:
                if isinstance(found, ShardRecord):
                    shards[shard] = found
                elif found:
                    chunks[shard] = found
    return Records(shards, chunks)


def _read_part(
    part: pa.Table, names: Mapping[int, Generations], kept: Callable[[ShardRecord], ShardRecord]
) -> list[tuple[int, ShardRecord | dict[int, ChunkRecord]]]:
    """Many shards as one piece of work for a thread. What is not kept of them is given up here, not at the end."""
    sources = zip(*(part[column].to_pylist() for column in ("shard", "bytes", "etag")), strict=True)
    read = ((shard, _read_shard(shard, names[shard], (size, etag))) for shard, size, etag in sources if shard in names)
    return [(shard, kept(found) if isinstance(found, ShardRecord) else found) for shard, found in read]


def _read_shard(shard: int, names: Generations, source: tuple[int, str]) -> ShardRecord | dict[int, ChunkRecord]:
    generation, folded = highest_valid(ShardRecord, names.folded, shard, source) or (-1, None)
    before = {c.chunk: c for c in folded.chunks} if folded else {}
    newer = {n: [(g, url) for g, url in of_chunk if g > generation] for n, of_chunk in names.chunks.items()}
    if folded and not any(newer.values()):
        return folded
    since = read_chunk_records(shard, Generations(chunks=newer), source)
    chunks = _that_count(before | since)
    # Of chunks that do not make a whole with it, nothing says that they are better than the folded record.
    return folded if folded and (before == chunks or fold(chunks) is None) else chunks


def _that_count(chunks: dict[int, ChunkRecord]) -> dict[int, ChunkRecord]:
    """What an unfinished shard can go on from: nothing, where two attempts saw different bytes, and no end that only
    was the source's state of a moment: it is as the catalog says again, or the run does not go on at all."""
    try:
        whole = fold(chunks)
    except RefusedError:
        return {}
    if whole is not None:
        return chunks
    return {n: c for n, c in chunks.items() if not (c.damage and c.damage.reason in _PASSING)}


def next_generations(names: Mapping[int, Generations], records: Records) -> dict[int, int]:
    """The generation to write in, by shard, where some record of an unfinished shard does not count: under the lowest
    it would be in the way."""
    made = {}
    for shard in names:
        if shard not in records.shards:
            of_shard = names[shard]
            if of_shard.folded or of_shard.chunks.keys() - records.chunks.get(shard, {}).keys():
                made[shard] = of_shard.next
    return made


def read_chunk_records(shard: int, names: Generations, source: tuple[int, str]) -> dict[int, ChunkRecord]:
    """The chunk records of a shard that count, by chunk."""
    chunks = {}
    for chunk, of_chunk in names.chunks.items():
        _, record = highest_valid(ChunkRecord, of_chunk, shard, source) or (-1, None)
        if record is not None and record.chunk == chunk:
            chunks[chunk] = record
    return chunks


def highest_valid(
    kind: type[C], names: Iterable[tuple[int, str]], shard: int, source: tuple[int, str] | None = None
) -> tuple[int, C] | None:
    """The first of `names` that holds a valid record of this shard and source, if one is given, with its generation."""
    for generation, url in names:
        try:
            record = parse(kind, read_bytes(url), url)
        except (InvalidRecordError, UsageError):
            continue  # damaged, or gone since the listing: the next one counts, and `mmstream audit` names this one
        if record.shard == shard and source in (None, record.source):
            return generation, record
    return None


def fold(chunks: dict[int, ChunkRecord]) -> ShardRecord | None:
    """The record of a shard whose chunks are all there, from 0 to the one with `end`; None where some are missing.

    Raises:
        RefusedError: the chunks do not adjoin.
    """
    ordered = [chunks[n] for n in sorted(chunks)]
    if not ordered or not ordered[-1].end or len(ordered) != ordered[-1].chunk + 1:
        return None
    next_row = 0
    for record in ordered:
        if record.first_row != next_row or (record.end and record is not ordered[-1]):
            raise RefusedError(
                f"shard {record.shard} chunk {record.chunk}: begins at row {record.first_row}, the chunk before ends "
                f"at {next_row}: two attempts saw different bytes. Embed into a new folder."
            )
        next_row += record.num_samples
    rejects: dict[str, int] = {}
    for record in ordered:
        for reason, n in record.num_rejects.items():
            rejects[reason] = rejects.get(reason, 0) + n
    return ShardRecord(
        shard=ordered[0].shard,
        num_samples=sum(r.num_samples for r in ordered),
        num_rows=sum(r.num_rows for r in ordered),
        num_rejects=dict(sorted(rejects.items())),
        damage=ordered[-1].damage,
        chunks=ordered,
    )


def check_totals(root: str, stored: StoredManifest, found: Totals) -> None:
    """Compares what the records of a set say with what its manifest vouches for.

    Raises:
        RefusedError: they differ, and the manifest is no longer the one that counts.
        DifferencesError: they differ.
    """
    vouched = stored.manifest.totals
    if vouched is None or found == vouched:
        return
    if not _is_latest(root, stored):
        raise RefusedError(f"{root}: the set was changed meanwhile by another command. Run it again.")
    raise DifferencesError(
        f"{root}: records of {counted(found.shards, 'shard')} with {counted(found.rows, 'row')} and "
        f"{counted(sum(found.rejects.values()), 'reject')} are there, the manifest says "
        f"{vouched.shards:,} with {vouched.rows:,} and {sum(vouched.rejects.values()):,}. Something was lost: "
        f"`mmstream audit {root}` names it, `mmstream repair {root}` makes it anew."
    )


def check_newest(root: str, stored: StoredManifest) -> None:
    """
    Raises:
        DifferencesError: it says that the set is finished, and newer ones that are damaged may have said more.
    """
    if stored.damaged and stored.manifest.finished:
        raise DifferencesError(
            f"{join(root, stored.damaged[0])}: is damaged, and newer than the manifest that is valid: shards or rows "
            f"that the set was given since would be missing. `mmstream repair {root}` makes it whole."
        )


def check_known(root: str, stored: StoredManifest, catalog: pa.Table, listed: Mapping[int, Generations]) -> None:
    """Whether all shards that have records (`listed`) are in the catalog of a finished set. Those that were appended
    since this manifest was read are none of it, nor is what only has the name of a record.

    Raises:
        DifferencesError: they are not: a newer manifest was lost.
    """
    if not stored.manifest.finished:
        return
    unknown = next((s for s in listed if s >= catalog.num_rows and _has_a_record(listed[s], s)), None)
    if unknown is not None and _is_latest(root, stored):
        raise DifferencesError(
            f"{root}: shard {unknown} has a record and is not in the catalog that the manifest names: a newer manifest "
            "was lost. Run the embed command that added it again, with --append: it takes up all that is there."
        )


def _has_a_record(names: Generations, shard: int) -> bool:
    of_chunks = (names.chunks[chunk] for chunk in sorted(names.chunks))
    return bool(
        highest_valid(ShardRecord, names.folded, shard)
        or any(highest_valid(ChunkRecord, of_chunk, shard) for of_chunk in of_chunks)
    )


def _is_latest(root: str, stored: StoredManifest) -> bool:
    now = latest_manifest(root)
    return now is not None and now.sha256 == stored.sha256


def totals_of(shards: Iterable[ShardRecord]) -> Totals:
    """What the records of a set's shards say together. Their chunks are not looked at."""
    num_shards = num_samples = num_rows = 0
    rejects: Counter[str] = Counter()
    damaged = []
    for record in shards:
        num_shards, num_samples, num_rows = num_shards + 1, num_samples + record.num_samples, num_rows + record.num_rows
        rejects.update(record.num_rejects)
        if record.damage:
            damaged.append(record.shard)
    counted = dict(sorted(rejects.items()))
    return Totals(shards=num_shards, samples=num_samples, rows=num_rows, rejects=counted, damaged=sorted(damaged))
