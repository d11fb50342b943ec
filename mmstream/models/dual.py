"""The dual encoder: an image tower and a text tower into one space, and the scale of their similarities.

Legend: B batch, H and W rows and columns, C channels, L tokens, D dimension.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from mmstream.config import Config
from mmstream.models.towers import ImageTower, ImageTowerConfig, TextTower, TextTowerConfig

MAX_LOGIT_SCALE = 100.0


class DualEncoderConfig(Config):
    dimension: int = Field(128, gt=0, le=8192)
    temperature: float = Field(0.07, gt=0.01, le=10, description="at the start; it is learned")
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()


class DualEncoder(nn.Module):
    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config.image, config.dimension)
        self.text = TextTower(config.text, config.dimension)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))

    def forward(self, image_BCHW: Tensor, tokens_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors [B, D] of both, in float32 or finer, and the logit scale."""
        return self.encode_image(image_BCHW), self.encode_text(tokens_BL), self.log_scale.exp()

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, 3, size, size] → unit vectors [B, D]."""
        return _unit(self.image(image_BCHW))

    def encode_text(self, tokens_BL: Tensor) -> Tensor:
        """Token ids [B, L] → unit vectors [B, D]."""
        return _unit(self.text(tokens_BL))

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keeps the logit scale at or below 100; to be called after each step of the optimizer."""
        self.log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def _unit(x_BD: Tensor) -> Tensor:
    if x_BD.dtype in (torch.bfloat16, torch.float16):
        x_BD = x_BD.float()
    return F.normalize(x_BD, dim=-1)
