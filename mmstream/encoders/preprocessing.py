"""How a pretrained model wants its pictures: read from its own configuration, done with Pillow on uint8.

Scaling and normalisation happen on the whole batch, on the model's device: no float pixels before the model.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmstream.encoders.folder import read_json
from mmstream.errors import UsageError
from mmstream.media.image import Picture, resize

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


@dataclass(frozen=True)
class Preprocessing:
    """`size`: the shortest edge (then `crop` is cut from the centre), or (height, width); `centre` is how an odd margin
    is halved (media.image.resize)."""

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    algorithm: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backend: str = "pillow/1"
    centre: str = "floor"

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 [height, width, 3] of the model's input size."""
        return resize(picture.rgb, self.size, algorithm=self.algorithm, crop=self.crop, centre=self.centre)

    def normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, height, width, 3] → float32 [n, 3, height, width] on the same device."""
        mean, std = (torch.tensor(v, device=pixels.device).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels.permute(0, 3, 1, 2).float() * self.scale - mean) / std

    def identity(self) -> dict[str, Any]:
        """What of it a vector depends on, for the fingerprint."""
        return asdict(self)


def from_hf(folder: Path, spec: str) -> Preprocessing:
    """The preprocessing of a model of the transformers library.

    Raises:
        UsageError: the configuration is missing, or asks for something that is not done here.
    """
    if (folder / "preprocessor_config.json").exists():
        config = read_json(folder / "preprocessor_config.json", spec)
    else:
        config = read_json(folder / "processor_config.json", spec).get("image_processor", {})
    size = _shape(config.get("size", 224))
    crop = _shape(config.get("crop_size")) if config.get("do_center_crop") else None
    crop = (crop, crop) if isinstance(crop, int) else crop
    if not config.get("do_resize", True):
        raise UsageError(f"{spec}: its preprocessing does not resize; only fixed input sizes are read.")
    if not isinstance(size, int) and crop == size:
        crop = None
    if isinstance(size, int) and crop is None:
        # A bare number meant a square to ViT's processor, the shortest edge to CLIP's.
        if isinstance(config.get("size"), int) and "ViT" in str(config.get("image_processor_type", "")):
            size = (size, size)
        else:
            raise UsageError(
                f"{spec}: its preprocessing keeps the shape of a picture; only fixed input sizes are read."
            )
    normalize = config.get("do_normalize", True)
    return Preprocessing(
        size=size,
        crop=crop,
        algorithm=_RESAMPLE[config.get("resample", 3)],
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalize else (1.0, 1.0, 1.0),
    )


def _shape(size: Any) -> int | tuple[int, int]:
    if isinstance(size, dict):
        return size.get("shortest_edge") or (int(size["height"]), int(size["width"]))
    if isinstance(size, list | tuple):
        return (int(size[0]), int(size[1]))
    return size
