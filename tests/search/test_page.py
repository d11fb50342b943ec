"""The page stands alone, and strangers' text stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from embedding_sets import write_set

from mmstream.encoders.build import load_encoder
from mmstream.index.build import build_index
from mmstream.search.answer import answer
from mmstream.search.page import inline_image, write_page
from mmstream.search.pictures import read_picture
from mmstream.search.searcher import Index, open_index

HOSTILE = '"><script>alert(1)</script><img src=//evil.example/x onerror=alert(1)>\u202eabc'


class Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_every_hit_with_picture_score_and_caption(index: Index, tmp_path: Path) -> None:
    hits = index.search("anything", k=5)
    write_page(str(tmp_path / "hits.html"), index, hits, "anything")
    page = (tmp_path / "hits.html").read_text()
    elements = Elements(page)
    assert len(elements.sources) == 5
    assert all(s.startswith("data:image/jpeg;base64,") for s in elements.sources)
    for hit in hits:
        assert hit.caption in elements.text
        assert f"{hit.score:.3f}" in elements.text
    assert not re.findall(r"https?://", page)


def test_a_picture_that_was_asked_with_stands_above_its_hits(index: Index, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jpg"
    asked.write_bytes(read_picture(index, index.search("anything", k=1)[0]))
    answer(index.url, image=str(asked), k=3, html=str(tmp_path / "hits.html"))
    page = (tmp_path / "hits.html").read_text()
    sources = Elements(page).sources
    assert len(sources) == 4
    assert sources[0] == sources[1], "the nearest hit is the picture itself"
    assert page.index(sources[0]) < page.index("<ol>")


def test_hostile_captions_keys_and_queries_stay_text(tmp_path: Path) -> None:
    vector = load_encoder("fake:8").encode_text([HOSTILE])[0]
    rows = [{"shard": 0, "row": 0, "key": HOSTILE, "caption": HOSTILE, "image_embedding": vector}]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8)
    build_index(emb, str(tmp_path / "index"))
    index = open_index(str(tmp_path / "index"))
    write_page(str(tmp_path / "hits.html"), index, index.search(id=0), HOSTILE)
    elements = Elements((tmp_path / "hits.html").read_text())
    assert "script" not in elements.tags
    assert "img" not in elements.tags
    assert elements.text.count(HOSTILE) >= 3


def test_a_hostile_description_of_a_picture_stays_text() -> None:
    elements = Elements(inline_image(b"jpeg", HOSTILE))
    assert (elements.tags, len(elements.sources)) == (["img"], 1)


@pytest.mark.parametrize("damage", ["gone", "grown"])
def test_a_picture_that_cannot_be_read_is_replaced_by_the_reason(index: Index, tmp_path: Path, damage: str) -> None:
    shard = tmp_path / "00000.tar"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes() + b"x")
    write_page(str(tmp_path / "hits.html"), index, index.search("anything", k=12), "anything")
    elements = Elements((tmp_path / "hits.html").read_text())
    assert len(elements.sources) == 6
    reason = {"gone": "nothing is there", "grown": "has changed since it was embedded"}[damage]
    assert sum(reason in t for t in elements.text) == 6
