"""What statistics were taken of comes out at the common scale; what never varied comes out as 0."""

from __future__ import annotations

import numpy as np
import pytest

from mmstream.media.scaling import MinMax, Robust, Standardize
from mmstream.media.statistics import PixelTally, Tally

VALUES = np.random.default_rng(0).gamma(2.0, size=(500, 4)) * [1, 1e-6, 1e6, 0] + [0, 1e3, -1e8, 0.1]


@pytest.fixture
def features():
    tally = Tally(list("abcd"))
    tally.update(VALUES)
    return tally.statistics("numbers").features


def test_standardized_values_have_mean_0_and_deviation_1(features):
    scaled = Standardize.of(features)(VALUES)
    assert scaled.dtype == np.float32 and scaled.shape == VALUES.shape
    assert np.allclose(scaled[:, :3].mean(axis=0), 0, atol=1e-5)
    assert np.allclose(scaled[:, :3].std(axis=0), 1, atol=1e-5)
    assert (scaled[:, 3] == 0).all()


def test_the_extremes_become_0_and_1(features):
    scaled = MinMax.of(features)(VALUES)
    assert np.allclose(scaled[:, :3].min(axis=0), 0) and np.allclose(scaled[:, :3].max(axis=0), 1)
    assert (scaled[:, 3] == 0).all()


def test_a_wild_value_moves_a_robust_scale_little():
    wild = VALUES.copy()
    wild[0] = 1e12
    tally = Tally(list("abcd"))
    tally.update(wild)
    scaled = Robust.of(tally.statistics("numbers").features)(VALUES)
    quartiles = np.quantile(scaled[:, :3], [0.25, 0.5, 0.75], axis=0)
    assert np.abs(quartiles[1]).max() < 0.02 and np.abs(quartiles[2] - quartiles[0] - 1).max() < 0.03


def test_scaling_can_be_undone_and_what_is_unknown_stays(features):
    for kind in (Standardize, MinMax, Robust):
        scaling = kind.of(features)
        assert (np.abs(scaling.inverse(scaling(VALUES)) - VALUES) <= 1e-6 * np.ptp(VALUES, axis=0)).all()
        assert np.isnan(scaling(np.array([np.nan, 1, 1, 1]))[0])
        never = kind.of(Tally(["x"]).statistics("numbers").features)
        assert never(np.array([[7.0]])) == 7


def test_pixels_and_mel_bands_scale_by_their_last_axis():
    pictures = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    tally = PixelTally()
    tally.update(pictures)
    scaled = Standardize.of(tally.statistics().features)(pictures)
    assert scaled.shape == (5, 8, 8, 3)
    assert np.allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-5) and np.allclose(scaled.std(axis=(0, 1, 2)), 1)
