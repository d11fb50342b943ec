"""Image models of published sizes with random weights: how fast a model is does not depend on what it has learnt.

ViT-S/32 … ViT-H/14    CLIP's vision tower of that size, of the transformers library, with CLIP's preprocessing
timm:<name>            any model of timm, with its own preprocessing (needs the extra `vision`)
"""

from __future__ import annotations

from typing import Any

import torch

from mmstream.encoders.pictures import PictureModel
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.errors import UsageError

# Width, layers, heads, patch and the dimension of the vectors.
SIZES = {
    "ViT-S/32": (384, 12, 6, 32, 384),
    "ViT-B/32": (768, 12, 12, 32, 512),
    "ViT-B/16": (768, 12, 12, 16, 512),
    "ViT-L/14": (1024, 24, 16, 14, 768),
    "ViT-H/14": (1280, 32, 16, 14, 1024),
}
_CLIP = Preprocessing(
    size=224,
    crop=(224, 224),
    algorithm="bicubic",
    scale=1 / 255,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


class RandomPictures(PictureModel):
    """
    Raises:
        UsageError: no such size or model.
    """

    modalities = ("image",)
    fingerprint = "of random weights"

    def __init__(self, name: str) -> None:
        self.spec = f"{name} with random weights"
        torch.manual_seed(0)
        if name.startswith("timm:"):
            module, self.preprocessing = _timm(name)
        elif name in SIZES:
            module, self.preprocessing = _clip(*SIZES[name]), _CLIP
        else:
            raise UsageError(f"--random {name}: give one of {', '.join(SIZES)} or timm:<name>.")
        self._is_clip = name in SIZES
        self.settle(module.float())
        self.dimension = SIZES[name][-1] if self._is_clip else int(module.num_features)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(pixel_values=images).image_embeds if self._is_clip else self.module(images)


def _clip(width: int, layers: int, heads: int, patch: int, dimension: int) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        projection_dim=dimension,
    )
    return CLIPVisionModelWithProjection(config)


def _timm(name: str) -> tuple[Any, Preprocessing]:
    from mmstream.encoders.timm import preprocessing_of, vision_library

    timm = vision_library("timm", name)
    if not timm.is_model(name.removeprefix("timm:")):
        raise UsageError(f"--random {name}: timm has no such model.")
    module = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=0)
    return module, preprocessing_of(timm, module, name)
