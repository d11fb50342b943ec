"""The measurements of `bench encode`: the model alone, preprocessing alone, and both from bytes to vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, cycle, islice
from typing import Any

import numpy as np

from mmstream.encoders.base import Encoder
from mmstream.encoders.pipelined import AHEAD, picture_vectors, prepared
from mmstream.errors import UsageError
from mmstream.media.image import decode
from mmstream.timing import Stopwatch


class Run:
    """Each measurement takes about so many seconds and gives pictures per second.

    `backend` is what decodes and resizes; `stages` are the shares of the last end-to-end round.
    """

    backend = "cpu"

    def __init__(self, encoder: Encoder, pictures: list[bytes], pool: ThreadPoolExecutor) -> None:
        self._encoder, self._pictures, self._pool = encoder, pictures, pool
        size = encoder.micro_batch
        self._placed = encoder.place([self._prepare(data) for data in islice(cycle(pictures), size)])
        self._least = 2 * size
        self.stages: dict[str, float] = {}
        self.cpu_seconds_per_1000 = 0.0

    def model_only(self, seconds: float) -> float:
        start, num = time.perf_counter(), 0
        begun: Any = None
        while num < self._least or time.perf_counter() - start < seconds:
            after = self._encoder.forward(self._placed)
            if begun is not None:  # as in `picture_vectors`: the next batch is handed over first
                self._encoder.fetch(begun)
            begun, num = after, num + self._encoder.micro_batch
        self._encoder.fetch(begun)
        return num / (time.perf_counter() - start)

    def preprocess_only(self, seconds: float) -> float:
        start = time.perf_counter()
        num = self._preprocessed(seconds)
        return num / (time.perf_counter() - start)

    def end_to_end(self, seconds: float) -> float:
        watch, num = Stopwatch(), 0
        start, cpu = time.perf_counter(), time.process_time()
        for vectors in self._vectors(seconds, watch):
            num += len(vectors)
        took = time.perf_counter() - start
        self.stages = {stage: s / took for stage, s in watch.seconds.items()}
        self.cpu_seconds_per_1000 = 1000 * (time.process_time() - cpu) / num
        return num / took

    def _preprocessed(self, seconds: float) -> int:
        """How many pictures became what the model takes."""
        return sum(1 for _ in self._pixels(seconds))

    def _vectors(self, seconds: float, watch: Stopwatch) -> Iterator[np.ndarray]:
        return picture_vectors(self._pixels(seconds), self._encoder, watch)

    def _prepare(self, data: bytes) -> np.ndarray:
        return self._encoder.preprocess(decode(data))

    def _pixels(self, seconds: float) -> Iterator[np.ndarray]:
        return prepared(self._bytes(seconds), self._prepare, self._pool, AHEAD * self._encoder.micro_batch)

    def _bytes(self, seconds: float) -> Iterator[bytes]:
        """Whole micro-batches of pictures until the time is over: a padded one would count as slow."""
        end, size = time.perf_counter() + seconds, self._encoder.micro_batch
        for i, data in enumerate(cycle(self._pictures)):
            if i >= self._least and i % size == 0 and time.perf_counter() > end:
                return
            yield data


class DeviceRun(Run):
    """The same where the device decodes and resizes compressed pictures, as with `fused:`."""

    def __init__(self, encoder: Encoder, pictures: list[bytes], pool: ThreadPoolExecutor) -> None:
        from mmstream.encoders.device_pictures import RESIZE
        from mmstream.encoders.fused import fuse
        from mmstream.encoders.pictures import PictureModel

        if not isinstance(encoder, PictureModel):
            raise UsageError(f"--decode device: {encoder.spec} does not take its pictures from a device.")
        if not encoder.fused:
            fuse(encoder)
        super().__init__(encoder, pictures, pool)
        self.backend = f"{encoder.fused.decoded_by}+{RESIZE}" if encoder.fused else "cpu"

    def _preprocessed(self, seconds: float) -> int:
        import torch

        num = sum(len(self._encoder.place(rows)) for rows in _lists(self._pixels(seconds), self._encoder.micro_batch))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return num

    def _pixels(self, seconds: float) -> Iterator[Any]:
        groups = _lists(self._bytes(seconds), self._encoder.group)
        ahead = max(2, AHEAD * self._encoder.micro_batch // self._encoder.group)
        return chain.from_iterable(prepared(groups, self._group, self._pool, ahead))

    def _group(self, pictures: list[bytes]) -> list[Any]:
        ahead = self._encoder.decode_ahead(pictures)
        return [self._encoder.preprocess(p or decode(d)) for p, d in zip(ahead, pictures, strict=True)]


def _lists(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while found := list(islice(items, size)):
        yield found
