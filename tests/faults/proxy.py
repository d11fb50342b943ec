"""A forwarding HTTP proxy before the S3 server: it sees every request of a job and does one thing to one of them.

Requests are numbered in the order of their arrival. The one that a fault is set for is answered as the fault says; all
others go through unchanged, those of retries included.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class Action(StrEnum):
    KILLED_BEFORE = "killed before it was sent"
    REPLY_LOST = "applied, reply lost"
    KILLED_AFTER = "killed after it was applied"


@dataclass
class Fault:
    """What happens to request `number` (from 1). `kill` ends the client; it is called when the moment has come."""

    number: int
    action: Action
    kill: Callable[[], None]
    hit: str | None = None  # what the request was, once it came


@dataclass
class Wire:
    """What has gone over it since `begin`, and the fault that waits there."""

    fault: Fault | None = None
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, fault: Fault | None = None) -> None:
        with self.lock:
            self.fault, self.seen = fault, []

    def take(self, what: str) -> Fault | None:
        """Counts a request; the fault, if it is for this one."""
        with self.lock:
            self.seen.append(what)
            if self.fault is None or len(self.seen) != self.fault.number:
                return None
            self.fault.hit = what
            return self.fault


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


@contextmanager
def proxy(upstream_port: int) -> Generator[tuple[str, Wire]]:
    """The endpoint of a proxy to a server on this machine, and its wire."""
    wire = Wire()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = wire.take(kind(self.command, self.path))
            if fault and fault.action is Action.KILLED_BEFORE:
                fault.kill()
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=60)
            upstream.request(self.command, self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            data = reply.read()
            upstream.close()
            if fault:
                if fault.action is Action.KILLED_AFTER:
                    fault.kill()
                self.close_connection = True
                return
            self.send_response_only(reply.status, reply.reason)
            for name, value in reply.getheaders():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(data)

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
        server.shutdown()
        server.server_close()
        thread.join()
