"""What the demo did becomes one page that a person enjoys: `report.html`, which needs nothing but itself.

Numbers, pictures and curves come in as a `DemoReport`. Every picture is inline; the page has no script, no link and
no font of its own, and its content security policy forbids it to load anything. It reads on a narrow screen, prints,
and says of every score what chance and a perfect model would have reached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from mmstream.demo.charts import Bar, bars, curve, legend
from mmstream.demo.style import STYLE
from mmstream.metrics import RECALL_AT, wilson
from mmstream.search.page import POLICY, inline_image
from mmstream.search.pictures import thumbnail
from mmstream.search.searcher import Hit
from mmstream.storage.files import write_bytes

_WAYS = (("text_to_image", "text → image"), ("image_to_text", "image → text"))


@dataclass(frozen=True)
class Stage:
    """One station on the path of a sample: `count` of `unit` in `seconds`, and a sentence about it."""

    name: str
    count: int
    unit: str
    seconds: float
    about: str = ""


@dataclass(frozen=True)
class Swapped:
    """How often the right caption scores above the one with its relations exchanged, among `n` scenes."""

    accuracy: float
    n: int


@dataclass(frozen=True)
class Answer:
    """The hits of one query, nearest first, each with its encoded picture and whether the query is true of it.

    `num_true` of the `num_pictures` that were searched are what the query says.
    """

    query: str
    hits: Sequence[Hit]
    pictures: Sequence[bytes]
    true: Sequence[bool]
    num_true: int
    num_pictures: int


@dataclass(frozen=True)
class DemoReport:
    """
    Attributes:
        retrieval, retrieval_unseen_pairs: what `metrics.retrieval` returned for colour-shape pairs that training
            showed, and for those that it never did.
        training: rows of metrics.jsonl, with `step` and `loss`, and `lr` and `samples_per_second` where known.
        batch_size: of training, all workers together: log(batch_size) is the loss of a model that guesses.
        next: commands to try, each with what it does.
        machine, versions: for the footer.
    """

    retrieval: Mapping[str, Any]
    retrieval_unseen_pairs: Mapping[str, Any]
    swapped: Swapped
    stages: Sequence[Stage]
    training: Sequence[Mapping[str, Any]]
    batch_size: int
    answers: Sequence[Answer]
    next: Sequence[tuple[str, str]]
    seconds: float
    machine: Mapping[str, str]
    versions: Mapping[str, str]


def write_report(dest: str, report: DemoReport) -> None:
    """Writes the page to a path or URL.

    Raises:
        Rejected: a picture of an answer cannot be decoded.
    """
    write_bytes(dest, render(report).encode())


def render(report: DemoReport) -> str:
    sections = [
        _header(report),
        _path(report.stages, report.seconds),
        _answers(report.answers),
        _quality(report),
        _relations(report.swapped),
        _training(report.training, report.batch_size),
        _numbers(report),
        _next(report.next),
        _footer(report),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>mmstream demo</title><style>{STYLE}</style></head>
<body>
{"".join(sections)}
</body></html>
"""


def _header(report: DemoReport) -> str:
    seen, unseen = report.retrieval, report.retrieval_unseen_pairs
    r1, r10 = (seen["text_to_image"][f"r@{k}"] for k in (1, 10))
    cards = [
        _headline(r1, "R@1, words to picture", seen, 1),
        _headline(r10, "R@10, words to picture", seen, 10),
        _headline(unseen["text_to_image"]["r@1"], "R@1, colour–shape pairs never seen", unseen, 1),
    ]
    return f"""<header><p class="eyebrow">mmstream demo</p>
<h1>From made scenes to answered questions in {_duration(report.seconds)}</h1>
<p class="lead">Given a caption, the model picks the one right picture out of {seen["n"]:,} it has never seen
<strong>{_percent(r1)}</strong> of the time, and has it among its first ten {_percent(r10)} of the time.
{_perfect(seen)}</p>
<div class="headline">{"".join(cards)}</div></header>
"""


def _headline(share: float, name: str, retrieval: Mapping[str, Any], k: int) -> str:
    ceiling = f"ceiling {_percent(retrieval['ceiling'])}, " if k == 1 and retrieval["ceiling"] is not None else ""
    chance = f"chance {_percent(retrieval['chance'][f'r@{k}'])}"
    return f"<div><b>{_percent(share)}</b><span>{escape(name)}</span><small>{ceiling}{chance}</small></div>"


