"""Pillow's resize as two matrix products, for a batch of pictures of any sizes, on any device.

A resize is a weighted mean along rows, rounded to 8 bits, and then one along columns: one matrix [out, in] per picture
and direction, of which only the rows that the crop shows are there. The weights are Pillow's (Resample.c: the filter is
widened by the factor of reduction, which is its antialias), and so are order and rounding; what remains is the last
digit of its fixed-point numbers. Pictures lie in the corner of a common canvas, behind whose edge all weights are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from mmstream.encoders.preprocessing import Preprocessing
from mmstream.media.image import margins, shape_of

_EDGE = 64  # canvases grow by so many pixels at a time: few shapes, so that a compiled step is compiled seldom


def weights(preprocessing: Preprocessing, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(down float32 [out height, height], across float32 [out width, width]) of a picture of that size; rows that lie
    beside the picture are 0, which is black."""
    new = shape_of(height, width, preprocessing.size)
    crop = preprocessing.crop or new
    return tuple(  # ty: ignore[invalid-explicit-return]
        _matrix(length, new_length, crop_length, preprocessing.algorithm, preprocessing.centre)
        for length, new_length, crop_length in zip((height, width), new, crop, strict=True)
    )


def on_canvas(pictures: Sequence[torch.Tensor], preprocessing: Preprocessing) -> tuple[torch.Tensor, ...]:
    """uint8 [3, height, width] each, on one device → what `normalized` takes: canvas uint8 [n, 3, H, W], down float32
    [n, out height, H] and across float32 [n, out width, W]."""
    device = pictures[0].device
    height, width = (_EDGE * math.ceil(max(p.shape[axis] for p in pictures) / _EDGE) for axis in (1, 2))
    canvas = torch.zeros((len(pictures), 3, height, width), dtype=torch.uint8, device=device)
    both = [weights(preprocessing, *p.shape[1:]) for p in pictures]
    down = np.zeros((len(pictures), len(both[0][0]), height), np.float32)
    across = np.zeros((len(pictures), len(both[0][1]), width), np.float32)
    for i, (picture, (rows, columns)) in enumerate(zip(pictures, both, strict=True)):
        canvas[i, :, : picture.shape[1], : picture.shape[2]] = picture
        down[i, :, : rows.shape[1]] = rows
        across[i, :, : columns.shape[1]] = columns
    return canvas, torch.from_numpy(down).to(device), torch.from_numpy(across).to(device)


def normalized(
    canvas: torch.Tensor, down: torch.Tensor, across: torch.Tensor, scale: float, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Resized, cropped and normalised: float32 [n, 3, out height, out width]; mean and std are [1, 3, 1, 1].

    Nothing but tensor operations of fixed shapes: `torch.compile` makes few kernels of it. In float32: half precision
    would round the weights.
    """
    pixels = _rounded(canvas.float() @ across.transpose(1, 2)[:, None])
    pixels = _rounded(down[:, None] @ pixels)
    return (pixels * scale - mean) / std


def _rounded(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels + 0.5).floor().clamp(0, 255)


@lru_cache(maxsize=4096)
def _matrix(length: int, new_length: int, crop: int, algorithm: str, centre: str) -> np.ndarray:
    """float32 [crop, length]"""
    start, stop, padding = margins(new_length, crop, centre)
    matrix = np.zeros((crop, length), np.float32)
    matrix[padding : padding + stop - start] = _resampling(length, new_length, algorithm)[start:stop]
    matrix.flags.writeable = False
    return matrix


def _resampling(length: int, new_length: int, algorithm: str) -> np.ndarray:
    """float64 [new_length, length]: Pillow's precompute_coeffs."""
    if length == new_length:
        return np.eye(length)
    radius, filter_ = _FILTERS[algorithm]
    factor = length / new_length
    reach = radius * max(factor, 1.0)
    middle = (np.arange(new_length) + 0.5) * factor
    first = np.maximum((middle - reach + 0.5).astype(int), 0)
    last = np.minimum((middle + reach + 0.5).astype(int), length)
    at = np.arange(length)[None]
    inside = (at >= first[:, None]) & (at < last[:, None])
    found = np.where(inside, filter_((at - middle[:, None] + 0.5) / max(factor, 1.0)), 0.0)
    return found / found.sum(1, keepdims=True)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return np.where(x < 1, near, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.clip(1 - np.abs(x), 0, None)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS = {"bicubic": (2.0, _bicubic), "bilinear": (1.0, _bilinear), "box": (0.5, _box), "lanczos": (3.0, _lanczos)}
ALGORITHMS = tuple(_FILTERS)
