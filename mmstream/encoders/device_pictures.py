"""Compressed pictures go to the device: JPEGs are decoded there in batches, resized, cropped and normalised there.

Pixels never cross the bus, and no core resizes. What the device's decoder would show otherwise than `media.image` does
(turned by EXIF, of other colours than YCbCr or grey, cut before its end) or cannot read takes the CPU codec, picture by
picture, which also knows the reason of a reject. The resize is not Pillow's to the last bit, so that vectors are not
either: the way has a name of its own in the fingerprint (`encoders.fused`). On a CPU all of it runs too, and the
decoders agree closely: of 214 pictures no pixel differed by more than 1 of 255 from an H100's JPEG engine, and by more
than 3 from its CPU and GPU without that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mmstream.encoders.nvimagecodec import NvImageCodec
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.resample import ALGORITHMS, canvas_of, normalized, on_canvas
from mmstream.errors import UsageError
from mmstream.media.image import Picture

# JPEGs and their (height, width) → uint8 [3, height, width] each on a device, None for what it cannot read.
BatchDecoder = Callable[[list[bytes], list[tuple[int, int]]], list[torch.Tensor | None]]
GROUP = 128  # pictures that are decoded at once: half a micro-batch of a GPU
RESIZE = "matmul/1"  # its name in a fingerprint
_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what nvJPEG reads
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_CANVAS_PIXELS = 1 << 26  # of one step on the device, weights counted in, which holds about 27 bytes for each
_LARGE_PIXELS = 1 << 21  # of a picture that is resized at once: few may lie on the device as they are
_MOST_PIXELS, _LONGEST = 1 << 24, 1 << 13  # of a picture, and of its edge, that is resized there and not by Pillow
_MOST_BYTES = 1 << 28  # of pixels that are decoded at once
_APP1, _APP14, _SOS = 0xE1, 0xEE, 0xDA


@dataclass(frozen=True)
class OnDevice:
    """A `Picture` whose pixels lie on the device: uint8 [3, height, width]."""

    pixels: torch.Tensor
    data: bytes

    @property
    def width(self) -> int:
        return self.pixels.shape[2]

    @property
    def height(self) -> int:
        return self.pixels.shape[1]

    @cached_property
    def rgb(self) -> np.ndarray:
        return np.ascontiguousarray(self.pixels.permute(1, 2, 0).cpu().numpy())


class DevicePictures:
    """
    Attributes:
        decoded_by: what decodes, for reports.

    Raises:
        UsageError: the preprocessing resamples in a way that is not done on the device.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        decoder: BatchDecoder | None = None,
        compiled: bool = False,
    ) -> None:
        if preprocessing.algorithm not in ALGORITHMS:
            raise UsageError(f"{preprocessing.algorithm} is not resampled on the device: {', '.join(ALGORITHMS)} are.")
        self._device, self._decoder, self._wanted = device, decoder or jpeg_decoder(device), preprocessing
        self.decoded_by = "nvimagecodec" if self._decoder else "turbo"
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._normalized = torch.compile(normalized, dynamic=True) if compiled else normalized
        self._one_large = threading.Lock()
        self._crop = max(preprocessing.crop or (0, 0))

    def decode(self, pictures: Sequence[bytes]) -> list[OnDevice | None]:
        """Those that the device decodes; None for what takes the CPU codec."""
        found: list[OnDevice | None] = [None] * len(pictures)
        if self._decoder is None:
            return found
        shapes = {i: shape for i, data in enumerate(pictures) if (shape := plain_jpeg(data))}
        for part in _of_few_bytes(shapes):
            try:
                decoded = self._decoder([pictures[i] for i in part], [shapes[i] for i in part])
            except (OSError, torch.OutOfMemoryError):
                continue  # the CPU codec has less to do with others' memory
            for i, pixels in zip(part, decoded, strict=True):
                if pixels is not None:  # else the CPU codec knows why
                    found[i] = OnDevice(pixels, pictures[i])
        return found

    def taken(self, picture: Picture | OnDevice) -> torch.Tensor:
        """One of what `fitted` takes: uint8 [3, height, width] on the device; float32 of the model's size where the
        picture is a large one or the device is a CPU, whose memory is the worker's.

        Which resize a picture has depends on its size alone: a very large or long one has Pillow's.
        """
        height, width = picture.height, picture.width
        if height * width > _MOST_PIXELS or max(height, width) > _LONGEST:
            pixels = self._wanted.pixels(Picture(picture.rgb, width, height, picture.data))
            return self._wanted.normalized(torch.tensor(pixels, device=self._device)[None])[0]
        is_there = isinstance(picture, OnDevice)
        pixels = picture.pixels if is_there else torch.tensor(picture.rgb, device=self._device).permute(2, 0, 1)
        if height * width <= _LARGE_PIXELS:
            return pixels if self._device.type == "cuda" else self.fitted([pixels])[0]
        with self._one_large:
            return self.fitted([pixels])[0]

    @torch.inference_mode()
    def fitted(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Resized, cropped and normalised: float32 [n, 3, height, width], as the model takes them."""
        ready = [i for i, p in enumerate(pictures) if p.is_floating_point()]
        raw = [i for i, p in enumerate(pictures) if not p.is_floating_point()]
        shapes = [(pictures[i].shape[1], pictures[i].shape[2]) for i in raw]
        groups = [[raw[i] for i in group] for group in by_size(shapes, _CANVAS_PIXELS, self._crop)]
        parts = [self._as_taken([pictures[i] for i in group]) for group in groups]
        if ready:
            parts.append(torch.stack([pictures[i] for i in ready]))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for group in (*groups, ready) for i in group]).argsort()
        return torch.cat(parts)[order.to(self._device)]

    def _as_taken(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        canvas, down, across = on_canvas(pictures, self._wanted)
        return self._normalized(canvas, down, across, self._wanted.scale, self._mean, self._std)


def _of_few_bytes(shapes: Mapping[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Pictures, (height, width) by number, in parts of at most `_MOST_BYTES`."""
    part: list[int] = []
    num_bytes = 0
    for i, (height, width) in shapes.items():
        if part and num_bytes + 3 * height * width > _MOST_BYTES:
            yield part
            part, num_bytes = [], 0
        part.append(i)
        num_bytes += 3 * height * width
    if part:
        yield part


def by_size(shapes: Sequence[tuple[int, int]], most: int, crop: int = 0) -> list[list[int]]:
    """Indices of pictures, (height, width) each, in groups whose common canvas has at most `most` pixels in all, with
    the weights for `crop` rows and columns: one large picture must not make the canvas of all others as large. Where
    one group will do, in their own order."""
    groups: list[list[int]] = []
    height = width = 0
    for i in sorted(range(len(shapes)), key=lambda i: shapes[i]):
        taller, wider = (max(a, b) for a, b in zip((height, width), canvas_of(*shapes[i]), strict=True))
        if groups and (len(groups[-1]) + 1) * (taller * wider + crop * (taller + wider)) <= most:
            groups[-1].append(i)
            height, width = taller, wider
        else:
            groups.append([i])
            height, width = canvas_of(*shapes[i])
    return [sorted(group) for group in groups]


def jpeg_decoder(device: torch.device) -> BatchDecoder | None:
    """nvImageCodec's batch decoder; None where it is not installed, and on a CPU, whose own codec is the faster one."""
    return nvimagecodec(device) if device.type == "cuda" else None


def nvimagecodec(device: torch.device) -> BatchDecoder | None:
    """nvImageCodec on `device`; None where it cannot be used."""
    try:
        return NvImageCodec(device)
    except OSError:
        return None


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that any decoder shows alike: grey or YCbCr of 8 bits, whole, not very large, with
    nothing that might set it upright (EXIF, XMP) or name other colours (Adobe). None of what else there is."""
    if not data.startswith(b"\xff\xd8\xff") or not data.endswith(b"\xff\xd9"):
        return None
    at, size, shape = 2, len(data), None
    while at + 11 < size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (_APP1, _APP14):
            return None
        if marker == _SOS:
            return shape
        if marker in _ALONE or marker == 0xFF:
            at += 2 - (marker == 0xFF)
            continue
        if marker in _SOF:
            bits, components = data[at + 4], data[at + 9]
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            is_rgb = components == 3 and data[at + 10] == ord("R")  # how libjpeg tells it where no Adobe marker does
            is_plain = bits == 8 and components in (1, 3) and not is_rgb and 0 < height * width <= _MOST_PIXELS
            if shape or not is_plain or max(height, width) > _LONGEST:
                return None
            shape = (height, width)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
