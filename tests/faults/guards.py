"""Each guard of the data plane is removed in turn, and the tests beside it must notice.

PYTHONPATH=.:tests python -m faults.guards [WORD …]   (guards whose names have one of the words; all by default)

A guard is a line that, were it gone, would lose, double or corrupt something now and then: `guards.toml` lists them.
Each is removed in a copy of the package, against which the tests named there are run. A guard that no test misses is
of no use or not tested: it is printed as NOT NOTICED, and the run ends with 1. All the tests are run on the copy as it
is first, since a test that fails anyhow notices nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from faults.table import Outcome

ROOT = Path(__file__).parents[2]
SECONDS = 600  # for the tests of one guard: who waits for ever without it has noticed


@dataclass(frozen=True)
class Guard:
    """`old`, which `file` has once, is replaced by `new`; one of `tests` (paths, patterns) has to fail then."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def remove_from(self, package: Path) -> None:
        """
        Raises:
            ValueError: the list is older than the file.
        """
        path = package / self.file
        path.write_text(self.without(path.read_text()))

    def without(self, text: str) -> str:
        """The file's text as it is without the guard.

        Raises:
            ValueError: the list is older than the file.
        """
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} has {text.count(self.old)} times {self.old!r}. Mend guards.toml."
            )
        return text.replace(self.old, self.new)


def guards(words: list[str]) -> list[Guard]:
    every = [Guard(**entry) for entry in tomllib.loads((ROOT / "tests/faults/guards.toml").read_text())["guard"]]
    return [g for g in every if not words or any(word in g.name for word in words)]


def failed(folder: Path, tests: str, seconds: float = SECONDS) -> str | None:
    """The first test that fails with the package in `folder`; None where all pass."""
    paths = list(dict.fromkeys(str(p) for pattern in tests.split() for p in sorted(ROOT.glob(pattern))))
    assert paths, f"no tests are at {tests}"
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *paths]
    # Safe path: the package of the copy, not that of the folder in which pytest and what it starts run.
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT / 'tests'}", "PYTHONSAFEPATH": "1"}
    pytest = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
    )
    try:
        said, _ = pytest.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "none ends"
    finally:
        with suppress(ProcessLookupError):  # what it had started, and could not end without the guard
            os.killpg(pytest.pid, signal.SIGKILL)
    if pytest.returncode == 0:
        return None
    if found := re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py\S*)", said, re.M):
        return found[1]
    if found := re.search(r"Timeout.*|Fatal Python error.*", said):
        return found[0].strip("+ ")
    raise RuntimeError(f"pytest did not run the tests: {said[-4000:]}")


def judge(guard: Guard) -> tuple[str | None, float]:
    """The test that noticed, and the seconds it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        guard.remove_from(copy(Path(folder)))
        return failed(Path(folder), guard.tests), time.monotonic() - began


def copy(folder: Path) -> Path:
    return shutil.copytree(ROOT / "mmstream", folder / "mmstream", ignore=shutil.ignore_patterns("__pycache__"))


def main() -> int:
    began, chosen = time.monotonic(), guards(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="guard-") as folder:
        copy(Path(folder))
        if test := failed(Path(folder), " ".join(g.tests for g in chosen), 10 * SECONDS):
            print(f"{test} fails with every guard in place")
            return 1
    rows, unnoticed = [], []
    for guard in chosen:
        test, seconds = judge(guard)
        print(f"{guard.name}: {test or 'NOT NOTICED'} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        rows.append([guard.name, guard.file, f"`{test}`" if test else "**NOT NOTICED**"])
        unnoticed += [] if test else [guard.name]
    title = f"{len(rows)} guards removed in turn, {len(rows) - len(unnoticed)} noticed"
    print(Outcome(title, ["guard", "of", "first test to fail"], rows, unnoticed, time.monotonic() - began).markdown())
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
