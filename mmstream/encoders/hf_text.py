"""BERT-like text models, pooled as their own modules.json says, which is the layout of sentence-transformers.

That file names a chain: Transformer, then Pooling (mean, class token or maximum, named in its config.json), then any
Dense layers, then Normalize, which all vectors here are in the end anyhow. Without the file it is the masked mean.

A text is padded to the smallest of a few fixed widths that holds it and runs with texts of its own width only, so that
its vector depends neither on its neighbours nor on the longest text there might be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from mmstream.encoders.base import Encoder, Tokens
from mmstream.encoders.folder import read_json, sha256
from mmstream.encoders.hf_model import HfModel, tokenizer_hash, tokens_of
from mmstream.encoders.pictures import to_device
from mmstream.errors import UsageError

WIDTHS = (16, 32, 64, 128, 256, 512)
MAX_LENGTH = 512
_POOLING = {
    "pooling_mode_cls_token": "class token",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}
_ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}


class ByWidth(Encoder):
    """An encoder whose texts run in batches of one width each; `tokenize` gives an `attention_mask`."""

    text_length: int

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """Tokens [n, text_length] → unit vectors float32 [n, d]."""
        lengths = tokens["attention_mask"].sum(1)
        vectors = np.zeros((len(lengths), self.dimension), np.float32)
        for shorter, width in zip((0, *WIDTHS), (*WIDTHS[:-1], max(WIDTHS[-1], self.text_length)), strict=False):
            rows = np.flatnonzero((lengths > shorter) & (lengths <= width))
            if len(rows):
                vectors[rows] = super().embed_tokens({name: v[rows, :width] for name, v in tokens.items()})
        return vectors


class HfTexts(ByWidth):
    modalities = ("text",)

    def __init__(self, model: HfModel) -> None:
        self.spec, self._on, self.device = model.spec, model.device, model.device_name
        self.micro_batch = model.micro_batch
        self._tokenizer = model.tokenizer()
        chain = _chain(model.folder, model.spec)
        self.pooling = chain.pooling
        self.text_length = min(chain.length or MAX_LENGTH, _longest(model.config, self._tokenizer))
        # BERT's pooler is a layer over the class token that is not used here and need not be in the file.
        pooler = {"add_pooling_layer": False} if model.config["model_type"] in _HAS_POOLER else {}
        self.module = model.module(**pooler)
        self.dense = nn.Sequential(*chain.dense).to(model.device)
        self.dimension = chain.dimension or int(self.module.config.hidden_size)
        self.fingerprint = model.fingerprint(
            tokenizer=tokenizer_hash(self._tokenizer),
            text_length=self.text_length,
            pooling=self.pooling,
            dense=chain.dense_hashes,
            dimension=self.dimension,
        )

    def tokenize(self, texts: list[str]) -> Tokens:
        """int64 [n, text_length]; longer texts are cut."""
        return tokens_of(self._tokenizer, texts, self.text_length)

    @torch.inference_mode()
    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        inputs = {name: to_device(values, self._on) for name, values in tokens.items()}
        states = self.module(**inputs).last_hidden_state
        return self.dense(pooled(states, inputs["attention_mask"], self.pooling)).float().cpu().numpy()


_HAS_POOLER = ("bert", "roberta", "xlm-roberta", "mpnet", "albert")


def pooled(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Hidden states [n, L, d] and their mask [n, L] → [n, d]: mean or maximum over what the mask has, or the first."""
    if how == "class token":
        return states[:, 0]
    there = mask[:, :, None].to(states.dtype)
    if how == "max":
        return states.masked_fill(there == 0, float("-inf")).amax(1)
    return (states * there).sum(1) / there.sum(1).clamp(min=1e-9)


class _Chain:
    def __init__(self) -> None:
        self.pooling = "mean"
        self.length: int | None = None
        self.dense: list[nn.Sequential] = []
        self.dense_hashes: list[str] = []
        self.dimension: int | None = None  # of the last dense layer


def _chain(folder: Path, spec: str) -> _Chain:
    chain = _Chain()
    if (folder / "sentence_bert_config.json").exists():
        chain.length = read_json(folder / "sentence_bert_config.json", spec).get("max_seq_length")
    if not (folder / "modules.json").exists():
        return chain
    for module in read_json(folder / "modules.json", spec):
        kind = str(module["type"]).rsplit(".", 1)[-1]
        place = folder / module["path"]
        if kind == "Pooling":
            chain.pooling = _pooling(read_json(place / "config.json", spec), spec)
        elif kind == "Dense":
            chain.dense.append(_dense(place, spec))
            chain.dense_hashes.append(sha256(place / "model.safetensors"))
            chain.dimension = int(read_json(place / "config.json", spec)["out_features"])
        elif kind not in ("Transformer", "Normalize"):
            raise UsageError(f"{spec}: its modules.json asks for {kind}, which is not done here.")
    return chain


def _pooling(config: dict[str, Any], spec: str) -> str:
    named = config.get("pooling_mode")  # newer files name it, older ones set one switch of many
    on = [named] if isinstance(named, str) else [k for k, v in config.items() if k.startswith("pooling_mode") and v]
    known = {**_POOLING, "cls": "class token", "mean": "mean", "max": "max"}
    if len(on) != 1 or on[0] not in known:
        raise UsageError(
            f"{spec}: pools by {' and '.join(map(str, on)) or 'nothing'}; mean, cls and max are done here."
        )
    return known[on[0]]


def _dense(place: Path, spec: str) -> nn.Sequential:
    config = read_json(place / "config.json", spec)
    activation = str(config.get("activation_function", "Identity")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise UsageError(f"{spec}: a dense layer with {activation}; {', '.join(_ACTIVATIONS)} are done here.")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    try:
        weights = safetensors.torch.load_file(place / "model.safetensors")
        linear.load_state_dict({name.removeprefix("linear."): w for name, w in weights.items()})
    except (OSError, RuntimeError) as e:
        raise UsageError(f"{spec}: {place / 'model.safetensors'} cannot be loaded: {str(e)[:200]}") from e
    return nn.Sequential(linear, _ACTIVATIONS[activation]()).eval().requires_grad_(False)


def _longest(config: dict[str, Any], tokenizer: Any) -> int:
    """Tokens that the model has positions for; RoBERTa's begin behind the padding token's."""
    positions = int(config.get("max_position_embeddings") or MAX_LENGTH)
    if config["model_type"] in ("roberta", "xlm-roberta", "mpnet"):
        positions -= int(config.get("pad_token_id", 1)) + 1
    return min(positions, int(tokenizer.model_max_length))
