"""The whole fault campaign, or parts of it, as one command: prints the tables, ends with 1 if anything was violated.

PYTHONPATH=.:tests python -m faults.campaign [--quick] [--part kills] [--seed N] [--kills N]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults import flips, kills, planted, store_requests, through_ray, weather
from faults.phases import Phase
from faults.places import place
from faults.proxy import LOSSES
from faults.store_requests import bench, search
from faults.table import Outcome

KILLS = {"local": 660, "s3": 345}
QUICK_KILLS = {"local": 45, "s3": 15}


def kills_part(quick: bool, seed: int, num_kills: int | None) -> Outcome:
    """Part 1: the commit layer without Ray."""
    began, rows, violations = time.monotonic(), [], []
    total = kills.Tally()
    for name, wanted in (QUICK_KILLS if quick else KILLS).items():
        start = time.monotonic()
        with place(name) as where:
            tally = kills.campaign(where, num_kills or wanted, seed)
        rows.append(_kill_row(where.name, tally, time.monotonic() - start))
        violations += tally.violations
        total.add(tally)
    if not quick and num_kills is None:
        violations += kills.thin_phases(total.kills)
    rows.append(_kill_row("all", total, time.monotonic() - began))
    columns = ["kills of", "kills", "sets", *(p.name.lower() for p in Phase), "lost", "doubled", "unequal", "seconds"]
    return Outcome("SIGKILL of the commit layer, by phase", columns, rows, violations, time.monotonic() - began)


def _kill_row(name: str, tally: kills.Tally, seconds: float) -> list[object]:
    by_phase = [tally.kills[p] for p in Phase]
    figures = [tally.lost, tally.doubled, tally.unequal, round(seconds)]
    return [name, tally.kills.total(), tally.histories, *by_phase, *figures]


def requests_part(quick: bool, seed: int, num_kills: int | None) -> Outcome:
    """Part 2: every store request. `quick` begins at the first data object, and leaves the planted holes out."""
    began, violations, rows = time.monotonic(), [], []
    with place("s3") as where, bench(where) as on:
        first = on.kinds.index("PUT data") + 1
        found = search(on, first=first if quick else 1)
        violations += found.violations
        for kind in dict.fromkeys(on.kinds):
            rows.append([kind, *(found.cases[kind, action] for action in LOSSES)])
        rows.append(["all", *(sum(n for (_, a), n in found.cases.items() if a is action) for action in LOSSES)])
        for hole in () if quick else (planted.record_before_data, planted.renamed_after_record):
            result = search(dataclasses.replace(on, planted=hole), first=first, until_found=True)
            rows.append(
                [f"planted hole `{hole.__name__}`: " + ("found" if result.violations else "MISSED"), "", "", ""]
            )
            if not result.violations:
                violations.append(f"the search does not find the planted hole {hole.__name__}")
    title = f"Every store request × 3: {found.cases.total()} cases, {len(found.violations)} violations"
    return Outcome(title, ["request", *LOSSES], rows, violations, time.monotonic() - began)


def flips_part(quick: bool, seed: int, num_kills: int | None) -> Outcome:
    """Part 3: single bits."""
    began, found, share = time.monotonic(), flips.Flips(), 10 if quick else 1
    for protection in flips.PROTECTIONS:
        with place("local") as where:
            flips.flip_shards(where.logs, protection, 450 // share, seed, found)
    with place("local") as where:
        flips.flip_finished_set(where, 120 // share, seed, found)
    with place("local") as where:
        flips.flip_begun_set(where, 60 // share, seed, found)
    rows = [[t, *(found.fates[t, fate] for fate in flips.Fate)] for t in found.targets()]
    rows.append(["all", *(sum(n for (_, f), n in found.fates.items() if f is fate) for fate in flips.Fate)])
    title = f"{found.fates.total():,} single-bit flips"
    return Outcome(title, ["flipped in", *flips.Fate], rows, found.violations, time.monotonic() - began)


def weather_part(quick: bool, seed: int, num_kills: int | None) -> Outcome:
    """Part 5: a store in bad weather."""
    began = time.monotonic()
    with place("s3") as where, store_requests.bench(where) as on:
        tally = weather.campaign(on, 4 if quick else 60, seed)
    methods = ["LIST", "HEAD", "GET", "PUT", "DELETE"]
    rows = []
    for action in weather.KINDS:
        by_method = [sum(n for (w, a), n in tally.struck.items() if (m, action) == (w.split()[0], a)) for m in methods]
        rows.append([action, sum(by_method), *by_method])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(methods) + 2))])
    ended = ", ".join(f"{n} with exit code {code}" for code, n in sorted(tally.runs.items()))
    judged = (
        f"{tally.sets} sets in {tally.runs.total()} runs ({ended}; repair needed {tally.mended} times, replay "
        f"{tally.replayed}): {tally.lost} lost, {tally.doubled} doubled, {tally.unequal} unequal"
    )
    title = f"A store in bad weather, {judged}"
    return Outcome(title, ["what goes wrong", "requests", *methods], rows, tally.violations, time.monotonic() - began)


def ray_part(quick: bool, seed: int, num_kills: int | None) -> Outcome:
    """Part 4: through Ray."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, through_ray.bench(Path(folder)) as on:
        tally = through_ray.campaign(on, through_ray.AIMS[:: 4 if quick else 1], seed)
    phases = list(dict.fromkeys([*kills.WORK, *(phase for _, phase in tally.kills)]))
    rows = []
    for victim in through_ray.Victim:
        by_phase = [tally.kills[victim, phase] for phase in phases]
        rows.append([victim, sum(by_phase), *by_phase])
    total = Counter({phase: sum(tally.kills[v, phase] for v in through_ray.Victim) for phase in phases})
    rows.append(["all", total.total(), *(total[phase] for phase in phases)])
    violations = [*tally.violations, *([] if quick else kills.thin_phases(total))]
    judged = (
        f"{tally.sets} sets in {tally.runs} runs: {tally.lost} lost, {tally.doubled} doubled, {tally.unequal} unequal"
    )
    title = f"SIGKILL through Ray, {judged}"
    columns = ["killed", "kills", *(phase.name.lower() for phase in phases)]
    return Outcome(title, columns, rows, violations, time.monotonic() - began)


PARTS: dict[str, Callable[[bool, int, int | None], Outcome]] = {
    "kills": kills_part,
    "requests": requests_part,
    "flips": flips_part,
    "weather": weather_part,
    "ray": ray_part,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults, counted: tests/faults/README.md tells what the tables mean.")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given more than once")
    parser.add_argument("--quick", action="store_true", help="a small share of each part: about a minute")
    parser.add_argument("--seed", type=int, default=0, help="where the seeds begin; a failing case names its own")
    parser.add_argument("--kills", type=int, help="kills per place, instead of the usual number")
    options = parser.parse_args()
    print(f"seed {options.seed}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    violations = []
    for name in options.part or PARTS:
        outcome = PARTS[name](options.quick, options.seed, options.kills)
        print(f"\n{outcome.markdown()}", flush=True)
        for violation in outcome.violations:
            print(f"VIOLATION: {violation}", flush=True)
        violations += outcome.violations
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
