"""Whatever is asked becomes one unit vector."""

from __future__ import annotations

import numpy as np
import pytest

from mmstream.encoders.build import load_encoder
from mmstream.errors import UsageError
from mmstream.search.query import text_query, vector_query


def test_a_text_gives_the_encoders_own_vector() -> None:
    encoder = load_encoder("fake:32")
    query = text_query(encoder, "a map of the world")
    assert (query.dtype, query.shape) == (np.float32, (32,))
    assert query == pytest.approx(encoder.encode_text(["a map of the world"])[0], abs=1e-6)


def test_lengths_are_taken_in_double_precision() -> None:
    for scale in (1e-30, 1.0, 1e30):
        assert np.linalg.norm(vector_query(np.full(7, scale), 7)) == pytest.approx(1, abs=1e-6)


def test_a_list_is_a_vector_too() -> None:
    assert vector_query([3, 4], 2).tolist() == pytest.approx([0.6, 0.8])


def test_a_row_of_a_matrix_is_not() -> None:
    with pytest.raises(UsageError, match=r"\(1, 2\), this index needs \(2,\)"):
        vector_query(np.ones((1, 2)), 2)
