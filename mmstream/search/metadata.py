"""Hits are joined to what is known of them: row i of the metadata is about vector i, checked by id.

The Parquet file is held as it is stored; only the row groups that hold hits are decoded, and the last few are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.errors import RefusedError

GROUPS_KEPT = 16


class Metadata:
    """
    Args:
        data: a Parquet file of schema.METADATA and further string columns.
        url: where it came from, for messages.
    """

    def __init__(self, data: bytes, url: str) -> None:
        self._url = url
        self._file = pq.ParquetFile(pa.BufferReader(data))
        groups = range(self._file.num_row_groups)
        self._ends = np.cumsum([self._file.metadata.row_group(i).num_rows for i in groups])
        self._group = lru_cache(GROUPS_KEPT)(self._file.read_row_group)

    def rows(self, positions: Sequence[int], ids: Sequence[int]) -> list[dict[str, Any]]:
        """What is known of each position, in the order given, absent values None.

        Raises:
            RefusedError: the row of a position is about another id.
        """
        return [self._row(p, i) for p, i in zip(positions, ids, strict=True)]

    def _row(self, position: int, id: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, position, side="right"))
        if group == len(self._ends):
            raise RefusedError(f"{self._url}: has {self._ends[-1]:,} rows, none for vector {position}. Build it again.")
        first = int(self._ends[group - 1]) if group else 0
        row = self._group(group).slice(position - first, 1).to_pylist()[0]
        if row["id"] != id:
            raise RefusedError(f"{self._url}: row {position} is about id {row['id']}, not {id}. Build it again.")
        return row
