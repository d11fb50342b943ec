"""A card: one folder or URL from which a model can be loaded, with all that its vectors depend on.

`config.json` (architecture, preprocessing, number of tokens, versions), `tokenizer.json`, `model.safetensors`. The
config is written last: a folder without it is no card. Nothing in a card is ever executed, and no more memory is taken
than its files have bytes.

Legend: N pictures, H and W rows and columns, C channels.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from mmstream.config import Config
from mmstream.errors import UsageError
from mmstream.media.image import Picture, resize
from mmstream.media.text import Tokenizer
from mmstream.models.dual import DualEncoder, DualEncoderConfig
from mmstream.schema import Record
from mmstream.storage.files import join, read_bytes, write_bytes

FORMAT = "mmstream-card/1"
_LIBRARIES = ("torch", "tokenizers", "pillow", "safetensors", "numpy")


class Preprocessing(Config):
    """How a picture becomes a tower's input: squeezed to a square, bytes scaled to [0, 1], (x - mean) / std."""

    size: int
    algorithm: Literal["bicubic", "bilinear", "lanczos", "box", "hamming"] = "bicubic"
    backend: Literal["pillow"] = "pillow"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def pixels(self, picture: Picture) -> np.ndarray:
        """uint8 [size, size, 3]; a picture that has this size is taken as it is.

        Raises:
            Rejected: the picture is too extreme to be resized.
        """
        if picture.rgb.shape[:2] == (self.size, self.size):
            return picture.rgb
        return resize(picture.rgb, (self.size, self.size), algorithm=self.algorithm)

    def normalized(self, pixels_NHWC: Tensor) -> Tensor:
        """uint8 [N, size, size, 3] → float32 [N, 3, size, size]."""
        mean = torch.tensor(self.mean, device=pixels_NHWC.device) * 255
        std = torch.tensor(self.std, device=pixels_NHWC.device) * 255
        return ((pixels_NHWC.float() - mean) / std).permute(0, 3, 1, 2).contiguous()


class CardConfig(Record):
    """`config.json`. `libraries` is what the card was made with: recorded, not hashed."""

    format: str = FORMAT
    model: DualEncoderConfig
    preprocessing: Preprocessing
    libraries: dict[str, str]


@dataclass(frozen=True)
class Card:
    """A model ready to use, in evaluation mode, with its preprocessing and tokenizer.

    `fingerprint` is a SHA-256 over weights, architecture, preprocessing, tokenizer, dimension and format.
    """

    model: DualEncoder
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    fingerprint: str

    @property
    def dimension(self) -> int:
        return self.model.config.dimension

    def tokenize(self, texts: list[str]) -> np.ndarray:
        """int32 [n, length], as long as the text tower takes."""
        return self.tokenizer.tokenize(texts, self.model.config.text.length)


def save_card(url: str, model: DualEncoder, preprocessing: Preprocessing, tokenizer: Tokenizer) -> str:
    """Writes a card to the folder or URL, over one that is there, and returns its fingerprint."""
    libraries = {name: version(name) for name in _LIBRARIES}
    config = CardConfig(model=model.config, preprocessing=preprocessing, libraries=libraries)
    weights = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    write_bytes(join(url, "tokenizer.json"), tokenizer.to_json())
    write_bytes(join(url, "model.safetensors"), weights)
    write_bytes(join(url, "config.json"), config.to_bytes())
    return _fingerprint(config, tokenizer.to_json(), weights)


def load_card(url: str) -> Card:
    """
    Raises:
        UsageError: no card is there, or it is broken or of another format; the file is named.
        UnreachableError: the store does not answer.
    """
    where = join(url, "config.json")
    config = _config(read_bytes(where), where)
    tokenizer_json = read_bytes(join(url, "tokenizer.json"))
    weights = read_bytes(join(url, "model.safetensors"))
    with torch.device("meta"):  # no memory is taken for what the config claims, only for what the file holds
        model = DualEncoder(config.model)
    try:
        model.load_state_dict(safetensors.torch.load(weights), strict=True, assign=True)
    except (SafetensorError, RuntimeError) as e:
        raise UsageError(
            f"{join(url, 'model.safetensors')}: does not fit config.json ({' '.join(str(e).split())[:200]}). "
            "The card is broken: train it again."
        ) from e
    model.requires_grad_(False).eval()
    tokenizer = Tokenizer.from_json(tokenizer_json, join(url, "tokenizer.json"))
    if tokenizer.vocab_size > config.model.text.vocab_size:
        raise UsageError(
            f"{join(url, 'tokenizer.json')}: has {tokenizer.vocab_size:,} tokens, the model only "
            f"{config.model.text.vocab_size:,}. The card is broken: train it again."
        )
    return Card(model, config.preprocessing, tokenizer, _fingerprint(config, tokenizer_json, weights))


def fingerprint(url: str) -> str:
    """The fingerprint of the card at `url`, without loading its model.

    Raises:
        UsageError: no card is there, or its config is broken.
    """
    where = join(url, "config.json")
    config = _config(read_bytes(where), where)
    return _fingerprint(config, read_bytes(join(url, "tokenizer.json")), read_bytes(join(url, "model.safetensors")))


def _config(data: bytes, where: str) -> CardConfig:
    try:
        if json.loads(data).get("format") != FORMAT:
            raise UsageError(f"{where}: not a card of the format {FORMAT}.")
        return CardConfig.model_validate_json(data)
    except (ValidationError, ValueError, AttributeError) as e:
        raise UsageError(f"{where}: not the config of a card ({' '.join(str(e).split())[:200]}).") from e


def _fingerprint(config: CardConfig, tokenizer: bytes, weights: bytes) -> str:
    parts = {
        "format": config.format,
        "dimension": config.model.dimension,
        "model": config.model.model_dump(mode="json"),
        "preprocessing": config.preprocessing.model_dump(mode="json"),
        "tokenizer": hashlib.sha256(tokenizer).hexdigest(),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
