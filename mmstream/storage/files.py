"""Bytes at URLs: any fsspec URL or local path goes in, bytes come out, foreign errors become ours.

Credentials come from the environment or the platform. File systems are rebuilt from the URL in every process, so
nothing secret is ever pickled, and listings are never cached: what another process wrote is seen. `RangeReader` reads
an object forward in ranged requests, each repeated on its own when it fails, so that no pattern of errors loses or
repeats a byte.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from mmstream.errors import MmstreamError, Reason, Rejected, UnreachableError, UsageError

BLOCK_BYTES = 8 << 20
ATTEMPTS = 6
T = TypeVar("T")
_FORBIDDEN = ("pipe:", "shell:", "reference:")  # they run commands, or read what another file says


@dataclass(frozen=True)
class FileInfo:
    """`etag` changes when the content does: the store's own, or the modification time of a local file."""

    url: str
    bytes: int
    etag: str


def scheme(url: str) -> str:
    return url.split("://", 1)[0] if "://" in url else "file"


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in ("s3", "s3a"):
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
        UsageError: an unknown scheme, one that runs commands, or one whose package is not installed.
    """
    _check_scheme(url)
    try:
        return url_to_fs(url, **_options(scheme(url)))
    except ImportError as e:
        raise UsageError(f"{url}: {e}. Install the extra for this store (mmstream[gcs], mmstream[azure]).") from e
    except ValueError as e:
        raise UsageError(f"{url}: {e}.") from e


def _check_scheme(url: str) -> None:
    if url.startswith(_FORBIDDEN):
        raise UsageError(f"{url}: such URLs are refused; give a file, s3, gs, az or http URL.")


def is_local(url: str) -> bool:
    return scheme(url) in ("file", "local")


def absolute(url: str) -> str:
    """A local path made absolute; a URL as it is, without a closing slash.

    Raises:
        UsageError: a scheme that is refused.
    """
    _check_scheme(url)
    if is_local(url):
        return os.path.normpath(Path(url.removeprefix("file://").removeprefix("local://")).expanduser().absolute())
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *(p.strip("/") for p in parts)])


@contextmanager
def mapped(url: str) -> Generator[None]:
    """Foreign errors of a store become `UsageError` (not there) or `UnreachableError` (no answer, not allowed)."""
    try:
        yield
    except (MmstreamError, Rejected, FileExistsError):
        raise
    except FileNotFoundError as e:
        raise UsageError(f"{url}: nothing is there. Check the path or URL.") from e
    except PermissionError as e:
        raise UnreachableError(f"{url}: access denied ({e}). Check the credentials in the environment.") from e
    except Exception as e:
        if not _is_store_error(e):
            raise
        detail = f"{type(e).__name__}: {str(e)[:200]}"
        raise UnreachableError(
            f"{url}: the store does not answer ({detail}). Check endpoint, network and credentials."
        ) from e


def _is_store_error(e: BaseException) -> bool:
    module = type(e).__module__.split(".")[0]
    return isinstance(e, OSError) or module in (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "gcsfs",
        "azure",
        "fsspec",
    )


def read_bytes(url: str) -> bytes:
    fs, path = open_fs(url)
    with mapped(url):
        return fs.cat_file(path)


def read_range(url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; fewer only at the end of the object."""
    fs, path = open_fs(url)
    with mapped(url):
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
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        sync_folder(target.parent)


