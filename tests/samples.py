"""Made and real samples that several rooms' tests look at."""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


@cache
def photographs() -> list[bytes]:
    """Photograph-like noise in several shapes and formats; fewer than a micro-batch."""
    rng = np.random.default_rng(0)
    made = []
    for i, (width, height) in enumerate([(90, 70), (64, 64), (40, 120), (300, 200), (33, 65)]):
        coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "PNG" if i % 2 else "JPEG", quality=95)
        made.append(out.getvalue())
    return made


def real_pictures(n: int | None = None) -> list[bytes]:
    """The first n pictures of the shared pairs, or all; ask for the fixture `shared` first."""
    found: list[bytes] = []
    for path in sorted((SHARED / "data" / "pairs").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png", ".webp", ".gif")):
                    found.append(tar.extractfile(member).read())
                    if len(found) == n:
                        return found
    return found
