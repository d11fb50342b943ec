"""The pure middle: what an encoder makes of a chunk, row by row."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tars import make_tar

from mmstream.encoders.base import Tokens
from mmstream.encoders.fake import FakeEncoder
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.source import ShardTask, from_row, read_rows
from mmstream.timing import Stopwatch


class Diverging(FakeEncoder):
    """A model that overflows on the second caption."""

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        vectors = tokens["vectors"].copy()
        vectors[1] = np.inf
        return vectors


def test_a_vector_that_is_not_finite_is_a_reject_at_the_place_of_its_sample(tmp_path: Path) -> None:
    tar = make_tar([("a.txt", b"one"), ("b.txt", b"two"), ("c.txt", b"three")])
    (tmp_path / "a.tar").write_bytes(tar)
    info, samples = from_row(next(iter(read_rows(ShardTask(0, str(tmp_path / "a.tar"), len(tar), "")))))
    with ThreadPoolExecutor(1) as pool:
        rows, rejects = encode_chunk(info, samples, Diverging("fake:4"), (), pool=pool, watch=Stopwatch())
    assert rows["key"].to_pylist() == ["a", "c"]
    assert np.isfinite(np.array(rows["text_embedding"].to_pylist())).all()
    assert [(r["row"], r["key"], r["offset"], r["reason"]) for r in rejects.to_pylist()] == [
        (1, "b", 1024, "bad_embedding")
    ]
