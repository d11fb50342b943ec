"""Where an embedding set may begin: at an empty folder or prefix, or at one with nothing but what a set leaves.

A run that was killed before its first manifest has left a catalog, perhaps a hidden temporary; whatever else lies there
is somebody's, and would be mixed with the set. Where a set's manifests were lost its records are there all the same:
they are taken up, if they are what is asked for.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.layout import read_records
from mmstream.embeddings.reader import read_object
from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.pipelines.manifest import Asked
from mmstream.schema import embedding_schema
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


def check_records(dest: str, asked: Asked) -> None:
    """
    Raises:
        RefusedError: records are at `dest`, of another encoder or with other columns than `asked` for.
    """
    chunks = [c for of_shard in read_records(dest, asked.catalog).by_chunk().values() for c in of_shard.values()]
    others = [c for c in chunks if c.fingerprint != asked.encoder.fingerprint]
    lost = f"{dest}: holds records of a set whose manifests were lost, and"
    if others:
        raise RefusedError(
            f"{lost} their fingerprint is {others[0].fingerprint}, that of {asked.encoder.spec} is "
            f"{asked.encoder.fingerprint}. Name the encoder that made them, or use another folder."
        )
    wanted = embedding_schema(list(asked.encoder.modalities), asked.encoder.dimension, list(asked.fields)).names
    for stored in (c.data for c in chunks if c.data is not None):
        try:
            names = pq.read_schema(pa.BufferReader(read_object(dest, stored))).names
        except DifferencesError:
            continue  # lost as well; repair sees to it, and another one tells the columns
        if names != wanted:
            raise RefusedError(
                f"{lost} its rows have {_without(names, wanted)}; asked for are {_without(wanted, names)}. Give the "
                "--field options of the command that made it, or use another folder."
            )
        return


def _without(names: list[str], others: list[str]) -> str:
    return ", ".join(sorted(set(names) - set(others))) or "nothing more"
