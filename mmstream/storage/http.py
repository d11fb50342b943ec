"""HTTP answers told apart: missing, forbidden, changed, cut, busy.

fsspec's HTTP file system takes any failure of a question for a missing file, and a whole body for the range it asked
for. These few requests go through its session and say what happened: FileNotFoundError (404, 410), PermissionError
(401, 403), `ChangedError` (412, 416), OSError for every other status. What identifies a version is the ETag, or
where a server has none the time of its last change.
"""

from __future__ import annotations

import re
from typing import Any

from aiohttp import ClientTimeout
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from mmstream.errors import UnreachableError

STALL_SECONDS = 60.0


class ChangedError(OSError):
    """An answer that does not fit the object that was opened: a suspicion, to be confirmed by asking what is there."""


def stat(fs: HTTPFileSystem, url: str) -> tuple[int, str]:
    """Size in bytes and etag of what is at `url` now.

    Raises:
        UnreachableError: the server does not say how large it is, so that a cut could not be told.
    """
    return sync(fs.loop, _stat, fs, url)


async def _stat(fs: HTTPFileSystem, url: str) -> tuple[int, str]:
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):  # many servers refuse the first
        reply = await _ask(fs, method, url, headers)
        try:
            if method == "HEAD" and reply.status >= 400:
                continue
            _check(reply, url)
            size, etag = identity(reply)
        finally:
            reply.release()
        if size is not None:
            return size, etag
    raise UnreachableError(f"{url}: the server does not say how large it is, so a cut could not be told.")


def read_range(fs: HTTPFileSystem, url: str, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, fewer only at the end. A server that knows no ranges sends everything."""
    return sync(fs.loop, _read_range, fs, url, offset, length) if length else b""


async def _read_range(fs: HTTPFileSystem, url: str, offset: int, length: int) -> bytes:
    try:
        reply = await get(fs, url, offset, offset + length, "")
    except ChangedError:
        return b""  # 416: it ends before
    try:
        data = await reply.read()
    finally:
        reply.release()
    return data[:length] if reply.status == 206 else data[offset : offset + length]


async def get(fs: HTTPFileSystem, url: str, start: int, end: int, etag: str) -> Any:
    """The answer to a request for the bytes `start .. end`, its body still to be read: 206, or 200 from byte 0 on."""
    headers = {"Range": f"bytes={start}-{end - 1}"}
    if is_strong(etag):
        headers["If-Match"] = f'"{etag}"'
    reply = await _ask(fs, "GET", url, headers)
    try:
        _check(reply, url)
        found = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
        if reply.status == 206 and (not found or int(found[1]) != start):
            raise OSError(f"asked for bytes from {start:,}, got {reply.headers.get('Content-Range')}")
    except BaseException:
        reply.release()
        raise
    return reply


async def _ask(fs: HTTPFileSystem, method: str, url: str, headers: dict[str, str]) -> Any:
    session = await fs.set_session()
    timeout = ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    headers = {"Accept-Encoding": "identity", **headers}
    return await session.request(method, fs.encode_url(url), headers=headers, allow_redirects=True, timeout=timeout)


def identity(reply: Any) -> tuple[int | None, str]:
    """Size of the whole object, if the answer says it, and etag."""
    etag = reply.headers.get("ETag", "").strip('"') or reply.headers.get("Last-Modified", "")
    if reply.status == 206:
        total = reply.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = reply.headers.get("Content-Length", "")
    return int(total) if total.isdigit() else None, etag


def is_strong(etag: str) -> bool:
    """Whether it can be a condition: a weak one never fits, and a time is none."""
    return bool(etag) and not etag.startswith("W/") and not etag.endswith(" GMT")


def _check(reply: Any, url: str) -> None:
    status, said = reply.status, f"{url}: HTTP {reply.status} {reply.reason}"
    if status in (404, 410):
        raise FileNotFoundError(said)
    if status in (401, 403):
        raise PermissionError(said)
    if status in (412, 416):
        raise ChangedError(said)
    if status not in (200, 206):
        raise OSError(said)
    if reply.headers.get("Content-Encoding", "identity") not in ("identity", ""):
        raise UnreachableError(f"{url}: the server compresses what it sends, so that bytes have no place of their own.")
