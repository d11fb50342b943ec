"""Arrays go in, PNG bytes come out: one restrained style for every figure of a run.

Light background, labels of readable size, the colours of Okabe and Ito (2008), which differ for colour-blind people
and in grey print. matplotlib is imported when a figure is drawn, with the Agg canvas and no global state, so figures
may be drawn in any thread and without a display. The same arrays give the same bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mmstream.metrics import RECALL_AT, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, INK, MUTED, RULE = "#0072b2", "#d55e00", "#009e73", "#1b2430", "#5d6875", "#e3e7ec"
DPI = 144
_STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def _draw(width: float, height: float, draw: Any) -> bytes:
    """Calls `draw(figure)` in our style; sizes in inches."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, _STYLE)):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def loss_curve(
    step: np.ndarray,
    loss: np.ndarray,
    *,
    beside: tuple[str, np.ndarray] | None = None,
    chance: float | None = None,
) -> bytes:
    """Loss over steps, as measured and smoothed; gaps where it is not finite.

    Args:
        step, loss: [n].
        beside: a name and a further array [n], such as the learning rate or samples per second, drawn below.
        chance: the loss of a model that guesses, log(batch size) for InfoNCE, drawn as a line.
    """
    step, loss = np.asarray(step, float), np.asarray(loss, float)

    heights = [3, 1] if beside else [1]

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        top: Axes = rows[0, 0]
        top.plot(step, loss, color=BLUE, alpha=0.3, linewidth=1)
        top.plot(step, smoothed(loss), color=BLUE, linewidth=2)
        top.set_title("loss")
        top.set_ylim(bottom=0)
        top.margins(x=0.01)
        if chance is not None:
            top.axhline(chance, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
            top.annotate("guessing", (1, chance), None, ("axes fraction", "data"), ha="right", va="bottom", color=MUTED)
        if beside:
            name, values = beside
            rows[1, 0].plot(step, np.asarray(values, float), color=ORANGE, linewidth=1.5)
            rows[1, 0].set_title(name)
            rows[1, 0].set_ylim(bottom=0)
        rows[-1, 0].set_xlabel("step")

    return _draw(7.2, 4.6 if beside else 3.4, draw)


def smoothed(values: np.ndarray, span: float = 0.05) -> np.ndarray:
    """A running mean of values [n] over a share `span` of them, gaps left out; the window narrows towards the ends."""
    values = np.asarray(values, float)
    half = max(1, round(len(values) * span / 2))
    good = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0))])
    count = np.concatenate([[0], np.cumsum(good)])
    at = np.arange(len(values))
    reach = np.clip(np.minimum(at, len(values) - 1 - at), half // 3, half)
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    number = count[last] - count[first]
    mean = (total[last] - total[first]) / np.maximum(number, 1)
    return np.where(number > 0, mean, np.nan)


def recall_bars(measured: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Recall@k both ways, with 95 % intervals, chance, and the ceiling of text→image R@1 where it is known.

    Args:
        measured: what `metrics.retrieval` returned, by the name of the set; one row of bars each.
    """

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(measured), 2, sharey=True, squeeze=False)
        for axes, (name, retrieval) in zip(grid, measured.items(), strict=True):
            for axis, way in zip(axes, ("text_to_image", "image_to_text"), strict=True):
                _recall(axis, retrieval, way)
                axis.set_title(f"{way.replace('_to_', ' → ')}, {name} (n = {retrieval['n']:,})", fontsize=10)
        grid[0, 0].set_ylim(0, 1.1)

    return _draw(8.4, 3.0 * len(measured), draw)


def _recall(axis: Axes, retrieval: Mapping[str, Any], way: str) -> None:
    at = np.arange(len(RECALL_AT))
    shares = np.array([retrieval[way][f"r@{k}"] for k in RECALL_AT])
    chance = [retrieval["chance"][f"r@{k}"] for k in RECALL_AT]
    interval = np.array([wilson(share, retrieval["n"]) for share in shares]).T
    axis.bar(at, shares, 0.6, color=BLUE, yerr=np.abs(interval - shares), ecolor=INK, capsize=3)
    for x, share in zip(at, shares, strict=True):
        axis.annotate(f"{share:.3f}", (x, 0.03), ha="center", va="bottom", color="white" if share > 0.15 else INK)
    axis.hlines(chance, at - 0.4, at + 0.4, color=ORANGE, linewidth=2)
    ceiling = retrieval["ceiling"] if way == "text_to_image" else None
    if ceiling is not None:
        axis.hlines(ceiling, -0.4, 0.4, color=GREEN, linewidth=2)
        axis.annotate(f"ceiling {ceiling:.3f}", (0, ceiling + 0.015), ha="center", color=GREEN)
    axis.set_xticks(at, [f"R@{k}\nchance {c:.3f}" for k, c in zip(RECALL_AT, chance, strict=True)])
    axis.grid(axis="x", visible=False)


def image_grid(images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int = 5, title: str = "") -> bytes:
    """Pictures in reading order with a label under each.

    Args:
        images: uint8 [H, W, 3] each, of any size.
        labels: plain text, one per picture; long ones are folded and cut.

    Raises:
        ValueError: there is no picture, or not as many labels.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"an image grid needs pictures and as many labels, not {len(images)} and {len(labels)}")
    rows = math.ceil(len(images) / columns)

    def draw(figure: Figure) -> None:
        if title:
            figure.suptitle(_literal(title), x=0.01, ha="left", fontweight="bold", fontsize=12)
        for place, axis in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
            axis.axis("off")
            if place < len(images):
                axis.imshow(images[place])
                axis.set_anchor("NW")
                axis.annotate(
                    _folded(labels[place]), (0, 0), (0, -3), "axes fraction", "offset points", va="top", fontsize=8.5
                )

    return _draw(1.9 * columns, 2.5 * rows + 0.4 * bool(title), draw)


def _folded(label: str, width: int = 24, lines: int = 3) -> str:
    return _literal("\n".join(textwrap.wrap(label, width, max_lines=lines, placeholder=" …")))


def _literal(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")
