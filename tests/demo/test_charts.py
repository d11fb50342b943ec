"""What is drawn lies where the numbers say."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mmstream.demo.charts import Bar, bars, curve


def points(html: str, line: str) -> np.ndarray:
    """float [n, 2] of a path, x from 0 to 1000, y from 0 (top) to 1000 (bottom)."""
    found = re.search(rf'<path class="{line}" d="M([^"]*)"', html)
    assert found
    return np.array([[float(v) for v in p.split()] for p in found[1].split("L")])


def test_a_bar_is_as_long_as_its_share_and_its_marks_stand_where_they_belong() -> None:
    html = bars([Bar("R@1", 0.75, (0.7, 0.8), 0.01, 0.9)], "recall")
    assert 'class="fill" style="width:75.00%"' in html
    assert 'class="range" style="left:70.00%;width:10.00%"' in html
    assert 'class="mark chance" style="left:1.00%"' in html
    assert 'class="mark ceiling" style="left:90.00%"' in html
    assert ">0.750<" in html


def test_a_bar_without_a_ceiling_has_no_mark_for_one() -> None:
    assert "ceiling" not in bars([Bar("R@5", 0.75, (0.7, 0.8), 0.01)], "recall")


def test_a_curve_runs_from_its_first_to_its_last_value() -> None:
    html = curve("loss", [10, 20, 40], [4.0, 2.0, 1.0], height_rem=10)
    assert points(html, "raw").tolist() == [[0, 0], [333.3, 500], [1000, 750]]
    for label in (">10<", ">25<", ">step 40<", ">4<", ">0<"):
        assert label in html


@pytest.mark.parametrize(("largest", "top"), [(5.1, 6), (0.002, 0.002), (1.0, 1), (1100, 1200), (8.5, 10), (0, 1)])
def test_the_axis_ends_at_a_round_number_above_everything(largest: float, top: float) -> None:
    html = curve("y", [0, 1], [0, largest], height_rem=10)
    label = f"{top:,.0f}" if top >= 100 else f"{top:.3g}"
    assert f'style="top:0.00%">{label}<' in html
    assert points(html, "raw")[:, 1].min() >= 0


def test_a_level_above_the_data_is_inside_the_plot() -> None:
    html = curve("loss", [0, 1], [1, 1], height_rem=10, level=(5.545, "guessing"))
    level = re.search(r'class="level" d="M0 ([0-9.]+)H1000"', html)
    assert level and float(level[1]) == pytest.approx(1000 - 5.545 / 6 * 1000, abs=0.1)


def test_long_runs_are_thinned_and_gaps_left_out() -> None:
    y = np.linspace(9, 1, 100_000)
    y[500] = np.nan
    drawn = points(curve("loss", list(range(100_000)), list(y), height_rem=10), "raw")
    assert len(drawn) == 400
    assert (drawn[0, 0], drawn[-1, 0]) == (0, 1000)
    assert np.isfinite(drawn).all()
