"""Small tars in memory, and a forward reader of them that counts what is asked of it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

File = tuple[str, bytes]


class Source(io.BytesIO):
    """A `ByteSource` over bytes. `num_read` and `largest_read` say what was read, not skipped."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.num_read = 0
        self.largest_read = 0

    def read(self, n: int | None = -1, /) -> bytes:
        assert n is not None and n >= 0
        self.num_read += n
        self.largest_read = max(self.largest_read, n)
        return super().read(n)

    def skip(self, n: int, /) -> None:
        self.seek(min(self.tell() + n, len(self.getbuffer())))


def make_tar(files: Iterable[File | tarfile.TarInfo], format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar as `tarfile` writes it, without the padding beyond the two closing blocks."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                tar.addfile(file)
            else:
                header = tarfile.TarInfo(file[0])
                header.size = len(file[1])
                tar.addfile(header, io.BytesIO(file[1]))
        length = tar.offset
    return out.getvalue()[: length + 1024]


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header
