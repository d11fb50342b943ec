"""`run:<folder or URL of a run>`: what `mmstream train` made, loaded from the run's card.

The folder of a card itself will do too. Preprocessing and tokenizer are the card's own: pictures and words are seen
exactly as they were in training.
"""

from __future__ import annotations

import numpy as np
import torch

from mmstream.encoders.base import Tokens, fingerprint
from mmstream.encoders.pictures import PictureModel
from mmstream.errors import UsageError
from mmstream.models.card import load_card
from mmstream.storage.files import absolute, exists, join


class TrainedEncoder(PictureModel):
    modalities = ("image", "text")

    def __init__(self, spec: str) -> None:
        run = absolute(spec.removeprefix("run:"))
        self.spec = f"run:{run}"
        card = load_card(_card_url(run, spec))
        self._card, self.preprocessing = card, card.preprocessing
        self.settle(card.model, rows=64)
        self.dimension = card.dimension
        self.fingerprint = fingerprint({"card": card.fingerprint})

    def tokenize(self, texts: list[str]) -> Tokens:
        """int32 [n, length]."""
        return {"tokens": self._card.tokenize(texts)}

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(images)

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        with torch.inference_mode():
            return self.module.encode_text(torch.from_numpy(tokens["tokens"]).to(self.on)).float().cpu().numpy()


def _card_url(run: str, spec: str) -> str:
    if exists(join(run, "card", "config.json")):
        return join(run, "card")
    if exists(join(run, "config.json")):
        return run
    raise UsageError(f"{spec}: no card is there. Is this the --out of a finished `mmstream train`?")
