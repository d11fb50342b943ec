"""Encoded sounds become features: decode (bytes → samples) → clean (→ mono) → transform (→ log-mel) → collate.

Read are WAV, FLAC, OGG (Vorbis, Opus) and MP3, told by their first bytes, by libsndfile (package soundfile); soxr
resamples. Length and size are judged from the header before the decode and again while it goes on, so that a small
file which claims ten hours costs nothing. A sound is whole or rejected as `audio`: a file that is shorter than its
header says, an OGG without its last page, a FLAC whose frames fail their checksum. WAV and MP3 have no checksums, and
an MP3 without a Xing header does not say how long it is: there a flipped bit is a click, and a cut may pass.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mmstream.config import Config
from mmstream.errors import Reason, Rejected
from mmstream.media.audio_lengths import cut_short, id3_bytes
from mmstream.media.extras import codec
from mmstream.media.filters import Filters, check

MAX_SECONDS = 600.0
MAX_BYTES = 256 << 20  # of float32 samples, all channels: what is held while a sound is decoded
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; resampling from further away would take a filter without end
MAX_AMPLITUDE = 1e6  # full scale is 1, some store 16-bit values as floats; what is louder is no sound
FORMATS = ("WAV", "FLAC", "OGG", "MP3")
_BLOCK_VALUES = 1 << 20  # decoded at a time
_BLOCK_FRAMES = 128  # of a spectrogram, transformed at a time: they stay in the cache

_MAGIC = (
    (b"fLaC", "FLAC"),
    (b"OggS", "OGG"),
    (b"FORM", "AIFF"),
    (b".snd", "AU"),
    (b"caff", "CAF"),
    (b"riff", "W64"),
    (b"#!AMR", "AMR"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack"),
    (b"MThd", "MIDI"),
    (b"\x1aE\xdf\xa3", "Matroska"),
    (b"ADIF", "AAC"),
)


@dataclass(frozen=True, eq=False)
class Sound:
    """`samples` is float32 [n, channels], full scale ±1, `rate` of them a second; `data` is what it was decoded from
    (for the sound track of a video: the video)."""

    samples: np.ndarray
    rate: int
    data: bytes

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def sniff(data: bytes) -> str | None:
    """The format that the first bytes claim, one of `FORMATS` or the name of another; None for what is no sound."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "WAV"
    if data[:3] == b"ID3":  # a tag that may stand before MP3 and, against the rules, before FLAC
        return "FLAC" if data[id3_bytes(data) :][:4] == b"fLaC" else "MP3"
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return "M4A"
    if len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "AAC" if data[1] & 0x06 == 0 else "MP3"
    return None


