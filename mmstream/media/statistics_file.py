"""What `mmstream stats` stores and training reads: statistics of a data set's pictures, sounds, numbers, captions."""

from __future__ import annotations

from pydantic import Field

from mmstream.errors import RefusedError, UsageError
from mmstream.media.statistics import Statistics
from mmstream.schema import Record, Sealed
from mmstream.storage.files import read_bytes

KINDS = ("image", "audio", "numbers", "captions")


class BrokenShard(Record):
    """A shard that broke at `offset`: what lies behind was not counted."""

    shard: int
    url: str
    reason: str
    offset: int
    detail: str


class StatisticsFile(Sealed):
    """Of the samples of a catalog: `samples` were seen, `used` of them made up the statistics, and the others are in
    `rejects`. `present` says how many of the used ones had a picture, a sound, a caption, any number. Null is what was
    not asked for, or not there."""

    catalog_sha256: str
    limit: int | None
    of: list[str]
    fields: list[str] | None  # null: all that hold numbers
    samples: int = Field(ge=0)
    used: int = Field(ge=0)
    rejects: dict[str, int]
    damaged: list[BrokenShard]
    present: dict[str, int]
    image: Statistics | None = None
    audio: Statistics | None = None
    numbers: Statistics | None = None
    captions: Statistics | None = None

    def kind(self, name: str, where: str) -> Statistics:
        """
        Raises:
            UsageError: the file at `where` has nothing of it.
        """
        found: Statistics | None = getattr(self, name)
        if found is None or not any(f.count for f in found.features):
            has = ", ".join(k for k in KINDS if getattr(self, k)) or "nothing"
            raise UsageError(f"{where}: has no statistics of {name} (it has {has}). Make it of shards that have some.")
        return found


def read_statistics(url: str) -> StatisticsFile:
    """
    Raises:
        UsageError: nothing is at `url`, or what `mmstream stats` did not write.
        RefusedError: its format is another.
        UnreachableError: the store does not answer.
    """
    try:
        return StatisticsFile.from_bytes(read_bytes(url))
    except RefusedError as e:
        raise RefusedError(f"{url}: {e}") from e
    except ValueError as e:
        why = " ".join(str(e).split())[:200]
        raise UsageError(f"{url}: is no file of `mmstream stats`, or was changed since ({why}). Make it again.") from e
