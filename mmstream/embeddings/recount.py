"""A tar is counted again, by its headers alone: rows in order with key and places, and where the shard breaks.

This is the audit's second opinion: written from the format's definition (POSIX.1 ustar and pax, GNU tar's extensions),
it shares no code with the reader that embeds. It walks from header to header and skips the payloads, so large members
are never fetched; memory is one row, whatever the shard's size.

The rules it counts by are those of the README. A row is a run of adjacent files of one key, the key being the path up
to the first dot of the file's name. Directories and what macOS leaves in archives belong to no row. A break is named by
the first byte of the entry that cannot be read whole, its extension headers included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from mmstream.storage.compressed import CompressedReader
from mmstream.storage.ranges import RangeReader

BLOCK = 512
EXTENSION_LIMIT = 1 << 20  # bytes of one pax header or GNU long name; a longer one is taken for damage

# name mode uid gid size mtime checksum type linkname magic+version uname gname major minor prefix
_HEADER = Struct("100s 8x 8x 8x 12s 12x 8s c 100x 8s 32x 32x 8x 8x 155s 12x")
_EXTENSIONS = b"LKxXg"
_USED = (b"size", b"path", b"GNU.sparse.name")  # of pax records
_FILES_WITHOUT_DATA = b"12346"  # links, devices, fifos: whatever their size field says


class Row(NamedTuple):
    """One sample as the tar has it. `payloads` are (offset, bytes) of its files."""

    key: str
    offset: int
    payloads: tuple[tuple[int, int], ...]


class Break(NamedTuple):
    """The shard cannot be read on from `offset`."""

    offset: int
    detail: str


class _Entry(NamedTuple):
    name: str
    offset: int
    data_offset: int
    size: int


class _Broken(Exception):
    def __init__(self, offset: int, detail: str) -> None:
        super().__init__(detail)
        self.at = Break(offset, detail)


class Recount:
    """Iterates over the rows of a shard, once. Afterwards `damage` says where it broke, if it did.

    Raises (while iterating):
        Rejected, UnreachableError: the reader's, where the source goes away or does not answer.
    """

    def __init__(self, reader: RangeReader | CompressedReader) -> None:
        self._reader = reader
        self.damage: Break | None = None

    def __iter__(self) -> Iterator[Row]:
        key, offset, payloads = None, 0, []
        try:
            for entry in _files(self._reader):
                if _is_macos_leftover(entry.name):
                    continue
                if (of_entry := key_of(entry.name)) != key:
                    if key is not None:
                        yield Row(key, offset, tuple(payloads))
                    key, offset, payloads = of_entry, entry.offset, []
                payloads.append((entry.data_offset, entry.size))
        except _Broken as e:
            self.damage = e.at
        if key is not None:
            yield Row(key, offset, tuple(payloads))


def key_of(name: str) -> str:
    """The path up to the first dot of its last part; all of it where that part begins with the dot or has none."""
    folder, slash, base = name.rpartition("/")
    stem = base.split(".", 1)[0]
    return f"{folder}{slash}{stem}" if stem else name


def _readable(raw: bytes) -> str:
    r"""A byte that is no UTF-8 as `\xff`, and the backslashes before that, or before text that says the same, twice."""
    is_byte = r"(?:x[89a-f][0-9a-f]|[\udc80-\udcff])"
    text = re.sub(rf"(\\+)(?={is_byte})", r"\1\1", raw.decode("utf-8", "surrogateescape"))
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_macos_leftover(name: str) -> bool:
    *folders, base = name.split("/")
    return base == ".DS_Store" or base.startswith("._") or "__MACOSX" in folders


def _files(reader: RangeReader | CompressedReader) -> Iterator[_Entry]:
    """Everything but directories whose payload is whole, in order."""
    for_all: dict[bytes, bytes] = {}
    while True:
        start = reader.tell()
        own: dict[bytes, bytes] = {}
        long_name = b""
        while True:
            block = reader.read(BLOCK)
            if len(block) == BLOCK and not any(block):
                return _check_end(reader, start)
            short_name, size, kind = _parsed(block, start)
            if kind not in _EXTENSIONS:
                break
            text = _extension(reader, size, start)
            if kind == b"L":
                long_name = text.split(b"\0", 1)[0]
            elif kind != b"K":
                (for_all if kind == b"g" else own).update(_pax(text, start))
        pax = {**for_all, **own}
        if kind == b"S":
            _pass_sparse_map(reader, block, start)
        if b"size" in pax:
            size = _decimal(pax[b"size"], start)
        raw = pax.get(b"GNU.sparse.name") or pax.get(b"path") or long_name or short_name
        name = _readable(raw)
        if kind == b"5" or (kind in b"0\0" and name.endswith("/")):
            continue
        if kind in _FILES_WITHOUT_DATA:
            size = 0
        data_offset, padded = reader.tell(), -(-size // BLOCK) * BLOCK
        reader.skip(padded)
        if reader.tell() != data_offset + padded:
            raise _Broken(start, f"{name} is cut: {size:,} bytes announced")
        yield _Entry(name, start, data_offset, size)


def _parsed(block: bytes, start: int) -> tuple[bytes, int, bytes]:
    """Name, size and type of a header.

    Raises:
        _Broken: it is cut, its checksum is wrong, or its size is no size.
    """
    if len(block) < BLOCK:
        raise _Broken(start, "the shard ends without its two closing blocks")
    name, size_field, checksum_field, kind, magic, prefix = _HEADER.unpack(block)
    stored = _numeric(checksum_field)
    unsigned = sum(block) - sum(checksum_field) + 8 * ord(" ")
    if stored != unsigned and stored != unsigned - 256 * _num_high_bytes(block):
        raise _Broken(start, "a header's checksum is wrong")
    size = _numeric(size_field)
    if size is None or size < 0:
        raise _Broken(start, "a header's size is no number")
    name, prefix = name.split(b"\0", 1)[0], prefix.split(b"\0", 1)[0]
    if prefix and magic[:6] == b"ustar\0":  # GNU's magic is "ustar ", and the field holds times there
        name = prefix + b"/" + name
    return name, size, kind


def _num_high_bytes(block: bytes) -> int:
    """How many bytes count as negative to the systems that sum signed ones (the checksum field is spaces to them)."""
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _numeric(field: bytes) -> int | None:
    """GNU's base-256 (first bit set, two's complement), else octal digits up to a NUL, blanks around; blank is 0."""
    if field[0] >= 128:
        number = int.from_bytes(field, "big") - (128 << 8 * (len(field) - 1))
        return number - (128 << 8 * (len(field) - 1)) if field[0] & 64 else number
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)


def _extension(reader: RangeReader | CompressedReader, size: int, start: int) -> bytes:
    if size > EXTENSION_LIMIT:
        raise _Broken(start, f"an extension header of {size:,} bytes")
    padded = reader.read(-(-size // BLOCK) * BLOCK)
    if len(padded) % BLOCK or len(padded) < size:
        raise _Broken(start, "the shard ends inside an extension header")
    return padded[:size]


def _pax(text: bytes, start: int) -> dict[bytes, bytes]:
    """`length key=value\\n` records, those in `_USED` of them; the length counts the whole record."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(text) and text[at]:
        digits, _, _ = text[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = text[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not (equals and len(record) == length and record.endswith(b"\n")):
            raise _Broken(start, "a pax header has a malformed record")
        if key in _USED:
            records[key] = value
        at += length
    return records


def _decimal(value: bytes, start: int) -> int:
    if not (value.isdigit() and len(value) <= 20):
        raise _Broken(start, "a pax header's size is no number")
    return int(value)


def _pass_sparse_map(reader: RangeReader | CompressedReader, block: bytes, start: int) -> None:
    """Old GNU sparse files: the map goes on in further blocks while a byte says so, at another place in those."""
    goes_on = block[482]
    while goes_on:
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            raise _Broken(start, "the shard ends inside the map of a sparse file")
        goes_on = block[504]


def _check_end(reader: RangeReader | CompressedReader, start: int) -> None:
    """A zero block was read: a sound shard has one more, and nothing but zeros from there on."""
    first = reader.tell() - BLOCK
    if first != start:
        raise _Broken(start, "extension headers without their file")
    second = reader.read(BLOCK)
    if len(second) < BLOCK or any(second):
        raise _Broken(first, "a lone zero block")
    while piece := reader.read(1 << 16):
        if rest := piece.lstrip(b"\0"):
            raise _Broken(reader.tell() - len(rest), "data after the end mark")
