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

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import Encoder, Tokens, fingerprint
from mmstream.encoders.folder import absolute_source, read_json, resolve, sha256, weight_files
from mmstream.encoders.pictures import PictureModel
from mmstream.encoders.preprocessing import from_hf
from mmstream.errors import UsageError

PAIRS = ("clip", "siglip")
PICTURES = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
TEXTS = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "albert", "modernbert")
_TEXT_INPUTS = ("input_ids", "attention_mask")
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


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
        from mmstream.encoders.hf_audio import HfSounds

        return HfSounds(model)
    known = ", ".join((*PAIRS, *PICTURES, *TEXTS, "clap"))
    raise UsageError(f"{spec}: models of type {kind!r} are not read; those that give vectors here are {known}.")


class HfModel:
    """A model's folder, checked, and what is loaded from it.

    `spec` is absolute; `config` is its config.json.
    """

    def __init__(self, folder: Path, spec: str) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.folder, self.spec = folder, spec
        self.config: dict[str, Any] = read_json(folder / "config.json", spec)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._weights = weight_files(folder, spec)

    def module(self, **options: Any) -> Any:
        """The model itself, in evaluation mode, float32, on the device.

        Raises:
            UsageError: it cannot be loaded, or the file lacks weights that the model needs.
        """
        from transformers import AutoModel

        try:
            module, about = AutoModel.from_pretrained(
                self.folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise self._cannot(e) from e
        if missing := sorted(about["missing_keys"]):
            raise UsageError(
                f"{self.spec}: {len(missing)} weights of the model are in none of its files, first {missing[0]}: it "
                "would be filled with random numbers. Is the folder complete?"
            )
        return module.float().eval().requires_grad_(False).to(self.device)

    def tokenizer(self) -> Any:
        """
        Raises:
            UsageError: there is none that can be loaded.
        """
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise self._cannot(e) from e

    def _cannot(self, e: Exception) -> UsageError:
        return UsageError(f"{self.spec}: the model cannot be loaded: {str(e).splitlines()[0][:300]}")

    def fingerprint(self, **parts: Any) -> str:
        config = {k: v for k, v in self.config.items() if k not in _VOLATILE}
        return fingerprint({"weights": [sha256(f) for f in self._weights], "config": config, **parts})

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    @property
    def micro_batch(self) -> int:
        return 256 if self.device.type == "cuda" else 32


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
        with self.computing():
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


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def tokens_of(tokenizer: Any, texts: list[str], length: int) -> Tokens:
    """int64 [n, length] by name, padded; longer texts are cut."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return {name: np.asarray(values, np.int64) for name, values in encoded.items() if name in _TEXT_INPUTS}


def tokenizer_hash(tokenizer: Any) -> str:
    """Of what the loaded tokenizer does, whichever of a folder's files say so."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    about = [tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, tokenizer.pad_token_id, special]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
