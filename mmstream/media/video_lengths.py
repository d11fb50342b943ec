"""Is a video file all there? Its outer boxes say how long they are, which FFmpeg does not mind.

MP4: the boxes of the file follow one another to its end (ISO 14496-12 §4.2); of one in fragments, whole ones may be
missing. WebM: the segment holds as many bytes as it says, unless it was written to a pipe and says nothing (RFC 8794
§6). GIF: its blocks end in a trailer (GIF89a §27).
"""

from __future__ import annotations


def cut_short(found: str, data: bytes) -> str | None:
    """Why the video in `data`, of format `found`, cannot be all of it, or None."""
    missing = {"MP4": _mp4_end, "WebM": _webm_end, "GIF": _gif_end}[found](data)
    if missing is None or missing <= len(data):
        return None
    return f"cut: {len(data):,} bytes where its parts take {missing:,} or more"


def _mp4_end(data: bytes) -> int:
    at = 0
    while at < len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size == 0 and data[at : at + 4] == bytes(4):  # to the end of the file
            return max(len(data), at + head)
        at += max(size, head)
    return at


def _webm_end(data: bytes) -> int | None:
    """None where the segment does not say how long it is."""
    if len(data) < 5:
        return 5
    size, width = _vint(data, 4)
    at = 4 + width + (size or 0)
    if data[at : at + 4] != b"\x18\x53\x80\x67":
        return at + 12 if at >= len(data) else None  # something stands before the segment: FFmpeg may know it
    size, width = _vint(data, at + 4)
    return None if size is None else at + 4 + width + size


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """(value, bytes) of a variable-size integer; the value with all bits set means unknown."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length() if first else 8
    value = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), width


def _gif_end(data: bytes) -> int:
    at = 13 + _colours(data, 10)
    while at < len(data):
        kind = data[at]
        if kind == 0x3B:
            return at + 1
        if kind == 0x2C:
            at = _blocks_end(data, at + 11 + _colours(data, at + 9))
        elif kind == 0x21:
            at = _blocks_end(data, at + 2)
        else:
            at += 1  # FFmpeg looks for the next block here, too
    return at + 1


def _colours(data: bytes, flags_at: int) -> int:
    """Bytes of the colour table that the flags announce."""
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks_end(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
