"""However a stream is cut and merged, its statistics are NumPy's of the whole."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmstream.errors import UsageError
from mmstream.media.audio import LogMel
from mmstream.media.statistics import FeatureStatistics, PixelTally, Statistics, Tally


def merged(values: np.ndarray, cuts: list[int], choices: list[int], names: list[str] | None = None) -> Tally:
    """A tally a part, merged in the order that `choices` picks pairs in."""
    tallies = []
    for part in np.split(values, sorted(c % (len(values) + 1) for c in cuts)):
        tally = Tally(names or [f"f{i}" for i in range(values.shape[1])])
        tally.update(part)
        tallies.append(tally)
    while len(tallies) > 1:
        right = tallies.pop(choices[len(tallies) % len(choices)] % len(tallies))
        tallies[choices[-1] % len(tallies)].merge(right)
    return tallies[0]


def check(found: FeatureStatistics, column: np.ndarray) -> None:
    finite = column[np.isfinite(column)]
    assert (found.count, found.non_finite) == (len(finite), len(column) - len(finite))
    if not len(finite):
        assert found.mean is None and found.minimum is None and found.variance == 0
        return
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    exact = [Fraction(float(v)) for v in finite]
    mean = sum(exact) / len(exact)
    variance = float(sum((v - mean) ** 2 for v in exact) / len(exact))
    off = abs(Fraction(found.mean) + Fraction(found.mean_low) - mean)
    assert off <= 1e-12 * max(abs(float(mean)) * 1e-4, variance**0.5) + 1e-300
    assert found.variance == pytest.approx(variance, rel=1e-12, abs=1e-300)


ODD = st.sampled_from([np.nan, np.inf, -np.inf])
COLUMNS = {
    "plain": st.floats(-1e3, 1e3) | ODD,
    "offset": st.floats(-1, 1).map(lambda v: 1e8 + v) | ODD,
    "wide": st.floats(-1e12, 1e12),
    "constant": st.just(0.1),
    "empty": ODD,
}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(*(st.lists(c, min_size=n, max_size=n) for c in COLUMNS.values()))),
    st.lists(st.integers(0, 60), max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
)
def test_any_partition_and_any_tree_of_merges_equals_the_whole(columns, cuts, choices):
    values = np.array(columns, np.float64).T
    statistics = merged(values, cuts, choices, list(COLUMNS)).statistics("numbers")
    for feature, column in zip(statistics.features, values.T, strict=True):
        check(feature, column)


@pytest.mark.parametrize("offset", [0.0, 1e8, -1e8])
@pytest.mark.parametrize("pieces", [1, 7, 1000])
def test_a_hundred_thousand_rows_equal_numpy_at_an_offset(offset: float, pieces: int):
    values = np.random.default_rng(pieces).standard_normal((100_000, 3)) * [1, 1e-3, 1e3] + offset
    tally = Tally(["a", "b", "c"])
    for part in np.array_split(values, pieces):
        tally.update(part)
    for feature, column in zip(tally.statistics("numbers").features, values.T, strict=True):
        centred = column - offset  # exact, and what NumPy can sum without loss
        assert feature.mean is not None
        assert abs(feature.mean - offset + feature.mean_low - centred.mean()) <= 1e-12 * column.std()
        assert feature.variance == pytest.approx(np.var(centred), rel=1e-12)
        assert feature.mean == pytest.approx(column.mean(), rel=1e-12)


def test_one_double_for_the_mean_would_not_do():
    """The slow twin in the other direction: what the textbook's merge loses at an offset of 1e8."""
    values = 1e8 + np.random.default_rng(0).standard_normal(4_000) * 1e-3
    count, mean, m2 = 0, 0.0, 0.0
    for part in np.array_split(values, 1_000):
        delta, n = part.mean() - mean, len(part)
        count, mean = count + n, mean + delta * n / (count + n)
        m2 += np.square(part - part.mean()).sum() + delta**2 * n * (count - n) / count
    exact = np.var(values - 1e8)
    assert abs(m2 / count / exact - 1) > 1e-12
    assert merged(values[:, None], list(range(0, 4000, 4)), [1]).m2[0] / 4000 == pytest.approx(exact, rel=1e-12)


