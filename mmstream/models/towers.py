"""Towers: pictures or tokens in, one vector a sample out, not yet normalised.

Legend: B batch, C channels, H and W rows and columns, L tokens, D a tower's output, E a Transformer's width.

Both are small on purpose: they train from scratch in minutes on two cores. Normalisation is over groups of channels
or over a token, never over the batch: what a sample's vector is does not depend on its neighbours or on how many
workers share the batch.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmstream.config import Config
from mmstream.media.text import PAD


class ImageTowerConfig(Config):
    """A CNN over square pictures: `stem` pixels become one position, then two steps halve the grid."""

    size: int = Field(64, gt=0, le=1024, description="pixels of a side")
    stem: int = Field(4, gt=0, le=32)
    widths: tuple[int, int, int] = (32, 64, 96)
    hidden: int = Field(256, gt=0, le=8192)

    @model_validator(mode="after")
    def _whole_grid(self) -> ImageTowerConfig:
        if self.size % (self.stem * 4):
            raise ValueError(f"size {self.size} must be a multiple of 4 x stem = {self.stem * 4}")
        if not all(0 < w <= 4096 and w % 16 == 0 for w in self.widths):
            raise ValueError("widths must be multiples of 16, at most 4096")
        return self


class TextTowerConfig(Config):
    """A Transformer whose first token is the text's vector, behind a convolution over neighbouring tokens."""

    length: int = Field(26, gt=1, le=4096, description="tokens, the start token counted")
    vocab_size: int = Field(1024, ge=258, le=1_000_000)
    width: int = Field(128, gt=0, le=8192)
    layers: int = Field(2, gt=0, le=64)
    heads: int = Field(4, gt=0, le=64)

    @model_validator(mode="after")
    def _whole_heads(self) -> TextTowerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads = {self.heads}")
        return self


class ImageTower(nn.Module):
    def __init__(self, config: ImageTowerConfig, dimension: int) -> None:
        super().__init__()
        a, b, c = config.widths
        grid = config.size // (config.stem * 4)
        self.grid = nn.Sequential(
            nn.Conv2d(3, a, config.stem + 2, config.stem, 1, bias=False),
            _norm(a),
            nn.ReLU(),
            Residual(a),
            nn.Conv2d(a, b, 3, 2, 1, bias=False),
            _norm(b),
            nn.ReLU(),
            Residual(b),
            nn.Conv2d(b, c, 3, 2, 1, bias=False),
            _norm(c),
            nn.ReLU(),
        )
        # The grid is flattened, not averaged: where a thing is must reach the vector.
        self.head = nn.Sequential(
            nn.Linear(c * grid * grid, config.hidden),
            nn.LayerNorm(config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, dimension),
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Float [B, 3, size, size], normalised → [B, D]."""
        return self.head(self.grid(image_BCHW).flatten(1))


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            _norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            _norm(channels),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(x_BCHW + self.body(x_BCHW))


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


class TextTower(nn.Module):
    def __init__(self, config: TextTowerConfig, dimension: int) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(torch.randn(config.length, config.width) * 0.02)
        nn.init.normal_(self.token.weight, std=0.02)
        self.neighbours = nn.Conv1d(config.width, config.width, 5, padding=2)
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, dimension)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Integers [B, L], padded with `PAD` → [B, D]. Padding changes nothing."""
        given_BL1 = (tokens_BL != PAD).unsqueeze(-1)
        x_BLE = (self.token(tokens_BL) + self.position[: tokens_BL.shape[1]]) * given_BL1
        x_BLE = x_BLE + self.neighbours(x_BLE.mT).mT
        mask_B11L = given_BL1.mT.unsqueeze(1)
        for block in self.blocks:
            x_BLE = block(x_BLE, mask_B11L)
        return self.head(self.norm(x_BLE[:, 0]))


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BLE: Tensor, mask_B11L: Tensor) -> Tensor:
        x_BLE = x_BLE + self._attend(self.norm_attention(x_BLE), mask_B11L)
        return x_BLE + self.mlp(self.norm_mlp(x_BLE))

    def _attend(self, x_BLE: Tensor, mask_B11L: Tensor) -> Tensor:
        B, L, E = x_BLE.shape
        q, k, v = self.query_key_value(x_BLE).view(B, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        with torch.autocast("cpu", enabled=False):  # the CPU's bfloat16 attention is slower than its float32
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask_B11L)
        return self.out(y.to(x_BLE.dtype).transpose(1, 2).reshape(B, L, E))
