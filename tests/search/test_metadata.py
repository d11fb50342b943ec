"""The join is by position, and proves itself by id."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmstream.errors import RefusedError
from mmstream.search.metadata import Metadata


def parquet(n: int, group_rows: int) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": [3 * i for i in range(n)], "key": [f"k{i}" for i in range(n)]}), out,
                   row_group_size=group_rows)  # fmt: skip
    return out.getvalue()


@pytest.mark.parametrize("group_rows", [1, 7, 10, 25, 1000])
def test_every_position_gives_its_row_across_groups(group_rows: int) -> None:
    metadata = Metadata(parquet(25, group_rows), "here")
    order = [*range(25), *reversed(range(25))]
    rows = metadata.rows(order, [3 * i for i in order])
    assert [r["key"] for r in rows] == [f"k{i}" for i in order]


def test_a_row_about_another_id_is_refused() -> None:
    with pytest.raises(RefusedError, match="here: row 4 is about id 12, not 13"):
        Metadata(parquet(25, 10), "here").rows([4], [13])


def test_a_vector_without_a_row_is_refused() -> None:
    with pytest.raises(RefusedError, match="none for vector 25"):
        Metadata(parquet(25, 10), "here").rows([25], [75])
