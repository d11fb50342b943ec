"""`timm:<name>[/folder, .safetensors file or URL]`: image models of the timm library, pooled.

VGG, ResNet, EfficientNet, ConvNeXt, ViT and their kin, without the classifier. Preprocessing is what timm itself would
do for evaluation (its `pretrained_cfg`, or the config.json of the folder), on Pillow. Needs the extra `vision`.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import safetensors
import torch

from mmstream.encoders.base import fingerprint
from mmstream.encoders.folder import absolute_source, from_hub, read_json, resolve, sha256, weight_files
from mmstream.encoders.pictures import PictureModel, to_device
from mmstream.encoders.preprocessing import Preprocessing
from mmstream.errors import UsageError

_FILES = ("config.json", "*.safetensors")


class TimmEncoder(PictureModel):
    modalities = ("image",)

    def __init__(self, spec: str) -> None:
        timm = vision_library("timm", spec)
        name, _, source = spec.removeprefix("timm:").partition("/")
        if not timm.is_model(name):
            like = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5]) or "see timm.list_models()"
            raise UsageError(f"{spec}: timm has no model {name!r}; there are: {like}.")
        self.spec = f"timm:{name}/{_absolute(source)}" if source else spec
        file, config = _weights(timm, spec, name, source)
        overlay = {**{k: v for k, v in config.items() if k not in ("architecture", "tag")}, "file": str(file)}
        try:
            module = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        except (RuntimeError, ValueError, OSError) as e:
            raise UsageError(f"{spec}: {file} does not fit {name}: {str(e).splitlines()[0][:300]}") from e
        _check_complete(module, file, spec)
        self.settle(module.float())
        self.preprocessing = preprocessing_of(timm, module, spec)
        with torch.inference_mode():
            self.dimension = int(
                self._features(self.as_computed(torch.zeros(1, *self._input_shape, device=self.on))).shape[1]
            )
        self.fingerprint = fingerprint(
            {
                "encoder": "timm",
                "architecture": name.split(".")[0],
                "weights": sha256(file),
                "preprocessing": self.preprocessing.identity(),
                "dimension": self.dimension,
            }
        )

    @property
    def _input_shape(self) -> tuple[int, int, int]:
        p = self.preprocessing
        height, width = p.crop or (p.size if isinstance(p.size, tuple) else (p.size, p.size))
        return 3, height, width

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)

    def feature_map(self, pixels: np.ndarray) -> np.ndarray:
        """Stacked pictures [n, height, width, 3] → what the model sees before it pools, float32, as timm lays it out:
        [n, channels, rows, columns] of CNNs, [n, tokens, channels] of ViTs."""
        images = self.as_computed(self.preprocessing.normalized(to_device(pixels, self.on)))
        with torch.inference_mode():
            return self.module.forward_features(images).float().cpu().numpy()


def vision_library(name: str, spec: str) -> ModuleType:
    """timm or open_clip.

    Raises:
        UsageError: it is not installed, or the torchvision that it needs does not load.
    """
    import importlib
    import logging

    logging.getLogger(name).setLevel(logging.ERROR)  # timm warns of the classifier that is left out on purpose
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UsageError(f"{spec}: needs the package {name} ({e}). Install it: pip install 'mmstream[vision]'.") from e
    except RuntimeError as e:
        raise UsageError(
            f"{spec}: {name} cannot be imported: {str(e).splitlines()[0]}. The installed torchvision does not fit the "
            "installed torch: install the pair that belongs together (https://github.com/pytorch/vision#installation)."
        ) from e


def _absolute(source: str) -> str:
    """`timm:<name>/abs/path` loses its first slash to the one that ends the name: the file decides."""
    rooted = Path("/" + source)
    if "://" not in source and not Path(source).expanduser().exists() and rooted.exists():
        return str(rooted)
    return absolute_source(source)


def _weights(timm: ModuleType, spec: str, name: str, source: str) -> tuple[Path, dict[str, Any]]:
    """(weights, timm's configuration as far as the folder has one)."""
    if source:
        where = _absolute(source)
        if where.endswith(".safetensors") and Path(where).is_file():
            return Path(where), {}
        folder = resolve(spec, where, _FILES)
    else:
        hub = timm.models.get_pretrained_cfg(name)
        repo = hub and hub.hf_hub_id
        if not repo:
            raise UsageError(f"{spec}: timm knows no weights of it. Give a .safetensors file: timm:{name}/FILE.")
        folder = from_hub(spec, f"{repo}{name}" if repo.endswith("/") else repo, _FILES)
    files = [f for f in weight_files(folder, spec) if f.stem in ("model", name)] or weight_files(folder, spec)
    config = read_json(folder / "config.json", spec) if (folder / "config.json").exists() else {}
    architecture = config.get("architecture", name)
    if architecture.split(".")[0] != name.split(".")[0]:
        raise UsageError(f"{spec}: the folder holds {architecture}, not {name}.")
    return files[0], config.get("pretrained_cfg", {})


def _check_complete(module: Any, file: Path, spec: str) -> None:
    """timm passes over weights that are missing, and leaves random numbers in their place."""
    with safetensors.safe_open(file, framework="pt") as stored:
        there = set(stored.keys())
    missing = sorted(set(module.state_dict()) - there)
    if missing and not hasattr(module, "pretrained_custom_load"):
        raise UsageError(f"{spec}: weights of the model are not in {file} ({len(missing)}, first {missing[0]}).")


def preprocessing_of(timm: ModuleType, module: Any, spec: str) -> Preprocessing:
    """What timm's own evaluation transform does.

    Raises:
        UsageError: it pads to a border, which is not done here.
    """
    config = timm.data.resolve_model_data_config(module)
    _, height, width = config["input_size"]
    scaled = (math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"]))
    mode = config["crop_mode"]
    if mode == "border" or (mode != "squash" and scaled[0] != scaled[1]):
        raise UsageError(f"{spec}: its preprocessing ({mode}, {height} × {width}) is not done here.")
    return Preprocessing(
        size=scaled if mode == "squash" else scaled[0],
        crop=(height, width),
        algorithm=config["interpolation"],
        scale=1 / 255,
        mean=tuple(map(float, config["mean"])),
        std=tuple(map(float, config["std"])),
        centre="even",
    )
