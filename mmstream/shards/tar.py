"""Tar bytes in, members out; whatever is not a whole, sound tar is said aloud.

`tarfile` and what is built on it take a damaged header for the end of the archive and lose the rest without a word.
This walk ends normally only at two zero blocks with nothing but zeros behind them, and raises `TarDamage` with the
offset otherwise. Memory is constant: one member at a time, its size checked before anything is read. Nothing is ever
written to disk, names are only data.

The rules, which are `tarfile`'s wherever that reads on (tests/shards/test_tar.py compares the two):

* **Header**: 512 bytes whose checksum fits, summed unsigned or, as some old systems did, signed. Sizes are octal, blank
  for 0, or base-256; a negative one is damage.
* **Name**: ustar's prefix and name; GNU's `L` header; PAX `path`, which wins. Bytes that are no UTF-8 are spelt out
  so that two names stay two.
* **PAX**: of an own (`x`, `X`) header `path`, `size` and signs of a sparse file count for the next member, of a global
  one (`g`) for all that follow and say nothing else. A malformed record, one above `EXTENSION_LIMIT`, or an extension
  without its member is damage: the next header could not be told from payload.
* **Sparse files** (GNU's `S` with its map, and PAX's three dialects), **links**, hard and symbolic, **devices, fifos,
  unknown types**, and names that are absolute or climb with `..` are handed out without data as `unsafe_member`.
  What follows them is read on: links and devices have no payload whatever size they claim.
* **Directories** (type 5, or V7's name that ends with a slash) are passed over.
* **End**: two zero blocks, then zeros. One zero block, no end mark, or other bytes behind it are damage, so of several
  tars in one file the first is read. Compressed tars are `not_tar`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn, Protocol
from zlib import adler32

from mmstream.errors import Reason

BLOCK = 512
MEMBER_LIMIT = 128 << 20
EXTENSION_LIMIT = 1 << 20  # bytes of one PAX header or GNU long name

_ZEROS = bytes(BLOCK)
_BACKSLASHES = re.compile(r"\\+(?=x[89a-f][0-9a-f]|[\udc80-\udcff])")
_PLAIN = frozenset(b"0\x007")
_WITHOUT_PAYLOAD = frozenset(b"123456")
_SPARSE = "GNU.sparse."
_KINDS = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a character device",
    ord("4"): "a block device",
    ord("6"): "a fifo",
}


class ByteSource(Protocol):
    """A forward reader: `read` gives exactly n bytes and `skip` moves n on, fewer only at the end."""

    def read(self, n: int, /) -> bytes: ...
    def skip(self, n: int, /) -> None: ...
    def tell(self) -> int: ...


class TarDamage(Exception):
    """The shard breaks here: what was complete before `offset` was handed out, the rest cannot be known.

    `member` is the name of the file whose payload is cut, where its header could still be read.
    """

    def __init__(self, reason: Reason, offset: int, detail: str, member: str | None = None) -> None:
        super().__init__(f"{reason} at byte {offset:,}: {detail}")
        self.reason = reason
        self.offset = offset
        self.detail = detail
        self.member = member


class Member(NamedTuple):
    """One file of a shard. `data` is None for what was not wanted and for what has a `problem`.

    `offset` is the first header block, extension headers included, and the payload's `size` bytes begin at
    `data_offset`.
    """

    name: str
    offset: int
    data_offset: int
    size: int
    data: bytes | None
    problem: Reason | None = None
    detail: str = ""


class _Header(NamedTuple):
    name: str
    offset: int
    kind: int
    size: int
    is_sparse: bool


def members(
    reader: ByteSource, *, member_limit: int = MEMBER_LIMIT, want: Callable[[str, int], bool] = lambda name, size: True
) -> Iterator[Member]:
    """All members but directories, in order. `want(name, size)` is asked once for each sound one before its payload is
    read; a payload that is not wanted, or larger than `member_limit` bytes (`member_too_large`), is skipped.

    Raises:
        TarDamage: `not_tar` (empty, or no header at the start), `tar_header`, `tar_truncated` or `tar_trailing`.
    """
    global_pax: dict[str, str] = {}
    while (header := _next_header(reader, global_pax)) is not None:
        if header.kind != ord("5"):
            yield _member(reader, header, member_limit, want)
    _check_tail(reader)


def _member(reader: ByteSource, header: _Header, member_limit: int, want: Callable[[str, int], bool]) -> Member:
    name, offset, kind, size, _ = header
    size = 0 if kind in _WITHOUT_PAYLOAD else size
    data_offset = reader.tell()
    problem, detail = _problem(header, size, member_limit)
    data = None
    if problem is None and want(name, size):
        data = reader.read(size)
        reader.skip(-size % BLOCK)
    else:
        reader.skip(size + -size % BLOCK)
    end = data_offset + size + -size % BLOCK
    if reader.tell() != end:
        cut = f"{name}: the shard ends {reader.tell() - data_offset:,} bytes into a payload of {size:,}"
        raise TarDamage(Reason.TAR_TRUNCATED, offset, cut, name)
    return Member(name, offset, data_offset, size, data, problem, detail)


def _problem(header: _Header, size: int, member_limit: int) -> tuple[Reason | None, str]:
    name, _, kind, _, is_sparse = header
    if kind not in _PLAIN:
        return Reason.UNSAFE_MEMBER, f"{name} is {_KINDS.get(kind, f'of type {chr(kind)!r}')}, not a plain file"
    if is_sparse:
        return Reason.UNSAFE_MEMBER, f"{name} is a sparse file"
    if name.startswith("/") or (".." in name and ".." in name.split("/")):
        return Reason.UNSAFE_MEMBER, f"{name} points outside of the archive"
    if size > member_limit:
        return Reason.MEMBER_TOO_LARGE, f"{name} has {size:,} bytes, the limit is {member_limit:,}"
    return None, ""


def _next_header(reader: ByteSource, global_pax: dict[str, str]) -> _Header | None:
    """The next member's header with its extension headers folded in; None at the end mark."""
    start = reader.tell()
    own_pax: dict[str, str] = {}
    long_name = None
    while True:
        offset = reader.tell()
        block = reader.read(BLOCK)
        if block == _ZEROS:
            _check_end_mark(reader, start, offset)
            return None
        kind, size = _checked(block, start, offset)
        if kind in b"LKxXg":
            payload = _extension(reader, start, size)
            if kind == ord("L"):
                long_name = _text(payload)
            elif kind != ord("K"):
                (global_pax if kind == ord("g") else own_pax).update(_pax_records(payload, start))
            continue
        pax = {**global_pax, **own_pax}
        if kind == ord("S"):
            _skip_sparse_map(reader, block, start)
        if "size" in pax:
            size = _pax_size(pax["size"], start)
        name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or _short_name(block)
        if name.endswith("/") and kind in b"0\0":  # as V7 writes a directory
            kind, size = ord("5"), 0
        is_sparse = bool(pax) and any(k.startswith(_SPARSE) for k in pax)
        return _Header(name, start, kind, size, is_sparse)