def write_temporary(target: Path, data: bytes) -> Path:
    """`data`, synced to disk, in a file beside `target` whose name no other writer has."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise UsageError(f"{e.filename}: is a file where a folder is needed. Choose another path.") from e
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{random.SystemRandom().getrandbits(48):012x}")
    with temporary.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    return temporary


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def info(url: str) -> FileInfo:
    fs, path = open_fs(url)
    with mapped(url):
        return _file_info(fs, fs.info(path))


def exists(url: str) -> bool:
    fs, path = open_fs(url)
    with mapped(url):
        return fs.exists(path)


def is_folder(url: str) -> bool:
    fs, path = open_fs(url)
    with mapped(url):
        return fs.isdir(path)


def list_files(url: str) -> list[FileInfo]:
    """All files at and under a folder, sorted by URL; empty where there is no such folder."""
    fs, path = open_fs(url)
    with mapped(url):
        found = fs.find(path, detail=True)
    return _infos(fs, found.values())


def glob_files(pattern: str) -> list[FileInfo]:
    """All files that match a pattern of `*`, `?`, `[…]` and `**`, sorted by URL."""
    fs, path = open_fs(pattern)
    with mapped(pattern):
        found = fs.glob(path, detail=True)
    return _infos(fs, found.values())


def _infos(fs: fsspec.AbstractFileSystem, entries: Any) -> list[FileInfo]:
    return sorted((_file_info(fs, e) for e in entries if e["type"] == "file"), key=lambda i: i.url)


def _file_info(fs: fsspec.AbstractFileSystem, entry: dict[str, Any]) -> FileInfo:
    name = entry["name"]
    if isinstance(fs, LocalFileSystem):
        return FileInfo(name, entry["size"], str(int(entry["mtime"] * 1e6)))
    etag = entry.get("ETag") or entry.get("etag") or entry.get("md5Hash") or entry.get("created") or ""
    if entry["size"] is None:
        raise UnreachableError(f"{name}: the server does not say how large it is, so a cut could not be told.")
    return FileInfo(fs.unstrip_protocol(name), entry["size"], str(etag).strip('"'))


class RangeReader:
    """A forward reader of one object: `read`, `skip`, `tell`. Memory stays at two blocks whatever the object's size.

    Remote objects are fetched one block ahead in a thread. A request that fails is repeated `ATTEMPTS` times with
    full jitter; since every request names its own range, what was read before is neither lost nor read twice.

    Raises (from the constructor and `read`):
        Rejected: `unreadable` where the object is gone, `source_changed` where its size or etag is not as expected.
        UnreachableError: the store did not answer any of the attempts, or refused.
    """

    def __init__(self, url: str, *, bytes: int | None = None, etag: str = "", block_bytes: int = BLOCK_BYTES) -> None:
        self.url = url
        self._fs, self._path = open_fs(url)
        self._block_bytes = block_bytes
        now = self._checked_info(bytes, etag)
        self.size = now.bytes
        self._position = 0
        self._block = b""
        self._block_start = 0
        self._file = Path(self._path).open("rb", buffering=0) if isinstance(self._fs, LocalFileSystem) else None  # noqa: SIM115
        self._ahead: ThreadPoolExecutor | None = None if self._file else ThreadPoolExecutor(1, "range-reader")
        self._pending: tuple[int, Future[memoryview]] | None = None

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
        if self._ahead:
            self._ahead.shutdown(wait=False, cancel_futures=True)

    def tell(self) -> int:
        return self._position

    def skip(self, n: int) -> None:
        """Moves `n` bytes on, at most to the end. Blocks that lie wholly in between are never fetched."""
        self._position = min(self._position + n, self.size)

    def read(self, n: int) -> bytes:
        """Exactly `n` bytes, fewer only at the end of the object."""
        start, end = self._position, min(self._position + n, self.size)
        self._position = end
        offset = start - self._block_start
        if offset >= 0 and end - self._block_start <= len(self._block):
            return bytes(self._block[offset : end - self._block_start])
        parts: list[memoryview] = []
        while start < end:
            self._load(start)
            piece = memoryview(self._block)[start - self._block_start : end - self._block_start]
            parts.append(piece)
            start += len(piece)
        return b"".join(parts)

    def _load(self, position: int) -> None:
        start = position - position % self._block_bytes
        if self._block and start == self._block_start:
            return
        self._block = self._take(start)
        self._block_start = start
        following = start + self._block_bytes
        if self._ahead and following < self.size:
            self._pending = (following, self._ahead.submit(self._fetch, following))

    def _take(self, start: int) -> memoryview:
        pending, self._pending = self._pending, None
        if pending and pending[0] == start:
            return pending[1].result()
        return self._fetch(start)

    def _fetch(self, start: int) -> memoryview:
        length = min(self._block_bytes, self.size - start)
        try:
            return memoryview(_repeated(lambda: self._fetch_once(start, length), self.url))
        except FileNotFoundError:
            raise Rejected(Reason.UNREADABLE, f"{self.url} went away at byte {start:,}") from None

    def _fetch_once(self, start: int, length: int) -> bytes:
        if self._file:
            data = os.pread(self._file.fileno(), length, start)
        else:
            data = self._fs.cat_file(self._path, start=start, end=start + length)
        if len(data) != length:
            raise OSError(f"asked for {length} bytes at {start}, got {len(data)}")
        return data

    def _checked_info(self, bytes: int | None, etag: str) -> FileInfo:
        try:
            now = _repeated(lambda: _file_info(self._fs, self._fs.info(self._path)), self.url)
        except FileNotFoundError:
            raise Rejected(Reason.UNREADABLE, f"{self.url} is gone") from None
        if bytes is not None and now.bytes != bytes:
            raise Rejected(Reason.SOURCE_CHANGED, f"{self.url} has {now.bytes} bytes, the catalog says {bytes}")
        if etag and now.etag and now.etag != etag:
            raise Rejected(Reason.SOURCE_CHANGED, f"{self.url} has etag {now.etag}, the catalog says {etag}")
        return now


def _repeated(request: Callable[[], T], url: str) -> T:
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except FileNotFoundError:
            raise
        except PermissionError as e:
            raise UnreachableError(f"{url}: access denied ({e}). Check the credentials in the environment.") from e
        except Exception as e:
            if not _is_store_error(e):
                raise
            if attempt == ATTEMPTS - 1:
                raise UnreachableError(
                    f"{url}: {ATTEMPTS} attempts failed, the last with {type(e).__name__}: {str(e)[:200]}. "
                    "What was committed stays; run the same command again when the store answers."
                ) from e
            time.sleep(random.uniform(0, min(8.0, 0.2 * 2**attempt)))
    raise AssertionError("unreachable")
