"""Quantiles of a stream: exact while it is short, near for ever, and the same for the same stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.media.sketch import K, Sketch

Q = np.array([0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1])
STREAMS = {
    "normal": lambda r, n: r.standard_normal(n),
    "sorted": lambda r, n: np.arange(n, dtype=float),
    "falling": lambda r, n: -np.arange(n, dtype=float),
    "heavy": lambda r, n: r.pareto(1.0, n),
    "few": lambda r, n: r.integers(0, 5, n).astype(float),
}


def sketched(values: np.ndarray, pieces: int) -> Sketch:
    sketch = Sketch()
    for piece in np.array_split(values, pieces):
        sketch.update(piece)
    return sketch


def rank_error(sketch: Sketch, values: np.ndarray) -> float:
    """The farthest that a quantile's rank, or the nearest rank among ties, is from where it should be."""
    ordered, found = np.sort(values), sketch.quantiles(Q)
    low = np.searchsorted(ordered, found, side="left") / len(values)
    high = np.searchsorted(ordered, found, side="right") / len(values)
    return float(np.maximum(np.maximum(low - Q, Q - high), 0).max())


def joined(left: Sketch, right: Sketch) -> Sketch:
    both, before = Sketch.of_record(left.record()), right.record()
    both.merge(right)
    assert right.record() == before
    return both


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=K))
def test_a_short_stream_has_numpys_quantiles(values: list[float]):
    array = np.array(values)
    expected = np.quantile(array, Q, method="inverted_cdf")
    assert np.array_equal(sketched(array, 3).quantiles(Q), expected)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("n", "pieces"), [(20_000, 1), (200_000, 37), (200_000, 2_000)])
def test_a_long_stream_is_off_by_less_than_a_two_hundredth(stream: str, n: int, pieces: int):
    values = STREAMS[stream](np.random.default_rng(n + pieces), n)
    sketch = sketched(values, pieces)
    assert sketch.count == n and rank_error(sketch, values) < 1 / 200
    assert sum(map(len, sketch.levels)) < 4 * K


def test_merging_many_sketches_is_as_good_as_one_and_changes_none_of_them():
    random = np.random.default_rng(5)
    parts = [random.gamma(2.0, size=int(random.integers(1, 3_000))) + i / 100 for i in range(200)]
    sketches = [sketched(part, 1) for part in parts]
    before = [s.record() for s in sketches]
    while len(sketches) > 1:  # a tree
        pairs = zip(sketches[::2], sketches[1::2], strict=False)
        sketches = [joined(left, right) for left, right in pairs] + sketches[len(sketches) // 2 * 2 :]
    assert sketches[0].count == sum(map(len, parts)) and rank_error(sketches[0], np.concatenate(parts)) < 1 / 200
    assert before == [sketched(part, 1).record() for part in parts]


def test_the_same_stream_gives_the_same_bytes_and_its_record_reads_back():
    values = np.random.default_rng(1).standard_normal(50_000)
    record = sketched(values, 9).record()
    assert record == sketched(values, 9).record()
    again = Sketch.of_record(type(record).model_validate_json(record.model_dump_json()))
    assert again.record() == record and np.array_equal(again.quantiles(Q), sketched(values, 9).quantiles(Q))


def test_counted_values_are_exact_and_an_empty_sketch_has_no_quantile():
    counts = np.array([5, 0, 1, 1_000_000_007, 2])
    sketch = Sketch.of_counts(np.arange(5.0), counts)
    assert sketch.count == counts.sum()
    expected = np.searchsorted(np.cumsum(counts), Q * counts.sum(), side="left")
    assert np.array_equal(sketch.quantiles(Q)[1:], expected[1:])
    assert np.isnan(Sketch().quantiles(Q)).all() and Sketch.of_counts(np.arange(3.0), np.zeros(3, int)).count == 0
