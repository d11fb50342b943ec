"""Codecs that come with an extra are imported where they are first needed, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from mmstream.errors import UsageError


def codec(module: str, extra: str) -> ModuleType:
    """The package `module`, which the extra `extra` installs.

    Raises:
        UsageError: it is not installed, or does not load; names the extra.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as e:  # OSError: soundfile without its C library
        what = f"{extra} needs the package {module}, which does not load here ({e})"
        raise UsageError(f"{what}: pip install 'mmstream[{extra}]'.") from e
