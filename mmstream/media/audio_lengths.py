"""Is a sound as long as it says? Each format tells in its own way; libsndfile mostly takes what is there.

WAV: the size of its `data` chunk, unless that is one of those which writers to pipes put down. FLAC: the number of
samples in its first block. OGG: a last page that is whole and marked as the last. MP3: the frames in a Xing (or Info)
header; without one its own frame headers, counted, since the decoder's guess from the first of them may be too short.
"""

from __future__ import annotations

_UNKNOWN_WAV_BYTES = 0x7FFF_0000  # and more: sox, ffmpeg and arecord write such sizes where they cannot seek back
_RATES = (44_100, 48_000, 32_000)
_KBIT = {  # by (MPEG 1, layer), ISO 11172-3 §2.4.2.3 and 13818-3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def cut_short(found: str, data: bytes, decoded: int, claimed: int | None) -> str | None:
    """Why the sound in `data`, of format `found`, cannot be all of it, or None. `decoded` and `claimed` are samples
    per channel, `claimed` None where the decoder knows no length."""
    if found == "WAV":
        return _cut_wav(data)
    if found == "OGG" and (why := _cut_ogg(data)):
        return why
    if found == "MP3" and not _has_count(data):
        counted = _mp3_samples(data)
        if decoded < counted - 3 * 1152:  # the decoder's delay and half a frame at the end are no loss
            return f"varying bit rate without a Xing header: only {decoded:,} of {counted:,} samples can be had"
        return None
    if claimed is not None and decoded < claimed:
        return f"cut or broken after {decoded:,} of {claimed:,} samples"
    return None


def _cut_wav(data: bytes) -> str | None:
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data":
            held = len(data) - at - 8
            return f"cut after {held:,} of {size:,} bytes of sound" if held < size < _UNKNOWN_WAV_BYTES else None
        at += 8 + size + size % 2
    return "no samples: it has no data chunk"


def _cut_ogg(data: bytes) -> str | None:
    """RFC 3533 §6: a page is 27 bytes, a table of lengths, and as many bytes as these add up to."""
    at = data.rfind(b"OggS")
    table = data[at + 27 : at + 27 + data[at + 26]] if at + 27 <= len(data) else b""
    if at + 27 > len(data) or len(table) < data[at + 26] or at + 27 + len(table) + sum(table) > len(data):
        return "cut within a page"
    return None if data[at + 5] & 0x04 else "cut: its last page is not marked as the last"


def _has_count(data: bytes) -> bool:
    start = data.find(b"\xff", id3_bytes(data))
    return any(data.find(tag, start, start + 256) >= 0 for tag in (b"Xing", b"Info", b"VBRI"))


def id3_bytes(data: bytes) -> int:
    """Length of the ID3v2 tag at the beginning, 0 without one: four bytes of seven bits each (ID3v2.4 §3.1)."""
    if data[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))


def _mp3_samples(data: bytes) -> int:
    """Samples per channel of the frames that follow one another from the first."""
    at, samples = data.find(b"\xff", id3_bytes(data)), 0
    while (frame := _mp3_frame(data[at : at + 4])) and at + frame[0] <= len(data):
        at, samples = at + frame[0], samples + frame[1]
    return samples


def _mp3_frame(header: bytes) -> tuple[int, int] | None:
    """(bytes, samples per channel) of the frame with this header, or None where it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or not 0 < bitrate < 15:
        return None
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _KBIT[version == 3, layer][bitrate - 1] * 1000
    if layer == 1:
        return (12 * bits // hertz + padding) * 4, 384
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits // hertz + padding, samples
