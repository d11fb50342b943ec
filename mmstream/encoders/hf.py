"""`hf:<id, folder or URL>`: CLIP and SigLIP models of the transformers library, from safetensors only.

The image preprocessing is read from the model's own configuration and done with Pillow on uint8, as the library's
Pillow processors do it; scaling and normalisation happen on the whole batch, on the device. No code from a model
folder is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import Encoder, Tokens, fingerprint
from mmstream.errors import UnreachableError, UsageError
from mmstream.media.image import Picture, resize
from mmstream.storage.cache import local_folder

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


@dataclass(frozen=True)
class Preprocessing:
    """`size`: the shortest edge (then `crop` is cut from the centre), or (height, width) without a crop."""

    size: int | tuple[int, int]
    crop: tuple[int, int] | None
    algorithm: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    backend: str = "pillow/1"


class HfEncoder(Encoder):
    modalities = ("image", "text")

    def __init__(self, spec: str) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        source = spec.removeprefix("hf:")
        folder = resolve(source)
        config = _json(folder / "config.json", spec)
        if config.get("model_type") not in ("clip", "siglip", "siglip2"):
            raise UsageError(
                f"{spec}: a model of type {config.get('model_type')!r} is not one that gives image and text vectors. "
                "Give a CLIP or SigLIP model of the transformers library."
            )
        self.spec = "hf:" + (str(folder) if Path(source).expanduser().is_dir() else source)
        self.preprocessing = read_preprocessing(folder, spec)
        self._load(folder, spec)
        self.dimension = int(getattr(self.module.config, "projection_dim", 0) or self._text_config.projection_size)
        self.fingerprint = fingerprint(
            {
                "weights": [_sha256(f) for f in sorted(folder.glob("*.safetensors"))],
                "config": {k: v for k, v in config.items() if k not in _VOLATILE},
                "tokenizer": self._tokenizer_hash,
                "text_length": self.text_length,
                "preprocessing": asdict(self.preprocessing),
                "dimension": self.dimension,
            }
        )

    def _load(self, folder: Path, spec: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        if not list(folder.glob("*.safetensors")):
            raise UsageError(f"{spec}: no .safetensors file in {folder}; weights in other formats are not read.")
        try:
            module: Any = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._tokenizer_hash = _tokenizer_hash(self._tokenizer)
        except (OSError, ValueError, KeyError, RuntimeError) as e:
            raise UsageError(f"{spec}: the model cannot be loaded: {str(e).splitlines()[0][:300]}") from e
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        self.module = module.float().eval().requires_grad_(False).to(self._device)
        self._text_config = module.config.text_config
        self.text_length = int(self._text_config.max_position_embeddings)
        self.micro_batch = 256 if self._device.type == "cuda" else 32
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self.preprocessing.mean, device=self._device).reshape(shape)
        self._std = torch.tensor(self.preprocessing.std, device=self._device).reshape(shape)

    def preprocess(self, picture: Picture) -> np.ndarray:
        """uint8 [height, width, 3] of the model's input size."""
        p = self.preprocessing
        return resize(picture.rgb, p.size, algorithm=p.algorithm, crop=p.crop)

    def tokenize(self, texts: list[str]) -> Tokens:
        """int64 [n, text_length]; longer texts are cut, as the model was trained."""
        encoded = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.text_length, return_tensors="np"
        )
        return {name: np.asarray(values, np.int64) for name, values in encoded.items() if name in _TEXT_INPUTS}

    @torch.inference_mode()
    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device).permute(0, 3, 1, 2)
        images = (images.float() * self.preprocessing.scale - self._mean) / self._std
        return _pooled(self.module.get_image_features(pixel_values=images)).cpu().numpy()

    @torch.inference_mode()
    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        inputs = {name: torch.from_numpy(values).to(self._device) for name, values in tokens.items()}
        return _pooled(self.module.get_text_features(**inputs)).cpu().numpy()


_TEXT_INPUTS = ("input_ids", "attention_mask")


def _pooled(output: Any) -> torch.Tensor:
    """transformers 5 gives an output object, 4 gave the tensor."""
    return (output if isinstance(output, torch.Tensor) else output.pooler_output).float()


def resolve(source: str) -> Path:
    """The local folder of a model: itself, a copy of a URL's files, or the hub's snapshot.

    Raises:
        UsageError: there is no such folder or model.
        UnreachableError: the hub does not answer.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if "://" in source:
        return local_folder(source, _FILES)
    if source.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UsageError(f"hf:{source}: no such folder. Give a folder with config.json and model.safetensors.")
    return _from_hub(source)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(_FILES)))
    except RepositoryNotFoundError as e:
        raise UsageError(f"hf:{repo}: the hub has no such model (or it is private). Check the name.") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        raise UnreachableError(
            f"hf:{repo}: the model hub cannot be reached and no copy is cached. Download the model's folder "
            "elsewhere and give it as --model hf:/path/to/folder (config.json, *.safetensors, tokenizer files)."
        ) from e


def read_preprocessing(folder: Path, spec: str) -> Preprocessing:
    """The model's own image preprocessing.

    Raises:
        UsageError: the configuration is missing, or asks for something that is not done here.
    """
    if (folder / "preprocessor_config.json").exists():
        config = _json(folder / "preprocessor_config.json", spec)
    else:
        config = _json(folder / "processor_config.json", spec).get("image_processor", {})
    size = config.get("size", 224)
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size["height"], size["width"])
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if isinstance(crop, dict):
        crop = (crop["height"], crop["width"])
    elif isinstance(crop, int):
        crop = (crop, crop)
    if not isinstance(size, int) and crop == tuple(size):
        crop = None
    if isinstance(size, int) and crop is None:
        raise UsageError(f"{spec}: its preprocessing keeps the shape of a picture; only fixed input sizes are read.")
    normalize = config.get("do_normalize", True)
    return Preprocessing(
        size=size if isinstance(size, int) else (int(size[0]), int(size[1])),
        crop=crop,
        algorithm=_RESAMPLE[config.get("resample", 3)],
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalize else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalize else (1.0, 1.0, 1.0),
    )


def _json(path: Path, spec: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{spec}: {path.name} is missing in {path.parent}. Is this the folder of a model?") from None
    except ValueError as e:
        raise UsageError(f"{spec}: {path} is not JSON ({e}).") from e


def _tokenizer_hash(tokenizer: Any) -> str:
    """Of what the loaded tokenizer does, whichever of a folder's files say so."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    about = [tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, tokenizer.pad_token_id, special]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
