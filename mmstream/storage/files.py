"""Bytes at URLs: any fsspec URL or local path goes in, bytes come out, foreign errors become ours.

Credentials come from the environment or the platform. File systems are rebuilt from the URL in every process, so
nothing secret is ever pickled, and listings are never cached: what another process wrote is seen. Shards are read by
`storage.ranges`, which repeats what fails. `file`, `s3`, `http(s)` and `memory` (one process) are tested; other stores
work as far as their fsspec package does.
"""

from __future__ import annotations

import glob
import os
import random
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem

from mmstream.errors import UsageError
from mmstream.storage import http
from mmstream.storage.foreign import check_bucket, mapped, not_opened, scheme

_S3 = ("s3", "s3a")
_FORBIDDEN = ("pipe:", "shell:", "reference:")  # they run commands, or read what another file says

_SECRET = re.compile(r"://[^/@]*:[^/@]*@|[?&](?:x-amz-signature|x-goog-signature|signature|sig)=", re.IGNORECASE)


@dataclass(frozen=True)
class FileInfo:
    """`etag` changes when the content does: the store's own, or the modification time of a local file."""

    url: str
    bytes: int
    etag: str


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in _S3:
        return {}
    options: dict[str, Any] = {"use_listings_cache": False}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint_url"] = endpoint  # said aloud: fsspec keeps one file system per set of options
        # Stores that are not AWS seldom send the checksums that botocore asks for by default.
        options["config_kwargs"] = {
            "request_checksum_calculation": os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            "response_checksum_validation": os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
        }
    return options


