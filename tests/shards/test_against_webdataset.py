"""The `webdataset` package reads the same samples, but for the departures of one table, each shown by an example."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import File, Source, make_tar, special
from webdataset.tariterators import group_by_keys, tar_file_expander

from mmstream.shards.group import COLUMN_OF, PAYLOADS, read_chunks, split_name

Outcome = list[tuple[str | None, str]]  # keys, each with what it has or why it cannot be used


def ours(data: bytes) -> Outcome:
    found: Outcome = []
    for chunk in read_chunks(Source(data), 0, member_limit=2_000):
        for row in chunk.table.to_pylist():
            has = " ".join(sorted(p for p in PAYLOADS if row[p] is not None))
            found.append((row["key"], f"! {row['reason']}" if row["reason"] else has))
        if chunk.damage:
            found.append((None, f"! {chunk.damage.reason}"))
    return found


def theirs(data: bytes) -> Outcome:
    """With our names for suffixes that we know; the others are left as they are."""
    found: Outcome = []
    try:
        for sample in group_by_keys(tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(data)}])):
            suffixes = [name for name in sample if not name.startswith("__")]
            found.append((sample["__key__"], " ".join(sorted(COLUMN_OF.get(s, s) for s in suffixes))))
    except (ValueError, tarfile.TarError) as e:
        found.append((None, f"! {type(e).__name__}"))
    return found


def base(name: str) -> str:
    return name[name.rfind("/") + 1 :]


def comes_again(names: list[str]) -> bool:
    keys = [split_name(name)[0] for name in names]
    runs = [key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key]
    return len(set(runs)) < len(runs)


def has_two_of_a_kind(names: list[str]) -> bool:
    kinds = [(key, COLUMN_OF.get(suffix, suffix)) for key, suffix in map(split_name, names)]
    return len(set(kinds)) < len(kinds)


@dataclass(frozen=True)
class Departure:
    what: str
    example: bytes
    ours: Outcome
    theirs: Outcome
    applies: Callable[[list[str]], bool] = lambda names: False  # to a sound tar of plain files with these names


def tar(*files: File | tarfile.TarInfo) -> bytes:
    return make_tar(files)


A, B, GOOD = ("a.jpg", b"1"), ("b.jpg", b"2"), [("a", "image"), ("b", "image")]
TWO = tar(A, B)
THREE = tar(A, B, ("c.jpg", b"3"))
DEPARTURES = [
    Departure(
        "a file without a dot is a sample, not passed over",
        tar(("plain", b"0"), A),
        [("plain", ""), ("a", "image")],
        [("a", "image")],
        lambda names: any("." not in base(n) for n in names),
    ),
    Departure(
        "a hidden file is a sample of its own, not a suffix of its folder or passed over",
        tar(("d/.h.jpg", b"0"), (".h", b"0"), A),
        [("d/.h.jpg", ""), (".h", ""), ("a", "image")],
        [("d/", "h.jpg"), ("a", "image")],
        lambda names: any(base(n).startswith(".") for n in names),
    ),
    Departure(
        "what macOS leaves behind is no sample, and does not end one",
        tar(("__MACOSX/a.jpg", b"0"), A, ("d/._a.jpg", b"0"), ("a.txt", b"")),
        [("a", "image text")],
        [("__MACOSX/a", "image"), ("a", "image"), ("d/", "_a.jpg"), ("a", "text")],
        lambda names: any("__MACOSX/" in n or base(n).startswith("._") for n in names),
    ),
    Departure(
        "names with two underscores on both sides are names as others",
        tar(("__m__/a.jpg", b"0"), ("__m__.jpg", b"0"), B),
        [("__m__/a", "image"), ("__m__", "image"), ("b", "image")],
        [("__m__", "image"), ("b", "image")],
        lambda names: any(re.match("__[^/]*__", n) for n in names),
    ),
    Departure(
        "suffixes that no column knows are passed over, though their sample exists",
        tar(("a.npy", b"0"), ("b.seg.png", b"0")),
        [("a", ""), ("b", "")],
        [("a", "npy"), ("b", "seg.png")],
        lambda names: any(split_name(n)[1] not in COLUMN_OF for n in names),
    ),
    Departure(
        "a key that comes again is rejected, not a second sample of that key",
        tar(A, B, ("a.txt", b"late")),
        [*GOOD, ("a", "! duplicate_key")],
        [*GOOD, ("a", "text")],
        comes_again,
    ),
    Departure(
        "a suffix twice costs one sample, not the rest of the shard",
        tar(A, A, B),
        [("a", "! duplicate_key"), ("b", "image")],
        [(None, "! ValueError")],
        has_two_of_a_kind,
    ),
    Departure(
        "two files for one column are rejected, not both kept",
        tar(A, ("a.png", b"1"), B),
        [("a", "! duplicate_key"), ("b", "image")],
        [("a", "image image"), ("b", "image")],
        has_two_of_a_kind,
    ),
    Departure(
        "links, devices and names that climb are rejected, not passed over or taken",
        tar(special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), ("../c.jpg", b"0"), B),
        [("a", "! unsafe_member"), ("../c", "! unsafe_member"), ("b", "image")],
        [("../c", "image"), ("b", "image")],
    ),
    Departure(
        "a member over the limit is rejected, not read",
        tar(("a.jpg", bytes(2_001)), B),
        [("a", "! member_too_large"), ("b", "image")],
        GOOD,
    ),
    Departure(
        "text that is no UTF-8 is rejected, not handed on",
        tar(("a.txt", b"\xff"), B),
        [("a", "! caption"), ("b", "image")],
        [("a", "text"), ("b", "image")],
    ),
    Departure(
        "a damaged header is said, not taken for the end",
        THREE[:2054] + b"!" + THREE[2055:],
        [*GOOD, (None, "! tar_header")],
        GOOD,
    ),
    Departure(
        "a cut between two members is said, not taken for the end",
        THREE[:2048],
        [*GOOD, (None, "! tar_truncated")],
        GOOD,
    ),
    Departure(
        "a first sample behind which the shard breaks is rejected: nobody knows whether it had more members",
        TWO[:1024],
        [("a", "! tar_truncated"), (None, "! tar_truncated")],
        [("a", "image")],
    ),
    Departure(
        "a cut inside a member is said, not raised",
        TWO[:1600],
        [("a", "image"), (None, "! tar_truncated")],
        [("a", "image"), (None, "! ReadError")],
    ),
    Departure("data after the end is said, not passed over", TWO + TWO, [*GOOD, (None, "! tar_trailing")], GOOD),
    Departure("compression is told by names, not by content", gzip.compress(TWO), [(None, "! not_tar")], GOOD),
]


@pytest.mark.parametrize("departure", DEPARTURES, ids=lambda d: d.what)
def test_each_departure_is_what_the_table_says(departure: Departure) -> None:
    assert ours(departure.example) == departure.ours
    assert theirs(departure.example) == departure.theirs


FOLDER = st.sampled_from(["", "", "d/", "d.e/", "./", "__m__/", "__MACOSX/"])
STEM = st.sampled_from(["a", "b", "c", "a", "b", "c", "ä b", "__k__", ".h", "._a"])
SUFFIX = st.sampled_from([".jpg", ".txt", ".json", ".cls", ".JPG", ".Flac", ".mp4", ".png", ".seg.png", ".npy", ""])
NAMES = st.lists(st.builds("{}{}{}".format, FOLDER, STEM, SUFFIX), max_size=7)


@settings(max_examples=300, deadline=None)
@given(names=NAMES, is_sorted=st.booleans())
def test_all_else_is_read_as_webdataset_reads_it(names: list[str], is_sorted: bool) -> None:
    names = sorted(names) if is_sorted else names
    data = tar(*((name, f"{i}".encode()) for i, name in enumerate(names)))
    if ours(data) != theirs(data):
        assert any(d.applies(names) for d in DEPARTURES), (ours(data), theirs(data))


def test_webdataset_reads_the_same_real_samples(shared: Path) -> None:
    data = (shared / "data" / "pairs" / "00000.tar").read_bytes()
    kept = theirs(data)
    assert [key for key, _ in kept] == [key for key, _ in ours(data)] and len(kept) == 127
