"""What a person who waits is told."""

from __future__ import annotations

import time

import pytest

from mmstream.telemetry import Progress


def test_the_time_left_counts_neither_the_start_nor_what_an_earlier_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("embed", 1_000, "shards") as progress:
        now = 60.0  # Ray starts
        progress.update(900)  # done by an earlier run
        assert "left" not in progress.line()
        now = 70.0
        progress.update(910)
        assert progress.line().endswith("left about 1:30")