def _check_end_mark(reader: ByteSource, start: int, offset: int) -> None:
    if start != offset:
        _broken(start, "extension headers are followed by a zero block instead of their member")
    second = reader.read(BLOCK)
    if len(second) < BLOCK:
        raise TarDamage(Reason.TAR_TRUNCATED, offset, "the shard ends after the first of two closing zero blocks")
    if second != _ZEROS:
        _broken(offset, "a lone zero block where a header should be")


def _check_tail(reader: ByteSource) -> None:
    while piece := reader.read(1 << 16):
        if piece.count(0) != len(piece):
            offset = reader.tell() - len(piece.lstrip(b"\0"))
            detail = "data after the end mark; several tars in one file are read up to the first one's end"
            raise TarDamage(Reason.TAR_TRAILING, offset, detail)


_OTHERS = {
    b"\x1f\x8b": "this is gzip: name it .tar.gz",
    b"\x28\xb5\x2f\xfd": "this is zstd: name it .tar.zst",
    b"\xfd7zXZ": "this is xz, which is not read: gzip and zstd are",
    b"BZh": "this is bzip2, which is not read: gzip and zstd are",
    b"PK\x03\x04": "this is a ZIP file",
}


def _what_else(block: bytes) -> str:
    return next((what for magic, what in _OTHERS.items() if block.startswith(magic)), f"it begins {block[:8]!r}")


