"""Bytes by ranges from real servers that misbehave: once each, in order, of one version, or a word why not."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from faulty_server import Fault, FaultyServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmstream.errors import Reason, Rejected, UnreachableError
from mmstream.storage import http, ranges
from mmstream.storage.files import exists, read_range, write_bytes
from mmstream.storage.ranges import RangeReader

CONTENT = Random(4).randbytes(60_000)
BLOCK = 7_000


def differences(reader: RangeReader, content: bytes) -> list[tuple[int, int]]:
    """(place, step) of the reads and skips at odd places that do not see what slicing sees."""
    found = []
    for i, step in enumerate([1, 511, 0, 4096, 37, 9000, 12_345] * 40):
        start = reader.tell()
        if i % 3 == 2:
            reader.skip(step)
        elif reader.read(step) != content[start : start + step]:
            found.append((start, step))
        if reader.tell() != min(start + step, len(content)):
            found.append((start, step))
    return found


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A server with one object, and a reader that does not wait long."""
    monkeypatch.setattr(ranges, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(ranges, "FIRST_WAIT_SECONDS", 0.001)
    with FaultyServer({"b/a.tar": CONTENT}) as faulty:
        yield faulty


@pytest.fixture(params=["http", "s3"])
def url(server: FaultyServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The object's URL, by either protocol."""
    if request.param == "http":
        return f"{server.url}/b/a.tar"
    for name, value in {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "a" * 20,
        "AWS_SECRET_ACCESS_KEY": "b" * 40,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return "s3://b/a.tar"


def read_all(url: str, block_bytes: int = BLOCK, step: int = 1_000) -> bytes:
    with RangeReader(url, block_bytes=block_bytes) as reader:
        return b"".join(iter(lambda: reader.read(step), b""))


@pytest.mark.parametrize("block_bytes", [512, 1000, 1 << 20])
def test_a_range_reader_gives_the_bytes_of_a_local_file(tmp_path: Path, block_bytes: int) -> None:
    content = os.urandom(300_000)
    (tmp_path / "a.tar").write_bytes(content)
    with RangeReader(str(tmp_path / "a.tar"), block_bytes=block_bytes) as reader:
        assert differences(reader, content) == []


def test_a_range_reader_gives_the_bytes_of_an_s3_object(s3) -> None:
    content = os.urandom(300_000)
    url = s3.bucket("range") + "/a.tar"
    write_bytes(url, content)
    with RangeReader(url, block_bytes=10_000) as reader:
        assert differences(reader, content) == []
    assert read_range(url, 299_990, 100) == content[-10:]


def test_a_range_reader_gives_the_bytes_of_other_file_systems() -> None:
    write_bytes("memory://ranges/a.tar", CONTENT)
    with RangeReader("memory://ranges/a.tar", block_bytes=BLOCK) as reader:
        assert differences(reader, CONTENT) == []


def test_a_range_reader_gives_the_bytes_of_a_misbehaving_server_at_its_best(server: FaultyServer, url: str) -> None:
    with RangeReader(url, block_bytes=BLOCK) as reader:
        assert differences(reader, CONTENT) == []
    assert read_range(url, 100, 50) == CONTENT[100:150]
    with RangeReader(url) as reader:
        assert reader.sha256() == hashlib.sha256(CONTENT).hexdigest()
        assert reader.read(9) == CONTENT[:9]


def test_what_is_read_after_the_sha256_is_what_it_was_taken_of(server: FaultyServer, url: str) -> None:
    for flips in (1, 2):
        with RangeReader(url, block_bytes=BLOCK) as reader:
            assert reader.sha256() == hashlib.sha256(CONTENT).hexdigest()
            server.faults.extend([Fault(), *[Fault("flip", 600)] * flips])
            assert reader.read(BLOCK) == CONTENT[:BLOCK]
            if flips == 1:  # on the way: it is asked for again
                assert reader.read(BLOCK) == CONTENT[BLOCK : 2 * BLOCK]
                continue
            with pytest.raises(Rejected, match=r"from byte 7,000 on not what its SHA-256 was taken of") as caught:
                reader.read(BLOCK)
            assert caught.value.reason == Reason.SOURCE_CHANGED


def test_every_range_is_asked_for_with_the_etag_that_was_seen(server: FaultyServer, url: str) -> None:
    assert read_all(url) == CONTENT
    assert server.num_conditional == server.num_gets >= len(CONTENT) // BLOCK
    server.etags = "weak"  # of which If-Match is never true
    assert read_all(url) == CONTENT
    assert server.num_conditional <= server.num_gets / 2


FAULT = st.one_of(
    st.just(Fault()),
    st.builds(Fault, st.just("status"), st.sampled_from([500, 502, 503, 429])),
    st.builds(Fault, st.sampled_from(["cut", "reset", "short"]), st.integers(0, BLOCK)),
    st.builds(Fault, st.sampled_from(["whole", "elsewhere"])),
    st.builds(Fault, st.just("longer"), st.integers(1, 600)),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(FAULT, max_size=25), block_bytes=st.sampled_from([1_000, BLOCK, 1 << 20]))
def test_whatever_the_pattern_of_errors_every_byte_comes_once_or_the_store_is_unreachable(
    server: FaultyServer, url: str, faults: list[Fault], block_bytes: int
) -> None:
    server.faults = deque(faults)
    try:
        is_same = read_all(url, block_bytes) == CONTENT  # nobody reads the difference of 60 kB
        assert is_same
    except UnreachableError:
        bad = [f.kind != "ok" for f in faults]
        assert any(all(bad[i : i + ranges.ATTEMPTS]) for i in range(len(bad) - ranges.ATTEMPTS + 1))


@pytest.mark.parametrize(
    "fault", [Fault("whole"), Fault("elsewhere"), Fault("longer", 9), Fault("status", 503)], ids=str
)
def test_an_answer_that_is_not_what_was_asked_for_is_no_part_of_it(
    server: FaultyServer, url: str, fault: Fault
) -> None:
    server.faults = deque([Fault(), fault, fault, Fault(), fault])
    assert read_all(url) == CONTENT
    assert len(server.faults) <= 3, "it was met"


@pytest.mark.parametrize("kind", ["cut", "reset", "short"])
def test_a_connection_that_always_breaks_after_some_bytes_goes_on_where_it_broke(
    server: FaultyServer, url: str, kind: str
) -> None:
    server.faults = deque([Fault(kind, 1_000)] * 1_000)  # ty: ignore[invalid-argument-type]
    assert read_all(url, block_bytes=1 << 20) == CONTENT
    assert server.num_sent <= 1.2 * len(CONTENT)


def test_patience_begins_anew_whenever_something_came(server: FaultyServer, url: str) -> None:
    server.faults = deque([Fault("status", 500), Fault("cut", 5_000)] * 100)
    assert read_all(url, block_bytes=1 << 20) == CONTENT
    assert server.num_gets == 24


def test_a_server_that_always_fails_is_said_to_be_unreachable(server: FaultyServer, url: str) -> None:
    server.faults = deque([Fault(), *[Fault("status", 503)] * 100])
    with RangeReader(url, block_bytes=BLOCK) as reader:
        assert reader.read(BLOCK) == CONTENT[:BLOCK]
        with pytest.raises(UnreachableError, match=r"a\.tar: 6 attempts .* run the same command again"):
            reader.read(BLOCK)


def test_a_part_is_that_part_whether_the_server_knows_ranges_or_not(server: FaultyServer, url: str) -> None:
    for server.ranges in (True, False) if url.startswith("http") else (True,):
        for start, length in ((0, 10), (59_000, 500), (59_900, 60_000), (30_000, 59_999)):
            assert read_range(url, start, length) == CONTENT[start : start + length]


def test_a_server_without_ranges_is_read_in_one_go(server: FaultyServer) -> None:
    server.ranges = False
    assert read_all(f"{server.url}/b/a.tar") == CONTENT
    assert server.num_gets == 1 and server.num_sent == len(CONTENT)
    server.faults = deque([Fault("cut", 30_000), Fault("cut", 30_000)])
    assert read_all(f"{server.url}/b/a.tar") == CONTENT
    with RangeReader(f"{server.url}/b/a.tar", block_bytes=BLOCK) as reader:
        assert differences(reader, CONTENT) == []


def test_silence_and_dripping_end_and_are_tried_again(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALL_SECONDS", 0.3)
    server.faults = deque([Fault("stall", 0), Fault("stall", 500), Fault("ok"), Fault("drip", 900)])
    start = time.monotonic()
    assert read_all(f"{server.url}/b/a.tar", block_bytes=20_000) == CONTENT
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("etags", ["strong", "weak"])
@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) - 30_000, len(CONTENT) + 1])
def test_a_source_that_changes_in_mid_read_is_never_a_mix_of_two_versions(
    server: FaultyServer, url: str, etags: str, conditions: bool, size: int
) -> None:
    server.etags, server.conditions = etags, conditions  # ty: ignore[invalid-assignment]
    server.replacement = Random(5).randbytes(size)
    server.faults = deque([Fault(), Fault(), Fault("replace")])
    with RangeReader(url, block_bytes=BLOCK) as reader:
        assert reader.read(2 * BLOCK) == CONTENT[: 2 * BLOCK]
        with pytest.raises(Rejected) as changed:
            reader.read(1)
        assert reader.tell() == 2 * BLOCK
    assert changed.value.reason is Reason.SOURCE_CHANGED
    assert "before byte 14,000" in changed.value.detail


def test_a_source_that_goes_away_in_mid_read_is_unreadable_from_there(server: FaultyServer, url: str) -> None:
    with RangeReader(url, block_bytes=BLOCK) as reader:
        assert reader.read(10) == CONTENT[:10]
        time.sleep(0.2)  # the next block is on its way
        server.objects.clear()
        with pytest.raises(Rejected) as gone:
            while reader.read(1_000):
                pass
    assert gone.value.reason is Reason.UNREADABLE


def test_a_stray_404_or_412_of_an_object_that_is_there_is_tried_again(server: FaultyServer, url: str) -> None:
    server.faults = deque([Fault(), Fault("status", 404), Fault("status", 412), Fault("status", 416)])
    assert read_all(url) == CONTENT


def test_access_denied_ends_the_run_at_once(server: FaultyServer, url: str) -> None:
    server.faults = deque([Fault("status", 403)])
    with RangeReader(url) as reader, pytest.raises(UnreachableError, match="access denied"):
        reader.read(1)


def test_an_outage_is_not_a_missing_file(server: FaultyServer) -> None:
    missing = f"{server.url}/nothing.tar"
    assert not exists(missing) and exists(f"{server.url}/b/a.tar")
    with pytest.raises(Rejected) as gone:
        RangeReader(missing)
    assert gone.value.reason is Reason.UNREADABLE
    with pytest.raises(UnreachableError, match="attempts"):
        RangeReader("http://127.0.0.1:9/a.tar")
    with pytest.raises(UnreachableError, match="does not answer"):
        exists("http://127.0.0.1:9/a.tar")


def test_a_local_file_that_is_written_to_is_noticed_and_one_that_is_replaced_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    with RangeReader(str(path), block_bytes=BLOCK) as reader:
        reader.read(BLOCK)
        (tmp_path / "new").write_bytes(bytes(len(CONTENT)))
        (tmp_path / "new").replace(path)
        assert reader.read(len(CONTENT)) == CONTENT[BLOCK:]
    with RangeReader(str(path), block_bytes=BLOCK) as reader:
        reader.read(BLOCK)
        with path.open("r+b") as f:
            f.seek(50_000)
            f.write(b"!")
        os.utime(path, (1, 1))
        with pytest.raises(Rejected) as changed:
            reader.read(1)
    assert changed.value.reason is Reason.SOURCE_CHANGED


def test_a_memory_object_that_changes_in_mid_read_is_noticed() -> None:
    url = "memory://ranges/changes.tar"
    write_bytes(url, CONTENT)
    with RangeReader(url, block_bytes=BLOCK) as reader:
        reader.read(10)
        time.sleep(0.1)  # the next block is there
        write_bytes(url, bytes(len(CONTENT)))
        with pytest.raises(Rejected) as changed:
            while reader.read(1_000):
                pass
        assert reader.tell() <= 2 * BLOCK
    assert changed.value.reason is Reason.SOURCE_CHANGED


def test_blocks_that_are_skipped_over_are_not_fetched(server: FaultyServer, url: str) -> None:
    with RangeReader(url, block_bytes=1_000) as reader:
        for position in range(0, len(CONTENT), 10_000):
            assert reader.read(100) == CONTENT[position : position + 100]
            reader.skip(9_900)
    assert server.num_sent <= 7_000  # one block of each ten, and one that was fetched ahead


def test_a_source_that_changed_or_went_is_a_reason_and_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"x" * 10)
    with pytest.raises(Rejected) as changed:
        RangeReader(str(path), bytes=11)
    assert changed.value.reason is Reason.SOURCE_CHANGED
    with pytest.raises(Rejected) as gone:
        RangeReader(str(tmp_path / "b.tar"))
    assert gone.value.reason is Reason.UNREADABLE
