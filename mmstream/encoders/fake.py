"""`fake:<dimension>`: vectors from the bytes of the content, for tests and dry runs.

The same bytes give the same vector everywhere and for ever; other bytes give one that is unrelated. Pictures are
decoded like any other, so that a broken one is rejected here too.
"""

from __future__ import annotations

import hashlib

import numpy as np

from mmstream.encoders.base import Encoder, Tokens, fingerprint
from mmstream.errors import UsageError
from mmstream.media.image import Picture

MAX_DIMENSION = 8192


class FakeEncoder(Encoder):
    modalities = ("image", "text")

    def __init__(self, spec: str) -> None:
        dimension = spec.removeprefix("fake:")
        if not dimension.isdecimal() or not 1 <= int(dimension) <= MAX_DIMENSION:
            raise UsageError(f"{spec}: give a dimension from 1 to {MAX_DIMENSION}, as in fake:64.")
        self.spec = spec
        self.dimension = int(dimension)
        self.fingerprint = fingerprint({"encoder": "fake/1", "dimension": self.dimension})

    def preprocess(self, picture: Picture) -> np.ndarray:
        return _vector(picture.data, self.dimension)

    def tokenize(self, texts: list[str]) -> Tokens:
        return {"vectors": np.stack([_vector(text.encode(), self.dimension) for text in texts])}

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        return tokens["vectors"]


def _vector(content: bytes, dimension: int) -> np.ndarray:
    """Standard normal float32 [dimension], seeded by the SHA-256 of the content."""
    seed = int.from_bytes(hashlib.sha256(content).digest(), "little")
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(dimension, np.float32)
