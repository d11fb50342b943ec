"""A small real web server that misbehaves as it is told: each request to a body takes the next fault of a list.

It serves objects from memory with ranges, ETag and If-Match, over HTTP as `server.url` + name, and, path-style, to any
S3 client whose endpoint it is (`/bucket/key`; no signatures are checked, nothing can be written or listed).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal

Kind = Literal[
    "ok", "status", "cut", "reset", "short", "stall", "drip", "whole", "elsewhere", "longer", "replace", "flip"
]

_CODES = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 416: "InvalidRange", 503: "SlowDown"}


@dataclass(frozen=True)
class Fault:
    """What happens to one GET. `at` is a status for `status`, else how many bytes of the body are sent before it.

    cut: the connection is closed early. reset: it is reset. short: the body is cut and its length says so. stall:
    nothing more comes until the server stops. drip: the rest comes a byte a tenth of a second. whole: the range is
    ignored, all is sent with 200. elsewhere: the range is answered with bytes of another place. longer: more bytes
    come than were asked for. replace: the object becomes `server.replacement` before the answer. flip: a bit of byte
    `at` of the body is another.
    """

    kind: Kind = "ok"
    at: int = 0


@dataclass
class FaultyServer:
    objects: dict[str, bytes] = field(default_factory=dict, repr=False)
    faults: deque[Fault] = field(default_factory=deque)  # for the GETs to come, in their order
    refused: set[str] = field(default_factory=set)  # names that are answered with 403
    ranges: bool = True
    etags: Literal["strong", "weak", "none"] = "strong"
    conditions: bool = True  # If-Match is honoured
    replacement: bytes = field(default=b"", repr=False)
    num_gets: int = 0
    num_conditional: int = 0  # GETs with If-Match
    num_sent: int = 0  # bytes of bodies

    def __enter__(self) -> FaultyServer:
        self.stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.faulty = self  # ty: ignore[unresolved-attribute]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def etag(self, data: bytes) -> str | None:
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        return {"strong": tag, "weak": f"W/{tag}", "none": None}[self.etags]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits 40 ms for its header's acknowledgement

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may go at any time
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""

    @property
    def faulty(self) -> FaultyServer:
        return self.server.faulty  # ty: ignore[unresolved-attribute]

    def do_HEAD(self) -> None:
        self._answer(Fault(), with_body=False)

    def do_GET(self) -> None:
        self.faulty.num_gets += 1
        self.faulty.num_conditional += "If-Match" in self.headers
        fault = self.faulty.faults.popleft() if self.faulty.faults else Fault()
        if fault.kind == "replace":
            self.faulty.objects[self._name] = self.faulty.replacement
        self._answer(fault, with_body=True)

    @property
    def _name(self) -> str:
        return self.path.split("?")[0].lstrip("/")

    def _answer(self, fault: Fault, *, with_body: bool) -> None:
        data = self.faulty.objects.get(self._name)
        wanted = self.headers.get("If-Match")
        if self._name in self.faulty.refused:
            self._end(403)
        elif data is None:
            self._end(404)
        elif fault.kind == "status":
            self._end(fault.at)
        elif wanted and self.faulty.conditions and wanted != self.faulty.etag(data):
            self._end(412)
        else:
            self._send(data, fault, with_body)

    def _end(self, status: int) -> None:
        code = _CODES.get(status, "Other")
        body = f"<Error><Code>{code}</Code><Message>{status}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, data: bytes, fault: Fault, with_body: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        is_part = bool(found) and self.faulty.ranges and fault.kind != "whole"
        start, end = (int(found[1]), int(found[2]) + 1) if found and is_part else (0, len(data))
        if is_part and start >= len(data):
            self._end(416)
            return
        if fault.kind == "elsewhere":
            start = max(0, start - 512)
        end = min(end, len(data)) + (fault.at if fault.kind == "longer" else 0)
        body = data[start:end]
        if fault.kind == "flip":
            body = body[: fault.at] + bytes([body[fault.at] ^ 1]) + body[fault.at + 1 :]
        self.send_response(206 if is_part else 200)
        length = min(fault.at, len(body)) if fault.kind == "short" else len(body)
        self.send_header("Content-Length", str(length))
        if is_part:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        if etag := self.faulty.etag(data):
            self.send_header("ETag", etag)
        self.end_headers()
        if with_body:
            self._send_body(body, fault)

    def _send_body(self, body: bytes, fault: Fault) -> None:
        is_broken = fault.kind in ("cut", "reset", "short", "stall", "drip")
        sent = body[: fault.at] if is_broken else body
        try:
            self.wfile.write(sent)
            self.wfile.flush()
            self.faulty.num_sent += len(sent)
            if fault.kind == "drip":
                self._drip(body[fault.at :])
            elif fault.kind == "stall":
                self.faulty.stopping.wait()
        except OSError:  # the client has gone
            self.close_connection = True
        if fault.kind in ("cut", "reset", "stall"):
            self.close_connection = True
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _drip(self, rest: bytes) -> None:
        for position in range(len(rest)):
            if self.faulty.stopping.wait(0.1):
                return
            self.wfile.write(rest[position : position + 1])
            self.wfile.flush()
