"""A compressed object is read forward as what it holds: gzip with all its members, zstd with all its frames.

    with open_reader(url, bytes=…, etag=…) as reader: …      as `ranges.RangeReader`, whatever the object is

Which objects are compressed their names say (`SUFFIXES`). Their checksums come last: an object is unpacked to its end
before the first byte of it is handed on, and what is read afterwards is held against what was read then. So it counts
whole or not at all. Offsets are those of the unpacked bytes, and to reach one all before it is unpacked. Errors of the
store are healed below, by byte offset of the packed object.

Arrow unpacks: it goes on at the next member or frame, and knows an end that was cut.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pyarrow as pa

from mmstream.errors import MmstreamError, Reason, Rejected
from mmstream.storage.files import read_range
from mmstream.storage.ranges import RangeReader

SUFFIXES = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tzst": "zstd"}
MOST_GROWTH, FREE_BYTES = 1_100, 64 << 20  # gzip grows at most 1,032-fold: what is unpacked to what was read, and free
_PIECE_BYTES = 256 << 10
_BLOCK_BYTES = 512  # of a tar


def compression_of(url: str) -> str | None:
    """gzip or zstd, by the end of the name; None for what is read as it is."""
    name = os.path.basename(url.partition("?")[0] if url.startswith(("http://", "https://")) else url).lower()  # noqa: PTH119
    return next((codec for suffix, codec in SUFFIXES.items() if name.endswith(suffix)), None)


def stem_of(url: str) -> str:
    """The URL of a shard without the suffix that says what it is: `….tar`, or one of `SUFFIXES`."""
    suffix = next((s for s in (".tar", *SUFFIXES) if url.lower().endswith(s)), "")
    return url[: len(url) - len(suffix)]


def open_reader(
    url: str, *, bytes: int | None = None, etag: str = "", block_bytes: int | None = None, checked: bool = True
) -> RangeReader | CompressedReader:
    """The reader of what a shard holds; raises as `RangeReader` and `CompressedReader` do."""
    if codec := compression_of(url):
        return CompressedReader(url, codec, bytes=bytes, etag=etag, block_bytes=block_bytes, checked=checked)
    return RangeReader(url, bytes=bytes, etag=etag, block_bytes=block_bytes)


def read_part(url: str, offset: int, length: int) -> bytes:
    """`length` bytes of what a shard holds, from `offset` on; of a compressed one everything before is unpacked, too.

    Raises:
        Rejected: `compression`, it cannot be unpacked so far.
        UsageError, UnreachableError: as `files.read_range`.
    """
    if not compression_of(url):
        return read_range(url, offset, length)
    with open_reader(url, checked=False) as reader:
        reader.skip(offset)
        return reader.read(length)


class CompressedReader:
    """`read`, `skip` and `tell` of the unpacked bytes. Memory stays at a few blocks whatever the object's size.

    Args:
        checked: unpack all of it first. Without, damage shows where it is reached, or not at all.

    Attributes:
        size: of what it holds, where that was checked.

    Raises (from the constructor, `read` and `skip`):
        Rejected: `compression`, where it is damaged, cut, or grows beyond all measure; and as `RangeReader`.
        UnreachableError: as `RangeReader`.
    """

    def __init__(
        self,
        url: str,
        codec: str,
        *,
        bytes: int | None = None,
        etag: str = "",
        block_bytes: int | None = None,
        checked: bool = True,
    ) -> None:
        self.url, self._codec, self.size, self._broken = url, codec, 0, None
        self._packed = RangeReader(url, bytes=bytes, etag=etag, block_bytes=block_bytes)
        try:
            if checked:
                self._check()
            self._restart()
        except BaseException:
            self._packed.__exit__()
            raise

    def __enter__(self) -> CompressedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._packed.__exit__()

    @property
    def waited_seconds(self) -> float:
        return self._packed.waited_seconds

    def tell(self) -> int:
        return self._position

    def skip(self, n: int) -> None:
        """Moves `n` bytes on, at most to the end."""
        while n and (piece := self._take(n)):
            n -= len(piece)

    def read(self, n: int) -> bytes:
        """Exactly `n` bytes, fewer only at the end."""
        first = self._take(n)
        if len(first) == n:
            return bytes(first)
        pieces, missing = [first], n - len(first)
        while missing and (piece := self._take(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def sha256(self) -> str:
        """Of the packed object, which is read for it; the position stays."""
        position, digest = self._position, self._packed.sha256()
        self._restart()
        self.skip(position)
        return digest

    def _take(self, n: int) -> memoryview:
        """The next bytes, at most `n`; empty at the end."""
        if self._broken:  # and never a quiet end
            raise self._broken
        if self._at == len(self._piece):
            try:
                self._piece, self._at = memoryview(next(self._pieces, b"")), 0
            except Rejected as e:
                self._broken = e
                raise
        taken = self._piece[self._at : self._at + n]
        self._at += len(taken)
        self._position += len(taken)
        return taken

    def _restart(self) -> None:
        self._packed.rewind()
        self._pieces = self._unpacked(_File(self._packed.read))
        self._piece, self._at, self._position, self._broken = memoryview(b""), 0, 0, None

    def _check(self) -> None:
        """Twice, if need be: a bit that was flipped on the way is another bit the next time."""
        try:
            self._unpack_all()
        except Rejected as e:
            if e.reason != Reason.COMPRESSION:
                raise
            self._unpack_all()

    def _unpack_all(self) -> None:
        blocks = _Joined(self._packed.blocks())
        self.size = sum(map(len, self._unpacked(_File(blocks.read))))
        blocks.drain()  # so that there is a sum of every block

    def _unpacked(self, file: _File) -> Iterator[bytes]:
        """Pieces of what is unpacked, to the end."""
        unpacked = 0
        with pa.CompressedInputStream(pa.PythonFile(file, "r"), self._codec) as stream:
            while True:
                try:
                    piece = stream.read(_PIECE_BYTES)
                except (MmstreamError, Rejected, MemoryError):  # of the store; of this machine
                    raise
                except (OSError, pa.ArrowException) as e:
                    detail = f"{self.url}: {str(e).splitlines()[0]}, after {unpacked:,} unpacked bytes"
                    found = _content_of(file.first)
                    if not unpacked and found not in (None, self._codec):
                        detail = f"{self.url}: {self._codec} by its name, and its content is {found}"
                    raise Rejected(Reason.COMPRESSION, detail) from e
                if not piece:
                    return
                unpacked += len(piece)
                if unpacked > MOST_GROWTH * file.num_read + FREE_BYTES:
                    detail = f"{self.url}: {file.num_read:,} bytes grow to more than {unpacked:,}: no shard does"
                    raise Rejected(Reason.COMPRESSION, detail)
                yield piece


class _Joined:
    """Blocks as a file has them."""

    def __init__(self, blocks: Iterator[memoryview]) -> None:
        self._blocks, self._block = blocks, memoryview(b"")

    def read(self, n: int) -> bytes:
        if not self._block:
            self._block = next(self._blocks, memoryview(b""))
        piece, self._block = self._block[:n], self._block[n:]
        return bytes(piece)

    def drain(self) -> None:
        for _ in self._blocks:
            pass


class _File(io.RawIOBase):
    """What Arrow reads packed bytes from; `num_read` of them so far."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self.num_read, self.first = read, 0, b""

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        data = self._read(n if n >= 0 else _PIECE_BYTES)
        self.first = self.first or data[:_BLOCK_BYTES]
        self.num_read += len(data)
        return data


def _content_of(first: bytes) -> str | None:
    """By its first bytes; None for what is none of these."""
    if first[257:262] == b"ustar":
        return "a plain tar"
    magic = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
    return next((name for begins, name in magic.items() if first.startswith(begins)), None)
