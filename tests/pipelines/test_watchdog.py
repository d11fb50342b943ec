"""Work that hangs or eats memory ends its process, whatever it holds; other work is left alone."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

WATCHED = """
import ctypes, time
from mmstream.pipelines.watchdog import Watchdog
with Watchdog(seconds=0.6, memory_bytes=100 << 20, then="that is all") as watchdog:
    for _ in range(3):
        with watchdog.work("an innocent"):
            time.sleep(0.3)
    print("done", flush=True)
    with watchdog.work("a culprit"):
        {}
"""


@pytest.mark.parametrize(
    ("culprit", "message"),
    [
        ("time.sleep(60)", "a culprit takes longer than 0.6 s"),
        ("while time.time(): pass", "a culprit takes longer than 0.6 s"),
        ("ctypes.PyDLL(None).sleep(60)", "Timeout"),
        ("held = [b'x' * (8 << 20) for _ in range(400)]", "MiB are held"),
    ],
)
def test_a_culprit_ends_its_process_and_says_why(culprit: str, message: str) -> None:
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED.format(culprit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "done\n")
    assert message in ended.stderr
    assert time.monotonic() - start < 50
