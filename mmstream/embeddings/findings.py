"""What a check found: every difference with its place, what could not be looked at, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from mmstream.errors import UnreachableError

MAX_SILENT = 20  # objects without an answer, each after minutes of asking: the store is down, not the object
SHOWN_CHARACTERS = 300  # of one expected or found value: what is in a set is strangers' text of any length


class Difference(BaseModel):
    """One thing that is not as it should be. `shard` and `chunk` are null where it is about more than one."""

    shard: int | None
    chunk: int | None
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{_place(self.shard, self.chunk)}: {self.what}: expected {self.expected}, found {self.found}"


class Unchecked(BaseModel):
    """One thing that nothing can be said of: its store refused it, or did not answer."""

    shard: int | None
    chunk: int | None
    what: str
    why: str

    def __str__(self) -> str:
        return f"{_place(self.shard, self.chunk)}: {self.what}: {self.why}"


def _place(shard: int | None, chunk: int | None) -> str:
    where = "the set" if shard is None else f"shard {shard}"
    return where if chunk is None else f"{where} chunk {chunk}"


@dataclass
class Findings:
    """Of one shard, or of the whole set where `shard` is null. Source shards and samples are those counted again."""

    shard: int | None = None
    num_shards: int = 0
    num_samples: int = 0
    num_rows: int = 0
    num_source_shards: int = 0
    num_source_samples: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    unchecked: list[Unchecked] = field(default_factory=list)
    num_silent: int = 0

    def differ(self, what: str, expected: object, found: object, chunk: int | None = None) -> None:
        values = {"expected": str(expected)[:SHOWN_CHARACTERS], "found": str(found)[:SHOWN_CHARACTERS]}
        self.differences.append(Difference(shard=self.shard, chunk=chunk, what=what, **values))

    def cannot_read(self, what: str, error: UnreachableError, chunk: int | None = None) -> None:
        """
        Raises:
            UnreachableError: so many objects gave no answer that the next will not either.
        """
        self.unchecked.append(Unchecked(shard=self.shard, chunk=chunk, what=what, why=str(error)[:SHOWN_CHARACTERS]))
        self.num_silent += not isinstance(error.__cause__, PermissionError)
        if self.num_silent > MAX_SILENT:
            raise UnreachableError(f"{self.num_silent} objects gave no answer; the last: {error}") from error

    def add(self, other: Findings) -> None:
        self.num_shards += other.num_shards
        self.num_samples += other.num_samples
        self.num_rows += other.num_rows
        self.num_source_shards += other.num_source_shards
        self.num_source_samples += other.num_source_samples
        self.rejects.update(other.rejects)
        self.damaged += other.damaged
        self.differences += other.differences
        self.unchecked += other.unchecked
        self.num_silent += other.num_silent
        if self.num_silent > MAX_SILENT:
            raise UnreachableError(f"{self.num_silent} objects gave no answer; the last: {self.unchecked[-1].why}")
