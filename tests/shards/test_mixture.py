"""Mixtures: what an epoch reads of each source, that nothing is left out for ever, and one numbering of all shards."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream.errors import UsageError
from mmstream.shards.catalog import build_catalog, to_parquet
from mmstream.shards.mixture import build_mixture, epoch_reads
from mmstream.storage.files import write_bytes

WEIGHTS = st.builds(Fraction, st.integers(0, 300), st.sampled_from([1, 3, 10, 64, 100]))
SEEDS, EPOCHS = st.text("0123456789/", max_size=4), st.integers(0, 10_000)


def is_near(count: int, wanted: Fraction) -> bool:
    return floor(wanted) <= count <= ceil(wanted)


@given(st.integers(1, 40), WEIGHTS, SEEDS, EPOCHS, st.integers(1, 12))
def test_over_epochs_that_follow_each_other_every_shard_is_read_as_often_as_its_weight_says(
    num_shards: int, weight: Fraction, seed: str, epoch: int, num_epochs: int
) -> None:
    epochs = [epoch_reads(num_shards, weight, seed, epoch + e) for e in range(num_epochs)]
    for reads in epochs:
        assert is_near(len(reads), weight * num_shards)
        assert all(is_near(Counter(reads)[shard], weight) for shard in range(num_shards))
    together = Counter(shard for reads in epochs for shard in reads)
    assert is_near(together.total(), num_epochs * weight * num_shards)
    assert all(is_near(together[shard], num_epochs * weight) for shard in range(num_shards))
    assert together.keys() <= set(range(num_shards))


@given(st.integers(1, 40), WEIGHTS, SEEDS)
def test_the_first_epoch_is_not_the_one_without_a_shard(num_shards: int, weight: Fraction, seed: str) -> None:
    assert len(epoch_reads(num_shards, weight, seed, 0)) == ceil(weight * num_shards)


def test_what_an_epoch_reads_is_a_function_of_its_arguments_alone() -> None:
    tenths = [epoch_reads(10, Fraction("0.3"), "7/0", epoch) for epoch in range(4)]
    assert tenths == [[4, 5, 3], [9, 6, 2], [0, 1, 7], [8, 4, 5]]  # as ever: a run must go on after a release
    starts = {tuple(epoch_reads(60, Fraction("0.3"), f"{seed}/0", 0)) for seed in range(20)}
    assert len(starts) == 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/0.tar", "b/1.tar", "a/0.tar", "c/0.tar", "c/1.tar", "c/2.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_shards_are_numbered_as_in_a_catalog_of_the_same_sources(folder: Path) -> None:
    sources = [f"{folder}/c", f"{folder}/a/*.tar", f"{folder}/b/{{0,1}}.tar"]
    mixture = build_mixture(dict.fromkeys(sources, 1))
    assert mixture.catalog.equals(build_catalog(sources))
    assert [part.shards for part in mixture.parts] == [[3, 4, 5], [0], [1, 2]]
    write_bytes(f"{folder}/of_b.parquet", to_parquet(build_catalog(f"{folder}/b")))
    sources = [f"{folder}/a", f"{folder}/of_b.parquet"]
    mixture = build_mixture(dict.fromkeys(sources, 1))
    assert mixture.catalog.equals(build_catalog(sources)), "and those of a stored catalog keep their numbers"
    assert [part.shards for part in mixture.parts] == [[2], [0, 1]]


def test_weights_are_tenths_as_written_and_each_source_walks_a_circle_of_its_own(folder: Path) -> None:
    (folder / "b/2.tar").write_bytes(b"b/2.tar")
    mixture = build_mixture({f"{folder}/b": 0.1, f"{folder}/c": 2.1, f"{folder}/a": 0})
    assert mixture.catalog.num_rows == 7
    epochs = [mixture.reads(5, epoch) for epoch in range(10)]
    (b, c, a) = (Counter(shard for reads in epochs for shard in reads[place]) for place in range(3))
    assert (b, c, a) == (dict.fromkeys([1, 2, 3], 1), dict.fromkeys([4, 5, 6], 21), {})
    even = build_mixture({f"{folder}/b": 0.4, f"{folder}/c": 0.4})
    places = [{tuple(shard % 3 for shard in part) for part in even.reads(seed, 0)} for seed in range(20)]
    assert max(map(len, places)) == 2, "sources with pairs of shards must not always be read in pairs"


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), 1_001, "1", None])
def test_a_weight_that_is_none_is_refused_by_name(folder: Path, weight: float) -> None:
    with pytest.raises(UsageError, match=r"/b: its weight is .* how many times an epoch reads"):
        build_mixture({f"{folder}/a": 1, f"{folder}/b": weight})


def test_mixtures_that_cannot_be_read_are_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"b/1\.tar: both .*/b and .*/b/1\.tar name it"):
        build_mixture({f"{folder}/b": 1, f"{folder}/b/1.tar": 2})
    with pytest.raises(UsageError, match=r"no shard.*/a: 0\.9 × 1, .*/b: 0\.4 × 2.*larger weights"):
        build_mixture({f"{folder}/a": 0.9, f"{folder}/b": 0.4})
    with pytest.raises(UsageError, match=r"none given"):
        build_mixture({})
    with pytest.raises(UsageError, match=r"x/\*\.tar: no shard matches"):
        build_mixture({f"{folder}/a": 1, f"{folder}/x/*.tar": 1})
    with pytest.raises(UsageError, match="two catalogs"):
        build_mixture({f"{folder}/1.parquet": 1, f"{folder}/2.parquet": 1})
