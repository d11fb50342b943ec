"""Which samples are the same, or nearly: flags beside the sample, never a reason to reject it.

`content_hash` of equal bytes is equal. `perceptual_hash` of pictures that look alike differs in few of its 64 bits:
they compare the low frequencies of the picture's discrete cosine transform (pHash; E. Klinger and D. Starkweather,
phash.org, 2010; in the form of N. Krawetz, hackerfactor.com, "Looks Like It", 2011).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from PIL import Image

NEAR = 6  # of 64 bits: the same picture, saved again or resized (tests/media/test_duplicates.py)
_SIDE, _KEPT = 32, 8


def content_hash(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def perceptual_hash(rgb: np.ndarray) -> int:
    """64 bits of `rgb`, uint8 [H, W, 3]: which of the 8 × 8 lowest frequencies of its 32 × 32 grey lie above their
    median. A picture of one colour has no frequencies, and its hash says only that."""
    grey = np.asarray(Image.fromarray(rgb).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)
    cosines = _cosines()
    low = (cosines @ (grey - grey.mean()) @ cosines.T).round(6).ravel()  # rounded: what is 0 in theory has no sign
    bits = low > np.median(low[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """float64 [8, 32], the first rows of the DCT-II."""
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


def hamming(a: int | np.ndarray, b: int | np.ndarray) -> np.ndarray:
    """In how many bits hashes differ, element by element (arrays of uint64 are broadcast)."""
    return np.bitwise_count(np.asarray(a, np.uint64) ^ np.asarray(b, np.uint64))
