"""What all torch models of pictures have in common: uint8 pixels to the device, floats and vectors there, and back.

The three steps are apart so that they overlap (`encoders.pipelined`) and are timed apart (`bench.encode`). On a CPU
each is done when it returns, in float32. On a GPU pixels go over from pinned memory on a stream of their own while the
batch before is at work, the model computes in bfloat16, channels last, and `fetch` waits for its own batch alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmstream.encoders.base import Encoder
from mmstream.media.image import Picture

if TYPE_CHECKING:
    from mmstream.encoders.device_pictures import DevicePictures

CPU_ROWS, GPU_ROWS = 32, 256  # of a micro-batch; a chunk has 512
_TRIAL_ROWS = 8


class PictureModel(Encoder):
    """A family gives `_features`, sets `preprocessing` and hands its module to `settle`."""

    on: torch.device
    preprocessing: Any  # of `encoders.preprocessing`, or a card's own: `pixels` on uint8, `normalized` on the device
    fused: DevicePictures | None = None  # where the device decodes and resizes (`encoders.fused`)
    _copies: Any = None  # the stream on which pixels go over
    _recorded: Recorded | None = None
    _records: bool = True
    _turn = threading.Lock()  # of those who replay

    def settle(self, module: torch.nn.Module, *, rows: int = CPU_ROWS) -> None:
        """Takes `module` to where it computes, for inference: the GPU where there is one, else in micro-batches of
        `rows`."""
        self.on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module, self.micro_batch = module.eval().requires_grad_(False).to(self.on), rows
        if self.on.type == "cuda":
            self.module.to(memory_format=torch.channels_last)  # ty: ignore[no-matching-overload]
            self.device = torch.cuda.get_device_name()
            self._copies, self.micro_batch = torch.cuda.Stream(), GPU_ROWS
            self.in_bfloat16()

    def in_bfloat16(self) -> None:
        """Weights and what flows between layers: a quarter faster than autocast, which goes back to float32 at every
        norm (ViT-B/32 on an H100)."""
        self.dtype = "bfloat16"
        self.module.to(torch.bfloat16)

    def choose_micro_batch(self) -> None:
        if self.on.type == "cuda":
            about = torch.cuda.get_device_properties(self.on)
            self.micro_batch = rows_that_fit(self._bytes_per_row(), about.total_memory)

    def preprocess(self, picture: Picture) -> Any:
        """uint8 [height, width, 3] of the model's input size; what lies on the device where that resizes."""
        return self.fused.taken(picture) if self.fused else self.preprocessing.pixels(picture)

    def decode_ahead(self, images: Sequence[bytes]) -> list[Any]:
        return self.fused.decode(images) if self.fused else super().decode_ahead(images)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised pictures [n, 3, height, width] → vectors [n, d], on the device."""
        raise NotImplementedError

    def as_computed(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised pictures in the model's own dtype."""
        return images.to(torch.bfloat16) if self.dtype == "bfloat16" else images

    def place(self, pixels: Sequence[Any]) -> torch.Tensor:
        """uint8 [n, height, width, 3] on the device; on a GPU the copy may still be under way. Where the device
        resizes, what `forward_images` takes."""
        if self.fused:
            return self.fused.fitted(pixels)
        if self.on.type != "cuda":
            return torch.from_numpy(np.stack(pixels))
        pinned = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(pixels, out=pinned.numpy())
        with torch.cuda.stream(self._copies):
            placed = pinned.to(self.on, non_blocking=True)
        model = torch.cuda.current_stream()
        model.wait_stream(self._copies)
        placed.record_stream(model)  # else its memory might be used again while the model reads it
        return placed

    def forward(self, placed: torch.Tensor) -> Any:
        return self.forward_images(placed if self.fused else self.preprocessing.normalized(placed))

    def forward_images(self, images: torch.Tensor) -> Any:
        """As `forward`, of normalised pictures [n, 3, height, width] on the device."""
        if self.on.type != "cuda":
            with torch.inference_mode():
                return self._eager(images)
        # The way back is queued now: a copy that is asked for later would wait for the batch that was queued since, and
        # a record has one place for its result.
        with self._turn, torch.inference_mode():
            vectors = self._computed(images)
            pinned = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
            pinned.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return pinned, done

    def _computed(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [n, d]; a whole micro-batch is replayed from its record, and overwritten by the next one."""
        if len(images) != self.micro_batch or not self._records:
            return self._eager(images)
        if self._recorded is None or self._recorded.shape != images.shape:
            try:
                self._recorded = Recorded(self._eager, images)
            except RuntimeError:  # the model waits for the device in between, say
                self._records = False
                return self._eager(images)
        return self._recorded(images)

    def _eager(self, images: torch.Tensor) -> torch.Tensor:
        return self._features(self.as_computed(images)).float()

    def fetch(self, vectors: Any) -> np.ndarray:
        if self.on.type == "cuda":
            vectors, done = vectors
            done.synchronize()
        return vectors.numpy()

    def _bytes_per_row(self) -> float:
        """GPU memory that a trial batch takes beside the weights, for each of its rows."""
        pixels = self.preprocess(Picture(np.zeros((256, 256, 3), np.uint8), 256, 256, b""))
        before = torch.cuda.memory_allocated(self.on)
        torch.cuda.reset_peak_memory_stats(self.on)
        self.fetch(self.forward(self.place([pixels] * _TRIAL_ROWS)))
        return (torch.cuda.max_memory_allocated(self.on) - before) / _TRIAL_ROWS


class Recorded:
    """What a function launches on a GPU for a tensor of one shape, recorded once (a CUDA graph): a replay costs 0.1 ms
    of a thread, where the hundreds of launches of ViT-B/32 cost 5 ms that threads which decode have to wait for. The
    result is the same to the bit, and lies where the next replay puts its own."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor], example: torch.Tensor) -> None:
        self.shape, self._input = example.shape, example.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose their kernels and take their memory
                run(self._input)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):  # others decode meanwhile
            self._output = run(self._input)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self._input.copy_(images)
        self._graph.replay()
        return self._output


def rows_that_fit(bytes_per_row: float, device_bytes: int, most: int = GPU_ROWS) -> int:
    """Rows of a micro-batch that take at most an eighth of the device's memory, `most` halved until they do: several
    encoders may share it.

    Of the device's model and the encoder alone, not of a clock or of what else runs: the same bytes in every run.
    """
    rows = most
    while rows > 1 and rows * bytes_per_row > device_bytes / 8:
        rows //= 2
    return rows


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