def test_missing_and_non_finite_values_are_told_apart():
    tally = Tally(["a", "b"])
    missing = np.array([[True, False], [False, False], [False, True]])
    tally.update(np.array([[5, 1], [np.nan, 1e200], [2, np.inf]]), missing)
    a, b = tally.statistics("numbers").features
    assert (a.count, a.missing, a.non_finite, a.mean) == (1, 1, 1, 2.0)
    assert (b.count, b.missing, b.non_finite, b.mean) == (1, 1, 1, 1.0)
    tally.update(np.zeros((0, 2)))
    assert tally.statistics("numbers").features == [a, b]


def test_the_record_reads_back_and_counting_goes_on_from_it():
    values = np.random.default_rng(0).standard_normal((1_000, 2))
    whole, first = Tally(["x", "y"]), Tally(["x", "y"])
    whole.update(values[:600])
    first.update(values[:600])
    stored = first.statistics("audio", LogMel().model_dump()).to_bytes()
    again = Statistics.from_bytes(stored)
    assert again.to_bytes() == stored and again.settings["n_fft"] == 1024
    resumed = Tally.of_statistics(again)
    for tally in (whole, resumed):
        tally.update(values[600:])
    assert resumed.statistics("audio") == whole.statistics("audio")


def test_an_empty_stream_is_stored_as_nulls():
    document = json.loads(Tally(["x"]).statistics("numbers").to_bytes())["features"][0]
    assert document["count"] == 0 and document["mean"] is document["minimum"] is document["maximum"] is None
    again = Tally.of_statistics(Tally(["x"]).statistics("numbers"))
    again.update(np.array([[3.0], [5.0]]))
    assert again.statistics("numbers").features[0].mean == 4 and Tally(["x"]).statistics("n").features[0].std == 0


def test_quantiles_lie_within_the_extremes():
    tally = Tally(["x"])
    tally.update(np.arange(1.0, 101)[:, None])
    feature = tally.statistics("numbers").features[0]
    assert [feature.quantile(q) for q in (0, 0.01, 0.5, 0.99, 1)] == [1, 1, 50, 99, 100]
    assert Tally(["x"]).statistics("numbers").features[0].quantile(0.5) is None


def test_other_features_are_refused_and_unknown_ones_are_named():
    with pytest.raises(UsageError, match=r"\['b'\] cannot be merged with those of \['a'\]"):
        Tally(["a"]).merge(Tally(["b"]))
    with pytest.raises(UsageError, match="cannot be merged"):
        PixelTally(["grey"]).merge(PixelTally())
    with pytest.raises(UsageError, match="no statistics of age; the file has a, b"):
        Tally(["a", "b"]).statistics("numbers").select(["a", "age"])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)), min_size=1, max_size=5))
def test_pictures_are_counted_exactly_pixel_by_pixel(shapes):
    pictures = [np.random.default_rng(s).integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w, s in shapes]
    tally = PixelTally()
    for picture in pictures:
        part = PixelTally()
        part.update(picture)
        tally.merge(part)
    pixels = np.concatenate([p.reshape(-1, 3) for p in pictures]).astype(np.float64)
    for feature, channel in zip(tally.statistics().features, pixels.T, strict=True):
        check(feature, channel)
        for q in (0.1, 0.5, 0.9):
            assert feature.quantile(q) == np.quantile(channel, q, method="inverted_cdf")


def test_a_billion_pictures_do_not_overflow():
    tally = PixelTally(["grey"])
    tally.counts[0, 255] = 1 << 60
    tally.counts[0, 0] = 1 << 60
    feature = tally.statistics().features[0]
    assert feature.mean == 127.5 and feature.std == 127.5 and feature.count == 1 << 61
    assert len(tally.statistics().to_bytes()) < 10_000


def test_a_large_picture_is_counted_in_bands(monkeypatch: pytest.MonkeyPatch):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = PixelTally()
    whole.update(picture)
    monkeypatch.setattr("mmstream.media.statistics._BAND_PIXELS", 100)
    bands = PixelTally()
    bands.update(picture)
    assert np.array_equal(whole.counts, bands.counts) and whole.counts.sum() == 64 * 64 * 3
