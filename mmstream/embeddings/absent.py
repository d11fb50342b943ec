"""What to say where an embedding set was expected and is not."""

from __future__ import annotations

from mmstream.errors import UsageError
from mmstream.storage.files import exists, is_folder, join, list_files


def no_set(root: str) -> UsageError:
    """What to say where no embedding set is: an index, a folder of shards, or nothing."""
    if exists(join(root, "versions")):
        return UsageError(f"{root}: an index, and no embedding set. `mmstream index info {root}` says of which it is.")
    if any(c in root for c in "*?[{") or root.endswith(".tar") or _has_shards(root):
        return UsageError(f"{root}: shards, and no embedding set. Make one of them: `mmstream embed {root} DEST`.")
    return UsageError(f"{root}: no embedding set is there. Make one with `mmstream embed SRC {root}`.")


def _has_shards(root: str) -> bool:
    return is_folder(root) and any(file.url.endswith(".tar") for file in list_files(root))
