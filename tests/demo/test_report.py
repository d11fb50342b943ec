"""The report stands alone, says the numbers it was given, and is honest about what they mean."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmstream.demo.report import Answer, DemoReport, Stage, Swapped, render, write_report
from mmstream.errors import Rejected
from mmstream.search.searcher import Hit

HOSTILE = '"><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>'


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split()).replace("\u00a0", " ")


def retrieval(r1: float, ceiling: float | None, n: int = 1000) -> dict[str, Any]:
    chance = {"r@1": 1 / n, "r@5": 5 / n, "r@10": 10 / n}
    t2i, i2t = {"r@1": r1, "r@5": 0.961, "r@10": 0.987}, {"r@1": r1 - 0.05, "r@5": 0.942, "r@10": 0.973}
    return {"n": n, "chance": chance, "ceiling": ceiling, "text_to_image": t2i, "image_to_text": i2t}


def picture(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "JPEG")
    return out.getvalue()


def hit(score: float, caption: str) -> Hit:
    return Hit(1, score, "000001", caption, 0, 1, None, 64, 64, 512, 900)


def answer(query: str, hits: list[Hit], pictures: list[bytes]) -> Answer:
    return Answer(query, hits, pictures, true=[True, False][: len(hits)], num_true=3, num_pictures=2000)


def report(**changes: Any) -> DemoReport:
    made = DemoReport(
        retrieval=retrieval(0.8712, 0.9815),
        retrieval_unseen_pairs=retrieval(0.7533, 0.9327),
        swapped=Swapped(0.507, 1210),
        stages=[Stage("scenes", 22000, "scenes", 3.4, "Rendered."), Stage("train", 120320, "samples seen", 104.2)],
        training=[{"step": 10 * i, "loss": 5 / (i + 1), "lr": 1e-3, "samples_per_second": 1000.0} for i in range(40)],
        batch_size=256,
        answers=[
            Answer(
                "a red circle",
                [hit(0.912, "one"), hit(0.834, "two")],
                [picture(), picture("blue")],
                [True, False],
                3,
                2000,
            )
        ],
        next=[("mmstream search /somewhere/index 'a star'", "ask it yourself")],
        seconds=171.3,
        machine={"cores": "2"},
        versions={"mmstream": "0.1.0"},
    )
    return dataclasses.replace(made, **changes)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    write_report(str(tmp_path / "report.html"), report())
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 2
    assert all(s.startswith("data:image/jpeg;base64,") for s in sources)
    assert not re.findall(r"https?:|@import|url\(", html)


def test_every_number_stands_on_the_page_beside_n_chance_and_ceiling() -> None:
    text = Page(render(report())).text
    for shown in ("0.871", "0.753", "0.961", "0.987", "0.982", "0.933", "0.821", "0.507", "1,000", "1,210", "0.010"):
        assert shown in text, shown
    assert "87.1 % of the time" in text
    assert "98.7 % of the time" in text
    assert "A perfect model would reach 98.2 %" in text
    assert "chance 0.1 %" in text


def test_stages_queries_hits_commands_and_machine_are_shown() -> None:
    text = Page(render(report())).text
    expected = [
        *("22,000 scenes", "3.4 s · 6,470 per second", "1 min 44 s", "2 min 51 s in all"),
        *(
            "a red circle true of 3 of 2,000 pictures, 1 of them here",
            "0.912 ✓ fits one",
            "0.834 ✗ two",
            "mmstream search /somewhere/index 'a star'",
        ),
        *("cores 2", "mmstream 0.1.0"),
    ]
    for shown in expected:
        assert shown in text, shown


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.507, "is at chance"), (0.48, "is at chance"), (0.72, "above"), (0.3, "below chance")]
)
def test_swapped_relations_are_told_as_they_are(accuracy: float, verdict: str) -> None:
    text = Page(render(report(swapped=Swapped(accuracy, 1210)))).text
    assert f"{accuracy:.3f} is " in text
    assert verdict in text
    assert ("not where they stand" in text) == (verdict == "is at chance")


def test_data_without_a_known_ceiling_claims_none() -> None:
    plain = report(retrieval=retrieval(0.3, None), retrieval_unseen_pairs=retrieval(0.2, None))
    text = Page(render(plain)).text
    assert "perfect model" not in text
    assert "ceiling 9" not in text


def test_nearly_all_is_not_rounded_to_all() -> None:
    nearly = report(retrieval=retrieval(0.99999, 1.0))
    text = Page(render(nearly)).text
    assert "99.9 % of the time" in text
    assert "A perfect model would reach 100.0 %" in text


def test_strangers_text_stays_text() -> None:
    hostile = report(
        answers=[answer(HOSTILE, [hit(0.5, HOSTILE)], [picture()])],
        stages=[Stage(HOSTILE, 1, HOSTILE, 1.0, HOSTILE)],
        next=[(HOSTILE, HOSTILE)],
        machine={HOSTILE: HOSTILE},
    )
    page = Page(render(hostile))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 9


def test_pictures_are_encoded_anew_and_what_is_none_is_told() -> None:
    html = render(report(answers=[answer("q", [hit(0.5, "c")], [picture() + b"<script>trailing</script>"])]))
    assert html.count("data:image/jpeg") == 1
    with pytest.raises(Rejected):
        render(report(answers=[answer("q", [hit(0.5, "c")], [b"no picture"])]))


@pytest.mark.parametrize("training", [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "loss": float("nan")}] * 3])
def test_a_run_without_a_curve_says_so(training: list[dict[str, Any]]) -> None:
    assert "too few steps for a curve" in Page(render(report(training=training))).text


def test_the_curves_are_those_that_were_recorded() -> None:
    html = render(report(training=[{"step": i, "loss": 3.0 - i, "lr": None} for i in range(3)]))
    assert "Loss" in html
    assert "Learning rate" not in html
    assert "guessing, log(256)" in html
