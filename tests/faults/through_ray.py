"""Part 4: the real command on a real Ray cluster, whose workers, raylets and drivers are killed while at work.

The cluster has a head without CPUs and one node that does the work, on this machine. Every Python process of it tells
its phases to a file (`hooks/sitecustomize.py`). A set is embedded by `mmstream embed`, run again and again; each run
gets some kills, the last of which is its driver's. Then it runs to the end and is judged.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGKILL
from typing import Any
from unittest import mock

from faults.job import MODEL, Truth, picture, python_path
from faults.judge import Hashes, Objects, audited, data_hashes, judge, objects_at, rewritten
from faults.phases import Phase
from tars import make_tar

HOOKS = Path(__file__).with_name("hooks")
RUN_SECONDS = 240
SHARDS, ROWS = 6, 2_000


class Victim(StrEnum):
    WORKER = "worker"
    RAYLET = "raylet"
    DRIVER = "driver"


@dataclass(frozen=True)
class Aim:
    """Kill `victim` when it, or a worker under it, is in `phase`."""

    victim: Victim
    phase: Phase


AT_WORKERS = (Phase.READING, Phase.ENCODING, Phase.BETWEEN)
AIMS = (
    *(Aim(Victim.WORKER, phase) for phase in AT_WORKERS for _ in range(4)),
    *(Aim(Victim.RAYLET, phase) for phase in AT_WORKERS for _ in range(3)),
    *(Aim(Victim.DRIVER, phase) for phase in (*AT_WORKERS, *[Phase.FOLDING] * 2) for _ in range(3)),
)


@dataclass
class Tally:
    """Kills by (victim, phase told last), sets and runs, and what went wrong."""

    kills: Counter[tuple[Victim, Phase]] = field(default_factory=Counter)
    sets: int = 0
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0
    violations: list[str] = field(default_factory=list)


def make_shards(folder: Path) -> Truth:
    """Shards of several chunks each; some samples of each are bad."""
    pictures, keys = [picture(i, size=16) for i in range(64)], []
    for shard in range(SHARDS):
        files, names = [], [f"{shard:02}{row:06}" for row in range(ROWS)]
        for row, name in enumerate(names):
            image = b"<html>not found</html>" if row % 100 == 7 else pictures[row % 64]
            files += [(f"{name}.png", image), (f"{name}.txt", name.encode())]
        (folder / f"{shard:05}.tar").write_bytes(make_tar(files))
        keys.append(names)
    return Truth(keys)


@dataclass
class Bench:
    """A cluster, and where its processes tell their phases."""

    cluster: Any
    node: Any
    folder: Path
    environment: dict[str, str]

    @property
    def raylet(self) -> int:
        return self.node.all_processes["raylet"][0].process.pid

    def workers(self) -> list[int]:
        """Those under the raylet of the node that works."""
        told = (int(file.name) for file in (self.folder / "phases").iterdir())
        return [pid for pid in told if _parent(pid) == self.raylet]

    def phase_of(self, pid: int) -> Phase:
        """What a process told last."""
        file = self.folder / "phases" / str(pid)
        told = file.read_bytes() if file.exists() else b""
        return Phase(told[-1]) if told else Phase.STARTING

    def replace_node(self) -> None:
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = self.cluster.add_node(**_NODE)


_NODE = {"num_cpus": 3, "object_store_memory": 256 << 20}


@contextmanager
def bench(folder: Path) -> Generator[Bench]:
    """A cluster whose processes tell their phases to files under `folder`."""
    from ray.cluster_utils import Cluster

    (folder / "phases").mkdir()
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HOOKS), python_path()]),
        "FAULTS_PHASES": str(folder / "phases"),
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_period_ms": "500",  # a dead node is known to be dead within seconds
        "RAY_health_check_failure_threshold": "3",
    }
    with mock.patch.dict(os.environ, environment):
        cluster = Cluster(
            True, head_node_args={"num_cpus": 0, "object_store_memory": 256 << 20, "include_dashboard": False}
        )
        try:
            node = cluster.add_node(**_NODE)
            yield Bench(cluster, node, folder, {**environment, "RAY_ADDRESS": cluster.address})
        finally:
            cluster.shutdown()


def campaign(on: Bench, aims: tuple[Aim, ...], seed: int) -> Tally:
    """Sets are embedded and killed until every aim was hit once; as many sets as aims are tried."""
    source = on.folder / "shards"
    source.mkdir()
    truth = make_shards(source)
    killing = _Killing(on, source, truth, _undisturbed(on, source, truth), random.Random(seed), list(aims))
    for number in range(len(aims)):
        if killing.aims:
            killing.history(on.folder / f"seed-{seed}-{number}")
    killing.tally.violations += [f"{aim.victim} in {aim.phase.name} was never hit" for aim in killing.aims]
    return killing.tally


def _undisturbed(on: Bench, source: Path, truth: Truth) -> Hashes:
    dest = on.folder / "undisturbed"
    if _driver(on, source, dest).wait(RUN_SECONDS) != 0:
        raise AssertionError(f"the undisturbed run fails: {_said(dest)}")
    hashes = data_hashes(objects_at(str(dest)))
    verdict = judge(objects_at(str(dest)), truth, hashes)
    if not verdict.ok or audited(str(dest)):
        raise AssertionError(f"the undisturbed set is wrong: {verdict}")
    return hashes


def _driver(on: Bench, source: Path, dest: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "mmstream", "embed", str(source), str(dest), "--model", MODEL, "--json", "--debug"]
    with dest.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **on.environment})


def _said(dest: Path) -> str:
    return dest.with_suffix(".log").read_text()[-1500:]


@dataclass
class _Killing:
    """A campaign under way. `aims` are those that were not hit yet."""

    on: Bench
    source: Path
    truth: Truth
    undisturbed: Hashes
    rng: random.Random
    aims: list[Aim]
    tally: Tally = field(default_factory=Tally)

    def history(self, dest: Path) -> None:
        """One set: runs with kills until it is finished, then the verdict."""
        wrong: list[str] = []
        before: Objects = {}
        while not self.run(dest, wrong):
            after = objects_at(str(dest))
            wrong += rewritten(before, after)
            before = after
        objects = objects_at(str(dest))
        verdict = judge(objects, self.truth, self.undisturbed)
        wrong += [*rewritten(before, objects), *verdict.other, *audited(str(dest))]
        self.tally.sets += 1
        self.tally.lost += len(verdict.lost)
        self.tally.doubled += len(verdict.doubled)
        self.tally.unequal += len(verdict.unequal)
        if wrong or not verdict.ok:
            self.tally.violations.append(f"{dest.name}: {verdict} {wrong} {_said(dest)}")

    def run(self, dest: Path, wrong: list[str]) -> bool:
        """One run of the command: two workers are killed, then the raylet, then the driver, if each comes into an aim.

        True when nothing is left to run: the command ended by itself.
        """
        driver = _driver(self.on, self.source, dest)
        self.tally.runs += 1
        until = time.monotonic() + RUN_SECONDS
        victims = [Victim.WORKER, Victim.WORKER, Victim.RAYLET, Victim.DRIVER]
        while driver.poll() is None and victims:
            victims = [v for v in victims if any(a.victim is v for a in self.aims)]
            if not (victims and self._kill(victims[0], driver, until)):
                break
            if victims.pop(0) is Victim.RAYLET:
                self.on.replace_node()
        try:
            code = driver.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            wrong.append(f"still at work after {RUN_SECONDS} s: {_said(dest)}")
            driver.kill()
            code = driver.wait()
        if code not in (0, -SIGKILL):
            wrong.append(f"exit code {code}: {_said(dest)}")
        return code == 0 or bool(wrong)

    def _kill(self, victim: Victim, driver: subprocess.Popen, until: float) -> bool:
        """Waits for work, a seeded moment more, and for the first aim at `victim` that fits; False if none came."""
        armed = None
        while driver.poll() is None and time.monotonic() < until:
            phases = {pid: self.on.phase_of(pid) for pid in [*self.on.workers(), driver.pid]}
            if armed is None and any(phase in AT_WORKERS for phase in phases.values()):
                armed = time.monotonic() + self.rng.uniform(0, 0.5)
            if armed is not None and time.monotonic() >= armed:
                for aim in sorted((a for a in self.aims if a.victim is victim), key=lambda a: -a.phase):
                    for pid, phase in phases.items():
                        if phase is aim.phase and (pid == driver.pid) == (phase is Phase.FOLDING):
                            self._shoot(aim, pid, driver.pid)
                            return True
            time.sleep(0.002)
        return False

    def _shoot(self, aim: Aim, pid: int, driver: int) -> None:
        os.kill({Victim.WORKER: pid, Victim.RAYLET: self.on.raylet, Victim.DRIVER: driver}[aim.victim], SIGKILL)
        told = self.on.phase_of(pid)
        self.aims.remove(aim)
        self.tally.kills[aim.victim, told] += 1


def _parent(pid: int) -> int | None:
    """The parent of a process; None if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
