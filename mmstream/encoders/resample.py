"""Pillow's resize as two matrix products, for a batch of pictures of any sizes, on any device.

A resize is a weighted mean along rows, rounded to 8 bits, and then one along columns: one matrix [out, in] per picture
and direction, of which only the rows that the crop shows are there. The weights are Pillow's (Resample.c: the filter is
widened by the factor of reduction, which is its antialias), and so are order and rounding; what remains is the last
digit of its fixed-point numbers. Pictures lie in the corner of a common canvas, behind whose edge all weights are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from mmstream.encoders.preprocessing import Preprocessing
from mmstream.media.image import margins, shape_of

_EDGE = 64  # canvases grow by so many pixels at a time: few shapes, so that a compiled step is compiled seldom


def canvas_of(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the smallest canvas that a picture of that size fits in."""
    return _EDGE * math.ceil(height / _EDGE), _EDGE * math.ceil(width / _EDGE)


def on_canvas(pictures: Sequence[torch.Tensor], preprocessing: Preprocessing) -> tuple[torch.Tensor, ...]:
    """uint8 [3, height, width] each, on one device → what `normalized` takes: canvas uint8 [n, 3, H, W], down float32
    [n, out height, H] and across float32 [n, out width, W]. Rows of weights that lie beside a picture are 0, which is
    black.

    The weights are computed on the device: eight numbers of each picture are all that goes there.
    """
    device, shapes = pictures[0].device, [(p.shape[1], p.shape[2]) for p in pictures]
    height, width = canvas_of(max(h for h, _ in shapes), max(w for _, w in shapes))
    canvas = torch.zeros((len(pictures), 3, height, width), dtype=torch.uint8, device=device)
    if len(set(shapes)) == 1:  # two kernels and not one of each picture
        canvas[:, :, : shapes[0][0], : shapes[0][1]] = torch.stack(list(pictures))
    else:
        for on, picture in zip(canvas, pictures, strict=True):
            on[:, : picture.shape[1], : picture.shape[2]] = picture
    each = list(dict.fromkeys(shapes))
    found = [_axes(preprocessing, *shape) for shape in each]
    axes, crop = torch.tensor([about for about, _ in found], device=device), found[0][1]
    down = _matrices(axes[:, 0], crop[0], height, preprocessing.algorithm)
    across = _matrices(axes[:, 1], crop[1], width, preprocessing.algorithm)
    numbers = {shape: i for i, shape in enumerate(each)}
    of_each = torch.tensor([numbers[shape] for shape in shapes], device=device)
    return canvas, down[of_each], across[of_each]


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
def _axes(
    preprocessing: Preprocessing, height: int, width: int
) -> tuple[tuple[tuple[int, int, int, int], ...], tuple[int, int]]:
    """((old length, new length, first new pixel that is shown, black ones before it) down and across, crop)."""
    new = shape_of(height, width, preprocessing.size)
    crop = preprocessing.crop or new
    axes = []
    for old, length, shown in zip((height, width), new, crop, strict=True):
        start, _, padding = margins(length, shown, preprocessing.centre)
        axes.append((old, length, start, padding))
    return tuple(axes), crop


def _matrices(axes: torch.Tensor, crop: int, length: int, algorithm: str) -> torch.Tensor:
    """Pillow's precompute_coeffs for n pictures at once: int64 [n, 4] → float32 [n, crop, length]."""
    radius, filter_ = _FILTERS[algorithm]
    old, new, start, padding = axes[:, :, None].unbind(1)
    pixel = torch.arange(crop, device=axes.device) - padding + start  # of the resized picture, [n, crop]
    is_shown = (pixel >= start) & (pixel < new)
    factor = old.double() / new
    wider = factor.clamp(min=1.0)
    middle, reach = (pixel + 0.5) * factor, radius * wider
    first = (middle - reach + 0.5).long().clamp(min=0)
    last = torch.minimum((middle + reach + 0.5).long(), old)
    at = torch.arange(length, device=axes.device)
    inside = (at >= first[..., None]) & (at < last[..., None]) & is_shown[..., None]
    found = filter_((at - middle[..., None] + 0.5) / wider[..., None]).masked_fill(~inside, 0.0)
    return (found / found.sum(-1, keepdim=True).where(is_shown[..., None], 1.0)).float()


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    return torch.where(x < 1, near, torch.where(x < 2, (((x - 5) * x + 8) * x - 4) * a, 0.0))


def _bilinear(x: torch.Tensor) -> torch.Tensor:
    return (1 - x.abs()).clamp(min=0)


def _box(x: torch.Tensor) -> torch.Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


def _lanczos(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)


_Filter = Callable[[torch.Tensor], torch.Tensor]
_FILTERS: dict[str, tuple[float, _Filter]] = {
    "bicubic": (2.0, _bicubic),
    "bilinear": (1.0, _bilinear),
    "box": (0.5, _box),
    "lanczos": (3.0, _lanczos),
}
ALGORITHMS = tuple(_FILTERS)
