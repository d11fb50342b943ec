"""A reader gives what the manifest and the records vouch for, or says what is not there."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audited_sets import SAMPLES, SHARDS

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.embeddings.writer import to_parquet
from mmstream.errors import DifferencesError


def ids(root: Path) -> list[int]:
    return [i for table in EmbeddingSet.open(str(root)).tables(["id"]) for i in table["id"].to_pylist()]


def test_rows_come_once_in_the_order_of_ids(emb: Path) -> None:
    assert ids(emb) == [shard << 32 | row for shard in range(SHARDS) for row in range(SAMPLES)]


@pytest.mark.parametrize("kind", ["catalog", "data"])
def test_another_file_in_the_place_of_one_is_a_difference_however_sound_it_is(emb: Path, kind: str) -> None:
    file = sorted((emb / kind).iterdir())[0]
    file.write_bytes(to_parquet(pq.read_table(file).slice(0, 1)))
    with pytest.raises(DifferencesError, match=file.name):
        ids(emb)