def open_fs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url` and the path in it.

    Raises:
        UsageError: an unknown scheme, one that runs commands, or one whose package is not installed or not working.
        UnreachableError: a store that is asked at once does not answer.
    """
    check_url(url)
    try:
        return url_to_fs(url, **_options(scheme(url)))
    except (ImportError, ValueError, OSError) as e:
        raise not_opened(url, e) from e


def check_url(url: str) -> None:
    """
    Raises:
        UsageError: the URL, or a part of a chained one, would run a command, or holds a password or a signature,
            which would go into catalogs and messages.
    """
    if _SECRET.search(url):
        raise UsageError(
            f"{url.split('://', 1)[0]}://{url.split('@')[-1].split('://')[-1].split('?')[0]}: given with a password or "
            "a signature, which would be written into catalogs and logs. Give credentials by the environment."
        )
    if any(part.strip().lower().startswith(_FORBIDDEN) for part in url.split("::")):
        raise UsageError(f"{url}: such URLs are refused, for they run commands. Give a file, s3, gs, az or http URL.")


def is_local(url: str) -> bool:
    return scheme(url) in ("file", "local")


def absolute(url: str) -> str:
    """A local path made absolute; a URL as it is, without a closing slash.

    Raises:
        UsageError: a scheme that is refused.
    """
    check_url(url)
    if is_local(url):
        return os.path.normpath(Path(url.removeprefix("file://").removeprefix("local://")).expanduser().absolute())
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts)])


def below(root: str, url: str) -> str:
    """The path from `root` on of a file that a listing of `root` named."""
    prefix, path = (u.split("://", 1)[-1].strip("/") for u in (root, url))  # stores spell their own roots as they like
    return path.removeprefix(prefix).lstrip("/") if path.startswith(f"{prefix}/") else path


def read_bytes(url: str) -> bytes:
    if url.startswith("/"):  # as a million records are: finding the file system takes longer than the read
        check_url(url)
        with mapped(url), open(url, "rb", buffering=0) as f:  # noqa: PTH123
            return f.readall()
    fs, path = open_fs(url)
    with mapped(url):
        return fs.cat_file(path)


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; fewer only at the end of the object."""
    fs, path = open_fs(url)
    with mapped(url):
        if isinstance(fs, HTTPFileSystem):
            return http.read_range(fs, path, offset, length)
        return fs.cat_file(path, start=offset, end=offset + length)


def write_bytes(url: str, data: bytes) -> None:
    """One whole object, replaced if it is there; a reader sees the old one or the new one, never a part."""
    fs, path = open_fs(url)
    with mapped(url):
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        target = Path(path)
        write_temporary(target, data).replace(target)
        sync_folder(target.parent)


def upload(path: Path, url: str) -> None:
    """A local file to `url`, whole or not at all, in constant memory. Where `url` is a path the file is moved there; it
    has to lie on the same disk."""
    fs, name = open_fs(url)
    with mapped(url):
        if not isinstance(fs, LocalFileSystem):
            fs.put_file(str(path), name)
            return
        with path.open("rb") as f:
            os.fsync(f.fileno())
        target = Path(name)
        _make_folder(target.parent)
        path.replace(target)
        sync_folder(target.parent)


def write_temporary(target: Path, data: bytes) -> Path:
    """`data`, synced to disk, in a file beside `target` whose name no other writer has."""
    try:
        _make_folder(target.parent)
    except (FileExistsError, NotADirectoryError) as e:
        raise UsageError(f"{e.filename}: is a file where a folder is needed. Choose another path.") from e
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{random.SystemRandom().getrandbits(48):012x}")
    with temporary.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return temporary


def _make_folder(folder: Path) -> None:
    """The folder and all above it, each synced into the one that it is new in: a power cut loses no file with it."""
    new = list(takewhile(lambda f: not f.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in reversed(new):
        sync_folder(made.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def info(url: str) -> FileInfo:
    fs, path = open_fs(url)
    with mapped(url):
        return _info(fs, path)


def modified(url: str) -> datetime:
    """When the object was written, by the clock of its store.

    Raises:
        UsageError: nothing is there, or the store does not tell.
    """
    fs, path = open_fs(url)
    try:
        with mapped(url):
            return fs.modified(path)
    except NotImplementedError as e:
        raise UsageError(f"{url}: this store does not say when an object was written.") from e


def remove(url: str) -> None:
    """Removes one object. Nothing happens where none is: another may have been faster."""
    fs, path = open_fs(url)
    with mapped(url), suppress(FileNotFoundError):
        fs.rm_file(path)


def exists(url: str) -> bool:
    fs, path = open_fs(url)
    with mapped(url):
        if not isinstance(fs, HTTPFileSystem):
            return fs.exists(path)
        try:
            return bool(_info(fs, path))
        except FileNotFoundError:
            return False


def is_folder(url: str) -> bool:
    fs, path = open_fs(url)
    with mapped(url):
        return fs.isdir(path)


def is_file(url: str) -> bool:
    fs, path = open_fs(url)
    with mapped(url):
        return fs.isfile(path)


def list_names(url: str) -> list[str]:
    """The names of what lies directly in a folder, sorted; empty where there is no such folder."""
    fs, path = open_fs(url)
    with mapped(url):
        if not fs.isdir(path):
            return []
        names = [str(name).rstrip("/") for name in fs.ls(path, detail=False)]
    return sorted(below(path, name) for name in names if name != path.rstrip("/"))


def list_files(url: str) -> list[FileInfo]:
    """All files at and under a folder, sorted by URL; empty where there is no such folder. Local links are followed.

    Raises:
        UsageError: a link points to nothing.
    """
    fs, path = open_fs(url)
    with mapped(url):
        if isinstance(fs, LocalFileSystem):
            return _local_infos(_walk(path) if Path(path).is_dir() else [path] if Path(path).exists() else [])
        return _infos(fs, fs.find(path, detail=True).values())


def each_url(url: str) -> Iterator[str]:
    """The URLs of `list_files`, in no order. Nothing is asked about a local one, or held of it, since there may be
    millions; what links to nothing is among them."""
    fs, path = open_fs(url)
    with mapped(url):
        if isinstance(fs, LocalFileSystem):
            yield from _walk(path) if Path(path).is_dir() else [path] if Path(path).exists() else []
            return
        for name in fs.find(path):
            yield fs.unstrip_protocol(name)


def glob_files(pattern: str) -> list[FileInfo]:
    """All files that match a pattern of `*`, `?`, `[…]` and `**`, sorted by URL. Local links are followed.

    Raises:
        UsageError: a link points to nothing.
    """
    fs, path = open_fs(pattern)
    with mapped(pattern):
        if isinstance(fs, LocalFileSystem):
            return _local_infos(glob.glob(path, recursive=True))  # noqa: PTH207 (pathlib follows no links)
        found = fs.glob(path, detail=True).values()
        if not found and scheme(pattern) in _S3:
            check_bucket(fs, path)
        return _infos(fs, found)


def _walk(folder: str) -> Iterator[str]:
    """All files under `folder`, those of a folder that two names lead to under the first."""

    def failed(e: OSError) -> None:
        raise e

    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=failed):
        folders.sort()
        if (real := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(root, name) for name in names)  # noqa: PTH118


def _local_infos(paths: Iterable[str]) -> list[FileInfo]:
    found = []
    for path in sorted(paths):
        try:
            status = os.stat(path)  # noqa: PTH116
        except FileNotFoundError as e:
            if Path(path).is_symlink():
                raise UsageError(f"{path}: links to nothing. Restore what it points to, or remove the link.") from e
            continue  # went away since it was listed
        if stat.S_ISREG(status.st_mode):
            found.append(FileInfo(path, status.st_size, local_etag(status.st_mtime)))
    return found


def _infos(fs: fsspec.AbstractFileSystem, entries: Iterable[dict[str, Any]]) -> list[FileInfo]:
    found = [_info(fs, e["name"]) if e["size"] is None else file_info(fs, e) for e in entries if e["type"] == "file"]
    return sorted(found, key=lambda i: i.url)


def _info(fs: fsspec.AbstractFileSystem, path: str) -> FileInfo:
    return FileInfo(path, *http.stat(fs, path)) if isinstance(fs, HTTPFileSystem) else file_info(fs, fs.info(path))


def file_info(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> FileInfo:
    """What a file system says of one of its files."""
    name = entry["name"]
    if isinstance(fs, LocalFileSystem):
        return FileInfo(name, entry["size"], local_etag(entry["mtime"]))
    etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or entry.get("created") or ""
    return FileInfo(fs.unstrip_protocol(name), entry["size"], str(etag).strip('"'))


def local_etag(mtime: float) -> str:
    return str(int(mtime * 1e6))


def how_to_restore(url: str, etag: str) -> str:
    """What gives a local file the etag back that it had, for a message; nothing for objects of a store."""
    if not is_local(url) or not etag.isdigit():
        return ""
    path = shlex.quote(url.removeprefix("file://").removeprefix("local://"))
    # Half a microsecond more, so that no rounding on the way makes it the one before.
    return f" If its bytes are still the same, it is its time alone: `touch -d @{etag[:-6]}.{etag[-6:]}5 {path}`."
