"""Compressed pictures go to the device: JPEGs are decoded there in batches, resized, cropped and normalised there.

Pixels never cross the bus, and no core resizes. What the device's decoder would show otherwise than `media.image` does
(turned by EXIF, of other colours than YCbCr or grey, cut before its end) or cannot read takes the CPU codec, picture by
picture, which also knows the reason of a reject. nvImageCodec's pixels are not libjpeg-turbo's to the last bit, and the
resize is not Pillow's to the last bit: the backend has a name of its own in the fingerprint, and `embed`, whose sets
are searched and continued on machines without a GPU, keeps to the CPU codec. On a CPU all of this runs too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import unit
from mmstream.encoders.pictures import PictureModel
from mmstream.encoders.pipelined import AHEAD, Watch, prepared
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.resample import ALGORITHMS, canvas_of, normalized, on_canvas
from mmstream.errors import UsageError
from mmstream.media import image

BatchDecoder = Callable[[list[bytes]], list[torch.Tensor | None]]
_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what nvJPEG reads
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_CANVAS_PIXELS = 1 << 26  # of one step on the device, which holds 27 bytes for each
_APP1, _APP14, _SOS = 0xE1, 0xEE, 0xDA


class DevicePictures:
    """
    Attributes:
        preprocessing: the model's, with the backend that does it here: other than on the CPU, and so in a fingerprint.
        num_on_device, num_on_cpu: pictures that took either codec.

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
        self._device, self._decoder = device, decoder or jpeg_decoder(device)
        self.preprocessing = replace(preprocessing, backend=f"{'nvimagecodec' if self._decoder else 'turbo'}+matmul/1")
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(1, 3, 1, 1)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._normalized = torch.compile(normalized, dynamic=True) if compiled else normalized
        self.num_on_device = self.num_on_cpu = 0

    def decode(self, pictures: Sequence[bytes]) -> list[torch.Tensor]:
        """uint8 [3, height, width] each, on the device.

        Raises:
            Rejected: one of them cannot be decoded.
        """
        found: list[torch.Tensor | None] = [None] * len(pictures)
        plain = [i for i, data in enumerate(pictures) if self._decoder and is_plain_jpeg(data)]
        if plain and self._decoder:
            for i, pixels in zip(plain, self._decoder([pictures[i] for i in plain]), strict=True):
                if pixels is not None:  # else the CPU codec knows why
                    found[i] = pixels if len(pixels) == 3 else pixels.expand(3, -1, -1)
                    self.num_on_device += 1
        return [self._by_cpu(pictures[i]) if pixels is None else pixels for i, pixels in enumerate(found)]

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[bytes]) -> torch.Tensor:
        """float32 [n, 3, height, width], as the model takes them.

        Raises:
            Rejected: one of them cannot be decoded.
        """
        decoded = self.decode(pictures)
        groups = by_size([(p.shape[1], p.shape[2]) for p in decoded], _CANVAS_PIXELS)
        parts = [self._as_taken([decoded[i] for i in group]) for group in groups]
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for group in groups for i in group]).argsort()
        return torch.cat(parts)[order.to(self._device)]

    def _as_taken(self, pictures: list[torch.Tensor]) -> torch.Tensor:
        canvas, down, across = on_canvas(pictures, self.preprocessing)
        return self._normalized(canvas, down, across, self.preprocessing.scale, self._mean, self._std)

    def _by_cpu(self, data: bytes) -> torch.Tensor:
        self.num_on_cpu += 1
        return torch.tensor(image.decode(data).rgb, device=self._device).permute(2, 0, 1)


def device_vectors(
    batches: Iterable[list[bytes]], encoder: PictureModel, pictures: DevicePictures, pool: Executor, watch: Watch
) -> Iterator[np.ndarray]:
    """Unit vectors float32 [n, d] of one batch after the other. The next ones are decoded on streams of the pool's
    threads while the model is at work.

    Raises:
        Rejected: a picture cannot be decoded.
    """
    is_gpu = encoder.on.type == "cuda"

    def prepare(batch: list[bytes]) -> tuple[torch.Tensor, Any]:
        with torch.cuda.stream(torch.cuda.Stream()) if is_gpu else nullcontext():
            images = pictures(batch)
            return images, torch.cuda.current_stream().record_event() if is_gpu else None

    waiting, at_work = prepared(batches, prepare, pool, AHEAD), None
    while True:
        with watch("decode"):
            images, ready = next(waiting, (None, None))
        begun = None
        if images is not None:
            with watch("model"):
                if ready is not None:
                    torch.cuda.current_stream().wait_event(ready)
                    images.record_stream(torch.cuda.current_stream())
                begun = encoder.forward_images(images)
        if at_work is not None:
            with watch("model"):
                vectors = unit(encoder.fetch(at_work))
            yield vectors
        if begun is None:
            return
        at_work = begun


def by_size(shapes: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Indices of pictures, (height, width) each, in groups whose common canvas has at most `most` pixels in all: one
    large picture must not make the canvas of all others as large. Where one group will do, in their own order."""
    groups: list[list[int]] = []
    height = width = 0
    for i in sorted(range(len(shapes)), key=lambda i: shapes[i]):
        taller, wider = (max(a, b) for a, b in zip((height, width), canvas_of(*shapes[i]), strict=True))
        if groups and (len(groups[-1]) + 1) * taller * wider <= most:
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
    """JPEGs → uint8 [3, height, width] each on `device`, None for what it cannot read. On a CPU it does the same with
    its libjpeg-turbo: what this module is tested with where there is no GPU.

    Colours are upsampled as libjpeg-turbo does it by default ("fancy"): measured on an H100, no pixel of 214 pictures
    differs by more than 1 of 255. nvJPEG alone, as torchvision calls it, differs by up to 3 on average.
    """
    try:
        codec: Any = import_module("nvidia.nvimgcodec")
    except (ImportError, OSError):  # OSError: made for another CUDA
        return None
    is_gpu = device.type == "cuda"
    decoder = codec.Decoder(
        device_id=_index(device) if is_gpu else codec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=None if is_gpu else [codec.Backend(codec.BackendKind.CPU_ONLY)],
        options=":fancy_upsampling=1",
    )
    params = codec.DecodeParams(apply_exif_orientation=False)
    turn = threading.Lock()  # one decoder has all the hardware's engines; a second one only takes memory

    def decode(pictures: list[bytes]) -> list[torch.Tensor | None]:
        stream = torch.cuda.current_stream(device).cuda_stream if is_gpu else 0
        with turn:
            images = decoder.decode(pictures, params=params, cuda_stream=stream)
        return [None if i is None else _tensor(i if is_gpu else np.asarray(i), device) for i in images]

    return decode


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _tensor(image: Any, device: torch.device) -> torch.Tensor:
    """[height, width, 3] that shows its memory → uint8 [3, height, width] in the same memory."""
    return torch.as_tensor(image, device=device).permute(2, 0, 1)


def is_plain_jpeg(data: bytes) -> bool:
    """Whether any decoder shows the same picture: grey or YCbCr of 8 bits, whole, of few enough pixels, with nothing
    that might set it upright (EXIF, XMP) or name other colours (Adobe)."""
    if not data.startswith(b"\xff\xd8\xff") or not data.endswith(b"\xff\xd9"):
        return False
    at, size = 2, len(data)
    while at + 11 < size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (_APP1, _APP14, _SOS):
            return False
        if marker in _ALONE or marker == 0xFF:
            at += 2 - (marker == 0xFF)
            continue
        if marker in _SOF:
            bits, components = data[at + 4], data[at + 9]
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            is_rgb = components == 3 and data[at + 10] == ord("R")  # how libjpeg tells it where no Adobe marker does
            return bits == 8 and components in (1, 3) and not is_rgb and 0 < height * width <= image.MAX_PIXELS
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
