"""`open_clip:<architecture>/<pretrained tag, folder, .safetensors file or URL>`: models of the open_clip library.

Weights are read from safetensors only; a tag is looked up in open_clip's list and fetched from the hub. Preprocessing
and tokenizer are the library's for that model, the preprocessing on Pillow. Needs the extra `vision`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.torch
import torch

from mmstream.encoders.base import Tokens, fingerprint
from mmstream.encoders.folder import absolute_source, from_hub, read_json, resolve, sha256, weight_files
from mmstream.encoders.pictures import PictureModel, to_device
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.encoders.timm import vision_library
from mmstream.errors import UsageError

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class OpenClipEncoder(PictureModel):
    modalities = ("image", "text")

    def __init__(self, spec: str) -> None:
        library = vision_library("open_clip", spec)
        architecture, _, source = spec.removeprefix("open_clip:").partition("/")
        config = library.get_model_config(architecture)
        if config is None:
            like = [m for m in library.list_models() if m[:4].lower() == architecture[:4].lower()][:6]
            raise UsageError(f"{spec}: open_clip has no architecture {architecture!r}; there are: {', '.join(like)}.")
        if not source:
            tags = ", ".join(library.list_pretrained_tags_by_model(architecture)[:6])
            raise UsageError(f"{spec}: give weights, open_clip:{architecture}/<tag, folder or file>. Tags: {tags}.")
        file, about = _weights(library, spec, architecture, source)
        self.spec = f"open_clip:{architecture}/{_local(source) or absolute_source(source)}"
        with _without_warnings():  # of random weights, which are replaced at once
            module = library.create_model(architecture, pretrained=None, precision="fp32", pretrained_hf=False)
        try:
            module.load_state_dict(safetensors.torch.load_file(file))
        except (RuntimeError, safetensors.SafetensorError) as e:
            raise UsageError(f"{spec}: {file} does not fit {architecture}: {str(e).splitlines()[0][:300]}") from e
        self.settle(module)
        self._tokenizer = _tokenizer(library, spec, architecture, file.parent)
        self.preprocessing = preprocessing_of({**module.visual.preprocess_cfg, **about}, spec)
        self.dimension = int(config["embed_dim"])
        probe = self._tokenizer(["a photo of 2 cats, naïve", "a " * 300]).numpy().astype("<i8").tobytes()
        self.fingerprint = fingerprint(
            {
                "encoder": "open_clip",
                "architecture": config,
                "weights": sha256(file),
                "tokenizer": [type(self._tokenizer).__name__, hashlib.sha256(probe).hexdigest()],
                "preprocessing": self.preprocessing.identity(),
                "dimension": self.dimension,
            }
        )

    def tokenize(self, texts: list[str]) -> Tokens:
        """int64 [n, length]; longer texts are cut, as the model was trained."""
        return {"tokens": self._tokenizer(texts).numpy().astype(np.int64)}

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module.encode_image(images)

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        with torch.inference_mode():
            return self.module.encode_text(to_device(tokens["tokens"], self.on)).float().cpu().numpy()


@contextmanager
def _without_warnings() -> Generator[None]:
    """The library logs by way of the root logger, which is not ours to set."""
    root, drop = logging.getLogger(), lambda record: record.levelno > logging.WARNING
    root.addFilter(drop)
    try:
        yield
    finally:
        root.removeFilter(drop)


def _local(source: str) -> str | None:
    """A path that exists; the slash that ends the architecture may have been meant as the path's first."""
    for path in (Path(source).expanduser(), Path("/" + source)):
        if "://" not in source and path.exists():
            return str(path.absolute())
    return None


def _weights(library: ModuleType, spec: str, architecture: str, source: str) -> tuple[Path, dict[str, Any]]:
    """(weights, the preprocessing that comes with them as far as something says)."""
    local = _local(source)
    if local and local.endswith(".safetensors"):
        return Path(local), {}
    tag = None if local or "://" in source else library.pretrained.get_pretrained_cfg(architecture, source)
    if tag:
        if not tag.get("hf_hub"):
            raise UsageError(f"{spec}: these weights are published as a pickle only, which is not read.")
        folder = from_hub(spec, tag["hf_hub"].rstrip("/"), _FILES)
    elif local or "://" in source:
        folder = resolve(spec, local or source, _FILES)
    else:
        tags = ", ".join(library.list_pretrained_tags_by_model(architecture)[:6])
        raise UsageError(f"{spec}: {source!r} is no file, folder or tag of {architecture}. Tags: {tags}.")
    files = weight_files(folder, spec)
    named = [f for f in files if f.name.startswith("open_clip")]
    about = read_json(folder / "open_clip_config.json", spec) if (folder / "open_clip_config.json").exists() else {}
    return (named or files)[0], about.get("preprocess_cfg", {}) if not tag else _of_tag(tag)


def _of_tag(tag: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in tag.items() if k in ("mean", "std", "interpolation", "resize_mode", "size") and v}


def _tokenizer(library: ModuleType, spec: str, architecture: str, folder: Path) -> Any:
    """The folder's own where it has one, else the library's for the architecture."""
    own = (folder / "open_clip_config.json").exists() and (folder / "tokenizer.json").exists()
    try:
        return library.get_tokenizer(f"local-dir:{folder}" if own else architecture)
    except (OSError, ValueError) as e:
        raise UsageError(
            f"{spec}: its tokenizer cannot be loaded: {str(e).splitlines()[0][:200]}. Put tokenizer.json and "
            "open_clip_config.json beside the weights."
        ) from e


def preprocessing_of(config: dict[str, Any], spec: str) -> Preprocessing:
    """What open_clip's own evaluation transform does.

    Raises:
        UsageError: it pads to the longest edge, which is not done here.
    """
    size = config["size"]
    shape = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
    mode = config.get("resize_mode") or "shortest"
    if mode == "longest" or (mode == "shortest" and shape[0] != shape[1]):
        raise UsageError(f"{spec}: its preprocessing ({mode}, {shape[0]} × {shape[1]}) is not done here.")
    return Preprocessing(
        size=shape if mode == "squash" else shape[0],
        crop=None if mode == "squash" else shape,
        algorithm=config.get("interpolation") or "bicubic",
        scale=1 / 255,
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        centre="even",
    )
