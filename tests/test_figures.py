"""Figures show what they were given, whatever it is, and the same input gives the same bytes."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmstream.figures import BLUE, GREEN, ORANGE, image_grid, loss_curve, recall_bars, smoothed

STEPS = np.arange(0, 400, 10)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(png: bytes, colour: str) -> int:
    """How many pixels have nearly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(png) - wanted).max(axis=2) < 12).sum())


def retrieval(share: float, ceiling: float | None) -> dict[str, Any]:
    at = {"r@1": share, "r@5": share, "r@10": share}
    chance = {"r@1": 0.01, "r@5": 0.05, "r@10": 0.1}
    return {"n": 100, "chance": chance, "ceiling": ceiling, "text_to_image": at, "image_to_text": at}


def test_higher_recall_draws_more_bar_and_the_ceiling_only_where_it_is_known() -> None:
    low, high = recall_bars({"set": retrieval(0.2, None)}), recall_bars({"set": retrieval(0.8, 0.9)})
    assert 3 < count(high, BLUE) / count(low, BLUE) < 5
    assert count(low, GREEN) < 50 < count(high, GREEN)
    assert count(low, ORANGE) > 100


def test_shares_of_zero_and_one_can_be_drawn() -> None:
    two = recall_bars({"none": retrieval(0.0, 1.0), "all": retrieval(1.0, 1.0)})
    assert pixels(two).shape[0] == pytest.approx(2 * pixels(recall_bars({"one": retrieval(0, 1)})).shape[0], abs=2)


def test_the_loss_is_drawn_with_what_stands_beside_it() -> None:
    loss = 5 * np.exp(-STEPS / 100)
    alone, both = loss_curve(STEPS, loss, chance=5.5), loss_curve(STEPS, loss, beside=("learning rate", loss / 1000))
    assert count(alone, BLUE) > 500
    assert count(alone, ORANGE) == 0
    assert count(both, ORANGE) > 200


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, np.nan, np.nan], [1.0, np.inf, 0.5, np.nan, 0.2]])
def test_a_short_or_broken_curve_is_still_a_figure(values: list[float]) -> None:
    assert pixels(loss_curve(np.arange(len(values)), np.array(values))).shape[2] == 3


def test_smoothing_equals_its_slow_twin() -> None:
    values = np.random.default_rng(0).standard_normal(50)
    values[[3, 4, 30]] = np.nan
    half = 5
    for i, got in enumerate(smoothed(values, 0.2)):
        reach = max(half // 3, min(half, i, 49 - i))
        window = values[max(0, i - reach) : i + reach + 1]
        assert got == pytest.approx(np.nanmean(window))


def test_a_grid_shows_every_picture_and_takes_any_label() -> None:
    colours = ["#d01010", "#10d010", "#1010d0", "#d0d010"]
    images = [
        np.full((40 + i, 60, 3), [int(c[j : j + 2], 16) for j in (1, 3, 5)], np.uint8) for i, c in enumerate(colours)
    ]
    png = image_grid(images, [r"$\frac{1$", "a " * 200, "", "\u202e<b>$"], columns=3, title=r"$\x$")
    for colour in colours:
        assert count(png, colour) > 5000


def test_a_grid_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="not 0 and 0"):
        image_grid([], [])


def test_the_same_input_gives_the_same_bytes() -> None:
    assert loss_curve(STEPS, STEPS / 100) == loss_curve(STEPS, STEPS / 100)


def test_importing_the_module_does_not_import_matplotlib() -> None:
    code = "import sys, mmstream.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
