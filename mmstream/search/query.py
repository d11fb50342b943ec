"""A question becomes a unit vector: words or a picture through the index's encoder, or a vector as it is.

All results are float32 [d] of length 1, so that a score is the cosine wherever stored vectors are normalised.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mmstream.encoders.base import Encoder
from mmstream.errors import Rejected, UsageError
from mmstream.media.text import clean
from mmstream.storage.files import read_bytes


def text_query(encoder: Encoder, text: str) -> np.ndarray:
    """
    Raises:
        UsageError: the text is empty or cannot be encoded, or the encoder gives no text vectors.
    """
    if not text.strip():
        raise UsageError("The query is empty. Give a few words.")
    try:
        return _unit(encoder.encode_text([clean(text)])[0], f"the text {text[:60]!r}")  # as captions were cleaned
    except Rejected as e:
        raise UsageError(f"The query {text[:60]!r} cannot be encoded: {e.detail}.") from e


def image_query(encoder: Encoder, image: bytes | str | Path) -> np.ndarray:
    """`image` is an encoded picture, or the path or URL of one.

    Raises:
        UsageError: nothing is there, it is no picture, or the encoder gives no image vectors.
    """
    name, data = ("the picture", image) if isinstance(image, bytes) else (str(image), read_bytes(str(image)))
    try:
        return _unit(encoder.encode_image([data])[0], name)
    except Rejected as e:
        raise UsageError(f"{name}: cannot be read as a picture ({e}).") from e


def vector_query(vector: ArrayLike, dimension: int) -> np.ndarray:
    """
    Raises:
        UsageError: not `dimension` finite numbers, or all of them zero.
    """
    v = np.asarray(vector, np.float32)
    if v.shape != (dimension,):
        raise UsageError(f"The query vector has the shape {v.shape}, this index needs ({dimension},).")
    return _unit(v, "the query vector")


def _unit(vector: np.ndarray, name: str) -> np.ndarray:
    v = vector.astype(np.float64)
    length = np.linalg.norm(v)
    if not np.isfinite(length) or length == 0:
        raise UsageError(f"{name}: gives no direction to search in, its vector has the length {length}.")
    return (v / length).astype(np.float32)
