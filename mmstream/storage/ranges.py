"""An object read forward by ranges: whatever the pattern of errors, its bytes come once, in order, of one version.

A request that fails is repeated from the byte where it ended, with full jitter, until nothing at all has come for
`ATTEMPTS` attempts and `PATIENCE_SECONDS`. Blocks are fetched one ahead of the reader, in a thread, as long as it
reads on; what it skips over is not fetched.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from zlib import crc32

from mmstream.errors import Reason, Rejected, UnreachableError
from mmstream.storage.files import FileInfo, is_local
from mmstream.storage.foreign import denied, is_store_error
from mmstream.storage.http import ChangedError
from mmstream.storage.objects import RangedObject, open_object

BLOCK_BYTES = 8 << 20
LOCAL_BLOCK_BYTES = 256 << 10  # stays in the processor's cache, and less is read of what is skipped
ATTEMPTS = 6
PATIENCE_SECONDS = 60.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 8.0


class RangeReader:
    """A forward reader of one object: `read`, `skip`, `tell`. Memory stays at two blocks whatever the object's size.
    `waited_seconds` is how long all of this has waited for the store so far.

    Raises (from the constructor, `read` and `sha256`):
        Rejected: `unreadable` where the object is gone; `source_changed` where size or etag are not `bytes` and
            `etag`, as the catalog says, or no longer what they were when it was opened.
        UnreachableError: the store did not answer any of the attempts, or refused.
    """

    def __init__(self, url: str, *, bytes: int | None = None, etag: str = "", block_bytes: int | None = None) -> None:
        self.url = url
        start = time.perf_counter()
        self._source = _Source(url, bytes, etag)
        self.waited_seconds = time.perf_counter() - start
        self.size = self._source.opened.bytes
        self._block_bytes = block_bytes or (LOCAL_BLOCK_BYTES if is_local(url) else BLOCK_BYTES)
        self._position = 0
        self._block = memoryview(b"")
        self._block_start = 0
        self._sums: dict[int, int] = {}  # CRC-32 of each block of which `sha256` was made, by its start
        # A local file needs no thread: the page cache reads ahead.
        self._ahead = None if is_local(url) else ThreadPoolExecutor(1, "range-reader")
        self._pending: tuple[int, Future[memoryview]] | None = None

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
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
        offset = start - self._block_start
        if offset >= 0 and end - self._block_start <= len(self._block):
            self._position = end
            return bytes(self._block[offset : end - self._block_start])
        parts: list[memoryview] = []
        while start < end:
            self._load(start)
            piece = self._block[start - self._block_start : end - self._block_start]
            parts.append(piece)
            start += len(piece)
        self._position = end
        return b"".join(parts)

    def sha256(self) -> str:
        """Of the whole object, which is read from its store once for it; the position stays. What is read afterwards
        is held against what was read here."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()

    def blocks(self) -> Iterator[memoryview]:
        """All of the object, which is read from its store for it; the position stays. What is read after the last one
        is held against what was read here."""
        self._block, self._block_start, self._pending, self._sums = memoryview(b""), 0, None, {}
        sums = {}
        for start in range(0, self.size, self._block_bytes):
            self._load(start)
            sums[start] = crc32(self._block)
            yield self._block
        self._sums = sums

    def rewind(self) -> None:
        """Moves back to the first byte."""
        self._position = 0

    def _load(self, position: int) -> None:
        start = position - position % self._block_bytes
        is_next = start == self._block_start + len(self._block)
        if self._block and start == self._block_start:
            return
        block = self._take(start)
        if not self._is_as_hashed(start, block) and not self._is_as_hashed(start, block := self._take(start)):
            raise Rejected(
                Reason.SOURCE_CHANGED, f"{self.url}: from byte {start:,} on not what its SHA-256 was taken of"
            )
        self._block, self._block_start = block, start
        following = start + self._block_bytes
        if self._ahead and is_next and following < self.size:  # who skips blocks would wait for what it does not want
            self._pending = (following, self._ahead.submit(self._fetch, following))

    def _is_as_hashed(self, start: int, block: memoryview) -> bool:
        return start not in self._sums or crc32(block) == self._sums[start]

    def _take(self, start: int) -> memoryview:
        since = time.perf_counter()
        try:
            return self._taken(start)
        finally:
            self.waited_seconds += time.perf_counter() - since

    def _taken(self, start: int) -> memoryview:
        if not self._ahead:
            return self._fetch(start)
        pending, self._pending = self._pending, None
        # All fetches in one thread, one after the other: an object may hold an open answer.
        future = pending[1] if pending and pending[0] == start else self._ahead.submit(self._fetch, start)
        return future.result()

    def _fetch(self, start: int) -> memoryview:
        return self._source.fetch(start, min(start + self._block_bytes, self.size))


