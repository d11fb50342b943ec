"""Part 1: processes that write an embedding set are killed, again and again, and the set comes out as if nothing was.

A history is one set: its driver is killed in each phase at least once, at a seeded moment of it, now and then together
with a second driver on the same destination; then it runs to the end and is judged. The plan of a history is a
function of its seed alone; where a kill really hit is what the process told last.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from faults.job import Job, Truth, make_source, start
from faults.judge import Hashes, audited, data_hashes, judge, rewritten
from faults.phases import WORK, Phase
from faults.places import Place

RUN_SECONDS = 120
AIMS = (Phase.STARTING, Phase.WRITING, *WORK * 3)


@dataclass(frozen=True)
class Aim:
    """Kill when `phase` is entered for the `occurrence`-th time, `fraction` of its usual length later."""

    phase: Phase
    occurrence: int
    fraction: float
    second_driver: bool


@dataclass
class Tally:
    """What a campaign saw so far. `seconds` is how long a phase usually lasts, to aim by."""

    kills: Counter[Phase] = field(default_factory=Counter)
    histories: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: dict[Phase, float] = field(default_factory=lambda: dict.fromkeys(Phase, 0.002))

    def saw(self, phase: Phase, seconds: float) -> None:
        self.seconds[phase] += 0.1 * (min(seconds, 1.0) - self.seconds[phase])

    def add(self, other: Tally) -> None:
        self.kills += other.kills
        self.histories += other.histories
        self.lost += other.lost
        self.doubled += other.doubled
        self.unequal += other.unequal


def plan(seed: int) -> list[Aim]:
    """The kills of one history: three in each phase that matters, in any order, and one while it finishes."""
    rng = random.Random(seed)
    phases = [*rng.sample(AIMS, len(AIMS)), Phase.FINISHING]
    return [Aim(p, 1 + (p in WORK[:3] and rng.random() < 0.2), rng.uniform(0, 0.7), rng.random() < 0.1) for p in phases]


def prepare(place: Place) -> tuple[Truth, Hashes]:
    """Puts the shards there and embeds them undisturbed: what every history is compared with."""
    shards, truth = make_source()
    place.put_source(shards)
    job = place.job("undisturbed")
    if problem := run_to_the_end(job):
        raise AssertionError(f"the undisturbed run fails: {problem}")
    objects = place.objects(job)
    undisturbed = data_hashes(objects)
    verdict, wrong = judge(objects, truth, undisturbed), audited(job.dest)
    if not verdict.ok or wrong or not undisturbed:
        raise AssertionError(f"the undisturbed set is wrong: {verdict} {wrong}")
    return truth, undisturbed


def run_to_the_end(job: Job) -> str | None:
    """Carries out a job undisturbed; None, or why it did not come to its end."""
    process, phases = start(job)
    process.join(RUN_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"still at work after {RUN_SECONDS} s, in {_last_phase(phases)}"
    phases.close()
    return None if process.exitcode == 0 else f"exit code {process.exitcode}: {said(job)}"


def said(job: Job) -> str:
    """What a failed process left in its log."""
    log = Path(job.log)
    return log.read_text()[-1500:] if log.exists() else "it said nothing"


def history(place: Place, seed: int, truth: Truth, undisturbed: Hashes, tally: Tally) -> None:
    """Kills, resumes, and judges one set; what is wrong goes to `tally.violations`."""
    job = place.job(f"seed-{seed}")
    wrong: list[str] = []
    before = {}
    for aim in plan(seed):
        wrong += _killed_run(job, aim, tally)
        after = place.objects(job)
        wrong += rewritten(before, after)
        before = after
    if problem := run_to_the_end(job):
        wrong.append(problem)
    objects = place.objects(job)
    verdict = judge(objects, truth, undisturbed)
    wrong += [*rewritten(before, objects), *verdict.other, *audited(job.dest)]
    tally.histories += 1
    tally.lost += len(verdict.lost)
    tally.doubled += len(verdict.doubled)
    tally.unequal += len(verdict.unequal)
    if wrong or not verdict.ok:
        tally.violations.append(f"{place.name} --seed {seed}: {verdict} {wrong} in {job.dest}")


def _killed_run(job: Job, aim: Aim, tally: Tally) -> list[str]:
    """One run with its kill; gives what went wrong of itself."""
    second = start(job) if aim.second_driver else None
    process, phases = start(job)
    ended = [(process, phases, _kill_at(process, phases, aim, tally))]
    if second:
        second[0].kill()
        ended.append((*second, Phase.STARTING))
    wrong = []
    for each, told, read in ended:
        each.join()
        last = _last_phase(told, read)
        if each.exitcode == -9:
            tally.kills[last] += 1
        elif each.exitcode != 0:
            wrong.append(f"in {last.name}, exit code {each.exitcode}: {said(job)}")
    return wrong


def _kill_at(process: ForkServerProcess, phases: Connection, aim: Aim, tally: Tally) -> Phase:
    """Kills at the moment that is aimed at, if it comes; the last phase that was read."""
    seen, phase = 0, Phase.STARTING
    for phase in _told(phases, tally):
        seen += phase is aim.phase
        if seen == aim.occurrence:
            time.sleep(aim.fraction * tally.seconds[phase])
            break
    process.kill()
    return phase


def _told(phases: Connection, tally: Tally) -> Iterator[Phase]:
    """The phases as they are told, until the process ends; on the way it is learned how long each takes."""
    now, since = Phase.ELSEWHERE, time.monotonic()  # the process is being made
    while data := os.read(phases.fileno(), 4096):
        if len(data) == 1:
            tally.saw(now, time.monotonic() - since)
        since = time.monotonic()
        for byte in data:
            now = Phase(byte)
            yield now


def _last_phase(phases: Connection, last: Phase = Phase.STARTING) -> Phase:
    """The last phase that a process told before it ended; `last` is what was read so far."""
    while data := os.read(phases.fileno(), 4096):
        last = Phase(data[-1])
    phases.close()
    return last


def campaign(place: Place, num_kills: int, seed: int) -> Tally:
    """Histories with seeds from `seed` on, until there were `num_kills` kills."""
    truth, undisturbed = prepare(place)
    tally = Tally()
    while tally.kills.total() < num_kills:
        history(place, seed + tally.histories, truth, undisturbed, tally)
    return tally


def thin_phases(kills: Counter[Phase]) -> list[str]:
    """The phases that matter and got less than a tenth of the kills: the campaign proves too little of them."""
    return [f"only {kills[p]} of {kills.total()} kills in {p.name}" for p in WORK if kills[p] * 10 < kills.total()]
