"""The recount and the reader, which share no code, see the same rows and the same breaks in whatever a tar may be."""

from __future__ import annotations

import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tars import Source, make_tar, special

from mmstream.embeddings.recount import Recount, key_of
from mmstream.shards.group import read_chunks, split_name
from mmstream.storage.ranges import RangeReader


def recounted(data: bytes) -> tuple[list[tuple[str, int]], int | None]:
    """(key, offset) of the rows, and where it breaks."""
    walk = Recount(Source(data))
    rows = [(row.key, row.offset) for row in walk]
    return rows, walk.damage.offset if walk.damage else None


def read(data: bytes) -> tuple[list[tuple[str, int]], int | None]:
    *_, last = chunks = list(read_chunks(Source(data), 0))
    rows = [(r["key"], r["offset"]) for c in chunks for r in c.table.select(["key", "offset"]).to_pylist()]
    return rows, last.damage.offset if last.damage else None


def test_every_bad_tar_is_counted_as_the_reader_reads_it(shared: Path) -> None:
    tars = sorted((shared / "data/bad_inputs/tars").glob("*.tar"))
    assert len(tars) >= 19
    for tar in tars:
        data = tar.read_bytes()
        assert recounted(data) == read(data), tar.name


def test_real_shards_are_counted_with_the_places_of_their_files(shared: Path) -> None:
    for tar in sorted((shared / "data/pairs").glob("*.tar"))[:2]:
        with tarfile.open(tar) as members:
            wanted = {key_of(m.name): [] for m in members}
            for m in members:
                wanted[key_of(m.name)].append((m.offset_data, m.size))
        with RangeReader(str(tar)) as reader:
            assert {row.key: list(row.payloads) for row in Recount(reader)} == wanted


NAMES = st.sampled_from(
    ["a.jpg", "a.txt", "b.jpg", "d/b.jpg", "d.e/c", ".hidden", "x..y", "folder/", "._a.jpg", "__MACOSX/a.jpg",
     "ü.txt", "n" * 120 + ".txt", "d/" * 60 + "long.jpg", "a/.DS_Store", "k.tar.gz"]
)  # fmt: skip
SIZES = st.sampled_from([0, 1, 511, 512, 513, 2000])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"V"]


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    format = draw(FORMATS)
    names = [n for n in draw(st.lists(NAMES, max_size=8)) if format != tarfile.USTAR_FORMAT or len(n) < 120]
    files: list = [(name, bytes(draw(SIZES))) for name in names]
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=2)):
        files.insert(draw(st.integers(0, len(files))), special("special", kind, "a.jpg"))
    return make_tar(files, format)


@given(archives(), st.data())
@settings(max_examples=400, deadline=None)
def test_whole_and_hurt_archives_are_counted_as_the_reader_reads_them(tar: bytes, data: st.DataObject) -> None:
    assert recounted(tar) == read(tar)
    hurt = bytearray(tar)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(hurt) - 1))
        hurt[place] ^= 1 << data.draw(st.integers(0, 7))
    hurt = hurt[: data.draw(st.sampled_from([len(hurt), len(hurt) - 1, len(hurt) - 512, len(hurt) // 2]))]
    hurt += data.draw(st.sampled_from([b"", b"", bytes(9000), bytes(700) + b"x", tar]))
    assert recounted(bytes(hurt)) == read(bytes(hurt))


@given(st.text(st.sampled_from("a./é"), max_size=8))
def test_keys_are_the_readers(name: str) -> None:
    assert key_of(name) == split_name(name)[0]


def test_payloads_are_skipped() -> None:
    tar = make_tar([(f"{i}.jpg", bytes(1 << 20)) for i in range(20)])
    source = Source(tar)
    assert len(list(Recount(source))) == 20
    assert source.num_read < 100_000


@pytest.mark.parametrize("signed", [False, True])
def test_a_checksum_of_signed_bytes_counts_too(signed: bool) -> None:
    tar = bytearray(make_tar([("ü.txt", b"x")], tarfile.GNU_FORMAT))
    total = sum(tar[:512]) - sum(tar[148:156]) + 8 * 32 - (256 * sum(b > 127 for b in tar[:512]) if signed else 0)
    tar[148:156] = b"%06o\0 " % total
    assert recounted(bytes(tar)) == ([("ü", 0)], None)


def test_the_times_that_gnu_tar_keeps_where_ustar_has_a_prefix_are_no_part_of_the_name() -> None:
    tar = bytearray(make_tar([("a.txt", b"x")], tarfile.GNU_FORMAT))
    assert tar[257:263] == b"ustar "
    tar[345:369] = b"12345670123\0" * 2
    tar[148:156] = b"%06o\0 " % (sum(tar[:512]) - sum(tar[148:156]) + 8 * 32)
    assert recounted(bytes(tar)) == read(bytes(tar)) == ([("a", 0)], None)


def test_pax_records_that_mean_nothing_are_kept_nowhere() -> None:
    data = b""
    for number in range(5):
        header = tarfile.TarInfo("pax")
        header.type = tarfile.XGLTYPE
        records = b"".join(b"31 comment.%05d.%05d=xxxxxxx\n" % (number, i) for i in range(30_000))
        header.size = len(records)
        data += header.tobuf() + records + bytes(-len(records) % 512)
    data += make_tar([("a.txt", b"words")])
    tracemalloc.start()
    assert recounted(data) == read(data) == ([("a", 0)], None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