def _perfect(retrieval: Mapping[str, Any]) -> str:
    if retrieval["ceiling"] is None:
        return ""
    return (
        f"A perfect model would reach {_percent(retrieval['ceiling'])}, because some captions are true of several "
        "pictures."
    )


def _path(stages: Sequence[Stage], seconds: float) -> str:
    items = "".join(
        f'<li><span class="name">{escape(s.name)}</span><b>{s.count:,}</b><span class="unit">{escape(s.unit)}</span>'
        f"<small>{_speed(s)}</small><p>{escape(s.about)}</p></li>"
        for s in stages
    )
    rest = seconds - sum(s.seconds for s in stages)
    other = f" The remaining {_duration(rest)} went to starting up and to what lies between." if rest >= 1 else ""
    return f"""<section><h2>The path of a sample</h2><ol class="path">{items}</ol>
<p class="note">{_duration(seconds)} in all.{other}</p></section>
"""


def _speed(stage: Stage) -> str:
    rate = stage.count / stage.seconds if stage.seconds > 0 else 0.0
    return _duration(stage.seconds) + (f" · {_rounded(rate)} per second" if rate >= 10 else "")


def _answers(answers: Sequence[Answer]) -> str:
    return (
        "<section><h2>What it finds</h2><p>Each row is one question to the index and the nearest pictures, with the "
        "cosine of the two vectors. A question is a caption of the test set, taken because it is true of most pictures "
        "of its kind, not because it is answered well. No picture here was shown in training.</p>"
        f"{''.join(map(_answer, answers))}</section>\n"
    )


def _answer(answer: Answer) -> str:
    cards = "".join(
        f'<li class="{"true" if true else "false"}">{inline_image(thumbnail(picture), hit.caption or hit.key or "")}'
        f"<b>{hit.score:.3f}</b> <small>{'✓ fits' if true else '✗'}</small>"
        f'<p dir="auto">{escape(hit.caption or "")}</p></li>'
        for hit, picture, true in zip(answer.hits, answer.pictures, answer.true, strict=True)
    )
    found = f"true of {answer.num_true:,} of {answer.num_pictures:,} pictures, {sum(answer.true)} of them here"
    return (
        f'<div class="answer"><h3><q dir="auto">{escape(answer.query)}</q> <small>{found}</small></h3>'
        f'<ol class="hits">{cards}</ol></div>'
    )


def _quality(report: DemoReport) -> str:
    sets = (("Colour–shape pairs of training", report.retrieval),
            ("Colour–shape pairs training never showed", report.retrieval_unseen_pairs))  # fmt: skip
    panels = "".join(_panel(name, retrieval) for name, retrieval in sets)
    known = any(retrieval["ceiling"] is not None for _, retrieval in sets)
    return f"""<section><h2>How well it finds</h2>
<p>Recall at k: how often the one right partner is among the first k. The others that a caption happens to fit count as
misses, and so do ties. A pair is a colour with a shape: one shape of each colour was kept from training.</p>
<div class="panels">{panels}</div>{legend(known)}</section>
"""


def _panel(name: str, retrieval: Mapping[str, Any]) -> str:
    parts = []
    for way, title in _WAYS:
        rows = [_bar(retrieval, way, k) for k in RECALL_AT]
        parts.append(f"<h4>{title}</h4>{bars(rows, f'{name}, {title}')}")
    return f'<div class="panel"><h3>{escape(name)} <small>n = {retrieval["n"]:,}</small></h3>{"".join(parts)}</div>'


def _bar(retrieval: Mapping[str, Any], way: str, k: int) -> Bar:
    share = retrieval[way][f"r@{k}"]
    ceiling = retrieval["ceiling"] if (way, k) == ("text_to_image", 1) else None
    return Bar(f"R@{k}", share, wilson(share, retrieval["n"]), retrieval["chance"][f"r@{k}"], ceiling)


