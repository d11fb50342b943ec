"""A row is a sample or a reject with its number; a file is what its first bytes and its column say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import photographs
from tars import Source

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.shards.group import read_chunks
from mmstream.shards.packing import (
    Draft,
    Packed,
    Part,
    Roles,
    class_names,
    cut,
    draft_of,
    key_of,
    number_of,
    sample_of,
    tar_bytes,
)
from mmstream.shards.writer import tar_of

JPEG, PNG = photographs()[0], photographs()[1]
FILES = {"/d/a.jpg": JPEG, "/d/b": PNG, "/d/c.jpg": b"", "/d/v.mp4": b"\0\0\0\x20ftypisom"}
BROKEN = Rejected(Reason.METADATA, "the line is no JSON")


def packed(row: dict[str, Any], numbers: tuple[str, ...] = (), **settings: Any) -> dict[str, Any]:
    roles = Roles.among(list(row), {}, numbers, "t.csv")
    draft = draft_of(row, 7, roles, lambda path: f"/d/{path}")
    return sample_of(draft, FILES.__getitem__, **{"classes": None, "sha256": False} | settings)


def reason(row: dict[str, Any], **more: Any) -> str:
    with pytest.raises(Rejected) as e:
        packed(row, **more)
    return str(e.value.reason)


def test_columns_are_told_by_their_names_or_by_what_is_asked() -> None:
    names = ["Image", "caption", "label", "width", "key"]
    assert Roles.among(names, {}, [], "t").columns == {
        "image": "Image",
        "text": "caption",
        "label": "label",
        "key": "key",
    }
    asked = Roles.among(["photo", "alt", "caption"], {"text": "alt"}, ["photo"], "t")
    assert asked.columns == {"text": "alt"} and asked.numbers == ("photo",)
    assert Roles.among(["url", "text"], {}, [], "t").columns == {"file": "url", "text": "text"}
    assert Roles.among(["url", "img"], {}, [], "t").columns == {"image": "img"}
    for columns, wanted, numbers, what in [
        (["a"], {"image": "b"}, [], "no column 'b'"),
        (["a"], {"image": "a", "text": "a"}, [], "asked for twice"),
        (["a"], {"image": "a"}, ["a"], "asked for twice"),
        (["a", "b"], {}, [], "none of its columns"),
    ]:
        with pytest.raises(UsageError, match=what):
            Roles.among(columns, wanted, numbers, "t")


def test_a_row_becomes_members_and_what_has_no_part_goes_to_the_json() -> None:
    row = {"image": "a.jpg", "caption": "words", "width": 30, "lang": "en", "deep": {"x": [1]}}
    sample = packed(row, numbers=("width",))
    assert list(sample) == ["__key__", "jpg", "txt", "json"]
    assert (sample["__key__"], sample["jpg"], sample["txt"]) == ("000000007", JPEG, "words")
    assert json.loads(sample["json"]) == {"width": 30, "lang": "en", "deep": {"x": [1]}}
    assert packed({"image": "b"})["png"] == PNG  # told by its first bytes
    assert packed({"image": JPEG})["jpg"] == JPEG
    assert packed({"image": {"bytes": PNG, "path": "x.jpg"}})["png"] == PNG
    assert packed({"url": "a.jpg"})["jpg"] == JPEG
    assert packed({"text": 5, "label": "dog"}, classes={"cat": 0, "dog": 1}) == {
        "__key__": "000000007",
        "txt": "5",
        "cls": "1",
        "json": '{"label": "dog"}',
    }
    digest = json.loads(packed({"image": "a.jpg"}, sha256=True)["json"])["sha256"]
    assert len(digest) == 64 and json.loads(packed({"image": JPEG}, sha256=True)["json"])["sha256"] == digest


def test_a_row_that_cannot_be_a_sample_says_why() -> None:
    assert reason({"image": "v.mp4"}) == "format"
    assert reason({"image": "c.jpg", "video": "b"}) == "format"
    assert reason({"image": b"nothing known"}) == "format"
    assert reason({"image": 5}) == "metadata"
    assert reason({"text": "x", "n": "wide"}, numbers=("n",)) == "metadata"
    assert reason({"text": "x", "n": float("inf")}) == "metadata"
    assert reason({"text": "x", "n": b"\xff"}) == "metadata"
    assert reason({"text": "x", "label": 1.5}) == "metadata"
    assert reason({"text": " ", "label": 1}) == "missing_member"
    assert reason({"text": "x", "key": "../up"}) == "unsafe_member"
    two = Draft("k", (Part(JPEG, "jpg", "image"), Part(PNG, "png", "image")))
    with pytest.raises(Rejected, match="two files for image"):
        sample_of(two, FILES.__getitem__, classes=None, sha256=False)
    with pytest.raises(Rejected, match="the line"):
        draft_of(BROKEN, 3, Roles(text="x"), str)


def test_keys_have_no_dot_and_climb_nowhere() -> None:
    assert key_of("a.b/c.d") == "a.b/c_d" and key_of("Screenshot 1.2") == "Screenshot 1_2"
    for bad in ("", "/a", "a//b", "../a", "a/..", "a\n", "x" * 201, "a/"):
        with pytest.raises(Rejected):
            key_of(bad)


def test_labels_that_are_names_become_places_in_their_sorted_list() -> None:
    drafts = [Draft("k", label=x) for x in ("dog", "cat", "dog", 3, None)]
    assert class_names(drafts) == ["3", "cat", "dog"]
    assert class_names([Draft("k", label=2), Draft("k", label=0)]) is None
    assert number_of("1e3", "n") == 1000
    assert number_of(True, "n") is True


KEYS = st.integers(0, 6).map(lambda n: f"k{n}")
ROWS = st.lists(st.tuples(KEYS, st.integers(0, 3000)) | st.none(), max_size=40)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 7), st.integers(1, 9000))
def test_every_row_is_in_one_shard_or_a_reject_and_no_shard_is_too_large(
    rows: list[tuple[str, int] | None], max_samples: int, max_bytes: int
) -> None:
    found = [
        Packed(i, None, BROKEN) if row is None else Packed(i, row[0], {"__key__": row[0], "bin": bytes(row[1])})
        for i, row in enumerate(rows)
    ]
    shards = list(cut(found, max_samples=max_samples, max_bytes=max_bytes))
    assert sum(len(s.samples) + len(s.rejects) for s in shards) == len(rows)
    for shard in shards:
        sizes = [tar_bytes(s) for s in shard.samples]
        assert len(sizes) <= max_samples and (len(sizes) <= 1 or sum(sizes) <= max_bytes)
        if not sizes:
            continue
        tar = tar_of(shard.samples, "here")
        assert sum(sizes) <= len(tar)
        (chunk, *more) = read_chunks(Source(tar), 0)
        assert not more and chunk.damage is None and chunk.table["reason"].null_count == len(sizes)
        assert chunk.table["image"].to_pylist() == [s["bin"] for s in shard.samples]
    kept = [s["__key__"] for shard in shards for s in shard.samples]
    wanted = [row[0] for row in rows if row]
    again = [p for shard in shards for p in shard.rejects if p.key is not None]
    assert len(kept) + len(again) == len(wanted)
