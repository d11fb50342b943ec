"""The command line as its users run it: a process of its own, `--json`, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def mmstream(*arguments: str, code: int = 0) -> dict[str, Any]:
    """Runs a command that must end with `code`; its stdout must be one JSON document."""
    command = [sys.executable, "-m", "mmstream", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ.copy())
    assert done.returncode == code, done.stderr[-2000:]
    return json.loads(done.stdout)