def decode(data: bytes, *, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> Sound:
    """The sound in `data`, all channels at its own rate. `max_bytes` limits the decoded float32 samples.

    Raises:
        Rejected: `audio`, or `format` for a sound of a format that is not read.
        UsageError: soundfile is not installed.
    """
    found = sniff(data)
    if found is None:
        raise Rejected(Reason.AUDIO, f"{len(data):,} bytes that are no sound (they begin {data[:12]!r})")
    if found not in FORMATS:
        raise Rejected(Reason.FORMAT, f"{found} is not read; the formats are {', '.join(FORMATS)}")
    soundfile = codec("soundfile", "audio")
    with _mapped(found, data, soundfile), _file(data) as number, _opened(soundfile, number) as file:
        if not MIN_RATE <= file.samplerate <= MAX_RATE:
            raise Rejected(Reason.AUDIO, f"{found} of {file.samplerate:,} Hz; {MIN_RATE:,} to {MAX_RATE:,} are read")
        most = int(min(max_seconds * file.samplerate, max_bytes // (4 * file.channels)))
        claimed = file.frames if file.frames < 1 << 62 else None  # None: libsndfile's "unknown"
        if claimed is not None and claimed > most:
            raise _too_long(found, claimed, file, max_seconds, max_bytes)
        samples = _samples(file, most)
        if len(samples) > most:
            raise _too_long(found, len(samples), file, max_seconds, max_bytes)
        if why := cut_short(found, data, len(samples), claimed):
            raise Rejected(Reason.AUDIO, f"{found} of {len(data):,} bytes: {why}")
        if not len(samples):
            raise Rejected(Reason.AUDIO, f"{found} of {len(data):,} bytes without a single sample")
        return Sound(samples, file.samplerate, data)


def _too_long(found: str, frames: int, file: Any, max_seconds: float, max_bytes: int) -> Rejected:
    what = f"{found} of {frames / file.samplerate:,.0f} s with {file.channels} channels at {file.samplerate:,} Hz"
    return Rejected(Reason.AUDIO, f"{what}; the limits are {max_seconds:,g} s and {max_bytes >> 20:,} MiB of samples")


@contextmanager
def _mapped(found: str, data: bytes, soundfile: Any) -> Generator[None]:
    """libsndfile's errors, and what a hostile header makes of the arithmetic around it."""
    try:
        yield
    except Rejected:
        raise
    except MemoryError as e:
        detail = f"{found} of {len(data):,} bytes: its decoder wants more memory than it may have"
        raise Rejected(Reason.DECODER_CRASH, detail) from e
    except soundfile.LibsndfileError as e:
        detail = f"{found} of {len(data):,} bytes: {e.error_string.strip().rstrip('.')}"
        raise Rejected(Reason.AUDIO, detail) from e
    except (RuntimeError, ValueError, TypeError, OSError) as e:
        detail = f"{found} of {len(data):,} bytes: {type(e).__name__}: {str(e)[:200]}"
        raise Rejected(Reason.AUDIO, detail) from e


@contextmanager
def _file(data: bytes) -> Generator[int]:
    """`data` as a descriptor: C code reads it without a call back into Python, so the GIL is free meanwhile."""
    number = os.memfd_create("sound")
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(number, rest) :]
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)


def _opened(soundfile: Any, number: int) -> Any:
    """A SoundFile that is read in one go. soundfile seeks after every read of a file that it takes for seekable, and
    a seek in FLAC, Opus or MP3 fails at the end, or decodes again."""
    kind = type("ForwardOnly", (soundfile.SoundFile,), {"seekable": lambda self: False})
    return kind(number, closefd=False)


def _samples(file: Any, most: int) -> np.ndarray:
    """float32 [n, channels]; decoding stops at the first block beyond `most`."""
    frames = max(1, _BLOCK_VALUES // file.channels)
    blocks, count = [], 0
    while count <= most:
        block = file.read(frames, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        count += len(block)
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros((0, file.channels), np.float32), *blocks])


def clean(sound: Sound, filters: Filters | None = None) -> np.ndarray:
    """float32 [n], the mean of the channels.

    Raises:
        Rejected: `audio`, where there is nothing, or a sample is not finite or beyond `MAX_AMPLITUDE`; `filtered`,
            where its length is not wanted.
    """
    if filters is not None:
        check(filters.length(sound.seconds))
    if not sound.samples.size:
        raise Rejected(Reason.AUDIO, "a sound without a single sample")
    loudest = max(float(sound.samples.max()), -float(sound.samples.min()))
    if not loudest <= MAX_AMPLITUDE:  # NaN is not
        bad = int((~(np.abs(sound.samples) <= MAX_AMPLITUDE)).sum())
        what = f"{bad:,} of {sound.samples.size:,} values are not finite or over {MAX_AMPLITUDE:g}"
        raise Rejected(Reason.AUDIO, f"{what}; full scale is 1")
    if sound.samples.shape[1] == 1:
        return np.ascontiguousarray(sound.samples[:, 0])
    return sound.samples.mean(axis=1, dtype=np.float32)


def resample(mono: np.ndarray, rate: int, to: int) -> np.ndarray:
    """float32 [n] at `rate` Hz → float32 [about n · to / rate] at `to` Hz, by soxr's high quality."""
    if rate == to:
        return mono
    return codec("soxr", "audio").resample(mono, rate, to, quality="HQ")


class LogMel(Config):
    """A mel spectrogram: which one, in the words of librosa and torchaudio. The defaults are CLAP's for long sounds."""

    rate: int = Field(48_000, ge=MIN_RATE, le=MAX_RATE)  # Hz
    n_fft: int = Field(1024, ge=2, le=1 << 16)  # samples in a frame, and in its periodic Hann window
    hop: int = Field(480, ge=1)  # samples from one frame to the next
    num_mels: int = Field(64, ge=1, le=1024)
    f_min: float = Field(0.0, ge=0)  # Hz
    f_max: float = 14_000.0  # Hz
    scale: Literal["htk", "slaney"] = "htk"
    norm: Literal["slaney"] | None = None  # "slaney": each band divided by its width
    power: Literal[1, 2] = 2
    log: Literal["db", "ln", "log10"] | None = "db"
    floor: float = Field(1e-10, gt=0)  # bands are at least this, before the logarithm
    centre: bool = True  # frame t is centred on sample t · hop, the ends reflected

    @model_validator(mode="after")
    def _fits(self) -> LogMel:
        if not self.f_min < self.f_max <= self.rate / 2:
            raise ValueError(f"f_min {self.f_min:g} < f_max {self.f_max:g} ≤ rate / 2 = {self.rate / 2:g} must hold")
        return self


def transform(mono: np.ndarray, rate: int, config: LogMel) -> np.ndarray:
    """float32 [n] at `rate` Hz → float32 [frames, mels] of `config`, whatever its rate."""
    return log_mel(resample(mono, rate, config.rate), config)


def log_mel(samples: np.ndarray, config: LogMel) -> np.ndarray:
    """float32 [n] at `config.rate` → float32 [frames, mels], 1 + n // hop frames where they are centred.

    |rfft(window · frame)| ** power, times a bank of triangles (`mel_bank`), at least `floor`, then the logarithm
    (10 · log10 of a power, 20 · log10 of a magnitude). The same numbers as transformers.audio_utils.spectrogram.

    Raises:
        Rejected: `audio`, where there is no sample, or without `centre` fewer than one frame has.
    """
    if config.centre and len(samples):
        samples = np.pad(samples, config.n_fft // 2, mode="reflect")
    if len(samples) < config.n_fft:
        raise Rejected(Reason.AUDIO, f"{len(samples):,} samples, and one frame of the spectrogram takes {config.n_fft}")
    frames = np.lib.stride_tricks.sliding_window_view(samples, config.n_fft)[:: config.hop]
    window, bank = _window(config.n_fft), _bank(config)
    mels = np.empty((len(frames), config.num_mels), np.float32)
    for start in range(0, len(frames), _BLOCK_FRAMES):
        part = slice(start, start + _BLOCK_FRAMES)
        # In double precision: beside a loud band, a quiet one of a float32 transform is mostly rounding.
        spectrum = np.fft.rfft(frames[part] * window)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        mels[part] = (power if config.power == 2 else np.sqrt(power)).astype(np.float32) @ bank
    return _logarithm(np.maximum(mels, np.float32(config.floor)), config)


def _logarithm(mels: np.ndarray, config: LogMel) -> np.ndarray:
    if config.log == "ln":
        return np.log(mels)
    if config.log == "log10":
        return np.log10(mels)
    if config.log == "db":
        return np.log10(mels) * np.float32(20 / config.power)
    return mels


@lru_cache(maxsize=16)
def _window(length: int) -> np.ndarray:
    """float64 [length], the periodic Hann window."""
    return np.hanning(length + 1)[:-1]


@lru_cache(maxsize=16)
def _bank(config: LogMel) -> np.ndarray:
    return mel_bank(config).astype(np.float32)


def mel_bank(config: LogMel) -> np.ndarray:
    """float64 [n_fft // 2 + 1, mels]: a triangle a band, its corners equally far apart on the mel scale.

    HTK: mel = 2595 · log10(1 + f / 700) (O'Shaughnessy 1987; the HTK Book, §5.4). Slaney: linear below 1 kHz, 27
    steps a factor of 6.4 above (M. Slaney, Auditory Toolbox, 1998).
    """
    ends = _mels(np.array([config.f_min, config.f_max]), config.scale)
    corners = _hertz(np.linspace(ends[0], ends[1], config.num_mels + 2), config.scale)
    bins = np.linspace(0, config.rate // 2, config.n_fft // 2 + 1)
    away = corners[None, :] - bins[:, None]
    width = np.diff(corners)
    bank = np.maximum(0, np.minimum(-away[:, :-2] / width[:-1], away[:, 2:] / width[1:]))
    return bank * (2 / (corners[2:] - corners[:-2])) if config.norm == "slaney" else bank


def _mels(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(hertz < 1000, 3 * hertz / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) * 27 / np.log(6.4))


def _hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))


def collate(sounds: Sequence[np.ndarray], *, fill: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """[t, M] each (or [t]) → float32 [n, longest, M], what is shorter filled up with `fill`, and int64 [n] lengths."""
    lengths = np.array([len(s) for s in sounds], np.int64)
    batch = np.full((len(sounds), int(lengths.max(initial=0)), *sounds[0].shape[1:]), fill, np.float32)
    for row, sound in zip(batch, sounds, strict=True):
        row[: len(sound)] = sound
    return batch, lengths
