"""One object at a URL: what it is now, and its bytes by range, protocol by protocol.

What one attempt to read promises: it appends to the buffer the object's bytes from `start` on, in order and at most
up to `end`, and raises where it cannot go on. What it appended before stays true, so that the next attempt asks for
the rest. Bytes of another version of the object are never appended: S3 and HTTP are asked with `If-Match`, and every
answer's own etag and size are compared; elsewhere size and etag are compared after each read.

Every attempt ends: sockets time out after silence (HTTP 60 s, S3 s3fs's 15 s), and no read takes longer than that
and a second for every 32 KiB.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs.errors import translate_boto_error

from mmstream.storage import http
from mmstream.storage.files import FileInfo, file_info, local_etag, open_fs
from mmstream.storage.http import ChangedError

SLOWEST_BYTES_PER_SECOND = 32 << 10
PIECE_BYTES = 1 << 18


class RangedObject(Protocol):
    """What is at a URL. `opened` is what `info` said when reading began."""

    def info(self) -> FileInfo: ...
    def read_into(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None: ...
    def close(self) -> None: ...


def open_object(url: str) -> RangedObject:
    """
    Raises:
        UsageError: a scheme that is refused or unknown.
        FileNotFoundError, PermissionError: of a local file. Others say so when they are asked.
    """
    fs, path = open_fs(url)
    if isinstance(fs, LocalFileSystem):
        return _LocalObject(path)
    if isinstance(fs, HTTPFileSystem):
        return _HttpObject(fs, path)
    return _S3Object(fs, path) if "s3" in fs.protocol else _OtherObject(fs, path)


def _check_same(size: int | None, etag: str, opened: FileInfo) -> None:
    if size is not None and size != opened.bytes:
        raise ChangedError(f"it has {size:,} bytes now and had {opened.bytes:,}")
    if etag and opened.etag and etag != opened.etag:
        raise ChangedError(f"its etag is {etag} now and was {opened.etag}")


def _bounded(fs: Any, read: Callable[..., Coroutine], buffer: bytearray, start: int, end: int, *args: Any) -> None:
    """`read` on the file system's own loop, ended when it takes too long."""

    async def attempt() -> None:
        seconds = http.STALL_SECONDS + (end - start) / SLOWEST_BYTES_PER_SECOND
        await asyncio.wait_for(read(buffer, start, end, *args), seconds)

    sync(fs.loop, attempt)


class _LocalObject:
    """An open file: replaced by another it is read to its end as it was, written to it is noticed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115

    def info(self) -> FileInfo:
        stat = os.fstat(self._file.fileno())
        return FileInfo(self._path, stat.st_size, local_etag(stat.st_mtime))

    def read_into(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        data = os.pread(self._file.fileno(), end - start, start)
        now = self.info()
        _check_same(now.bytes, now.etag, opened)
        buffer += data

    def close(self) -> None:
        self._file.close()


class _S3Object:
    """Asked through s3fs's client but not its own repetitions: how often is for the caller to say."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._url = fs, fs.unstrip_protocol(path)
        bucket, key, version = fs.split_path(path)
        self._address = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})

    def info(self) -> FileInfo:
        reply = sync(self._fs.loop, self._ask, "head_object")
        return FileInfo(self._url, reply["ContentLength"], reply.get("ETag", "").strip('"'))

    def read_into(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        _bounded(self._fs, self._read, buffer, start, end, opened)

    async def _read(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        condition = {"IfMatch": f'"{opened.etag}"'} if http.is_strong(opened.etag) else {}
        reply = await self._ask("get_object", Range=f"bytes={start}-{end - 1}", **condition)
        async with reply["Body"] as body:
            part = re.match(r"bytes (\d+)-\d+/(\d+)", reply.get("ContentRange", ""))
            first, size = (int(part[1]), int(part[2])) if part else (0, reply["ContentLength"])
            _check_same(size, reply.get("ETag", "").strip('"'), opened)
            if first != start:
                raise OSError(f"asked for bytes from {start:,}, got them from {first:,}")
            async for piece in body.iter_chunks(PIECE_BYTES):
                buffer += piece

    async def _ask(self, method: str, **wanted: str) -> Any:
        await self._fs.set_session()
        ask = getattr(await self._fs.get_s3(self._address["Bucket"]), method)
        try:
            return await ask(**self._fs._get_s3_method_kwargs(ask, **self._address, **wanted))
        except ClientError as e:
            if e.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (412, 416):
                raise ChangedError(f"the store answers: {e}") from e
            raise translate_boto_error(e) from e

    def close(self) -> None:
        """Connections stay with s3fs, for other objects."""


class _HttpObject:
    """A server that ignores ranges sends everything from byte 0: that one answer is kept open and read on."""

    def __init__(self, fs: HTTPFileSystem, url: str) -> None:
        self._fs, self._url = fs, url
        self._reply: Any = None
        self._at = 0  # the next byte of its body

    def info(self) -> FileInfo:
        return FileInfo(self._url, *http.stat(self._fs, self._url))

    def read_into(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        _bounded(self._fs, self._read, buffer, start, end, opened)

    async def _read(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        try:
            if self._reply is None or self._at > start:
                self._drop()
                self._reply = await http.get(self._fs, self._url, start, end, opened.etag)
                self._at = start if self._reply.status == 206 else 0
                _check_same(*http.identity(self._reply), opened)
            while self._at < end:
                piece = await self._reply.content.read(
                    min(PIECE_BYTES, (start if self._at < start else end) - self._at)
                )
                if not piece:
                    raise OSError(f"the answer ends at byte {self._at:,}, before {end:,}")
                if self._at >= start:
                    buffer += piece
                self._at += len(piece)
        except BaseException:
            self._drop()
            raise
        if self._reply.status == 206:
            self._drop()

    def _drop(self) -> None:
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.release()

    def close(self) -> None:
        self._fs.loop.call_soon_threadsafe(self._drop)


class _OtherObject:
    """Any other fsspec file system: it knows no conditional read, so the object is looked at after each one."""

    def __init__(self, fs: AbstractFileSystem, path: str) -> None:
        self._fs, self._path = fs, path

    def info(self) -> FileInfo:
        return file_info(self._fs, self._fs.info(self._path))

    def read_into(self, buffer: bytearray, start: int, end: int, opened: FileInfo) -> None:
        data = self._fs.cat_file(self._path, start=start, end=end)
        now = self.info()
        _check_same(now.bytes, now.etag, opened)
        if len(data) > end - start:
            raise OSError(f"asked for {end - start:,} bytes from {start:,}, got {len(data):,}")
        buffer += data

    def close(self) -> None:
        """The file system keeps what it needs."""
