"""Part 2: every request of a small job to its store, each lost in three ways.

Random kills seldom hit the one request between two others that matters. Here request 1, 2, 3, … of a job on S3 is,
each in a run of its own, not sent because the client was killed; applied without a reply; applied, and the client
killed. Then the job runs to the end and is judged. The numbers go up until a run ends before its fault came: none is
left out. On a protocol with a hole (`planted`) the same search has to find it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.context import ForkServerProcess
from urllib.parse import urlsplit

from conftest import aws_variables
from faults.job import Job, Truth, make_source, start
from faults.judge import Hashes, audited, data_hashes, judge
from faults.kills import RUN_SECONDS, run_to_the_end, said
from faults.places import Place
from faults.proxy import LOSSES, Action, Fault, Wire, proxy

ROWS = (10, 14)  # two shards of two chunks; the second is cut behind its ninth sample


@dataclass
class Search:
    """Cases by (kind of request, action), and what was violated. `gave_up`: runs that said the store is unreachable
    after a lost reply, which is no violation: the next run went on."""

    cases: Counter[tuple[str, Action]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    gave_up: int = 0


@dataclass(frozen=True)
class Bench:
    """A place whose jobs go through a wire; `kinds` are the requests of an undisturbed job, in their order."""

    place: Place
    wire: Wire
    endpoint: str
    truth: Truth
    undisturbed: Hashes
    kinds: tuple[str, ...]
    planted: Callable[[], None] | None = None

    def job(self, name: str) -> Job:
        protocol = self.planted.__name__ if self.planted else "real"
        job = self.place.job(f"{protocol}-{name}")
        return dataclasses.replace(job, environment=aws_variables(self.endpoint), planted=self.planted)


@contextmanager
def bench(place: Place) -> Generator[Bench]:
    """The shards are put and an undisturbed set is made; later jobs are compared with it."""
    shards, truth = make_source(ROWS)
    place.put_source(shards)
    with proxy(urlsplit(place.endpoint).port or 80) as (endpoint, wire):
        job = dataclasses.replace(place.job("undisturbed"), environment=aws_variables(endpoint))
        if problem := run_to_the_end(job):
            raise AssertionError(problem)
        yield Bench(place, wire, endpoint, truth, data_hashes(place.objects(job)), tuple(wire.seen))


def search(on: Bench, actions: tuple[Action, ...] = LOSSES, *, first: int = 1, until_found: bool = False) -> Search:
    """All requests from the `first` on × `actions`; `until_found` stops at a violation."""
    found = Search()
    for action in actions:
        for number in count(first):
            if not case(on, number, action, found) or (until_found and found.violations):
                break
    return found


def case(on: Bench, number: int, action: Action, found: Search) -> bool:
    """One fault, the run to the end, the verdict; False where the run ended before the fault came."""
    job = on.job(f"{action.name.lower()}-{number}")
    fault, exit_code = _faulty_run(on, job, number, action)
    if fault.hit is None:
        return False
    found.cases[fault.hit, action] += 1
    wrong = []
    if exit_code == 5:
        found.gave_up += 1
    elif exit_code not in (0, -9):
        wrong.append(f"exit code {exit_code}: {said(job)}")
    if exit_code != 0 and (problem := run_to_the_end(job)):
        wrong.append(problem)
    verdict = judge(on.place.objects(job), on.truth, on.undisturbed)
    wrong += audited(job.dest)
    if wrong or not verdict.ok:
        found.violations.append(f"request {number} ({fault.hit}) {action}: {verdict} {wrong}")
    return True


def _faulty_run(on: Bench, job: Job, number: int, action: Action) -> tuple[Fault, int]:
    victim: Future[ForkServerProcess] = Future()
    fault = Fault(number, action, kill=lambda: victim.result().kill())
    on.wire.begin(fault)
    process, phases = start(job)
    victim.set_result(process)
    process.join(RUN_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{job.dest}: still at work after {RUN_SECONDS} s")
    phases.close()
    on.wire.begin()
    return fault, process.exitcode
