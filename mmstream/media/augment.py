"""Samples are varied for training, each variation a function of (seed, epoch, sample id).

Philox, a generator that counts instead of carrying state (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3,
2011), is placed by that triple and the modality. So it does not matter in which order, on which worker or in which
attempt a sample is met: a resumed run repeats the variation, the next epoch has another one, and picture, sound and
caption of a sample are varied independently. (The same for the same NumPy, which may change its distributions.)
Pictures stay uint8, mel spectrograms and samples float32; nothing is changed in place.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from mmstream.config import Config

_MODALITIES = {"image": 1, "audio": 2, "text": 3, "mel": 4, "video": 5}
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue in grey: ITU-R BT.601
_ATTEMPTS = 10


class ImageAugmentation(Config):
    """`area` and `aspect` (width / height) are the ranges of the crop that is resized to the tower's size; `flip` is
    how often it is mirrored; brightness, contrast and saturation are scaled by 1 ± their value."""

    area: tuple[_Positive, Annotated[float, Field(gt=0, le=1)]] = (0.5, 1.0)
    aspect: tuple[_Positive, _Positive] = (3 / 4, 4 / 3)
    flip: _Share = 0.0  # captions may say left and right
    brightness: _Share = 0.0
    contrast: _Share = 0.0
    saturation: _Share = 0.0


class AudioAugmentation(Config):
    """`gain_db` and `shift` are the most that a sound is made louder or softer, and is moved as a share of its length
    (what leaves at one end comes in at the other); `noise_db` is the least distance of white noise below the sound.
    The masks are SpecAugment's, on mel spectrograms: how many, and the most that one covers of all bands or frames."""

    gain_db: Annotated[float, Field(ge=0)] = 0.0
    shift: _Share = 0.0
    noise_db: float | None = None
    band_masks: Annotated[int, Field(ge=0)] = 0
    band_share: _Share = 0.2
    frame_masks: Annotated[int, Field(ge=0)] = 0
    frame_share: _Share = 0.2


class TextAugmentation(Config):
    """`drop` is how often a word is left out (one always stays), `swap` how often one changes places with the next."""

    drop: _Share = 0.0
    swap: _Share = 0.0


class Augmentation(Config):
    """How samples are varied in training; None leaves that modality alone."""

    image: ImageAugmentation | None = None
    audio: AudioAugmentation | None = None
    text: TextAugmentation | None = None


def generator(seed: int, epoch: int, sample_id: int, modality: str) -> np.random.Generator:
    """Always the same for the same arguments. `sample_id` is the 64-bit id of a sample, `shard << 32 | row`.

    The seed and the modality make the key; the epoch and the id stand in the upper half of the 256-bit counter, of
    which a sample may use the lower half.
    """
    word = (1 << 64) - 1
    key = [seed & word, _MODALITIES[modality]]
    counter = [0, 0, epoch & word, sample_id & word]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)))


def picture(
    rgb: np.ndarray, size: tuple[int, int], config: ImageAugmentation, random: np.random.Generator
) -> np.ndarray:
    """uint8 [H, W, 3] → uint8 [*size, 3], (height, width): a random crop, resized, perhaps mirrored, colours varied."""
    height, width = rgb.shape[:2]
    top, left, tall, wide = _crop(height, width, config, random)
    image = Image.fromarray(rgb)
    box = (left, top, left + wide, top + tall)
    varied = np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    if random.random() < config.flip:
        varied = varied[:, ::-1]
    return np.ascontiguousarray(_colours(varied, config, random))


def _crop(height: int, width: int, config: ImageAugmentation, random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width), drawn as torchvision's RandomResizedCrop does: an area and, evenly in its logarithm,
    an aspect; after ten that do not fit the whole picture, or its middle where that is too long."""
    ratios = math.log(config.aspect[0]), math.log(config.aspect[1])
    for _ in range(_ATTEMPTS):
        area, aspect = height * width * random.uniform(*config.area), math.exp(random.uniform(*ratios))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
            return int(top), int(left), tall, wide
    wide = min(width, max(1, round(height * config.aspect[1])))
    tall = min(height, max(1, round(width / config.aspect[0])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def _colours(rgb: np.ndarray, config: ImageAugmentation, random: np.random.Generator) -> np.ndarray:
    """Brightness times a factor, contrast around the mean grey, saturation around each pixel's grey; in this order."""
    ranges = config.brightness, config.contrast, config.saturation
    brightness, contrast, saturation = (random.uniform(1 - r, 1 + r) for r in ranges)  # drawn always: same stream
    if not any(ranges):
        return rgb
    pixels = rgb.astype(np.float32) * brightness
    mean = float((pixels @ _WEIGHTS.astype(np.float32)).mean())
    pixels = mean + (pixels - mean) * contrast
    grey = (pixels @ _WEIGHTS.astype(np.float32))[..., None]
    return np.clip(grey + (pixels - grey) * saturation, 0, 255).round().astype(np.uint8)


def sound(samples: np.ndarray, config: AudioAugmentation, random: np.random.Generator) -> np.ndarray:
    """float32 [n] → float32 [n]: louder or softer, moved, with white noise."""
    gain = 10 ** (random.uniform(-config.gain_db, config.gain_db) / 20)
    moved = round(random.uniform(-config.shift, config.shift) * len(samples))
    varied = np.roll(samples, moved) * np.float32(gain)
    if config.noise_db is None or not len(varied):
        return varied
    loudness = math.sqrt(float(np.square(varied, dtype=np.float64).mean()))
    below = config.noise_db + random.exponential(10.0)  # mostly softer still
    noise = random.standard_normal(len(varied), dtype=np.float32) * np.float32(loudness * 10 ** (-below / 20))
    return varied + noise


def mel(spectrogram: np.ndarray, config: AudioAugmentation, random: np.random.Generator) -> np.ndarray:
    """float32 [frames, mels] → the same shape, some bands and some stretches of time set to its mean (SpecAugment;
    Park et al., 2019, without the warping, which they found to matter least)."""
    varied, mean = spectrogram.copy(), spectrogram.mean() if spectrogram.size else 0.0
    frames, mels = spectrogram.shape
    for _ in range(config.band_masks):
        varied[:, _stretch(mels, config.band_share, random)] = mean
    for _ in range(config.frame_masks):
        varied[_stretch(frames, config.frame_share, random)] = mean
    return varied


def _stretch(length: int, share: float, random: np.random.Generator) -> slice:
    covered = int(random.integers(0, int(share * length) + 1))
    start = int(random.integers(0, length - covered + 1))
    return slice(start, start + covered)


def caption(text: str, config: TextAugmentation, random: np.random.Generator) -> str:
    """A cleaned caption, some words left out, some neighbours swapped."""
    words = text.split()
    if not words:
        return text
    draws = random.random((2, len(words)))
    kept = [word for word, draw in zip(words, draws[0], strict=True) if draw >= config.drop]
    kept = kept or [words[int(draws[0].argmax())]]
    i = 0
    while i + 1 < len(kept):
        if draws[1, i] < config.swap:
            kept[i], kept[i + 1] = kept[i + 1], kept[i]
            i += 1  # the pair is done: a word moves one place at most
        i += 1
    return " ".join(kept)
