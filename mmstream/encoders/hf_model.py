"""A folder of the transformers library: its config, its weights, its tokenizer, each checked before it is believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import Tokens, fingerprint
from mmstream.encoders.folder import read_json, sha256, weight_files
from mmstream.errors import UsageError

_TEXT_INPUTS = ("input_ids", "attention_mask")
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "architectures")


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
                f"{self.spec}: weights of the model are in none of its files ({len(missing)}, first {missing[0]}) and "
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


def tokens_of(tokenizer: Any, texts: list[str], length: int) -> Tokens:
    """int64 [n, length] by name, padded; longer texts are cut."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="np")
    return {name: np.asarray(values, np.int64) for name, values in encoded.items() if name in _TEXT_INPUTS}


def tokenizer_hash(tokenizer: Any) -> str:
    """Of what the loaded tokenizer does, whichever of a folder's files say so."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    about = [tokenizer.backend_tokenizer.to_str(), tokenizer.padding_side, tokenizer.pad_token_id, special]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
