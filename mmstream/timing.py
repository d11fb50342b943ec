"""Seconds by stage: who waits for whom. Of the standard library alone, so that a lone GPU can be measured with it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

MIN_SECONDS = 2.0  # of all stages together: what took most of less is a matter of luck, and no advice would be true
ADVICE = {
    "store": "the source answers slowly: run nearer to it, or give Ray more CPUs, so that more shards are read at once",
    "tar": "reading the shards does not keep up: give Ray more CPUs, so that more of them are read at once",
    "decode": "decoding takes the cores: more CPU cores for each encoder, or shards of smaller pictures",
    "transfer": "the copy to the device takes long: fewer encoders that share its bus, or larger micro-batches",
    "model": "the model is the limit, which is as it should be: a GPU, more of them, or a smaller model",
    "write": "the destination takes chunks slowly: write nearer, or to a faster store",
}


class Stopwatch:
    """Seconds by stage. `with watch("decode"): …` adds to one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True)
class Diagnosis:
    """Where the time of an encoder went: `waited` is the share in which its model had nothing to do, `stage` what took
    most of all, the model included, with its `share`."""

    waited: float
    stage: str
    share: float

    @property
    def most(self) -> str:
        """`"decode (61 %)"`"""
        return f"{self.stage} ({100 * self.share:.0f} %)"

    @property
    def advice(self) -> str:
        return ADVICE[self.stage]


def diagnosed(seconds: Mapping[str, float]) -> Diagnosis | None:
    """From seconds by stage, as `ADVICE` names them; None before `MIN_SECONDS` of them were timed."""
    total = sum(seconds.values())
    if total < MIN_SECONDS:
        return None
    stage = max(seconds, key=lambda s: seconds[s])
    return Diagnosis(1 - seconds.get("model", 0.0) / total, stage, seconds[stage] / total)
