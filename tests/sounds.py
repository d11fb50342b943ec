"""Made sounds in every format that is read, and a mel spectrogram taken frame by frame."""

from __future__ import annotations

import io

import numpy as np
import soundfile

SUBTYPES = {
    "wav": ("WAV", "PCM_16"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tones(seconds: float = 1.0, rate: int = 16_000, channels: int = 2) -> np.ndarray:
    """float32 [n, channels]: a tone with a slow beat, each channel quieter than the one before."""
    t = np.arange(int(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * t) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    return np.stack([tone / (c + 1) for c in range(channels)], axis=1).astype(np.float32)


def encoded(kind: str, samples: np.ndarray, rate: int = 16_000) -> bytes:
    """`samples`, float32 [n, channels], as a file of one of `SUBTYPES`, written a second at a time."""
    out, (format, subtype) = io.BytesIO(), SUBTYPES[kind]
    with soundfile.SoundFile(out, "w", rate, samples.shape[1], subtype, format=format) as file:
        for start in range(0, len(samples), rate):  # libsndfile's Vorbis dies of large writes
            file.write(samples[start : start + rate])
    return out.getvalue()
