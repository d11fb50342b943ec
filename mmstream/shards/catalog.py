"""Sources become a frozen, numbered list of shards: number, URL, size, etag and perhaps SHA-256.

The catalog is made once, before the first sample is read, and stored with whatever is made from it: a sample's id
counts on the shard's number. Sources are globs, braces (`{00000..00041}.tar`), folders, plain URLs, lists of these
(`shards.lists`), and at most one stored catalog, whose shards keep their numbers; new ones come after, sorted by URL.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import compress, zip_longest
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from braceexpand import braceexpand

from mmstream.errors import MmstreamError, RefusedError, Rejected, UsageError
from mmstream.schema import CATALOG
from mmstream.shards.lists import Listed, is_catalog, is_list, read_list
from mmstream.shards.notices import say_passed_over, say_twice
from mmstream.storage.compressed import compression_of, stem_of
from mmstream.storage.files import (
    FileInfo,
    absolute,
    exists,
    glob_files,
    how_to_restore,
    info,
    is_folder,
    is_local,
    list_files,
    read_bytes,
)
from mmstream.storage.ranges import RangeReader
from mmstream.telemetry import counted

MAX_EXPANSION = 10_000_000
QUESTIONS_AT_ONCE = 16  # of a store, about shards that are named one by one

pc: Any = pyarrow.compute  # whose functions are made as it is imported, so that no type checker knows them


class _Shard(NamedTuple):
    url: str
    bytes: int
    etag: str
    max_rows: int | None
    sha256: str | None


def named_sources(sources: str | Iterable[str]) -> list[str]:
    """The sources one by one, as they were written.

    Raises:
        UsageError: there is none, or one that is no string.
    """
    given = [sources] if isinstance(sources, str) else sources
    strings = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping) else []
    if not strings or not all(isinstance(s, str) and s for s in strings):
        raise UsageError(
            f"{repr(sources)[:200]}: is no source of shards. Give a string, or a list of strings: globs, {{brace}} "
            "patterns, folders, URLs, lists of these, a stored catalog."
        )
    return strings


def build_catalog(sources: str | Iterable[str], *, checksums: bool = False) -> pa.Table:
    """All shards that `sources` name, as a table of schema.CATALOG, each once.

    Sorted by URL, but for those of a stored catalog, which come first and as they were. With `checksums` every shard
    whose SHA-256 is not known is read once for it.

    Raises:
        UsageError: a source is missing, a pattern matches nothing, or two sources contradict each other.
        RefusedError: a stored catalog is none.
        UnreachableError: a store does not answer.
    """
    patterns = named_sources(sources)
    stored = [p for p in patterns if is_catalog(p)]
    if len(stored) > 1:
        raise UsageError(f"{' and '.join(stored)}: two catalogs, and both number their shards from 0. Give one.")
    shards: dict[str, _Shard] = {}
    if stored:
        kept = from_parquet(read_bytes(stored[0]), stored[0])
        _add(shards, (_Shard(*row.values()) for row in kept.drop_columns("shard").to_pylist()))
    num_kept = len(shards)
    for pattern in patterns:
        if not is_catalog(pattern):
            _add(shards, _named(pattern))
    urls = list(shards)
    in_order = [shards[url] for url in urls[:num_kept] + sorted(urls[num_kept:])]
    catalog = pa.table([range(len(in_order)), *(zip(*in_order, strict=True) if in_order else [[]] * 5)], schema=CATALOG)
    say_twice(catalog)
    return _with_checksums(catalog) if checksums else catalog


def _add(shards: dict[str, _Shard], more: Iterable[_Shard]) -> None:
    for shard in more:
        known = shards.setdefault(shard.url, shard)
        if known[1:3] != shard[1:3] or (known.sha256 and shard.sha256 and known.sha256 != shard.sha256):
            raise UsageError(f"{shard.url}: two sources contradict each other: {known[1:]} and {shard[1:]}.")
        if shard.sha256 and not known.sha256:
            shards[shard.url] = known._replace(sha256=shard.sha256)


def _named(pattern: str) -> list[_Shard]:
    """The shards of one source that is no catalog."""
    entries = read_list(pattern) if is_list(pattern) else [Listed(pattern)]
    shards, questions = [], []
    for entry in (e for given in entries for e in _expanded(pattern, given)):
        if entry.bytes is not None and entry.etag is not None:
            shards.append(_Shard(entry.url, entry.bytes, entry.etag, None, entry.sha256))
        else:
            questions.append(entry)
    with ThreadPoolExecutor(QUESTIONS_AT_ONCE) as pool:
        for found in pool.map(lambda entry: _found(pattern, entry), questions):
            shards += found
    if not shards:
        raise _no_shard(pattern)
    return shards


def _no_shard(pattern: str) -> UsageError:
    return UsageError(
        f"{pattern}: no shard matches. Give a glob, a {{brace}} pattern, a list, or a folder that holds .tar files."
    )


def _expanded(pattern: str, entry: Listed) -> Iterator[Listed]:
    try:
        for url in _braces(entry.url):
            yield entry._replace(url=absolute(url))
    except MmstreamError as e:
        raise _placed(e, pattern, entry) from e


def _placed(e: MmstreamError, pattern: str, entry: Listed) -> MmstreamError:
    """The error about an entry; if that is of a list, with its line."""
    return type(e)(f"{pattern}, line {entry.line}: {e}") if entry.line else e


def _found(pattern: str, listed: Listed) -> list[_Shard]:
    """The shards of one glob, folder or URL."""
    try:
        return _one_by_one(listed)
    except MmstreamError as e:
        raise _placed(e, pattern, listed) from e.__cause__


def _one_by_one(listed: Listed) -> list[_Shard]:
    url, num_bytes, etag, sha256, line = listed
    files = _files(url)
    if not files and line:
        raise _no_shard(url)
    if (num_bytes, etag, sha256) != (None, None, None) and len(files) != 1:
        raise UsageError(f"{url}: names {counted(len(files), 'shard')}, and what is said of it fits one only.")
    return [
        _Shard(f.url, f.bytes if num_bytes is None else num_bytes, f.etag if etag is None else etag, None, sha256)
        for f in files
    ]


def _files(url: str) -> list[FileInfo]:
    if any(c in url for c in "*?[") and not (is_local(url) and exists(url)):
        return _taken(url, glob_files(url), lambda name: not _is_aside(name))
    if (url.endswith(".tar") or compression_of(url)) and not is_local(url):
        return [info(url)]  # without asking for a folder first: over http that would read the shard
    if is_folder(url):
        return _taken(url, list_files(url), lambda name: name.endswith(".tar") and not _is_aside(name))
    return [info(url)]


def _taken(source: str, files: list[FileInfo], is_shard: Callable[[str], bool]) -> list[FileInfo]:
    taken = [is_shard(file.url) for file in files]
    say_passed_over(source, [file.url for file, is_taken in zip(files, taken, strict=True) if not is_taken])
    return list(compress(files, taken))


def _with_checksums(catalog: pa.Table) -> pa.Table:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = list(pool.map(lambda c: c["sha256"] or _sha256(c["url"], c["bytes"], c["etag"]), catalog.to_pylist()))
    return catalog.set_column(CATALOG.get_field_index("sha256"), "sha256", pa.array(sums, pa.string()))


def _sha256(url: str, num_bytes: int, etag: str) -> str:
    try:
        with RangeReader(url, bytes=num_bytes, etag=etag) as reader:
            return reader.sha256()
    except Rejected as e:
        raise UsageError(f"{e.detail}: it was changed while its checksum was made. Start again.") from e


def _is_aside(url: str) -> bool:
    """Files that img2dataset and others write beside their shards."""
    return os.path.basename(url).startswith((".", "_")) or url.endswith((".json", ".parquet", ".txt", ".md"))  # noqa: PTH119


def _braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        expanded = []
        for url in braceexpand(pattern):
            expanded.append(url)
            if len(expanded) > MAX_EXPANSION:
                raise UsageError(f"{pattern}: expands to more than {MAX_EXPANSION:,} shards.")
        return expanded
    except ValueError as e:
        raise UsageError(f"{pattern}: {e}. Quote literal braces or close them.") from e


def to_parquet(catalog: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(catalog, out, compression="zstd")
    return out.getvalue()


def from_parquet(data: bytes, where: str) -> pa.Table:
    """A stored catalog; a column that an older one lacks is null.

    Raises:
        RefusedError: `data` is no catalog.
    """
    try:
        stored = pq.read_table(pa.BufferReader(data))
        columns = [stored[f.name] if f.name in stored.column_names else pa.nulls(len(stored), f.type) for f in CATALOG]
        catalog = pa.table(columns, names=CATALOG.names).cast(CATALOG)
    except (pa.ArrowException, OSError) as e:
        raise RefusedError(f"{where}: is no catalog of shards ({str(e).splitlines()[0]}).") from e
    if catalog["shard"].to_pylist() != list(range(len(catalog))) or catalog["url"].null_count:
        raise RefusedError(f"{where}: is no catalog of shards: they are not numbered from 0 on.")
    return catalog


_FROZEN = ("bytes", "etag", "max_rows")


def check_same(stored: pa.Table, now: pa.Table, where: str) -> None:
    """Refuses to go on where the shards are not those that were frozen."""
    for column in ("url", *_FROZEN):
        if not stored[column].equals(now[column]):
            shard, before, after = _first_difference(stored[column], now[column])
            url = (stored if shard < stored.num_rows else now)["url"][shard].as_py()
            raise RefusedError(
                f"{where}: catalog differs: {column} of shard {shard} was {before} and is {after} ({url}). "
                "Restore the source, or embed into a new folder; where the shard was damaged and has been mended, "
                f"`mmstream rejects {where} --replay` takes it in."
                + (how_to_restore(url, before) if column == "etag" else "")
            )
    differs = pc.fill_null(pc.not_equal(stored["sha256"], now["sha256"]), False)  # that one is not known is no change
    if (shard := differs.index(True).as_py()) >= 0:
        before, after = stored["sha256"][shard], now["sha256"][shard]
        raise RefusedError(f"{where}: catalog differs: sha256 of shard {shard} was {before} and is {after}.")


def _first_difference(before: pa.ChunkedArray, after: pa.ChunkedArray) -> tuple[int, Any, Any]:
    pairs = zip_longest(before.to_pylist(), after.to_pylist(), fillvalue="nothing")
    return next((shard, a, b) for shard, (a, b) in enumerate(pairs) if a != b)


def extend_catalog(stored: pa.Table, now: pa.Table, where: str) -> pa.Table:
    """`stored` with the shards of `now` that it lacks after its own: every old number stays what it is.

    Both are tables of schema.CATALOG; `now` has all shards of `stored`, wherever they sort among the new ones. A
    SHA-256 that `stored` lacks is taken from `now`.

    Raises:
        RefusedError: a shard of `stored` is not in `now`, or has changed.
    """
    places = pc.index_in(stored["url"], value_set=now["url"].combine_chunks())
    if places.null_count:
        shard = pc.is_null(places).index(True).as_py()
        raise RefusedError(
            f"{where}: catalog differs: shard {shard}, {stored['url'][shard]}, is not among the shards given now. "
            "Shards can only be added: name the old ones too, and restore those that are gone."
        )
    old = now.take(places)
    check_same(stored, old, where)
    column = CATALOG.get_field_index("sha256")
    stored = stored.set_column(column, CATALOG.field(column), pc.coalesce(stored["sha256"], old["sha256"]))
    new = now.filter(pc.invert(pc.is_in(now["url"], value_set=stored["url"].combine_chunks())))
    both = pa.concat_tables([stored, new]).combine_chunks()
    return both.set_column(0, CATALOG.field("shard"), pa.array(range(len(both)), pa.int32()))


def known_successes(shard_url: str) -> int | None:
    """The number of samples that img2dataset's `NNNNN_stats.json` beside a shard vouches for, or None."""
    stats = stem_of(shard_url) + "_stats.json"
    if not exists(stats):
        return None
    try:
        successes = json.loads(read_bytes(stats))["successes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return successes if isinstance(successes, int) and successes >= 0 else None
