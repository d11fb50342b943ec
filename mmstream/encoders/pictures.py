"""What all torch models of pictures have in common: uint8 pixels to the device, floats and vectors there, and back.

The three steps are apart so that they overlap (`encoders.pipelined`) and are timed apart (`bench.encode`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import Encoder
from mmstream.media.image import Picture


class PictureModel(Encoder):
    """A family gives `_features`, and sets `module`, `preprocessing` and `on`, the device of both."""

    on: torch.device
    preprocessing: Any  # of `encoders.preprocessing`, or a card's own: `pixels` on uint8, `normalized` on the device

    def settle(self, module: torch.nn.Module) -> None:
        """Takes `module` to where it computes, for inference: the GPU where there is one."""
        self.on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name() if self.on.type == "cuda" else "cpu"
        self.micro_batch = 256 if self.on.type == "cuda" else 32
        self.module = module.eval().requires_grad_(False).to(self.on)

    def preprocess(self, picture: Picture) -> np.ndarray:
        """uint8 [height, width, 3] of the model's input size."""
        return self.preprocessing.pixels(picture)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised pictures [n, 3, height, width] → vectors [n, d], on the device."""
        raise NotImplementedError

    def place(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """uint8 [n, height, width, 3] on the device."""
        return torch.from_numpy(np.stack(pixels)).to(self.on)

    @torch.inference_mode()
    def forward(self, placed: torch.Tensor) -> torch.Tensor:
        return self._features(self.preprocessing.normalized(placed))

    def fetch(self, vectors: Any) -> np.ndarray:
        return vectors.float().cpu().numpy()

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        return self.fetch(self.forward(self.place(list(pixels))))
