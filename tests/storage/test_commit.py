"""Put-if-absent: one of many wins, on disk and on stores, and no reply that is lost or unclear decides wrongly."""

from __future__ import annotations

import http.client
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from conftest import aws_variables, free_port
from moto.server import ThreadedMotoServer

from mmstream.errors import UnreachableError
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


class UnclearStore(ThreadingHTTPServer):
    """Stands before a real S3 server, hands everything on, but answers the first PUTs as `faults` say, in turn.

    A fault is (hand it on?, status; 0 closes the connection without an answer).
    """

    daemon_threads = True

    def __init__(self, behind: str, faults: list[tuple[bool, int]]) -> None:
        super().__init__(("127.0.0.1", free_port()), _Handler)
        self.behind = behind
        self.faults = faults
        self.before_answer: Callable[[], None] = lambda: None


class _Handler(BaseHTTPRequestHandler):
    server: UnclearStore
    protocol_version = "HTTP/1.1"  # else a client that expects "100 Continue" waits for ever

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.faults:
            self._answer(*self._behind(body))
            return
        hand_on, status = self.server.faults.pop(0)
        if hand_on:
            self._behind(body)
        self.server.before_answer()
        if status:
            self._answer(status, b"<Error><Code>ConditionalRequestConflict</Code></Error>" if status == 409 else b"")
        else:
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer(*self._behind(b""))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _behind(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(urlsplit(self.server.behind).netloc)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        kept = ("Content-Length", "Content-Range", "ETag", "Last-Modified")
        return answer.status, answer.read(), {name: value for name, value in answer.headers.items() if name in kept}

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is no place for an access log."""


@pytest.fixture
def unclear(conditional_s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[UnclearStore]:
    store = UnclearStore(os.environ["AWS_ENDPOINT_URL"], [])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_address[1]}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    thread = threading.Thread(target=store.serve_forever)
    thread.start()
    yield store
    store.shutdown()
    thread.join()


@pytest.fixture
def record() -> str:
    """A name that no test before had: the servers of one process share what is stored."""
    return f"s3://conditional/{secrets.token_hex(8)}"


UNCLEAR = [(True, 0), (False, 0), (True, 500), (False, 500), (True, 503), (False, 503), (False, 409), (True, 409)]


@pytest.mark.parametrize("fault", UNCLEAR, ids=lambda f: f"{'applied' if f[0] else 'lost'}-{f[1] or 'reset'}")
def test_a_reply_that_is_lost_or_unclear_is_resolved_by_what_is_there(
    unclear: UnclearStore, record: str, fault
) -> None:
    unclear.faults = [fault]
    assert put_if_absent(record, b"ours")
    assert unclear.faults == [], "the fault was met"
    assert read_bytes(record) == b"ours"
    assert not put_if_absent(record, b"later")


@pytest.mark.parametrize("status", [0, 409, 500])
def test_behind_an_unclear_reply_another_writer_may_have_won(
    unclear: UnclearStore, record: str, conditional_s3: str, status: int
) -> None:
    other = boto3.client("s3", endpoint_url=unclear.behind)
    unclear.faults = [(False, status)]
    unclear.before_answer = lambda: (
        other.put_object(Bucket="conditional", Key=record.rsplit("/", 1)[1], Body=b"theirs") and None
    )
    assert not put_if_absent(record, b"ours")
    assert read_bytes(record) == b"theirs"


def test_a_store_that_never_answers_clearly_is_unreachable_and_not_an_endless_loop(
    unclear: UnclearStore, record: str
) -> None:
    unclear.faults = [(False, 500)] * 1000
    with pytest.raises(UnreachableError, match="does not answer"):
        put_if_absent(record, b"ours")
