"""A decoder that misbehaves where a picture's last bytes ask for it, in every Python process with this on its path.

Tests put a copy of this file on PYTHONPATH: Ray's workers and the sandbox's children load it as they start. Each time
it strikes it adds a line to the file `struck` beside it: what, and in which process.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from mmstream.media import image

_decode = image.decode
SAMPLE_SECONDS = 5.0


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _sleep() -> None:
    time.sleep(10**6)


def _hold_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(10**6)


def _bomb() -> None:
    held = b"x" * (1500 << 20)
    time.sleep(10**6)
    del held


STRIKES = {b"!crash": _crash, b"!sleep": _sleep, b"!hold": _hold_the_interpreter, b"!bomb": _bomb}


def decode(data: bytes, **options: int) -> image.Picture:
    for name, strike in STRIKES.items():
        if data.endswith(name):
            with (Path(__file__).parent / "struck").open("a") as log:
                log.write(f"{name.decode()} {os.getpid()} {Path(sys.argv[0]).stem}\n")
            strike()
    return _decode(data, **options)


image.decode = decode

from mmstream.media import sandbox  # noqa: E402  it has to see the other decoder

sandbox.SAMPLE_SECONDS = SAMPLE_SECONDS
