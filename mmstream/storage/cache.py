"""Local copies of remote folders: models and indexes are read from disk, whatever they are stored on.

A copy lies under a name made from the URLs, sizes and etags of its files: another content is another folder, and two
processes that copy at once do not disturb each other. `MMSTREAM_CACHE` moves the cache (default ~/.cache/mmstream).
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from mmstream.errors import UsageError
from mmstream.storage.files import absolute, is_local, list_files, read_bytes, write_bytes


def cache_root() -> Path:
    return Path(os.environ.get("MMSTREAM_CACHE", "~/.cache/mmstream")).expanduser()


def local_folder(url: str, patterns: Sequence[str]) -> Path:
    """The files at `url` whose paths below it match one of `patterns`, as a local folder.

    Only the files of the folder itself, and of sub-folders where a pattern has a slash.

    Raises:
        UsageError: nothing there matches.
    """
    url = absolute(url)
    if is_local(url):
        return Path(url)
    files = [f for f in list_files(url) if _matches(f.url.removeprefix(url + "/"), patterns)]
    if not files:
        raise UsageError(f"{url}: no file there matches {', '.join(patterns)}. Check the URL.")
    identity = "\n".join(f"{f.url} {f.bytes} {f.etag}" for f in files)
    folder = cache_root() / "folders" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    for file in files:
        target = folder / file.url.removeprefix(url + "/")
        if not target.exists() or target.stat().st_size != file.bytes:
            write_bytes(str(target), read_bytes(file.url))
    return folder


def _matches(path: str, patterns: Sequence[str]) -> bool:
    parts = path.split("/")
    if ".." in parts:  # a key of an object store may hold it; a name of a file in the cache must not
        return False
    return any(fnmatch.fnmatch(path, p) and p.count("/") == len(parts) - 1 for p in patterns)
