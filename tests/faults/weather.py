"""Part 5: a store in bad weather. Every twelfth request or so goes wrong in one of seven ways, while a set is made.

The job is run again until it ends well, and whoever is told to do something by an error does it, as a person would.
Then, in calm, the audit must name every difference that the weather left, `repair` must mend it, and the set must be
what it is in an undisturbed run. Replies that come late, cut or not at all may leave no difference: only bits that were
flipped on their way into the store may. The shards are listed with their SHA-256: without one, nobody could notice a
bit flipped on its way out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import boto3
from faults.job import CHUNK_ROWS, Job, make_source, start
from faults.judge import Verdict, audited, judge
from faults.kills import RUN_SECONDS, said
from faults.places import BUCKET
from faults.proxy import Action, Weather
from faults.store_requests import ROWS, Bench
from without_ray import without_ray

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import MmstreamError
from mmstream.pipelines.repair import repair, replay

RATE = 0.08
MAX_RUNS = 40
LIST = "listed.jsonl"
KINDS = (
    Action.UNAVAILABLE,
    Action.REPLY_LOST,
    Action.RESET,
    Action.SHORT,
    Action.STALL,
    Action.FLIPPED_REPLY,
    Action.FLIPPED_REQUEST,
)


def allowed(what: str) -> Sequence[Action]:
    """What may happen to a request of this kind. Stalls cost a time-out each, and are rare for that. What a listing or
    a header says is protected by nothing but the connection itself."""
    actions = [Action.UNAVAILABLE, Action.REPLY_LOST] * 6
    if what.startswith("GET"):
        actions += [Action.RESET, Action.SHORT] * 6 + [Action.STALL]
    if what in ("GET shards", "GET catalog", "GET manifest", "GET commits"):
        actions += [Action.FLIPPED_REPLY] * 6
    if what in ("PUT data", "PUT rejects", "PUT commits", "PUT manifest", "PUT catalog"):
        actions += [Action.FLIPPED_REQUEST] * 6
    return actions


@dataclass
class Tally:
    """`struck` by (kind of request, action). Runs end well, give up (exit 5), or refuse what a flipped bit made (3, 6);
    `mended` sets needed `repair`, `replayed` ones the replay of a shard that was not its SHA-256 twice."""

    struck: Counter[tuple[str, Action]] = field(default_factory=Counter)
    sets: int = 0
    runs: Counter[int] = field(default_factory=Counter)
    mended: int = 0
    replayed: int = 0
    lost: int = 0
    doubled: int = 0
    unequal: int = 0
    violations: list[str] = field(default_factory=list)


def campaign(on: Bench, num_sets: int, seed: int) -> Tally:
    """Sets with seeds from `seed` on."""
    shards, _ = make_source(ROWS)
    lines = [{"url": f"shards/{name}", "sha256": hashlib.sha256(data).hexdigest()} for name, data in shards.items()]
    on.place.put(LIST, "".join(json.dumps(line) + "\n" for line in lines).encode())
    tally = Tally()
    for n in range(seed, seed + num_sets):
        history(on, n, tally)
    return tally


def history(on: Bench, seed: int, tally: Tally) -> None:
    job = replace(on.job(f"weather-{seed}"), source=f"{on.place.root}/{LIST}")
    wrong, flips = _through_the_weather(on, job, seed, tally)
    on.wire.begin()
    for _ in range(3):  # in calm: what flipped bits left in the store is named, and mended by what the error says
        code = _run(job)
        if code == 0:
            break
        wrong += _answered(on, job, code, flips, tally)
    else:
        wrong.append(f"does not end in calm, exit code {code}: {said(job)}")
    if differences := audited(job.dest):
        if not flips[Action.FLIPPED_REQUEST]:
            wrong += differences
        wrong += _mended(job, tally)
    wrong += _replayed(job, tally)
    verdict = judge(on.place.objects(job), on.truth, on.undisturbed)
    tally.sets += 1
    tally.lost += len(verdict.lost)
    tally.doubled += len(verdict.doubled)
    tally.unequal += len(verdict.unequal)
    if wrong or verdict != Verdict():
        tally.violations.append(f"--seed {seed}: {verdict} {wrong} in {job.dest}")


def _through_the_weather(on: Bench, job: Job, seed: int, tally: Tally) -> tuple[list[str], Counter[Action]]:
    """Runs the job until it ends well; what went wrong, and the flips."""
    wrong: list[str] = []
    flips: Counter[Action] = Counter()
    for attempt in range(MAX_RUNS):
        on.wire.begin(weather=Weather(f"{seed}/{attempt}", RATE, allowed))
        code = _run(job)
        tally.runs[code] += 1
        for fault in on.wire.struck:
            tally.struck[fault.hit or "", fault.action] += 1
            flips[fault.action] += fault.action in (Action.FLIPPED_REPLY, Action.FLIPPED_REQUEST)
        if code == 0:
            return wrong, flips
        on.wire.begin()
        if code != 5:  # the store did not answer: the same command again
            wrong += _answered(on, job, code, flips, tally)
    return [*wrong, f"{MAX_RUNS} runs did not end well, the last said {said(job)}"], flips


def _run(job: Job) -> int:
    process, phases = start(job)
    process.join(RUN_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    phases.close()
    return process.exitcode if process.exitcode is not None else 1


def _answered(on: Bench, job: Job, code: int, flips: Counter[Action], tally: Tally) -> list[str]:
    """What a person does who reads the error; what is wrong with it."""
    text = said(job)
    if code == 3 and flips.total() and "move " in text and "manifest away" in text:
        client = boto3.client("s3", endpoint_url=on.place.endpoint)
        prefix = job.dest.removeprefix(f"s3://{BUCKET}/") + "/manifest/"
        for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])
        return []
    if code == 3 and flips.total():  # a record that was flipped on its way to the reader: the same command again
        return []
    if code == 6 and flips.total():
        return _mended(job, tally)
    return [f"exit code {code}: {text}"]


def _mended(job: Job, tally: Tally) -> list[str]:
    tally.mended += 1
    try:
        with without_ray(CHUNK_ROWS):
            repair(job.dest, [job.source])
    except MmstreamError as e:
        return [f"repair: {e}"]
    return list(audited(job.dest))


def _replayed(job: Job, tally: Tally) -> list[str]:
    rejects = [r["reason"] for t in EmbeddingSet.open(job.dest).rejects() for r in t.to_pylist()]
    if "checksum" not in rejects:
        return []
    tally.replayed += 1
    with without_ray(CHUNK_ROWS):
        replay(job.dest, ["checksum"])
    return list(audited(job.dest))