def _checked(block: bytes, start: int, offset: int) -> tuple[int, int]:
    """Type and size of a header block whose length and checksum are right."""
    if len(block) < BLOCK:
        if offset == 0 and not _looks_like_header(block):
            raise TarDamage(Reason.NOT_TAR, 0, f"{len(block)} bytes and no tar header")
        where = "inside a header" if block else "without the two closing zero blocks"
        raise TarDamage(Reason.TAR_TRUNCATED, start, f"the shard ends {where}, at byte {offset + len(block):,}")
    if not _checksum_fits(block):
        if offset == 0 and not _looks_like_header(block):
            raise TarDamage(Reason.NOT_TAR, 0, f"the first block is no tar header ({_what_else(block)})")
        _broken(start, f"the checksum of the header at byte {offset:,} is wrong")
    size = _number(block[124:136])
    if size is None or size < 0:
        _broken(start, f"the size in the header at byte {offset:,} is no size: {block[124:136]!r}")
    return block[156], size


def _looks_like_header(block: bytes) -> bool:
    """Whether it has a tar's magic, or at least digits or nothing where the checksum of an old one would be."""
    checksum = block[148:156].strip(b"\0 ")
    return block[257:262] == b"ustar" or (len(block) == BLOCK and (not checksum or checksum.isdigit()))


def _checksum_fits(block: bytes) -> bool:
    """The sum of all bytes, those of the checksum itself taken as spaces."""
    field = block[148:156]
    stored = _number(field)
    if stored is None:
        return False
    # adler32's lower half is 1 + the sum modulo 65,521, and 256 bytes cannot reach that: exact, and in C.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    if total - sum(field) + 256 == stored:
        return True
    rest = block[:148] + block[156:]  # some old systems summed signed bytes
    return sum(rest) + 256 - 256 * sum(byte > 127 for byte in rest) == stored


def _number(field: bytes) -> int | None:
    """Octal digits, blank for 0, or base-256 where the first bit is set; None for anything else."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big") - (1 << 95 if field[0] & 0x40 else 0)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        return None
    return int(digits, 8)


def _short_name(block: bytes) -> str:
    name = _text(block[:100])
    if block[345] and block[257:263] == b"ustar\0":  # GNU's magic has a space there, and times instead of a prefix
        return f"{_text(block[345:500])}/{name}"
    return name


def _text(raw: bytes) -> str:
    return _spelt(raw.split(b"\0", 1)[0])


def _spelt(raw: bytes) -> str:
    r"""UTF-8. A byte that is none becomes `\xff`, say; backslashes before it, or before what is literally that, are
    doubled, so that two names stay two names."""
    if b"\\" in raw:
        name = raw.decode("utf-8", "surrogateescape")
        raw = _BACKSLASHES.sub(r"\g<0>\g<0>", name).encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def _extension(reader: ByteSource, start: int, size: int) -> bytes:
    if size > EXTENSION_LIMIT:
        _broken(start, f"an extension header of {size:,} bytes; the limit is {EXTENSION_LIMIT:,}")
    payload = reader.read(size)
    padding = reader.read(-size % BLOCK)
    if len(payload) + len(padding) != size + -size % BLOCK:
        raise TarDamage(Reason.TAR_TRUNCATED, start, "the shard ends inside an extension header")
    return payload


def _pax_records(payload: bytes, start: int) -> dict[str, str]:
    """What matters of `length key=value\\n` records: path, size and every sign of a sparse file."""
    records: dict[str, str] = {}
    position = 0
    while position < len(payload) and payload[position]:
        space = payload.find(b" ", position, position + 20)
        digits = payload[position : max(space, position)]
        end = position + int(digits) if digits.isdigit() else 0
        key, equals, value = payload[space + 1 : end - 1].partition(b"=")
        if end <= space + 1 or payload[end - 1 : end] != b"\n" or not equals:
            _broken(start, f"a PAX header has a malformed record at its byte {position}")
        if key in (b"path", b"size", b"GNU.sparse.name"):
            records[key.decode()] = _spelt(value)
        elif key.startswith(_SPARSE.encode()):
            records[_SPARSE] = ""  # one sign for all of them: global headers add up
        position = end
    return records


def _pax_size(value: str, start: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        _broken(start, f"a PAX header gives the size {value[:40]!r}")
    return int(value)


def _skip_sparse_map(reader: ByteSource, block: bytes, start: int) -> None:
    is_extended = block[482]
    while is_extended:
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            raise TarDamage(Reason.TAR_TRUNCATED, start, "the shard ends inside the map of a sparse file")
        is_extended = block[504]


def _broken(offset: int, detail: str) -> NoReturn:
    raise TarDamage(Reason.TAR_HEADER, offset, detail)
