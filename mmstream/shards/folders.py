"""Files of a folder become drafts of samples: those that share a folder and a stem are one.

`cats/001.jpg`, `cats/001.txt` and `cats/001.json` are the sample `cats/001`. Samples come in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmstream.errors import Reason, Rejected
from mmstream.shards.group import COLUMN_OF, is_macos_leftover
from mmstream.shards.packing import Draft, Part, key_of, suffix_of
from mmstream.storage.files import FileInfo, below, list_files


def files_of(folder: str, but: str) -> list[FileInfo]:
    """The files under a folder, sorted; hidden ones and those under `but` are none."""
    aside = f"{but.split('://', 1)[-1].strip('/')}/"
    found = []
    for file in list_files(folder):
        path = below(folder, file.url)
        is_hidden = any(part.startswith(".") for part in path.split("/")) or is_macos_leftover(path)
        if not is_hidden and not file.url.split("://", 1)[-1].strip("/").startswith(aside):
            found.append(file)
    return found


def drafts_of(folder: str, files: Sequence[FileInfo], *, labelled: bool) -> Iterator[Draft | Rejected]:
    """`labelled`: the folder that a sample lies in, the first below `folder`, is its label."""
    stems: dict[str, list[str]] = {}
    for file in files:
        path = below(folder, file.url)
        name = path.rsplit("/", 1)[-1]
        stems.setdefault(path[: -len(name.rsplit(".", 1)[-1]) - 1] if "." in name else path, []).append(file.url)
    for stem, urls in sorted(stems.items()):
        label = stem.split("/", 1)[0] if labelled and "/" in stem else None
        try:
            parts = tuple(Part(url, suffix_of(url), COLUMN_OF.get(suffix_of(url))) for url in urls)
            if unknown := [below(folder, url) for url in urls if not suffix_of(url)]:
                raise Rejected(Reason.FORMAT, f"{unknown[0]}: has a suffix that no part of a sample has")
            yield Draft(key_of(stem), parts, label=label)
        except Rejected as e:
            yield e
