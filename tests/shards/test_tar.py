"""Members come back as they were written; what is damaged or unsafe is said."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tars import Source, make_tar, special

from mmstream.embeddings.recount import _readable
from mmstream.errors import Reason
from mmstream.shards.tar import BLOCK, EXTENSION_LIMIT, Member, TarDamage, members

FORMATS: dict[str, Literal[0, 1, 2]] = {"ustar": 0, "gnu": 1, "pax": 2}  # in tarfile's numbers
PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
NAME = st.lists(PART.filter(lambda p: p != ".."), min_size=1, max_size=6).map("/".join)
FILES = st.lists(st.tuples(NAME, st.binary(max_size=1200)), max_size=5)
THREE = [("a.jpg", b"A" * 700), ("a.txt", b"first"), ("b.jpg", b"B" * 512)]


def walk(data: bytes) -> tuple[list[Member], TarDamage | None]:
    """All members before the damage, and the damage."""
    found: list[Member] = []
    try:
        for member in members(Source(data)):
            found.append(member)
    except TarDamage as damage:
        return found, damage
    return found, None


def damage_of(data: bytes) -> TarDamage:
    _, damage = walk(data)
    assert damage is not None
    return damage


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@settings(max_examples=150, deadline=None)
@given(files=FILES, format=st.sampled_from(sorted(FORMATS)))
def test_whatever_tarfile_writes_reads_back_equal(files: list[tuple[str, bytes]], format: str) -> None:
    try:
        data = make_tar(files, FORMATS[format])
    except ValueError:  # a name too long for ustar
        return
    found, damage = walk(data)
    assert damage is None
    assert [(m.name, m.data, m.problem) for m in found] == [(n, d, None) for n, d in files]
    assert all(data[m.data_offset : m.data_offset + m.size] == m.data for m in found)
    ends = [0, *(m.data_offset + m.size + -m.size % BLOCK for m in found)]
    assert [m.offset for m in found] == ends[:-1]


ENTRY = st.one_of(
    st.tuples(NAME, st.binary(max_size=1200)),
    st.builds(special, NAME, st.just(tarfile.DIRTYPE)),
    st.builds(special, NAME, st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE]), NAME.map(lambda n: n * 3)),
    st.builds(special, NAME, st.sampled_from([tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])),
)


@settings(max_examples=150, deadline=None)
@given(entries=st.lists(st.tuples(ENTRY, st.sampled_from(sorted(FORMATS))), max_size=6), padding=st.integers(0, 30))
def test_dialects_and_kinds_mixed_in_one_archive_are_what_tarfile_says(
    entries: list[tuple[tuple[str, bytes] | tarfile.TarInfo, str]], padding: int
) -> None:
    try:
        parts = [make_tar([entry], FORMATS[format])[:-1024] for entry, format in entries]
    except ValueError:  # a name too long for ustar
        return
    data = b"".join(parts) + bytes(1024 + padding * BLOCK)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        wanted = [(m.name, tar.extractfile(m).read() if m.isreg() else None) for m in tar if not m.isdir()]  # ty: ignore
    found, damage = walk(data)
    assert damage is None
    assert [(m.name.rstrip("/"), m.data) for m in found] == [(name.rstrip("/"), payload) for name, payload in wanted]
    assert [m.problem for m in found] == [Reason.UNSAFE_MEMBER if p is None else None for _, p in wanted]


def test_a_cut_at_any_byte_keeps_the_members_before_it_and_says_where() -> None:
    data = make_tar(THREE)
    whole, _ = walk(data)
    for length in range(len(data)):
        found, damage = walk(data[:length])
        complete = [m for m in whole if m.data_offset + m.size + -m.size % BLOCK <= length]
        assert found == complete, length
        assert damage is not None and damage.offset <= length
        assert damage.reason is (Reason.TAR_TRUNCATED if length >= 262 else Reason.NOT_TAR)


def test_a_flip_of_any_bit_of_any_header_is_damage_or_changes_nothing() -> None:
    data = make_tar(THREE)
    whole, _ = walk(data)
    num_harmless = 0
    for number, member in enumerate(whole):
        for position in range(member.offset, member.offset + BLOCK):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[position] ^= 1 << bit
                found, damage = walk(bytes(flipped))
                if damage is None:
                    assert found == whole
                    num_harmless += 1
                else:
                    assert found == whole[:number]
                    assert (damage.reason, damage.offset) == (Reason.TAR_HEADER, member.offset)
    assert num_harmless < 40  # behind the digits of the checksum, which do not sum themselves


@pytest.mark.parametrize("raw", [b"", b"<html>" * 300, b"\x1f\x8b\x08\0" + bytes(range(256)) * 9, b"{}"])
def test_what_does_not_begin_with_a_header_is_no_tar(raw: bytes) -> None:
    assert (damage_of(raw).reason, damage_of(raw).offset) == (Reason.NOT_TAR, 0)


def test_a_tar_without_members_is_sound() -> None:
    assert walk(bytes(10240)) == ([], None)


def test_a_zeroed_header_is_damage_and_not_the_end() -> None:
    data = bytearray(make_tar(THREE))
    start = walk(bytes(data))[0][1].offset
    data[start : start + BLOCK] = bytes(BLOCK)
    found, damage = walk(bytes(data))
    assert [m.name for m in found] == ["a.jpg"]
    assert damage and (damage.reason, damage.offset) == (Reason.TAR_HEADER, start)


def test_zeros_may_follow_the_end_mark_and_nothing_else() -> None:
    data = make_tar(THREE)
    assert walk(data + bytes(9000))[1] is None
    found, damage = walk(data + bytes(70000) + b"x" + bytes(9))
    assert len(found) == 3
    assert damage and (damage.reason, damage.offset) == (Reason.TAR_TRAILING, len(data) + 70000)


@pytest.mark.parametrize(
    "header",
    [
        special("l.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("h.jpg", tarfile.LNKTYPE, "a.jpg"),
        special("c.jpg", tarfile.CHRTYPE),
        special("b.jpg", tarfile.BLKTYPE),
        special("f.jpg", tarfile.FIFOTYPE),
        special("v.jpg", b"V"),
        special("/abs.jpg", tarfile.REGTYPE),
        special("x/../../up.jpg", tarfile.REGTYPE),
    ],
    ids=lambda h: h.name,
)
def test_links_devices_and_names_that_climb_are_unsafe_and_their_neighbours_are_not(header: tarfile.TarInfo) -> None:
    found, damage = walk(make_tar([("a.jpg", b"1"), header, ("z.jpg", b"2")]))
    assert damage is None
    assert [(m.data, m.problem) for m in found] == [(b"1", None), (None, Reason.UNSAFE_MEMBER), (b"2", None)]


def test_a_link_has_no_payload_whatever_size_it_claims() -> None:
    link = special("l.jpg", tarfile.SYMTYPE, "a.jpg")
    link.size = 700
    found, damage = walk(make_tar([link, ("z.jpg", b"2")]))
    assert damage is None
    assert [(m.name, m.size, m.data) for m in found] == [("l.jpg", 0, None), ("z.jpg", 1, b"2")]


def test_two_dots_inside_a_name_are_safe() -> None:
    assert walk(make_tar([("a..b/c..jpg", b"1")]))[0][0].data == b"1"


def test_directories_are_passed_over() -> None:
    old = bytearray(make_tar([("v7/", b"")])[:BLOCK])
    old[156] = 0
    data = make_tar([special("d", tarfile.DIRTYPE)])[:BLOCK] + with_checksum(old) + make_tar([("d/a.jpg", b"1")])
    assert [m.name for m in walk(data)[0]] == ["d/a.jpg"]


def test_a_member_above_the_limit_is_named_and_never_read() -> None:
    source = Source(make_tar([("big.jpg", bytes(5000)), ("a.jpg", b"1")]))
    big, small = members(source, member_limit=4999)
    assert (big.data, big.problem, small.data) == (None, Reason.MEMBER_TOO_LARGE, b"1")
    assert "5,000 bytes, the limit is 4,999" in big.detail
    assert source.largest_read <= 1 << 16
    assert not any(m.problem for m in members(Source(make_tar([("big.jpg", bytes(5000))])), member_limit=5000))


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_claim_of_gigabytes_in_a_small_tar_reads_nothing(format: str) -> None:
    header = tarfile.TarInfo("a.jpg")
    header.size = 9 << 30
    source = Source(header.tobuf(FORMATS[format]) + bytes(2000))
    with pytest.raises(TarDamage, match="9,663,676,416") as e:
        list(members(source))
    assert e.value.reason is Reason.TAR_TRUNCATED and e.value.member == "a.jpg"
    assert source.largest_read <= 1 << 16


def test_what_is_not_wanted_is_skipped_and_keeps_its_place() -> None:
    source = Source(make_tar([("a.jpg", b"A" * 70000), ("a.txt", b"first")]))
    asked: list[tuple[str, int]] = []
    picture, text = members(source, want=lambda name, size: asked.append((name, size)) or name.endswith(".txt"))
    assert (picture.data, picture.problem, picture.size, text.data) == (None, None, 70000, b"first")
    assert asked == [("a.jpg", 70000), ("a.txt", 5)]
    assert source.num_read < 70000 + (1 << 16)


@pytest.mark.parametrize(
    "size", [b"-0000000001\0", b"0x1\0", b"1_0\0", b"99\0", b"\xff" * 12], ids=["minus", "hex", "_", "9", "base256"]
)
def test_a_size_that_is_no_size_is_damage(size: bytes) -> None:
    header = bytearray(make_tar([("a.jpg", b"")])[:BLOCK])
    header[124:136] = size.ljust(12, b"\0")
    damage = damage_of(with_checksum(header) + bytes(1024))
    assert damage.reason is Reason.TAR_HEADER and "is no size" in damage.detail


@pytest.mark.parametrize(
    "records", [b"12 path=a.jpg", b"x path=a\n", b"99 path=a\n", b"8 patha\n", b"0 path=a\n", b"11 size=-1\n\0\0"]
)
def test_malformed_extension_records_are_damage(records: bytes) -> None:
    extension = special("x", tarfile.XHDTYPE)
    extension.size = len(records)
    data = extension.tobuf(tarfile.USTAR_FORMAT) + records.ljust(BLOCK, b"\0") + make_tar([("a.jpg", b"1")])
    assert damage_of(data).reason is Reason.TAR_HEADER


def test_an_extension_header_above_the_limit_is_damage_before_it_is_read() -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        extension = special("x", kind)
        extension.size = EXTENSION_LIMIT + 1
        source = Source(extension.tobuf(tarfile.USTAR_FORMAT) + bytes(EXTENSION_LIMIT + 4096))
        with pytest.raises(TarDamage, match="extension header"):
            list(members(source))
        assert source.num_read == BLOCK


def test_an_extension_header_without_its_member_is_damage() -> None:
    data = make_tar([("n" * 200, b"1")], tarfile.GNU_FORMAT)
    assert damage_of(data[:1024] + bytes(1024)).reason is Reason.TAR_HEADER


def test_an_own_header_wins_over_a_global_one_that_follows_it() -> None:
    own = tarfile.TarInfo.create_pax_global_header({"path": "own.jpg"})
    own = bytearray(own)
    own[156:157] = b"x"
    own[148:156] = b" " * 8
    own[148:156] = b"%06o\0 " % sum(own[:512])
    shared = tarfile.TarInfo.create_pax_global_header({"path": "all.jpg"})
    found, _ = walk(bytes(own) + shared + make_tar([("a.jpg", b"1"), ("b.jpg", b"2")]))
    assert [m.name for m in found] == ["own.jpg", "all.jpg"]


def test_a_global_header_counts_for_all_members_and_an_own_one_for_its_member() -> None:
    pax = tarfile.TarInfo.create_pax_global_header({"path": "all.jpg"})
    found, _ = walk(pax + make_tar([("a.jpg", b"1"), ("b" * 101 + ".jpg", b"2"), ("c.jpg", b"3")], tarfile.PAX_FORMAT))
    assert [m.name for m in found] == ["all.jpg", "b" * 101 + ".jpg", "all.jpg"]


def test_global_headers_do_not_add_up_in_memory_whatever_they_hold() -> None:
    def header(size: int, kind: bytes) -> bytes:
        made = tarfile.TarInfo("g" if kind == b"g" else "a.txt")
        made.size, made.type = size, kind
        return made.tobuf(tarfile.USTAR_FORMAT)

    def global_header(number: int) -> bytes:
        records = b"".join(b"41 GNU.sparse.%06d.%06d=............\n" % (number, i) for i in range(20_000))
        return header(len(records), b"g") + records + bytes(-len(records) % BLOCK)

    source = Source(b"".join(global_header(n) for n in range(10)) + header(0, b"0") + bytes(2 * BLOCK))
    tracemalloc.start()
    (found,) = members(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.problem == Reason.UNSAFE_MEMBER
    assert peak < 3_000_000, "one header of 820 kB"


def test_names_that_are_no_utf_8_stay_two_names() -> None:
    header = bytearray(make_tar([("a.jpg", b"")])[:BLOCK])
    one, other = header.copy(), header.copy()
    one[0], other[0] = 0xFF, 0xFE
    names = [m.name for m in walk(with_checksum(one) + with_checksum(other) + bytes(1024))[0]]
    assert names == ["\\xff.jpg", "\\xfe.jpg"]


@given(st.lists(st.lists(st.sampled_from([b"\\", b"\xff", b"x", b"f", b"\xc3\xa9", b"."]), max_size=7), max_size=4))
@example([[b"a", b"\xff"], [b"a", b"\\", b"x", b"f", b"f"]])
def test_names_stay_as_many_as_they_are_and_the_audits_own_walk_calls_them_the_same(parts: list[list[bytes]]) -> None:
    raw = {b"a" + b"".join(p) for p in parts}
    header = make_tar([("a", b"")])[:BLOCK]
    tar = b"".join(with_checksum(bytearray(name.ljust(100, b"\0") + header[100:])) for name in raw) + bytes(1024)
    names = [m.name for m in walk(tar)[0]]
    assert len(set(names)) == len(raw)
    assert [_readable(name) for name in raw] == names
    assert all(name == r.decode() for name, r in zip(names, raw, strict=True) if b"\xff" not in r and b"\\x" not in r)


def test_every_member_of_real_shards_equals_tarfiles(shared: Path) -> None:
    for shard in sorted((shared / "data" / "pairs").glob("*.tar"))[:2]:
        with tarfile.open(shard) as tar:
            wanted = [(m.name, m.offset, m.offset_data, tar.extractfile(m).read()) for m in tar]  # ty: ignore
        found, damage = walk(shard.read_bytes())
        assert damage is None
        assert [(m.name, m.offset, m.data_offset, m.data) for m in found] == wanted


def test_pythons_own_collection_of_dialects_is_read_as_tarfile_reads_it(shared: Path) -> None:
    path = shared / "data" / "bad_inputs" / "tars" / "cpython__testtar.tar"
    with tarfile.open(path, encoding="utf-8", errors="backslashreplace") as tar:
        headers = [m for m in tar if not m.isdir()]
        plain = {m.name: tar.extractfile(m).read() for m in headers if m.isreg() and not m.issparse()}  # ty: ignore
    found, damage = walk(path.read_bytes())
    assert damage is None
    assert {m.name: m.data for m in found if m.problem is None} == plain
    assert {m.name for m in found if m.problem} == {m.name for m in headers} - set(plain)


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (gzip.compress, "this is gzip: name it .tar.gz"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz, which is not read"),
    ],
)
def test_what_is_another_format_is_named(pack: Callable[[bytes], bytes], said: str) -> None:
    damage = damage_of(pack(random.Random(0).randbytes(4 * BLOCK)))
    assert damage.reason is Reason.NOT_TAR and said in damage.detail
