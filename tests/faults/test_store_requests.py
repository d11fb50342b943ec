"""A request to the store may be lost in every way; and a protocol with a hole is found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from faults import planted
from faults.places import place
from faults.proxy import LOSSES, Action
from faults.store_requests import Bench, Search, bench, case, search


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    with place("s3") as where, bench(where) as made:
        yield made


def test_a_record_is_put_once_whatever_happens_to_its_request(on: Bench) -> None:
    number = on.kinds.index("PUT commits") + 1
    found = Search()
    for action in LOSSES:
        assert case(on, number, action, found)
    assert found.violations == []


def test_a_record_that_is_put_before_its_data_is_found_out(on: Bench) -> None:
    number = on.kinds.index("PUT data") + 1  # where the broken protocol puts its record
    broken, found = dataclasses.replace(on, planted=planted.record_before_data), Search()
    case(broken, number, Action.KILLED_AFTER, found)
    assert len(found.violations) == 1
    assert "data object is missing" in found.violations[0]


@pytest.mark.faults
def test_every_request_may_be_lost(on: Bench) -> None:
    found = search(on)
    assert found.violations == []
    assert {kind for kind, _ in found.cases} >= set(on.kinds)


@pytest.mark.faults
@pytest.mark.parametrize("hole", [planted.record_before_data, planted.renamed_after_record])
def test_the_search_finds_planted_holes(on: Bench, hole) -> None:
    first = on.kinds.index("PUT data") + 1
    assert search(dataclasses.replace(on, planted=hole), first=first, until_found=True).violations
