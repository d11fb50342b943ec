"""Encoded videos become frames: decode (bytes → frames, sound) → clean → transform (→ what a tower takes) → collate.

Read are MP4 (MOV), WebM (Matroska) and animated GIF, told by their first bytes, by FFmpeg (package av). Frame i of t is
the one that is shown at (i + 0.5) / t of the duration: the decoder jumps to the last key frame before it and goes on
from there. Frames are upright (rotations by quarter turns, as phones note them), their pixels square or not as stored,
and transparency is laid over white. The first stream of pictures counts, and of sound the first; cover pictures do not.

Data are hostile: FFmpeg gets bytes, never a name; the container is fixed beforehand, so that playlists and other
formats that refer to files or hosts are not even tried; opening anything else is refused; only the decoders in
`DECODERS` are used. Streams, duration and pixels are judged from the header. A video that ends before its header says
so is rejected as `video`, like a broken one; neither MP4 nor WebM has checksums, so that a flipped bit may pass.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np

from mmstream.errors import Reason, Rejected
from mmstream.media import audio, image
from mmstream.media.audio import Sound
from mmstream.media.extras import codec
from mmstream.media.filters import Filters, check
from mmstream.media.image import Picture
from mmstream.media.video_lengths import cut_short

MAX_SECONDS = 4 * 3600.0
MAX_PIXELS = 1 << 24  # of one frame; a decoder keeps up to 17 of them
MAX_BYTES = 384 << 20  # of all frames that are handed out
MAX_DECODED_PIXELS = 20_000_000_000  # in all, those between a key frame and a wanted frame included
MAX_STREAMS = 16
FORMATS = {"MP4": "mov", "WebM": "matroska", "GIF": "gif"}  # and FFmpeg's name of the one demuxer that may read it
DECODERS = frozenset({
    "h264", "hevc", "libdav1d", "av1", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "h263", "prores",
    "gif", "png", "aac", "mp3", "mp3float", "opus", "libopus", "vorbis", "flac", "alac", "ac3", "pcm_s16le",
    "pcm_s16be", "pcm_s24le", "pcm_f32le", "pcm_u8",
})  # fmt: skip
_PICTURE_BRANDS = (b"avif", b"avis", *image.HEIF_BRANDS)
_MOV_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_OPTIONS = {"protocol_whitelist": "none", "enable_drefs": "0", "max_streams": str(MAX_STREAMS)}

logging.getLogger("libav").addHandler(logging.NullHandler())  # what it says of broken data is in the rejects


@dataclass(frozen=True, eq=False)
class Clip:
    """`frames` is uint8 [t, H, W, 3], upright; `times` float64 [t], the seconds at which they begin to be shown;
    `sound` the sound track where it was asked for and there is one; `data` is what all was decoded from."""

    frames: np.ndarray
    times: np.ndarray
    duration: float
    sound: Sound | None
    data: bytes


def sniff(data: bytes) -> str | None:
    """`MP4`, `WebM` or `GIF` by the first bytes, the name of another format, or None for what is no video."""
    if data[4:8] == b"ftyp":
        return "HEIF or AVIF" if data[8:12] in _PICTURE_BRANDS else "MP4"
    if data[4:8] in _MOV_ATOMS:
        return "MP4"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "WebM"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI"
    names = {b"FLV\1": "FLV", b"OggS": "OGG", b"\x30\x26\xb2\x75": "WMV", b"\0\0\1\xba": "MPEG", b"#EXT": "HLS"}
    return names.get(data[:4])


def decode(
    data: bytes, num_frames: int = 8, *, with_sound: bool = False, max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES,
) -> Clip:  # fmt: skip
    """`num_frames` evenly spaced frames of the video in `data`; a short one repeats some.

    `max_pixels` is for one frame, `max_bytes` for all that are handed out. The sound track has the limits of
    `media.audio`, and one that is broken or too long rejects the video.

    Raises:
        Rejected: `video`, or `format` for a video of a format that is not read.
        UsageError: PyAV is not installed.
    """
    found = _format(data)
    with _opened(found, data) as container:
        stream = _stream(found, container, max_pixels)
        start, duration = _span(container, stream)
        if not 0 <= duration <= max_seconds:
            raise Rejected(Reason.VIDEO, f"{found} of {duration:,.0f} s, the limit is {max_seconds:,.0f} s")
        if num_frames * stream.width * stream.height * 3 > max_bytes:
            what = f"{num_frames} frames of {stream.width:,} × {stream.height:,} pixels"
            raise Rejected(Reason.VIDEO, f"{what} are over the limit of {max_bytes >> 20:,} MiB")
        frames, times = _sampled(found, container, stream, start, duration, num_frames)
    sound = _sound(found, data) if with_sound else None
    return Clip(frames, times, duration, sound, data)


def track(data: bytes) -> Sound | None:
    """The sound track of the video in `data`, all channels at its own rate, with the limits of `media.audio`; None
    where there is none. No picture is decoded.

    Raises:
        Rejected, UsageError: as `decode`.
    """
    return _sound(_format(data), data)


def _format(data: bytes) -> str:
    found = sniff(data)
    if found is None:
        raise Rejected(Reason.VIDEO, f"{len(data):,} bytes that are no video (they begin {data[:12]!r})")
    if found not in FORMATS:
        raise Rejected(Reason.FORMAT, f"{found} is not read; the formats are {', '.join(FORMATS)}")
    if why := cut_short(found, data):
        raise Rejected(Reason.VIDEO, f"{found} {why}")
    return found


@contextmanager
def _opened(found: str, data: bytes) -> Generator[Any]:
    av = codec("av", "video")
    try:
        with av.open(
            BytesIO(data), "r", format=FORMATS[found], container_options=_OPTIONS, metadata_errors="replace",
            io_open=_refused,
        ) as container:  # fmt: skip
            yield container
    except Rejected:
        raise
    except MemoryError as e:
        detail = f"{found} of {len(data):,} bytes: its decoder wants more memory than it may have"
        raise Rejected(Reason.DECODER_CRASH, detail) from e
    except Exception as e:  # FFmpeg's errors, and whatever PyAV makes of a header that makes no sense
        said = getattr(e, "strerror", None) or str(e)[:200]
        raise Rejected(Reason.VIDEO, f"{found} of {len(data):,} bytes: {type(e).__name__}: {said}") from e


def _refused(url: str, flags: int, options: dict[str, str]) -> Any:
    raise OSError(f"a video refers to {url[:80]!r}, and nothing but its own bytes is read")


def _stream(found: str, container: Any, max_pixels: int) -> Any:
    """The first stream of moving pictures, its decoder bound to one thread and `max_pixels`."""
    moving = [s for s in container.streams.video if not _is_cover(s)]
    if not moving:
        raise Rejected(Reason.VIDEO, f"{found} without moving pictures")
    stream = moving[0]
    _check_decoder(found, stream)
    if not 0 < stream.width * stream.height <= max_pixels:
        what = f"{found} of {stream.width:,} × {stream.height:,} pixels"
        raise Rejected(Reason.VIDEO, f"{what}, the limit is {max_pixels:,} in all and more than 0")
    stream.codec_context.thread_count = 1  # as many videos are decoded at a time as there are cores
    stream.codec_context.options = {"max_pixels": str(max_pixels)}  # a stream may change its size on the way
    return stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _check_decoder(found: str, stream: Any) -> None:
    if stream.codec_context is None or stream.codec_context.name not in DECODERS:
        name = "an unknown codec" if stream.codec_context is None else stream.codec_context.name
        raise Rejected(Reason.VIDEO, f"{found} in {name}, which is not read")


def _span(container: Any, stream: Any) -> tuple[float, float]:
    """(first second, duration) of the pictures; where the header does not say it, from the packets' own times."""
    start = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
    if stream.duration:
        return start, float(stream.duration * stream.time_base)
    if container.duration:
        return start, container.duration / 1e6 - max(0.0, start)
    spans = [(p.pts, p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    container.seek(0)
    if not spans:
        return start, 0.0
    first, last = min(s[0] for s in spans), max(sum(s) for s in spans)
    return float(first * stream.time_base), float((last - first) * stream.time_base)


def _sampled(
    found: str, container: Any, stream: Any, start: float, duration: float, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [t, H, W, 3] and float64 [t], the seconds since `start`."""
    wanted = start + (np.arange(num_frames) + 0.5) / num_frames * duration
    chosen: list[np.ndarray] = []
    times, lengths, previous = np.zeros(num_frames), np.zeros(num_frames), None
    for i, frame in enumerate(_shown_at(container, stream, wanted)):
        chosen.append(chosen[-1] if frame is previous else _upright(frame))
        times[i], previous = frame.time - start, frame
        lengths[i] = float((frame.duration or 0) * frame.time_base)
        if chosen[-1].shape != chosen[0].shape:
            raise Rejected(Reason.VIDEO, f"{found} whose frames change their size at {times[i]:.1f} s")
    if not chosen:
        raise Rejected(Reason.VIDEO, f"{found} without a single frame that can be decoded")
    if wanted[-1] - start > times[-1] + max(lengths[-1], 1.0, duration / 10):
        raise Rejected(Reason.VIDEO, f"{found} cut after {times[-1]:.1f} of {duration:.1f} s")
    return np.stack(chosen), times


def _shown_at(container: Any, stream: Any, wanted: np.ndarray) -> Iterator[Any]:
    """For each of the rising times, in seconds, the frame that is shown then; nothing where there is none at all.

    After a key frame that lies ahead of what was reached the decoder jumps, else it goes on.
    """
    frames, shown, following = _decoded(container, stream), None, None
    for time in wanted:
        reached = following or shown
        if (key := _key_before(stream, time)) > 0 and (reached is None or reached.time < _seconds(stream, key)):
            frames, shown, following = _from_key(container, stream, key, time), None, None
        while following is None or following.time <= time:
            following, last = next(frames, None), following
            shown = last or shown
            if following is None:  # the end: what was shown last stays
                break
        if shown or following:
            yield shown or following


def _key_before(stream: Any, time: float) -> int:
    """Index of the last key frame at `time`, in seconds, or before; -1 where the container keeps no index."""
    return stream.index_entries.search_timestamp(int(time / stream.time_base))


def _seconds(stream: Any, entry: int) -> float:
    return float(stream.index_entries[entry].timestamp * stream.time_base)


def _from_key(container: Any, stream: Any, key: int, time: float) -> Iterator[Any]:
    """The frames from key frame `key` on, or from an earlier one: an index has decoding times, and where frames are
    reordered the key frame itself may be shown only after `time`."""
    entries = stream.index_entries
    while True:
        container.seek(entries[max(key, 0)].timestamp, stream=stream)
        frames = _decoded(container, stream)
        first = next(frames, None)
        if key <= 0 or (first is not None and first.time <= time):
            return chain([] if first is None else [first], frames)
        key = entries.search_timestamp(entries[key].timestamp - 1)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames with a time, in the order in which they are shown."""
    pixels = 0
    for frame in container.decode(stream):
        pixels += frame.width * frame.height
        if pixels > MAX_DECODED_PIXELS:
            raise Rejected(Reason.VIDEO, f"over {MAX_DECODED_PIXELS:,} pixels to decode from one key frame on")
        if frame.pts is not None:
            yield frame


def _upright(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3]. The rotation that is noted turns the stored picture counterclockwise into the shown one."""
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90) % 4))


def _sound(found: str, data: bytes) -> Sound | None:
    with _opened(found, data) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        _check_decoder(found, stream)
        rate, channels = stream.rate, stream.channels
        if not audio.MIN_RATE <= rate <= audio.MAX_RATE or not channels:
            raise Rejected(Reason.VIDEO, f"{found} with a sound track of {channels} channels at {rate:,} Hz")
        most = int(min(audio.MAX_SECONDS * rate, audio.MAX_BYTES // (4 * channels)))
        blocks, count = [], 0
        for block in _packed(found, container, stream):
            blocks.append(block)
            count += len(block)
            if count > most:
                what = f"{found} with a sound track of over {most / rate:,.0f} s with {channels} channels"
                raise Rejected(Reason.VIDEO, f"{what}, which is the limit")
        if not count:
            raise Rejected(Reason.VIDEO, f"{found} with a sound track without a single sample")
        return Sound(np.concatenate(blocks), rate, data)


def _packed(found: str, container: Any, stream: Any) -> Iterator[np.ndarray]:
    """float32 [n, channels], block by block, channels side by side: of a frame that has a plane for each of 8 or more
    channels, PyAV 18 takes what lies behind the last one for further planes, and crashes."""
    resampler = codec("av", "video").AudioResampler(format="flt")
    rate, channels = stream.rate, stream.channels
    for frame in chain(container.decode(stream), [None]):  # None: to have what the resampler still holds
        if frame is not None and (frame.layout.nb_channels, frame.sample_rate) != (channels, rate):
            raise Rejected(Reason.VIDEO, f"{found} whose sound track changes its channels or rate on the way")
        for part in resampler.resample(frame):
            yield part.to_ndarray().reshape(-1, channels)


def clean(clip: Clip, filters: Filters | None = None) -> Clip:
    """The clip, with the sound track as one channel where there is one (`audio.clean`).

    Raises:
        Rejected: `audio`, the sound track holds what is not finite; `filtered`, its length, size or shape is not
            wanted.
    """
    if filters is not None:
        height, width = clip.frames.shape[1:3]
        check(filters.length(clip.duration) or filters.picture(width, height))
    if clip.sound is None:
        return clip
    mono = Sound(audio.clean(clip.sound)[:, None], clip.sound.rate, clip.sound.data)
    return Clip(clip.frames, clip.times, clip.duration, mono, clip.data)


def pictures(frames: np.ndarray) -> list[Picture]:
    """Frames, uint8 [t, H, W, 3], as pictures, for what takes those."""
    height, width = frames.shape[1:3]
    return [Picture(frame, width, height, frame.tobytes()) for frame in frames]


def transform(
    clip: Clip, size: int | tuple[int, int], *, algorithm: str = "bicubic", crop: tuple[int, int] | None = None
) -> np.ndarray:
    """uint8 [t, height, width, 3]: each frame by `image.resize`, which see."""
    return np.stack([image.resize(frame, size, algorithm=algorithm, crop=crop) for frame in clip.frames])


def collate(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """[t, S, S, 3] each → uint8 [n, longest, S, S, 3], black behind the end, and bool [n, longest]: a real frame."""
    longest = max(len(clip) for clip in clips)
    batch = np.zeros((len(clips), longest, *clips[0].shape[1:]), np.uint8)
    mask = np.zeros((len(clips), longest), bool)
    for row, real, clip in zip(batch, mask, clips, strict=True):
        row[: len(clip)], real[: len(clip)] = clip, True
    return batch, mask
