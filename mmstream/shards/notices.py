"""What a person should know of a list of shards before it is read: what it passes over, and what it names twice.

Both are warnings. A file that somebody hid may be meant to be hidden, and one that lies there twice may be meant to
count twice; but a set that lacks shards, or has samples doubled, looks like any other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mmstream.storage.files import is_local
from mmstream.storage.http import is_strong
from mmstream.telemetry import counted, warn

SHOWN = 3

pc: Any = pyarrow.compute  # whose functions are made as it is imported, so that no type checker knows them
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


def say_passed_over(source: str, urls: Sequence[str]) -> None:
    """Of the files that `source`, a folder or glob, has and does not take: those that a shard may be in."""
    names = [os.path.basename(url) for url in urls]  # noqa: PTH119
    shards = [name for name in names if name.lower().endswith(_ARCHIVES) and not name.startswith("._")]
    if shards:
        warn(
            f"{source}: passes over {counted(len(shards), 'file')} with the name of a shard ({_some(shards)}): names "
            "that begin with . or _, and in a folder all that do not end in .tar. Rename them, or name them, one by "
            "one or by a glob, as compressed ones (.tar.gz, .tgz, .tar.zst, .tzst) have to be."
        )


def say_twice(catalog: pa.Table) -> None:
    """Of the shards of a catalog: those that are one file under two names, by size and etag of their store, or where
    the file is a local one by its inode."""
    same = catalog.group_by(["bytes", "etag"]).aggregate([("url", "count"), ("url", "list")])
    groups = same.filter(pc.greater(same["url_count"], 1)) if len(same) < len(catalog) else same.slice(0, 0)
    pairs = []
    for num_bytes, etag, urls in zip(*(groups[c].to_pylist() for c in ("bytes", "etag", "url_list")), strict=True):
        if num_bytes and is_strong(etag):
            pairs += _pairs(urls)
    if pairs:
        known, url = pairs[0]
        warn(
            f"{counted(len(pairs), 'shard')} named a second time, so that samples count twice: {url} is {known}, by "
            "size and etag. Name each once, unless that is meant."
        )


def _pairs(urls: list[str]) -> list[tuple[str, str]]:
    """Each that is a file which came before, with that one."""
    first: dict[object, str] = {}
    return [(known, url) for url in urls if (known := first.setdefault(_identity(url), url)) != url]


def _identity(url: str) -> object:
    """What two names of one file have in common, where size and etag are the same."""
    if not is_local(url):
        return None
    try:
        status = os.stat(url)  # noqa: PTH116
    except OSError:
        return url
    return status.st_dev, status.st_ino


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
