"""A store in bad weather loses nothing; and a protocol with a hole is found out in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from faults import planted, weather
from faults.places import place
from faults.store_requests import Bench, bench


@pytest.fixture(scope="module")
def on() -> Iterator[Bench]:
    with place("s3") as where, bench(where) as made:
        yield made


def test_a_set_made_in_bad_weather_is_the_undisturbed_one(on: Bench) -> None:
    tally = weather.campaign(on, 1, seed=1)
    assert tally.violations == []
    assert tally.struck.total() > 2


@pytest.mark.faults
def test_thirty_sets_made_in_bad_weather_are_the_undisturbed_one(on: Bench) -> None:
    tally = weather.campaign(on, 30, seed=1_000)
    assert tally.violations == []
    assert {action for _, action in tally.struck} == set(weather.KINDS)


@pytest.mark.faults
def test_a_record_that_is_put_before_its_data_is_found_out(on: Bench) -> None:
    broken = dataclasses.replace(on, planted=planted.record_before_data)
    assert weather.campaign(broken, 12, seed=0).violations
