"""What `pack` reads: a table or a folder at a URL as drafts of samples, and the files that their cells name."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmstream.errors import Reason, Rejected, UnreachableError, UsageError
from mmstream.shards.folders import drafts_of, files_of
from mmstream.shards.packing import Draft, Roles, draft_of
from mmstream.shards.tables import SUFFIXES, is_table, open_table
from mmstream.shards.tar import MEMBER_LIMIT
from mmstream.storage.files import check_url, info, is_folder, is_local, join, read_range, scheme
from mmstream.storage.ranges import RangeReader

_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https")


@dataclass(frozen=True)
class Origin:
    """`digest` is of the table's, or of all files', sizes and etags. `drafts` gives all rows in their order, each time
    it is called; with True nothing that it takes for their labels alone is sure to be there."""

    url: str
    digest: str
    drafts: Callable[[bool], Iterator[Draft | Rejected]]
    has_labels: bool
    columns: dict[str, str]
    left_out: list[str]


def open_origin(
    url: str, but: str, asked: Mapping[str, str | None], numbers: Sequence[str], *, label_folders: bool
) -> Origin:
    """The table or folder at `url`; files under `but` do not belong to it.

    Raises:
        UsageError: there is neither, or it has not what was `asked` for (roles and names of columns).
        UnreachableError: the store does not answer.
    """
    if is_table(url):
        if label_folders:
            raise UsageError(f"--label-folders: {url} is a table. Name the column of the labels, as --label COLUMN.")
        return _table(url, asked, numbers)
    if given := [f"--{role}" for role, name in asked.items() if name] + ["--number"] * bool(numbers):
        raise UsageError(f"{given[0]}: names a column, and {url} is no table ({', '.join(SUFFIXES)}).")
    files = files_of(url, but) if is_folder(url) else []
    if not files:
        raise UsageError(f"{url}: is neither a table ({', '.join(SUFFIXES)}) nor a folder with files in it.")
    listed = "\n".join(f"{f.url} {f.bytes} {f.etag}" for f in files)
    return Origin(
        url=url,
        digest=hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
        drafts=lambda labels_only: drafts_of(url, files, labelled=label_folders),
        has_labels=label_folders,
        columns={},
        left_out=[],
    )


def _table(url: str, asked: Mapping[str, str | None], numbers: Sequence[str]) -> Origin:
    table, about = open_table(url), info(url)
    roles = Roles.among(table.columns, asked, numbers, url)
    left_out = [name for name in table.columns if name in table.binary and name not in roles.columns.values()]
    wanted = [name for name in table.columns if name not in left_out]

    def drafts(labels_only: bool) -> Iterator[Draft | Rejected]:
        only = [roles.label] if labels_only and roles.label else wanted
        for number, row in enumerate(table.rows(only)):
            try:
                yield draft_of(row, number, roles, lambda path: found(path, url))
            except Rejected as e:
                yield e

    digest = hashlib.sha256(f"{about.bytes} {about.etag}".encode()).hexdigest()
    return Origin(url, digest, drafts, bool(roles.label), roles.columns, left_out)


def found(path: str, table: str) -> str:
    """The URL of a file that a cell of `table` names: relative to the table's folder, or absolute.

    Raises:
        Rejected: `unsafe_member`, a table of a remote store names what is of no store, or a path that climbs; or a URL
            that is refused anywhere.
    """
    try:
        check_url(path)
    except UsageError as e:
        raise Rejected(Reason.UNSAFE_MEMBER, str(e)) from e
    is_absolute = "://" in path or "::" in path or path.startswith("/")
    if not is_local(table) and (scheme(path) not in _STORES if is_absolute else ".." in path.split("/")):
        raise Rejected(Reason.UNSAFE_MEMBER, f"{path[:100]!r} is not for a table of {scheme(table)} to name")
    if is_absolute:
        return path
    beside = join(table.rpartition("/")[0], path)
    return os.path.normpath(beside) if is_local(table) else beside


def read_file(url: str) -> bytes:
    """A whole file of at most `MEMBER_LIMIT` bytes.

    Raises:
        Rejected: it is missing, or a folder, or too large; or a web server does not give it.
        UnreachableError: a store does not answer.
    """
    if scheme(url) in ("http", "https"):
        return _from_the_web(url)
    try:
        with RangeReader(url) as reader:
            _check_size(url, reader.size)
            return reader.read(reader.size)
    except UsageError as e:
        raise Rejected(Reason.UNREADABLE, str(e)) from e


def _from_the_web(url: str) -> bytes:
    """Where a thousand rows name a thousand servers, one that is gone costs its row, at once."""
    try:
        size = info(url).bytes
        _check_size(url, size)
        data = read_range(url, 0, size)
    except (UsageError, UnreachableError) as e:
        raise Rejected(Reason.UNREADABLE, str(e)) from e
    if len(data) != size:
        raise Rejected(Reason.UNREADABLE, f"{url}: cut after {len(data):,} of {size:,} bytes")
    return data


def _check_size(url: str, num_bytes: int) -> None:
    if num_bytes > MEMBER_LIMIT:
        what = f"{url}: has {num_bytes:,} bytes, and a shard takes {MEMBER_LIMIT:,}"
        raise Rejected(Reason.MEMBER_TOO_LARGE, what)
