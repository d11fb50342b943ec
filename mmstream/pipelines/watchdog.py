"""A thread that ends its own process when a piece of work takes too long or too much memory.

Nothing can interrupt a native decoder that hangs in a thread: the process has to go, and whoever started it finds out
what it was at work on (see `pipelines.contain`). Where the work holds the interpreter lock no thread of Python can
run; then faulthandler's own timer, which needs none, ends the process a little later.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TICK_SECONDS = 0.1
_STDERR = 2
_PAGE_BYTES = resource.getpagesize()


class Watchdog:
    """Within a `with` block, each `work` may take `seconds`, and all together `memory_bytes` above the start's. `then`
    says to whoever reads the log what follows."""

    def __init__(self, seconds: float, memory_bytes: int, *, then: str) -> None:
        self._seconds, self._memory_bytes, self._then = seconds, memory_bytes, then
        self._begun: dict[int, tuple[float, str]] = {}  # by thread
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._at_start = own_bytes()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @contextmanager
    def work(self, what: str) -> Generator[None]:
        thread = threading.get_ident()
        self._begun[thread] = (time.monotonic(), what)
        try:
            yield
        finally:
            del self._begun[thread]

    def _watch(self) -> None:
        try:
            while not self._over.wait(TICK_SECONDS):
                self._look()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        begun = sorted(self._begun.values())
        if not begun:
            faulthandler.cancel_dump_traceback_later()
            return
        faulthandler.dump_traceback_later(1.5 * self._seconds, exit=True, file=_STDERR)
        seconds, taken = time.monotonic() - begun[0][0], own_bytes() - self._at_start
        if seconds > self._seconds:
            self._end(f"{begun[0][1]} takes longer than {self._seconds:g} s")
        if taken > self._memory_bytes:
            at_work = ", ".join(what for _, what in begun)
            self._end(f"{taken >> 20:,} MiB are held, more than {self._memory_bytes >> 20:,}, at work: {at_work}")

    def _end(self, why: str) -> None:
        os.write(_STDERR, f"mmstream: {why}; this process ends, and {self._then}.\n".encode())
        os._exit(1)


def own_bytes() -> int:
    """Resident memory of this process that it does not share (Ray's object store is shared memory)."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES
