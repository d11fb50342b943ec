"""Sources with weights become one catalog and, for every epoch, a list of the shards to read.

A weight is how many times an epoch reads a source: 1 every shard once, 2 every shard twice, 0.3 three tenths of the
shards (mosaicml's `repeat`, Energon's `repetitions`). Each source is walked in a circle, in an order drawn from the
seed, and an epoch begins where the one before ended. So nothing is drawn by luck and nothing is left out for ever:
over any E epochs that follow each other every shard is read ⌊E·weight⌋ or ⌈E·weight⌉ times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from numbers import Real
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mmstream.errors import UsageError
from mmstream.schema import CATALOG
from mmstream.shards.catalog import build_catalog, is_catalog

MAX_WEIGHT = 1_000  # more is a percentage or a number of samples, given by mistake

pc: Any = pyarrow.compute  # whose functions are made as it is imported, so that no type checker knows them


@dataclass(frozen=True)
class Part:
    """One source of a mixture: the numbers of its shards in the catalog, and how often an epoch reads them."""

    source: str
    weight: Fraction
    shards: list[int]


@dataclass(frozen=True)
class Mixture:
    """The catalog of all sources (schema.CATALOG), numbered as `build_catalog(list of the sources)` numbers it, so
    that ids are those of an embedding set of the same sources; and the sources, in the order given."""

    catalog: pa.Table
    parts: list[Part]

    def reads(self, seed: int, epoch: int) -> list[list[int]]:
        """The shards that an epoch reads, per source: numbers of the catalog, sorted, as often as they are read."""
        return [
            sorted(part.shards[i] for i in epoch_reads(len(part.shards), part.weight, f"{seed}/{place}", epoch))
            for place, part in enumerate(self.parts)
        ]


def epoch_reads(num_shards: int, weight: Fraction, seed: str, epoch: int) -> list[int]:
    """The stretch of the circle that an epoch walks: ⌊weight · num_shards⌋ or ⌈weight · num_shards⌉ of the numbers
    below `num_shards`, each ⌊weight⌋ or ⌈weight⌉ times; in epoch 0 the larger number of them.

    A pure function of its arguments. The circle is the same in every epoch: one drawn anew for each round would let
    an epoch end one round and begin the next with the same shard.
    """
    circle = list(range(num_shards))
    Random(f"mixture/{seed}").shuffle(circle)
    first, after = ceil(epoch * weight * num_shards), ceil((epoch + 1) * weight * num_shards)
    return [circle[i % num_shards] for i in range(first, after)]


def build_mixture(weights: Mapping[str, float]) -> Mixture:
    """The shards of each source (anything that `build_catalog` takes), listed once and numbered together.

    A source of weight 0 is numbered and not read. Weights are taken as written: 0.1 is a tenth.

    Raises:
        UsageError: a source is none or matches nothing, two sources share a shard or are both stored catalogs, a
            weight is no number from 0 to 1,000, or an epoch might have no shard at all.
        RefusedError, UnreachableError: as `build_catalog`.
    """
    exact = {source: _exact(source, weight) for source, weight in weights.items()}
    if len(stored := [source for source in exact if is_catalog(source)]) > 1:
        raise UsageError(f"{' and '.join(stored)}: two catalogs, and both number their shards from 0. Give one.")
    catalogs = {source: build_catalog(source) for source in exact}
    _check_apart(catalogs)
    if not any(weight * len(catalogs[source]) >= 1 for source, weight in exact.items()):
        raise UsageError(
            "an epoch of this mixture may have no shard: no source has one for every epoch (weight × shards ≥ 1), "
            f"{', '.join(f'{source}: {weights[source]} × {len(catalogs[source])}' for source in exact) or 'none given'}"
            ". Give larger weights, or more and smaller shards."
        )
    catalog = _numbered(catalogs)
    return Mixture(catalog, [Part(s, w, _numbers(catalog, catalogs[s])) for s, w in exact.items()])


def _exact(source: str, weight: float) -> Fraction:
    if not isinstance(source, str):
        raise UsageError(f"{source!r}: a source of a mixture is one string. Give the patterns of a list one by one.")
    try:
        exact = Fraction(str(weight)) if isinstance(weight, Real) else None
    except ValueError:  # inf and nan
        exact = None
    if exact is None or not 0 <= exact <= MAX_WEIGHT:
        raise UsageError(
            f"{source}: its weight is {weight!r}. A weight is how many times an epoch reads the source, from 0 to "
            f"{MAX_WEIGHT:,}: 1 is all of it once, 0.3 three tenths of its shards."
        )
    return exact


def _check_apart(catalogs: Mapping[str, pa.Table]) -> None:
    """Of a shard that two sources name nobody could say how often it is meant to be read."""
    owner: dict[str, str] = {}
    for source, catalog in catalogs.items():
        for url in catalog["url"].to_pylist():
            if owner.setdefault(url, source) != source:
                raise UsageError(f"{url}: both {owner[url]} and {source} name it. Give each shard to one source.")


def _numbered(catalogs: Mapping[str, pa.Table]) -> pa.Table:
    kept = [catalog for source, catalog in catalogs.items() if is_catalog(source)]
    new = [catalog for source, catalog in catalogs.items() if not is_catalog(source)]
    both = pa.concat_tables([*kept, *([pa.concat_tables(new).sort_by("url")] if new else [])]).combine_chunks()
    return both.set_column(0, CATALOG.field("shard"), pa.array(range(len(both)), pa.int32()))


def _numbers(catalog: pa.Table, part: pa.Table) -> list[int]:
    return pc.index_in(part["url"], value_set=catalog["url"].combine_chunks()).to_pylist()
