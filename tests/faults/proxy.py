"""A forwarding HTTP proxy before the S3 server: it sees every request of a job and does something to some of them.

Requests are numbered in the order of their arrival. The one that a fault is set for, or those that the weather strikes,
are answered as that says; all others go through unchanged, those of retries included.
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Action(StrEnum):
    KILLED_BEFORE = "killed before it was sent"
    REPLY_LOST = "applied, reply lost"
    KILLED_AFTER = "killed after it was applied"
    # What weather brings, beside lost replies:
    UNAVAILABLE = "503"
    RESET = "reset inside the reply"
    SHORT = "reply cut short"
    STALL = "reply stalls"
    FLIPPED_REPLY = "bit flipped in the reply"
    FLIPPED_REQUEST = "bit flipped in what is written"


LOSSES = (Action.KILLED_BEFORE, Action.REPLY_LOST, Action.KILLED_AFTER)
STALL_SECONDS = 30  # the client gives up before
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_BROKEN = frozenset({Action.RESET, Action.SHORT, Action.STALL})
_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass
class Fault:
    """What happens to request `number` (from 1). `kill` ends the client; it is called when the moment has come. `place`
    says where in a body, from 0 to 1."""

    number: int
    action: Action
    kill: Callable[[], None] = lambda: None
    place: float = 0.0
    hit: str | None = None  # what the request was, once it came


@dataclass(frozen=True)
class Weather:
    """Of the requests a share of `rate` is struck, each in one of the ways that `allowed` says for its kind. What
    happens to request n is a function of the seed and n alone."""

    seed: str
    rate: float
    allowed: Callable[[str], Sequence[Action]]

    def strike(self, number: int, what: str) -> Fault | None:
        rng = random.Random(f"{self.seed}/{number}")
        if rng.random() >= self.rate or not (actions := self.allowed(what)):
            return None
        return Fault(number, rng.choice(actions), place=rng.random(), hit=what)


@dataclass
class Wire:
    """What has gone over it since `begin`, the fault or the weather that waits there, and what that did; every request
    waits for `latency` seconds first."""

    fault: Fault | None = None
    weather: Weather | None = None
    seen: list[str] = field(default_factory=list)
    struck: list[Fault] = field(default_factory=list)
    latency: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, fault: Fault | None = None, weather: Weather | None = None) -> None:
        with self.lock:
            self.fault, self.weather, self.seen, self.struck = fault, weather, [], []

    def take(self, what: str) -> Fault | None:
        """Counts a request; the fault, if there is one for it."""
        with self.lock:
            self.seen.append(what)
            number, found = len(self.seen), None
            if self.fault and number == self.fault.number:
                found, self.fault.hit = self.fault, what
            elif self.weather and (found := self.weather.strike(number, what)):
                self.struck.append(found)
            return found


def kind(method: str, target: str) -> str:
    """What a request is about, in two words: `PUT commits`, `LIST`, `GET shards`."""
    url = urlsplit(target)
    parts = url.path.strip("/").split("/")
    if len(parts) < 2 or "list-type" in parse_qs(url.query, keep_blank_values=True):
        return "LIST"
    if parts[-1].startswith("."):
        return f"{method} probe"
    known = ("shards", "catalog", "manifest", "data", "rejects", "commits")
    return f"{method} {next((p for p in parts if p in known), 'other')}"


def flipped(data: bytes, place: float) -> bytes:
    """One bit of it is another, if it has any."""
    if not data:
        return data
    bit = int(place * 8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@contextmanager
def proxy(upstream_port: int) -> Generator[tuple[str, Wire]]:
    """The endpoint of a proxy to a server on this machine, and its wire."""
    wire, closing = Wire(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = wire.take(kind(self.command, self.path))
            closing.wait(wire.latency)
            action = fault.action if fault else None
            if fault and action is Action.KILLED_BEFORE:
                fault.kill()
                self.close_connection = True
                return
            if action is Action.UNAVAILABLE:
                self._answer(503, "Slow Down", [], _SLOW_DOWN)
                return
            if fault and action is Action.FLIPPED_REQUEST:
                body = flipped(body, fault.place)
            upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            data = reply.read()
            upstream.close()
            if fault and action in LOSSES:
                if action is Action.KILLED_AFTER:
                    fault.kill()
                self.close_connection = True
                return
            if fault and action is Action.FLIPPED_REPLY:
                data = flipped(data, fault.place)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            sent = data[: int(fault.place * len(data))] if fault and action in _BROKEN else data
            self._answer(reply.status, reply.reason, reply.getheaders(), sent, length)
            if action is Action.STALL:
                closing.wait(STALL_SECONDS)
            if action is Action.RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection |= action in _BROKEN

        def _answer(self, status: int, reason: str, headers: list, data: bytes, length: str | None = None) -> None:
            self.send_response_only(status, reason)
            for name, value in headers:
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            if length is not None or self.command != "HEAD":
                self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
                self.wfile.flush()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the wire counts."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was killed leaves broken connections behind."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", wire
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
