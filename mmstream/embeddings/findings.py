"""What a check found: every difference with its place, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

SHOWN_CHARACTERS = 300  # of one expected or found value: what is in a set is strangers' text of any length


class Difference(BaseModel):
    """One thing that is not as it should be. `shard` and `chunk` are null where it is about more than one."""

    shard: int | None
    chunk: int | None
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        shard = "the set" if self.shard is None else f"shard {self.shard}"
        where = shard if self.chunk is None else f"{shard} chunk {self.chunk}"
        return f"{where}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass
class Findings:
    """Of one shard, or of the whole set where `shard` is null."""

    shard: int | None = None
    num_shards: int = 0
    num_samples: int = 0
    num_rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def differ(self, what: str, expected: object, found: object, chunk: int | None = None) -> None:
        values = {"expected": str(expected)[:SHOWN_CHARACTERS], "found": str(found)[:SHOWN_CHARACTERS]}
        self.differences.append(Difference(shard=self.shard, chunk=chunk, what=what, **values))

    def add(self, other: Findings) -> None:
        self.num_shards += other.num_shards
        self.num_samples += other.num_samples
        self.num_rows += other.num_rows
        self.rejects.update(other.rejects)
        self.damaged += other.damaged
        self.differences += other.differences
