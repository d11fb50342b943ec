"""`hf:<id, folder or URL>`: models of the transformers library, from safetensors only.

Which family a folder holds is told by `model_type` in its config.json:

    clip, siglip                image and text, each projected into one space
    vit, deit, dinov2 and kin   image: the class token after the last layer norm
    bert, mpnet, roberta …      text: pooled as the model's own modules.json says (`encoders.hf_text`)
    clap                        audio and text, in one space (`encoders.hf_audio`)

Pictures are resized on Pillow as the library's Pillow processors do it (`encoders.preprocessing`). No code from a model
folder is ever run.
"""

from __future__ import annotations

import numpy as np
import torch

from mmstream.encoders.base import Encoder, Tokens
from mmstream.encoders.folder import absolute_source, resolve
from mmstream.encoders.hf_model import HfModel, tokenizer_hash, tokens_of
from mmstream.encoders.pictures import PictureModel, to_device
from mmstream.encoders.preprocessing import from_hf
from mmstream.errors import UsageError

PAIRS = ("clip", "siglip")
PICTURES = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
TEXTS = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "albert", "modernbert")


def load_hf(spec: str) -> Encoder:
    """The encoder of a model of the transformers library.

    Raises:
        UsageError: there is no such model, or it is of no family that gives vectors here.
        UnreachableError: the hub does not answer.
    """
    source = spec.removeprefix("hf:")
    folder = resolve(spec, source)
    model = HfModel(folder, f"hf:{absolute_source(source)}")
    kind = model.config.get("model_type")
    if kind in PAIRS:
        return HfPairs(model)
    if kind in PICTURES:
        return HfPictures(model)
    if kind in TEXTS:
        from mmstream.encoders.hf_text import HfTexts

        return HfTexts(model)
    if kind == "clap":
        from mmstream.encoders.hf_audio import HfSounds  # which needs more packages than pictures do

        return HfSounds(model)
    known = ", ".join((*PAIRS, *PICTURES, *TEXTS, "clap"))
    raise UsageError(f"{spec}: models of type {kind!r} are not read; those that give vectors here are {known}.")


class HfPairs(PictureModel):
    """CLIP and SigLIP."""

    modalities = ("image", "text")

    def __init__(self, model: HfModel) -> None:
        self.spec = model.spec
        self.preprocessing = from_hf(model.folder, model.spec)
        self.settle(model.module())
        self._tokenizer = model.tokenizer()
        text = self.module.config.text_config
        self.text_length = int(text.max_position_embeddings)
        self.dimension = int(getattr(self.module.config, "projection_dim", 0) or text.projection_size)
        self.fingerprint = model.fingerprint(
            tokenizer=tokenizer_hash(self._tokenizer),
            text_length=self.text_length,
            preprocessing=self.preprocessing.identity(),
            dimension=self.dimension,
        )

    def tokenize(self, texts: list[str]) -> Tokens:
        """int64 [n, text_length]; longer texts are cut, as the model was trained."""
        return tokens_of(self._tokenizer, texts, self.text_length)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module.get_image_features(pixel_values=images).pooler_output

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        inputs = {name: to_device(values, self.on) for name, values in tokens.items()}
        with torch.inference_mode():
            return self.module.get_text_features(**inputs).pooler_output.float().cpu().numpy()


class HfPictures(PictureModel):
    """ViT, DeiT and DINO: the class token of the last hidden state, which the model's own norm has gone over."""

    modalities = ("image",)

    def __init__(self, model: HfModel) -> None:
        self.spec = model.spec
        self.preprocessing = from_hf(model.folder, model.spec)
        # ViT's pooler is an extra layer that a checkpoint need not have; its output is not what is taken here.
        options = {"add_pooling_layer": False} if model.config["model_type"] in ("vit", "deit") else {}
        self.settle(model.module(**options))
        self.dimension = int(self.module.config.hidden_size)
        self.fingerprint = model.fingerprint(
            preprocessing=self.preprocessing.identity(), pooling="class token", dimension=self.dimension
        )

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(pixel_values=images).last_hidden_state[:, 0]
