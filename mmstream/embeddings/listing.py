"""The names of an embedding set's records, from one listing: by shard, without a word about what is in them.

A set may have a record for every few hundred samples, so that a name is kept as three numbers and spelt when it is
asked for: the names of a billion samples are 48 MB, not gigabytes.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from mmstream.storage.files import each_url, join

# As `chunk_record_path` and `shard_record_path` write them; other names are nobody's records.
_NUMBER, _GENERATION = "([0-9]{6}|[1-9][0-9]{6,17})", "(0|[1-9][0-9]{0,17})"
_RECORD = re.compile(rf"/commits/{_NUMBER}(?:/{_NUMBER})?\.{_GENERATION}\.json$")
_FOLDED = -1  # in the place of a chunk


def chunk_record_path(shard: int, chunk: int, generation: int = 0) -> str:
    return f"commits/{shard:06}/{chunk:06}.{generation}.json"


def shard_record_path(shard: int, generation: int = 0) -> str:
    return f"commits/{shard:06}.{generation}.json"


@dataclass(frozen=True, slots=True)
class Generations:
    """The names of one shard's records as (generation, URL), each list from the highest down."""

    folded: list[tuple[int, str]] = field(default_factory=list)
    chunks: dict[int, list[tuple[int, str]]] = field(default_factory=dict)

    @property
    def next(self) -> int:
        """The first generation that no record of the shard has."""
        return max((names[0][0] for names in (self.folded, *self.chunks.values()) if names), default=-1) + 1

    @property
    def is_behind(self) -> bool:
        """Whether some chunk has a record that is newer than the folded ones: a repair or replay was killed."""
        newest_chunk = max((of_chunk[0][0] for of_chunk in self.chunks.values()), default=-1)
        return newest_chunk > (self.folded[0][0] if self.folded else -1)


class Listing(Mapping[int, Generations]):
    """By shard, in order. What it gives is made at each asking, and its own to change."""

    def __init__(self, root: str, shards: array[int], chunks: array[int], generations: array[int]) -> None:
        columns = [np.frombuffer(column, np.int64) for column in (shards, chunks, generations)]
        order = np.lexsort((-columns[2], columns[1], columns[0]))
        columns = [column[order] for column in columns]
        self._root = root
        self._first = np.flatnonzero(np.diff(columns[0], prepend=-1)).data  # of each shard's names
        self._shards, self._chunks, self._generations = (column.data for column in columns)  # their items are ints

    def __len__(self) -> int:
        return len(self._first)

    def __iter__(self) -> Iterator[int]:
        return (self._shards[i] for i in self._first)

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and len(self._names(shard)) > 0

    def __getitem__(self, shard: int) -> Generations:
        names = self._names(shard)
        if not names:
            raise KeyError(shard)
        found = Generations()
        for i in names:
            chunk, generation = self._chunks[i], self._generations[i]
            if chunk == _FOLDED:
                found.folded.append((generation, join(self._root, shard_record_path(shard, generation))))
            else:
                url = join(self._root, chunk_record_path(shard, chunk, generation))
                found.chunks.setdefault(chunk, []).append((generation, url))
        return found

    def _names(self, shard: int) -> range:
        first = bisect_left(self._shards, shard)
        return range(first, bisect_right(self._shards, shard, first))


def list_records(root: str) -> Listing:
    """The records that lie at `root`, from one listing."""
    shards, chunks, generations = columns = array("q"), array("q"), array("q")
    for url in each_url(join(root, "commits")):
        if name := _RECORD.search(url):
            shards.append(int(name[1]))
            chunks.append(_FOLDED if name[2] is None else int(name[2]))
            generations.append(int(name[3]))
    return Listing(root, *columns)
