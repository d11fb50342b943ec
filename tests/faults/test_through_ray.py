"""Workers, raylets and drivers of a real Ray die at work, and the same command again makes the set whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import through_ray
from faults.through_ray import AIMS, Victim


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_workers_raylets_and_drivers_are_killed_at_work(tmp_path: Path) -> None:
    with through_ray.bench(tmp_path) as on:
        tally = through_ray.campaign(on, AIMS[::4], seed=0)
    assert tally.violations == []
    assert {victim for victim, _ in tally.kills} == set(Victim)
