"""Files that name shards: a text list or a JSONL list at any URL goes in, its entries come out.

Text (`.txt`, `.list`): one glob, brace pattern, folder or URL per line; blank lines and lines that begin with `#` are
passed over. JSONL (`.jsonl`, `.ndjson`): `{"url": …, "sha256"?: …, "bytes"?: …, "etag"?: …}` per line. Paths are
relative to the list. A list names no other list.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmstream.errors import UsageError
from mmstream.storage.files import check_url, is_local, join, read_bytes

_TEXT, _JSON, _CATALOG = (".txt", ".list"), (".jsonl", ".ndjson"), ".parquet"


class Listed(NamedTuple):
    """One source, and what is said of it. `bytes`, `etag` and `sha256` are of one shard; `line` is its place in a list,
    counted from 1."""

    url: str
    bytes: int | None = None
    etag: str | None = None
    sha256: str | None = None
    line: int = 0


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)  # a misspelt sha256 must not pass as none

    url: Annotated[str, Field(min_length=1)]
    bytes: Annotated[int, Field(ge=0)] | None = None
    etag: str | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = None


def is_list(url: str) -> bool:
    return url.endswith((*_TEXT, *_JSON)) and not any(c in url for c in "*?[{")


def is_catalog(url: str) -> bool:
    return url.endswith(_CATALOG) and not any(c in url for c in "*?[{")


def read_list(where: str) -> Iterator[Listed]:
    """The entries of a list, in its order.

    Raises:
        UsageError: there is no list, a line cannot be read, or names a scheme that is refused or another list.
        UnreachableError: its store does not answer.
    """
    try:
        lines = read_bytes(where).decode().splitlines()
    except UnicodeDecodeError as e:
        raise UsageError(f"{where}: is no UTF-8 from its byte {e.start} on; a list of shards is text.") from e
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        entry = _parsed(line, f"{where}, line {number}") if where.endswith(_JSON) else Listed(line)
        try:
            check_url(entry.url)
        except UsageError as e:
            raise UsageError(f"{where}, line {number}: {e}") from e
        if is_list(entry.url) or is_catalog(entry.url):
            raise UsageError(
                f"{where}, line {number}: names another list, {entry.url}. Give it as a source of its own."
            )
        yield entry._replace(url=_beside(where, entry.url), line=number)


def _parsed(line: str, place: str) -> Listed:
    try:
        found = _Line.model_validate_json(line)
    except ValidationError as e:
        error = e.errors()[0]
        what = f"{'.'.join(map(str, error['loc']))}: {error['msg']}".removeprefix(": ")
        raise UsageError(f"{place}: {what}. A line is an object with url, and sha256, bytes, etag if known.") from e
    return Listed(found.url, found.bytes, found.etag, found.sha256 and found.sha256.lower())


def _beside(where: str, url: str) -> str:
    """A relative path of a list is relative to it."""
    if "://" in url or url.startswith(("/", "~")):
        return url
    folder = os.path.dirname(where) if is_local(where) else where.rpartition("/")[0]  # noqa: PTH120
    return join(folder, url) if folder else url
