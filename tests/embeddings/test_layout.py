from __future__ import annotations

import pytest

from mmstream.embeddings.layout import fold
from mmstream.errors import RefusedError
from mmstream.schema import ChunkRecord


def record(chunk: int, first_row: int, num_samples: int, end: bool = False) -> ChunkRecord:
    return ChunkRecord(
        shard=3,
        chunk=chunk,
        first_row=first_row,
        num_samples=num_samples,
        num_rows=num_samples - 1,
        num_rejects={"caption": 1},
        data=None,
        rejects=None,
        end=end,
        source_bytes=1,
        source_etag="e",
        fingerprint="f",
        attempt="a",
    )


def test_a_shard_folds_when_its_last_gap_closes() -> None:
    chunks = {0: record(0, 0, 5), 1: record(1, 5, 5), 2: record(2, 10, 2, end=True)}
    assert fold({}) is None
    assert fold({n: chunks[n] for n in (0, 2)}) is None
    assert fold({n: chunks[n] for n in (0, 1)}) is None
    folded = fold(chunks)
    assert folded is not None
    assert (folded.num_samples, folded.num_rows, folded.num_rejects) == (12, 9, {"caption": 3})


@pytest.mark.parametrize("second", [record(1, 6, 5), record(1, 4, 5), record(1, 5, 5, end=True)])
def test_chunks_that_do_not_adjoin_are_never_folded(second: ChunkRecord) -> None:
    with pytest.raises(RefusedError, match="two attempts saw different bytes"):
        fold({0: record(0, 0, 5), 1: second, 2: record(2, second.first_row + 5, 2, end=True)})
