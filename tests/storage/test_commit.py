from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from conftest import aws_variables, free_port
from moto.server import ThreadedMotoServer

from mmstream.storage.commit import honours_put_if_absent, put_if_absent
from mmstream.storage.files import list_files, read_bytes

WRITERS = 8


@pytest.fixture
def conditional_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that honours conditional writes."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in aws_variables(endpoint).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="conditional")
    yield "s3://conditional"
    server.stop()


def race(folder: str) -> list[bool]:
    """Writers that start at once on one name; each says whether the name is its own."""
    barrier = threading.Barrier(WRITERS)

    def write(i: int) -> bool:
        barrier.wait()
        return put_if_absent(f"{folder}/record.json", b"%d" % i)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(write, range(WRITERS)))


def test_one_of_many_local_writers_wins_and_leaves_nothing_else(tmp_path: Path) -> None:
    for i in range(20):
        won = race(str(tmp_path / str(i)))
        assert sum(won) == 1
        assert read_bytes(str(tmp_path / str(i) / "record.json")) == b"%d" % won.index(True)
        assert len(list_files(str(tmp_path / str(i)))) == 1


def test_one_of_many_s3_writers_wins_where_conditions_are_honoured(conditional_s3: str) -> None:
    won = race(conditional_s3 + "/race")
    assert sum(won) == 1
    assert read_bytes(conditional_s3 + "/race/record.json") == b"%d" % won.index(True)


def test_a_record_of_equal_content_counts_as_ours(tmp_path: Path) -> None:
    assert put_if_absent(str(tmp_path / "a"), b"same")
    assert put_if_absent(str(tmp_path / "a"), b"same")
    assert not put_if_absent(str(tmp_path / "a"), b"other")


def test_the_probe_tells_stores_apart_and_cleans_up(tmp_path: Path, s3, conditional_s3: str) -> None:
    assert honours_put_if_absent(str(tmp_path / "folder"))
    assert honours_put_if_absent(conditional_s3 + "/folder")
    assert list_files(str(tmp_path / "folder")) == list_files(conditional_s3 + "/folder") == []


def test_the_probe_finds_a_store_that_ignores_conditions(s3) -> None:
    folder = s3.bucket("probe") + "/folder"
    assert not honours_put_if_absent(folder)
    assert list_files(folder) == []
