"""Compressed objects: the bytes that were packed, in members and frames, whole or not at all."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
from collections import deque
from pathlib import Path

import pyarrow as pa
import pytest
from faulty_server import Fault, FaultyServer

from mmstream.errors import Reason, Rejected
from mmstream.storage import compressed, ranges
from mmstream.storage.compressed import CompressedReader, compression_of, open_reader, read_part, stem_of
from mmstream.storage.ranges import RangeReader

CONTENT = random.Random(1).randbytes(200_000) + bytes(400_000) + random.Random(2).randbytes(50_000)


def zstd(data: bytes) -> bytes:
    """With a checksum, as the command writes it; Arrow writes none."""
    return subprocess.run(["zstd", "-q", "-c"], input=data, stdout=subprocess.PIPE, check=True).stdout


def arrow_zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKED = {
    "a.tar.gz": gzip.compress(CONTENT),
    "members.TGZ": gzip.compress(CONTENT[:1234]) + gzip.compress(b"") + gzip.compress(CONTENT[1234:]),
    "a.tar.zst": arrow_zstd(CONTENT),
    "frames.tzst": arrow_zstd(CONTENT[:300_000]) + arrow_zstd(CONTENT[300_000:]),
}


def written(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


def test_the_name_says_what_is_compressed() -> None:
    names = ["a.tar", "a.tar.gz", "b.TGZ", "s3://b/k/a.tar.ZST", "a.tzst", "a.gz", "a.tar.bz2", "a.tar.gz/b.tar"]
    assert [compression_of(n) for n in names] == [None, "gzip", "gzip", "zstd", "zstd", None, None, None]
    stems = [stem_of(n) for n in ("x/a.tar", "x/a.tar.gz", "x/a.TGZ", "x/a.tzst", "x/a.gz")]
    assert stems == ["x/a", "x/a", "x/a", "x/a", "x/a.gz"]
    assert isinstance(open_reader(__file__), RangeReader)


@pytest.mark.parametrize("name", list(PACKED))
@pytest.mark.parametrize("block_bytes", [1000, 1 << 20])
def test_what_was_packed_is_read_at_odd_places(name: str, block_bytes: int, tmp_path: Path) -> None:
    with open_reader(written(tmp_path, name, PACKED[name]), block_bytes=block_bytes) as reader:
        assert isinstance(reader, CompressedReader)
        for i, step in enumerate([1, 511, 0, 4096, 37, 90_000, 300_000] * 4):
            start = reader.tell()
            if i % 3 == 2:
                reader.skip(step)
            else:
                assert reader.read(step) == CONTENT[start : start + step]
            assert reader.tell() == min(start + step, len(CONTENT))


def test_a_part_is_read_by_its_place_in_what_is_packed(tmp_path: Path) -> None:
    for name, data in {**PACKED, "plain.tar": CONTENT}.items():
        assert read_part(written(tmp_path, name, data), 199_990, 5_000) == CONTENT[199_990:204_990]


def test_the_sha256_is_of_the_object_and_leaves_the_place(tmp_path: Path) -> None:
    from hashlib import sha256

    with open_reader(written(tmp_path, "a.tar.gz", PACKED["a.tar.gz"])) as reader:
        assert reader.read(10) == CONTENT[:10]
        assert reader.sha256() == sha256(PACKED["a.tar.gz"]).hexdigest()
        assert (reader.tell(), reader.read(1000)) == (10, CONTENT[10:1010])


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_what_is_cut_or_flipped_anywhere_is_noticed_before_a_byte_is_read(pack, tmp_path: Path) -> None:
    if pack is zstd and not any(Path(p, "zstd").exists() for p in os.environ["PATH"].split(":")):
        pytest.skip("there is no command zstd here")
    content, rng = CONTENT[190_000:230_000], random.Random(3)
    whole = pack(content)
    name = "a.tar.gz" if pack is gzip.compress else "a.tar.zst"
    damaged = [whole[:n] for n in (1, 7, len(whole) // 2, len(whole) - 9, len(whole) - 1)]
    damaged.append(whole + b"what follows")
    for _ in range(60):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    silent = []
    for data in damaged:
        try:
            with open_reader(written(tmp_path, name, data)) as reader:
                if reader.read(1 << 20) != content:
                    silent.append(data)
        except Rejected as e:
            assert e.reason == Reason.COMPRESSION and name in e.detail
    assert not silent  # flips of a time or a name in gzip's header change nothing


def test_a_bomb_is_stopped_and_zeros_in_gzip_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "FREE_BYTES", 1 << 20)
    with open_reader(written(tmp_path, "a.tar.gz", gzip.compress(bytes(60 << 20)))) as reader:
        assert reader.size == 60 << 20  # a member that is all zeros, 1,029-fold
    url = written(tmp_path, "a.tar.zst", arrow_zstd(bytes(60 << 20)))
    with pytest.raises(Rejected, match="bytes grow to more than") as e:
        open_reader(url)
    assert e.value.reason == Reason.COMPRESSION


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.tar.gz", bytes(257) + b"ustar" + bytes(250), "gzip by its name, and its content is a plain tar"),
        ("a.tar.zst", PACKED["a.tar.gz"], "zstd by its name, and its content is gzip"),
        ("a.tar.gz", PACKED["a.tar.zst"], "gzip by its name, and its content is zstd"),
        ("a.tar.gz", b"no such thing, and long enough", "after 0 unpacked bytes"),
    ],
)
def test_a_wrong_name_is_said(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=said):
        open_reader(written(tmp_path, name, data))


def test_what_broke_off_stays_broken_and_never_looks_like_an_end(tmp_path: Path) -> None:
    url = written(tmp_path, "a.tar.gz", PACKED["a.tar.gz"][:-100])
    with CompressedReader(url, "gzip", checked=False) as reader:
        for _ in range(3):
            with pytest.raises(Rejected) as e:
                reader.skip(1 << 40)
            assert e.value.reason == Reason.COMPRESSION


def test_an_empty_object_holds_nothing(tmp_path: Path) -> None:
    with open_reader(written(tmp_path, "a.tar.gz", b"")) as reader:
        assert (reader.read(512), reader.tell()) == (b"", 0)


def test_faults_of_the_server_are_healed_below_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "FIRST_WAIT_SECONDS", 0.001)
    with FaultyServer({"b/a.tar.gz": PACKED["a.tar.gz"]}) as server:
        faults = [
            Fault(),
            Fault("status", 503),
            Fault("cut", 10_000),
            Fault("flip", 99),
            Fault("cut", 1),
            Fault("reset"),
        ]
        server.faults = deque(faults)
        with open_reader(f"{server.url}/b/a.tar.gz", block_bytes=30_000) as reader:
            assert reader.read(len(CONTENT) + 1) == CONTENT
        assert not server.faults


@pytest.mark.parametrize("time", [1, 2])  # as it is unpacked to its end, and as it is read
def test_a_bit_that_was_flipped_on_the_way_is_asked_for_again(
    time: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetch, asked = ranges._Source.fetch, []

    def once_flipped(self: ranges._Source, start: int, end: int) -> memoryview:
        block = bytearray(fetch(self, start, end))
        asked.append(start)
        if asked.count(start) == time and start == 60_000:
            block[5] ^= 8
        return memoryview(block)

    monkeypatch.setattr(ranges._Source, "fetch", once_flipped)
    with open_reader(written(tmp_path, "a.tar.gz", PACKED["a.tar.gz"]), block_bytes=20_000) as reader:
        assert reader.read(len(CONTENT)) == CONTENT
    assert asked.count(60_000) == 3
