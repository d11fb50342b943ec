"""Killed at any moment and run again, a set is as if nothing had been; and a protocol with a hole is found out."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from faults import kills
from faults.judge import Objects, data_hashes, judge
from faults.places import Place, place

from mmstream.schema import canonical_sha256


@pytest.fixture
def folder() -> Iterator[Place]:
    with place("local") as where:
        yield where


def test_drivers_killed_in_every_phase_lose_nothing_and_give_the_same_bytes(folder: Place) -> None:
    tally = kills.campaign(folder, 15, seed=0)
    assert tally.violations == []
    assert tally.kills.total() >= 15
    assert {phase for phase in kills.WORK if tally.kills[phase]} == set(kills.WORK), tally.kills


def test_the_judge_sees_what_is_lost_doubled_or_changed(folder: Place) -> None:
    truth, undisturbed = kills.prepare(folder)
    objects = folder.objects(folder.job("undisturbed"))
    assert judge(objects, truth, undisturbed).ok

    def without(*prefixes: str) -> Objects:
        return {p: d for p, d in objects.items() if not p.startswith(prefixes)}

    assert judge(without("commits/000002."), truth, undisturbed).lost == tuple(truth.keys[2])
    assert "data object is missing" in judge(without("data/000001-000000"), truth, undisturbed).other[0]
    other_keys = type(truth)([["x", *truth.keys[0][1:]], *truth.keys[1:]])
    assert judge(objects, other_keys, undisturbed).other
    assert judge(objects, truth, {**data_hashes(objects), (0, 1): "another"}).unequal == ((0, 1),)
    record = next(p for p in objects if p.startswith("commits/000000."))
    twice = objects[record].replace(b'"chunk": 1,', b'"chunk": 0,')
    data = [p for p in sorted(objects) if p.startswith("data/000000-")]
    twice = twice.replace(data[1].encode(), data[0].encode())
    forged = {name: value for name, value in json.loads(twice).items() if name != "sha256"}
    sealed = json.dumps({**forged, "sha256": canonical_sha256(forged)}).encode()
    assert judge({**objects, record: sealed}, truth, undisturbed).doubled
    assert judge({**objects, record: twice}, truth, undisturbed).lost == tuple(truth.keys[0]), "no record at all"


@pytest.mark.faults
@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_hundred_kills_of_the_commit_layer(where: str) -> None:
    with place(where) as at:
        tally = kills.campaign(at, 100, seed=1_000)
    assert tally.violations == []
    assert kills.thin_phases(tally.kills) == []
