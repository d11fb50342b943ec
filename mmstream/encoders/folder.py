"""The folder of a published model, wherever it lies, and its files. No code from it is ever run, no pickle is read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmstream.errors import UnreachableError, UsageError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*/config.json", "*/model.safetensors")


def resolve(spec: str, source: str, patterns: Sequence[str] = FILES) -> Path:
    """The local folder of the model `source`, a part of `spec`: itself, a copy of a URL's files, or the hub's snapshot.

    Raises:
        UsageError: there is no such folder or model.
        UnreachableError: the hub does not answer.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if "://" in source:
        from mmstream.storage.cache import local_folder

        return local_folder(source, patterns)
    if source.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UsageError(f"{spec}: no such folder. Give a folder with config.json and model.safetensors.")
    return from_hub(spec, source, patterns)


def from_hub(spec: str, repo: str, patterns: Sequence[str] = FILES) -> Path:
    """The hub's snapshot of a model as a local folder.

    Raises:
        UsageError: there is no such model.
        UnreachableError: the hub does not answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=list(patterns)))
    except RepositoryNotFoundError as e:
        raise UsageError(f"{spec}: the hub has no such model (or it is private). Check the name.") from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        family, _, rest = spec.partition(":")
        where = "/path/to/folder" if family == "hf" else f"{rest.partition('/')[0]}//path/to/folder"
        raise UnreachableError(
            f"{spec}: the model hub cannot be reached and no copy is cached. Download the model's folder "
            f"elsewhere and give it as --model {family}:{where} (config.json, *.safetensors, tokenizer files)."
        ) from e


def absolute_source(source: str) -> str:
    """A local folder by its whole path, so that workers find it; a URL or a hub's name as it is."""
    folder = Path(source).expanduser()
    return str(folder.absolute()) if folder.exists() else source


def read_json(path: Path, spec: str) -> Any:
    """
    Raises:
        UsageError: the file is missing, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{spec}: {path.name} is missing in {path.parent}. Is this the folder of a model?") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{spec}: {path} is not JSON ({e}).") from e


def weight_files(folder: Path, spec: str) -> list[Path]:
    """
    Raises:
        UsageError: there are no weights in safetensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"{spec}: no .safetensors file in {folder}; weights in other formats are not read.")
    return files


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
