"""A flipped bit is noticed before it is used, wherever something can notice it."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import flips
from faults.places import place


def test_a_flip_in_a_shard_is_noticed_told_or_harmless(tmp_path: Path) -> None:
    found = flips.Flips()
    flips.flip_shards(tmp_path, flips.PROTECTIONS[0], 60, 0, found)
    assert found.violations == []
    assert found.fates["shard: header", flips.Fate.DETECTED]
    assert found.fates["shard: jpg", flips.Fate.SILENT], "without a checksum nobody can know"


@pytest.mark.faults
@pytest.mark.parametrize("protection", flips.PROTECTIONS, ids=lambda p: p.name)
def test_flips_in_shards(protection: flips.Protection, tmp_path: Path) -> None:
    found = flips.Flips()
    flips.flip_shards(tmp_path, protection, 300, 1, found)
    assert found.violations == []


@pytest.mark.faults
@pytest.mark.parametrize("flip", [flips.flip_finished_set, flips.flip_begun_set])
def test_flips_in_records_and_outputs(flip) -> None:
    found = flips.Flips()
    with place("local") as where:
        flip(where, 40, 1, found)
    assert found.violations == []
