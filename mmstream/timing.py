"""Seconds by stage: who waits for whom. Of the standard library alone, so that a lone GPU can be measured with it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds by stage. `with watch("decode"): …` adds to one; `share` names the stage that took most."""

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


def slowest(seconds: Mapping[str, float]) -> str | None:
    """`"decode (61 %)"`: the stage that took the largest share of the time, or None before anything was timed."""
    total = sum(seconds.values())
    if total <= 0:
        return None
    stage = max(seconds, key=lambda s: seconds[s])
    return f"{stage} ({100 * seconds[stage] / total:.0f} %)"