def _relations(swapped: Swapped) -> str:
    low, high = wilson(swapped.accuracy, swapped.n)
    verdict = f"{_verdict(swapped.accuracy, low, high)} <small>n\u00a0=\u00a0{swapped.n:,}</small>"
    bar = bars([Bar("accuracy", swapped.accuracy, (low, high), 0.5)], "accuracy on swapped relations")
    return f"""<section><h2>What it does not know</h2>
<p>Exchange left with right, or above with below, in a caption: does the true one still score higher? A coin reaches
0.5.</p>{bar}<p class="verdict">{verdict}</p></section>
"""


def _verdict(accuracy: float, low: float, high: float) -> str:
    if low <= 0.5 <= high:
        return (
            f"{accuracy:.3f} is at chance. So short a training teaches which objects are in a picture, not where "
            "they stand: a good R@1 proves nothing about relations."
        )
    if low > 0.5:
        return f"{accuracy:.3f} is above chance: the model has begun to see where objects stand, not only which."
    return f"{accuracy:.3f} is below chance: the model prefers wrong relations, which no training should teach."


def _training(rows: Sequence[Mapping[str, Any]], batch_size: int) -> str:
    guess = (math.log(batch_size), f"guessing, log({batch_size})")
    curves = [
        _curve("Loss", rows, "loss", 15, guess),
        _curve("Learning rate", rows, "lr", 5.5),
        _curve("Samples per second", rows, "samples_per_second", 5.5),
    ]
    drawn = "".join(c for c in curves if c) or '<p class="note">The run recorded too few steps for a curve.</p>'
    return f"<section><h2>How it learned</h2>{drawn}</section>\n"


def _curve(
    name: str, rows: Sequence[Mapping[str, Any]], column: str, height: float, level: tuple[float, str] | None = None
) -> str:
    points = [(r["step"], r[column]) for r in rows if r.get(column) is not None and math.isfinite(r[column])]
    if len({step for step, _ in points}) < 2:
        return ""
    return curve(name, [p[0] for p in points], [p[1] for p in points], height_rem=height, level=level)


def _numbers(report: DemoReport) -> str:
    sets = (("seen pairs", report.retrieval), ("unseen pairs", report.retrieval_unseen_pairs))
    body = "".join(_number_rows(name, retrieval) for name, retrieval in sets)
    heads = "".join(f'<th scope="col">R@{k}</th>' for k in RECALL_AT)
    swapped = report.swapped
    return f"""<section><h2>The numbers</h2><div class="wide"><table>
<thead><tr><th scope="col">set</th><th scope="col">way</th><th scope="col">N</th>{heads}
<th scope="col">ceiling R@1</th></tr></thead>
<tbody>{body}<tr><th scope="row">swapped relations</th><td>accuracy</td><td>{swapped.n:,}</td>
<td colspan="3">{swapped.accuracy:.3f}, chance 0.500</td><td>1.000</td></tr></tbody></table></div></section>
"""


def _number_rows(name: str, retrieval: Mapping[str, Any]) -> str:
    rows = []
    for way, title in [*_WAYS, ("chance", "chance")]:
        ceiling = retrieval["ceiling"] if way == "text_to_image" else None
        cells = "".join(f"<td>{retrieval[way][f'r@{k}']:.3f}</td>" for k in RECALL_AT)
        rows.append(
            f'<tr class="{way}"><th scope="row">{escape(name)}</th><td>{title}</td><td>{retrieval["n"]:,}</td>{cells}'
            f"<td>{'' if ceiling is None else f'{ceiling:.3f}'}</td></tr>"
        )
    return "".join(rows)


def _next(commands: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li><p>{escape(what)}</p><pre><code>{escape(command)}</code></pre></li>" for command, what in commands
    )
    return f'<section><h2>What to try next</h2><ul class="next">{items}</ul></section>\n'


def _footer(report: DemoReport) -> str:
    def line(facts: Mapping[str, str]) -> str:
        return " · ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items())

    return f"<footer><p>{line(report.machine)}</p><p>{line(report.versions)}</p></footer>"


def _percent(share: float) -> str:
    """`82.3 %`, which no line break divides; never rounded up to all."""
    shown = 100.0 if share == 1 else min(100 * share, 99.9)
    return f"{shown:.1f}\u00a0%"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _rounded(rate: float) -> str:
    """Three digits that count."""
    return f"{float(f'{rate:.3g}'):,.0f}"