class _Source:
    """One version of an object, from `opened` on: its bytes, asked for as often as needed."""

    def __init__(self, url: str, bytes: int | None, etag: str) -> None:
        self._url = url
        self._closing = threading.Event()
        self._object = self._open()
        try:
            self.opened = self._checked(bytes, etag, "the catalog says")
        except BaseException:
            self._object.close()
            raise

    def close(self) -> None:
        self._closing.set()
        self._object.close()

    def fetch(self, start: int, end: int) -> memoryview:
        """The bytes `start .. end`, all of them."""
        buffer, patience = bytearray(), _Patience(self._url, self._closing)
        while (at := start + len(buffer)) < end:
            error: Exception = OSError(f"asked for {end - at:,} bytes from {at:,}, got none")
            try:
                self._object.read_into(buffer, at, end, self.opened)
            except (FileNotFoundError, ChangedError) as e:
                self._checked(self.opened.bytes, self.opened.etag, f"before byte {at:,} of it was read it had")
                error = e  # a stray answer: the object is there, as it was
            except Exception as e:
                error = e
            if start + len(buffer) > at:
                patience.renew()
            else:
                patience.wait(error)
        return memoryview(buffer)[: end - start]

    def _open(self) -> RangedObject:
        try:
            return open_object(self._url)
        except FileNotFoundError:
            raise Rejected(Reason.UNREADABLE, f"{self._url} is gone") from None
        except PermissionError as e:
            raise denied(self._url, e) from e

    def _checked(self, bytes: int | None, etag: str, who: str) -> FileInfo:
        now = self._info()
        if bytes is not None and now.bytes != bytes:
            raise Rejected(Reason.SOURCE_CHANGED, f"{self._url} has {now.bytes} bytes, {who} {bytes}")
        if etag and now.etag and now.etag != etag:
            raise Rejected(Reason.SOURCE_CHANGED, f"{self._url} has etag {now.etag}, {who} {etag}")
        return now

    def _info(self) -> FileInfo:
        patience = _Patience(self._url, self._closing)
        while True:
            try:
                return self._object.info()
            except FileNotFoundError:
                raise Rejected(Reason.UNREADABLE, f"{self._url} is gone") from None
            except Exception as e:
                patience.wait(e)


class _Patience:
    """Waits between attempts, longer each time, and says when it is enough."""

    def __init__(self, url: str, closing: threading.Event) -> None:
        self._url, self._closing = url, closing
        self.renew()

    def renew(self) -> None:
        """Something came: the next failure is a first one."""
        self._attempts, self._since = 0, time.monotonic()

    def wait(self, error: Exception) -> None:
        """
        Raises:
            UnreachableError: access is denied, or the last of the attempts has failed.
            Exception: the error itself, where it is none of a store's.
        """
        if isinstance(error, PermissionError):
            raise denied(self._url, error) from error
        if not is_store_error(error):
            raise error
        self._attempts += 1
        seconds = time.monotonic() - self._since
        if (self._attempts >= ATTEMPTS and seconds >= PATIENCE_SECONDS) or self._closing.is_set():
            raise UnreachableError(
                f"{self._url}: {self._attempts} attempts in {seconds:.0f} s failed, the last with "
                f"{type(error).__name__}: {str(error)[:200]}. "
                "What was committed stays; run the same command again when the store answers."
            ) from error
        self._closing.wait(random.uniform(0, min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self._attempts)))
