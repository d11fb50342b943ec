"""An embedding set becomes the arrays of an index: ids, fp16 vectors as they are stored, and a row about each.

Rows without a vector of the modality are left out and counted. The rest keep the order of the set, which is the
order of ids: vector i, id i and metadata row i belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import RefusedError, UsageError
from mmstream.schema import METADATA
from mmstream.telemetry import counted

OnProgress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class Encoded:
    """
    Attributes:
        ids: int64 [n], ascending.
        vectors: float16 [n, d], finite.
        metadata: n rows of schema.METADATA and the set's own fields.
        num_left_out: rows of the set that have no vector of this modality.
    """

    ids: np.ndarray
    vectors: np.ndarray
    metadata: pa.Table
    num_left_out: int


def chosen_modality(emb: EmbeddingSet, of: str | None) -> str:
    """`of`, or what an index holds by default: images, else the set's first modality.

    Raises:
        UsageError: the set has no vectors of `of`.
    """
    has = emb.manifest.modalities
    if of is None:
        return "image" if "image" in has else has[0]
    if of not in has:
        raise UsageError(f"{emb.url}: holds no {of} vectors, but {' and '.join(has)}. Choose one with --of.")
    return of


def vectors_of(table: pa.Table, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of an embedding table have a vector, bool [rows], and these vectors, float16 [n, d]."""
    column = table[f"{modality}_embedding"].combine_chunks()
    has = column.is_valid().to_numpy(zero_copy_only=False)
    values = column.flatten().to_numpy(zero_copy_only=True)  # passes over lists that are null
    return has, values.reshape(-1, column.type.list_size)


def encode(emb: EmbeddingSet, of: str, on_progress: OnProgress | None = None) -> Encoded:
    """Reads the whole set once.

    Raises:
        UsageError: no row has a vector of this modality.
        RefusedError: ids do not ascend, or a vector is not finite.
        DifferencesError: an object of the set is not what its record says.
    """
    columns = [*METADATA.names, *emb.manifest.fields]
    vectors: list[np.ndarray] = []
    metadata: list[pa.Table] = []
    rows, total = 0, emb.num_rows
    for table in emb.tables([*columns, f"{of}_embedding"]):
        has, found = vectors_of(table, of)
        vectors.append(found)
        metadata.append(table.select(columns).filter(pa.array(has)))
        rows += table.num_rows
        if on_progress:
            on_progress(rows, total)
    if not sum(map(len, vectors)):
        raise UsageError(f"{emb.url}: no {of} vector is in its {counted(rows, 'row')}, so there is nothing to index.")
    about = pa.concat_tables(metadata)
    encoded = Encoded(about["id"].to_numpy(), np.concatenate(vectors), about, rows - about.num_rows)
    _check(emb.url, encoded)
    return encoded


def _check(url: str, encoded: Encoded) -> None:
    if about_null := encoded.metadata["id"].null_count:
        raise RefusedError(f"{url}: {about_null} rows have no id. `mmstream audit {url}` names them.")
    wrong = np.flatnonzero(np.diff(encoded.ids) <= 0)
    if len(wrong):
        a, b = encoded.ids[wrong[0] : wrong[0] + 2]
        raise RefusedError(f"{url}: id {b} comes after {a}, but ids ascend. `mmstream audit {url}` says more.")
    broken = np.flatnonzero(~np.all(np.isfinite(encoded.vectors), axis=1))
    if len(broken):
        key = pc.take(encoded.metadata["key"], pa.array(broken[:1]))[0].as_py()
        raise RefusedError(
            f"{url}: {len(broken)} vectors are not finite, the first of {key} (id {encoded.ids[broken[0]]}). "
            "FAISS would lose them silently: embed again with a model that gives finite vectors."
        )
