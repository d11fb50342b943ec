"""How much memory Ray's actors took."""

from __future__ import annotations

import threading
from pathlib import Path


class Peak(threading.Thread):
    """The most memory of its own that any of Ray's actors held within the `with` block, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self._over = 0, threading.Event()

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if b"MapWorker" in (process / "cmdline").read_bytes():
                        _, resident, shared, *_ = (process / "statm").read_text().split()
                        self.bytes = max(self.bytes, (int(resident) - int(shared)) * 4096)
                except (FileNotFoundError, ProcessLookupError):
                    continue
