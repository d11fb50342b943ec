"""Compressed pictures go to the device: JPEGs are decoded there in batches, resized, cropped and normalised there.

Pixels never cross the bus, and no core resizes. What the device's decoder would show otherwise than `media.image` does
(turned by EXIF, of other colours than YCbCr or grey, cut before its end) or cannot read takes the CPU codec, picture by
picture, which also knows the reason of a reject. nvJPEG's pixels are not libjpeg-turbo's to the last bit: the backend
has a name of its own in the fingerprint, and `embed` keeps to the CPU codec until the parity table was printed on a
GPU. On a CPU all of this runs too, without the device's decoder, and the resize equals Pillow's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import unit
from mmstream.encoders.pictures import PictureModel
from mmstream.encoders.pipelined import AHEAD, Watch, prepared
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.resample import ALGORITHMS, normalized, on_canvas
from mmstream.errors import UsageError
from mmstream.media import image

BatchDecoder = Callable[[list[bytes]], list[torch.Tensor]]
_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what nvJPEG reads
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
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
        self.preprocessing = replace(preprocessing, backend=f"{'nvjpeg' if self._decoder else 'turbo'}+matmul/1")
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
            try:
                for i, pixels in zip(plain, self._decoder([pictures[i] for i in plain]), strict=True):
                    found[i] = pixels if len(pixels) == 3 else pixels.expand(3, -1, -1)
                self.num_on_device += len(plain)
            except RuntimeError as e:  # one that it cannot read spoils a batch: the CPU codec knows which, and why
                logging.getLogger(__name__).debug("the device's decoder gave up a batch: %s", e)
        return [self._by_cpu(pictures[i]) if pixels is None else pixels for i, pixels in enumerate(found)]

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[bytes]) -> torch.Tensor:
        """float32 [n, 3, height, width], as the model takes them.

        Raises:
            Rejected: one of them cannot be decoded.
        """
        canvas, down, across = on_canvas(self.decode(pictures), self.preprocessing)
        return self._normalized(canvas, down, across, self.preprocessing.scale, self._mean, self._std)

    def _by_cpu(self, data: bytes) -> torch.Tensor:
        self.num_on_cpu += 1
        rgb = torch.from_numpy(image.decode(data).rgb).to(self._device)
        return rgb.permute(2, 0, 1)


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


def jpeg_decoder(device: torch.device) -> BatchDecoder | None:
    """The batch decoder of a CUDA device, where torchvision has one; None anywhere else."""
    if device.type != "cuda":
        return None
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # ty: ignore[import-not-found]
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision that was built for another torch
        return None

    def decode(pictures: list[bytes]) -> list[torch.Tensor]:
        with_bytes = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in pictures]
        return decode_jpeg(with_bytes, mode=ImageReadMode.RGB, device=device)

    return decode


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
