"""What was set aside is counted, listed and shown, and nothing hostile in it reaches the page."""

from __future__ import annotations

import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from embedding_sets import embed_here
from PIL import Image
from tars import make_tar

from mmstream.errors import UsageError
from mmstream.pipelines.rejects import rejects
from mmstream.pipelines.rejects_page import Reject, gather, hexdump
from mmstream.schema import Manifest

XSS = "<img src=x onerror=alert(1)>"
PAYLOAD = b"<html><script>alert('payload')</script></html>"


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def shard(num_good: int) -> bytes:
    files = [f for i in range(num_good) for f in ((f"good{i}.jpg", picture(i)), (f"good{i}.txt", b"words"))]
    files += [(f"{XSS}.jpg", PAYLOAD), (f"{XSS}.txt", b"words")]
    files += [(f"cut{i}.jpg", picture(i)[:-60]) for i in range(5)]
    files += [("text.jpg", picture(7)), ("text.txt", b"<script>alert('caption')</script> \xff")]
    return make_tar([*files, ("last.jpg", picture(8)), ("last.txt", b"words")])


@pytest.fixture(scope="module")
def emb(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards, the second of which breaks in the header of `last.jpg`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "0.tar").write_bytes(shard(3))
    broken = bytearray(shard(2))
    broken[broken.index(b"last.jpg") + 1] ^= 1
    (folder / "1.tar").write_bytes(broken)
    return embed_here(folder / "*.tar", folder / "emb", chunk_rows=6)


COUNTS = {"caption": 2, "image_truncated": 10, "not_image": 2, "tar_header": 1}


def test_rejects_are_counted_by_reason_and_the_first_of_each_are_listed_with_their_place(emb: str) -> None:
    report = rejects(emb, limit=3)
    assert (report.samples, report.rejects, report.damaged) == (20, COUNTS, 1)
    shown = [(r.reason, r.shard, r.row, r.key) for r in report.shown]
    assert shown == [
        ("caption", 0, 9, "text"),
        ("caption", 1, 8, "text"),
        ("image_truncated", 0, 4, "cut0"),
        ("image_truncated", 0, 5, "cut1"),
        ("image_truncated", 0, 6, "cut2"),
        ("not_image", 0, 3, XSS),
        ("not_image", 1, 2, XSS),
        ("tar_header", 1, 9, None),
    ]
    first = report.to_json()["shown"][0]
    assert set(first) == {"url", "shard", "row", "key", "member", "offset", "reason", "detail"}
    assert Path(first["url"]).read_bytes()[first["offset"] :].startswith(b"text.jpg")
    assert report.title() == "14 of 20 samples set aside, 1 shard broken off"


def test_a_run_that_ended_over_its_budget_is_listed_as_far_as_it_was_committed(emb: str, tmp_path: Path) -> None:
    unfinished = Path(shutil.copytree(emb, tmp_path / "emb"))
    manifest = Manifest.from_bytes((unfinished / "manifest/000001.json").read_bytes())
    begun = manifest.model_copy(update={"finished": False, "totals": None})
    (unfinished / "manifest/000001.json").write_bytes(begun.to_bytes())
    (unfinished / "commits/000000.0.json").unlink()
    (unfinished / "commits/000000/000000.0.json").unlink()
    report = rejects(str(unfinished))
    assert (report.samples, report.rejects) == (14, {**COUNTS, "image_truncated": 8, "not_image": 1})


def test_one_reason_alone_is_listed_and_an_unknown_one_is_refused(emb: str) -> None:
    report = rejects(emb, reason="not_image")
    assert (report.rejects, report.damaged, len(report.shown)) == ({"not_image": 2}, 0, 2)
    with pytest.raises(UsageError, match="none of the reasons"):
        rejects(emb, reason="ugly")


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(emb: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "rejects.html"
    report = rejects(emb, html=str(path))
    assert report.html == str(path)
    return path.read_text()


def test_the_page_shows_a_card_for_each_with_its_reason_detail_and_files(html: str) -> None:
    page = Page(html)
    cards = [attributes["class"] for tag, attributes in page.tags if tag == "li" and "class" in attributes]
    assert (cards.count("sample"), cards.count("rest")) == (14, 1)
    assert "14 of 20 samples set aside, 1 shard broken off" in page.text
    for text in ("image_truncated", "image file is truncated", "cut4.jpg", XSS, "no UTF-8 from its byte 34", "0.tar"):
        assert text in page.text
    assert hexdump(PAYLOAD)[:40] in page.text
    assert "the shard from byte" in page.text


def test_nothing_on_the_page_runs_loads_or_is_a_strangers_byte(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "embed", "link", "form", "svg"})
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")  # ty: ignore
    assert "alert('payload')" not in html.replace("\n", "")
    shown = [base64.b64decode(a["src"].split(",")[1]) for t, a in page.tags if t == "img"]  # ty: ignore
    assert len(shown) == 2, "the pictures of samples whose captions were bad"
    assert all(Image.open(io.BytesIO(jpeg)).format == "JPEG" and jpeg != picture(7) for jpeg in shown)


def test_a_picture_that_crashed_a_decoder_is_not_decoded_again(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(make_tar([("a.jpg", picture(1))]))
    about = {"url": str(tar), "shard": 0, "row": 0, "key": "a", "member": None, "offset": 0, "detail": "-"}
    size = tar.stat().st_size
    for reason in ("decoder_crash", "decode_timeout", "too_many_pixels"):
        found = gather(Reject(**about, reason=reason), size, "")
        assert (found.jpeg, found.head) == (None, picture(1)[:64])
    assert gather(Reject(**about, reason="caption"), size, "").jpeg


def test_what_is_no_longer_there_is_said_and_not_guessed(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.tar").write_bytes(shard(1))
    emb = embed_here(tmp_path / "*.tar", tmp_path / "emb")
    (tmp_path / "a.tar").unlink()
    (tmp_path / "b.tar").write_bytes(shard(2))
    page = tmp_path / "page.html"
    rejects(emb, html=str(page))
    text = Page(page.read_text()).text
    assert text.count("a.tar is gone") == 7
    assert text.count("the catalog says") == 7
    assert "<img" not in page.read_text()


def test_a_set_without_rejects_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([("a.txt", b"words")]))
    report = rejects(embed_here(tmp_path / "a.tar", tmp_path / "emb"), html=str(tmp_path / "page.html"))
    assert (report.rejects, report.shown) == ({}, [])
    assert "0 of 1 sample set aside" in (tmp_path / "page.html").read_text()
