"""Where an embedding set may begin: at an empty folder or prefix, or at one with nothing but what a set leaves.

A run that was killed before its first manifest has left a catalog, perhaps a hidden temporary; whatever else lies there
is somebody's, and would be mixed with the set.
"""

from __future__ import annotations

import re

from mmstream.errors import RefusedError, UsageError
from mmstream.storage.files import below, is_file, join, list_files, list_names

SHOWN_NAMES = 3
_FOLDERS = ("catalog", "commits", "data", "manifest", "rejects")
_OWN = re.compile(
    r"catalog/[0-9]+\.parquet|manifest/[0-9]+\.json|commits/[0-9]+(/[0-9]+)?\.[0-9]+\.json"
    r"|(data|rejects)/[0-9]+-[0-9]+-[0-9a-f]+\.parquet|(.*/)?\.[^/]*"
)


def check_vacant(dest: str) -> None:
    """
    Raises:
        UsageError: a file is at `dest`.
        RefusedError: `dest` holds something that is no part of an embedding set.
    """
    if is_file(dest):
        raise UsageError(f"{dest}: is a file where a folder is needed. embed takes its sources, then a folder.")
    names = list_names(dest)
    others = [name for name in names if name not in _FOLDERS and not name.startswith(".")]
    for folder in _FOLDERS:
        if folder in names and not others:  # which may be large, and need not be listed
            paths = (below(dest, file.url) for file in list_files(join(dest, folder)))
            others += [path for path in paths if not _OWN.fullmatch(path)]
    if others:
        more = f" and {len(others) - SHOWN_NAMES:,} more" if len(others) > SHOWN_NAMES else ""
        raise RefusedError(
            f"{dest}: holds other things than an embedding set: {', '.join(others[:SHOWN_NAMES])}{more}. "
            "Choose a folder that is empty or not there yet."
        )
