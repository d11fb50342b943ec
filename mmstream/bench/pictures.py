"""Made JPEGs that cost a decoder what photographs do: noise at every scale, less of the fine than of the coarse."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

QUALITY = 90


def jpegs(n: int, size: int, seed: int = 0) -> list[bytes]:
    """`n` different JPEGs of size × size pixels; the same arguments give the same pictures."""
    rng = np.random.default_rng(seed)
    return [_jpeg(rng, size) for _ in range(n)]


def _jpeg(rng: np.random.Generator, size: int) -> bytes:
    total = np.full((size, size, 3), 128.0)
    cell = size // 2
    while cell >= 2:
        side = max(2, -(-size // cell))
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        octave = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float64)
        total += (octave - 128) * (cell / size) ** 0.42
        cell //= 2
    out = BytesIO()
    Image.fromarray(total.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
