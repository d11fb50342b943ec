"""Numbers become HTML that draws itself: bars of shares and small curves, without script, font or picture.

Lines are SVG stretched to the width of the page; every label is HTML text, so it is as legible on a telephone and on
paper as on a wide screen. Colours are those of `figures`. What is drawn is in the text, too, for readers by ear.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mmstream.figures import smoothed

CURVE_POINTS = 400  # more than this cannot be told apart on a page


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its interval, and what it is to be compared with."""

    name: str
    share: float
    interval: tuple[float, float]
    chance: float
    ceiling: float | None = None


def bars(rows: Iterable[Bar], description: str) -> str:
    """Horizontal bars from 0 to 1, each with a mark for chance and for the ceiling where there is one."""
    return f'<div class="bars" role="img" aria-label="{escape(description)}">{"".join(map(_bar, rows))}</div>'


def _bar(bar: Bar) -> str:
    low, high = bar.interval
    told = f"{bar.name}: {bar.share:.3f}, interval {low:.3f} to {high:.3f}, chance {bar.chance:.3f}"
    ceiling = ""
    if bar.ceiling is not None:
        told += f", ceiling {bar.ceiling:.3f}"
        ceiling = f'<div class="mark ceiling" style="left:{_percent(bar.ceiling)}"></div>'
    return (
        f'<div class="name">{escape(bar.name)}</div><div class="track" title="{escape(told)}">'
        f'<div class="fill" style="width:{_percent(bar.share)}"></div>'
        f'<div class="range" style="left:{_percent(low)};width:{_percent(high - low)}"></div>'
        f'<div class="mark chance" style="left:{_percent(bar.chance)}"></div>{ceiling}</div>'
        f'<div class="value">{bar.share:.3f}</div>'
    )


def legend(ceiling: bool) -> str:
    """What the marks of `bars` mean."""
    known = '<li><i class="ceiling"></i>ceiling: a perfect model</li>' if ceiling else ""
    return (
        '<ul class="legend"><li><i class="score"></i>measured</li><li><i class="interval"></i>95 % interval</li>'
        f'<li><i class="chance"></i>chance</li>{known}</ul>'
    )


def curve(
    name: str, x: Sequence[float], y: Sequence[float], *, height_rem: float, level: tuple[float, str] | None = None
) -> str:
    """y over x, as measured and smoothed, from 0 up. Values that are not finite are left out.

    Args:
        x: ascending, at least two different values; drawn with its name "step".
        level: a value of y to compare with, and its name.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    good = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[good], ys[good]
    top = _nice_top(max([float(ys.max()), *([level[0]] if level else [])]))
    ticks = np.linspace(0, top, 5)[:: 1 if height_rem > 9 else 2]

    def path(values: np.ndarray) -> str:
        keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), CURVE_POINTS)).astype(int))
        along = (xs[keep] - xs[0]) / (xs[-1] - xs[0]) * 1000
        return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(along, 1000 - values[keep] / top * 1000, strict=True))

    across = "".join(f'<path class="grid" d="M0 {1000 - t / top * 1000:.1f}H1000"/>' for t in ticks[1:])
    mark = f'<path class="level" d="M0 {1000 - level[0] / top * 1000:.1f}H1000"/>' if level else ""
    about = f'<span class="about" style="top:{_percent(1 - level[0] / top)}">{escape(level[1])}</span>' if level else ""
    labels = "".join(f'<span class="y" style="top:{_percent(1 - t / top)}">{_short(t)}</span>' for t in ticks)
    return (
        f'<figure class="curve"><figcaption>{escape(name)}</figcaption>'
        f'<div class="plot" style="height:{height_rem}rem">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(name)}: from {_short(ys[0])} to {_short(ys[-1])}">{across}{mark}'
        f'<path class="raw" d="{path(ys)}"/><path class="mean" d="{path(smoothed(ys))}"/></svg>'
        f"{labels}{about}{_x_labels(xs)}</div></figure>"
    )


def _x_labels(xs: np.ndarray) -> str:
    first, middle, last = xs[0], (xs[0] + xs[-1]) / 2, xs[-1]
    return (
        f'<span class="x" style="left:0">{first:,.0f}</span>'
        f'<span class="x" style="left:50%">{middle:,.0f}</span>'
        f'<span class="x last" style="left:100%">step {last:,.0f}</span>'
    )


def _nice_top(largest: float) -> float:
    """The least of 1, 1.2, 1.6, 2, 3, 4, 6, 8 × a power of ten that is not below `largest`; each splits into four."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(n * power for n in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if n * power >= largest * (1 - 1e-9))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share)):.2f}%"
