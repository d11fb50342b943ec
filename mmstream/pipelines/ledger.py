"""What the driver of `embed` knows: what is committed, what is missing, how many samples were set aside.

It reads O(shards) folded records (and chunk records of unfinished shards only), hands out tasks for what is missing,
folds the records of a shard whose last gap closed, and ends a run whose error budget is spent. Counts are kept, not
recounted: a chunk costs the same at the end of a long run as at its start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from mmstream.embeddings.layout import Records, fold, next_generations, read_records, totals_of
from mmstream.embeddings.listing import list_records
from mmstream.embeddings.writer import commit_shard
from mmstream.errors import Reason, RefusedError, TooManyRejectsError, UsageError
from mmstream.pipelines.read import each_task
from mmstream.pipelines.source import ShardTask
from mmstream.schema import ChunkRecord, ShardRecord, Totals
from mmstream.shards.catalog import known_successes
from mmstream.telemetry import counted

MAX_REJECTS = 0.05  # the error budget where none is given
BUDGET_FROM_SAMPLES = 1_000
BUDGET_AT_END_FROM_SAMPLES = 100
_SAME_FIELDS = set(ShardRecord.model_fields)  # of every record, for all of them


class _Behind(NamedTuple):
    """What a damage hides: so many samples, where somebody vouched for them, in so many bytes."""

    known: int | None
    num_bytes: int


@dataclass
class _Read:
    samples: int = 0
    bytes: int = 0

    def add(self, samples: int, bytes: int) -> None:
        self.samples += samples
        self.bytes += bytes

    @property
    def samples_per_byte(self) -> float:
        return self.samples / self.bytes if self.bytes else 0.0


class Ledger:
    """
    Args:
        dest, catalog, fingerprint: the set, its frozen shards, and what its vectors depend on.
        max_rejects: the error budget, a share of the samples.
        records: what to go on from, where that is not simply what lies at `dest`,
        generations: and of the records that are to be written then, by shard; 0 where it says nothing.

    Attributes:
        shards: folded records of finished shards, without their chunks where these are not needed: a run's driver
            holds the same for a shard of a thousand samples and one of a million.
        num_samples, num_rows, rejects: what is committed, over all runs.
        num_encoded, num_folded: samples that this run committed, and shards.
        outrun: shards of which another driver had folded other records first; those count.
    """

    def __init__(
        self,
        dest: str,
        catalog: pa.Table,
        fingerprint: str,
        max_rejects: float,
        *,
        records: Records | None = None,
        generations: Mapping[int, int] | None = None,
    ) -> None:
        self.dest = dest
        self.max_rejects = max_rejects
        self.num_encoded = 0
        self.num_folded = 0
        self.outrun: list[int] = []
        self.num_samples = 0
        self.num_rows = 0
        self.rejects: Counter[str] = Counter()
        self._catalog, self._fingerprint = catalog, fingerprint
        self._keeps_chunks = True
        self._behind: dict[int, _Behind] = {}
        self._whole, self._broken = _Read(), _Read()  # of whole shards, and what came before damages
        if records is None:
            names = list_records(dest)
            records = read_records(dest, catalog, names, kept=self._summed_up)
            generations = next_generations(names, records)
            self._keeps_chunks = False
        self.generations = generations or {}
        self.shards = dict(records.shards)
        self._chunks = {shard: dict(chunks) for shard, chunks in records.chunks.items()}
        for record in [*self.shards.values(), *(c for s in self._chunks.values() for c in s.values())]:
            self._check(record)
            self._count(record)
        for shard in self.shards.values():
            self._note(shard)

    def _summed_up(self, record: ShardRecord) -> ShardRecord:
        self._check(record)
        values = {**record.__dict__, "chunks": []}
        return ShardRecord.model_construct(_SAME_FIELDS, **values)  # model_copy's own sets would double its size

    def _check(self, record: ChunkRecord | ShardRecord) -> None:
        for chunk in record.chunks if isinstance(record, ShardRecord) else [record]:
            if chunk.fingerprint != self._fingerprint:
                raise RefusedError(
                    f"{self.dest}: fingerprint of shard {chunk.shard} chunk {chunk.chunk} is {chunk.fingerprint}, "
                    f"the encoder's is {self._fingerprint}. Use another folder."
                )

    def _count(self, record: ChunkRecord | ShardRecord, times: int = 1) -> None:
        self.num_samples += times * record.num_samples
        self.num_rows += times * record.num_rows
        self.rejects.update({reason: times * n for reason, n in record.num_rejects.items()})

    def plan(self) -> list[ShardTask]:
        """Tasks for what is not committed; shards of which every chunk is there are folded on the way."""
        tasks = []
        for task in each_task(self._catalog):
            committed = frozenset(self._chunks.get(task.shard, {}))
            if task.shard in self.shards or self._fold(task.shard):
                continue
            tasks.append(replace(task, skip=committed))
        return tasks

    def add(self, record: ChunkRecord) -> None:
        """Takes note of a commit.

        Raises:
            TooManyRejectsError: the error budget is spent.
        """
        if record.shard in self.shards or record.chunk in self._chunks.get(record.shard, {}):
            return  # Ray repeated a task whose first attempt had committed
        self._chunks.setdefault(record.shard, {})[record.chunk] = record
        self._count(record)
        self.num_encoded += record.num_samples
        self._fold(record.shard)
        self._check_budget(BUDGET_FROM_SAMPLES)

    def _fold(self, shard: int) -> bool:
        record = fold(self._chunks.get(shard, {}))
        if record is None:
            return False
        stored = commit_shard(self.dest, record, self.generations.get(shard, 0))
        self.num_folded += 1
        if stored != record:
            self.outrun.append(shard)
            self._count(record, -1)
            self._count(stored)
            self.rejects = +self.rejects  # without what came to nothing
        self.shards[shard] = stored if self._keeps_chunks else self._summed_up(stored)
        del self._chunks[shard]
        self._note(stored)
        return True

    def _note(self, shard: ShardRecord) -> None:
        """A finished shard: its share in what a byte holds, or what is known of the rest that its damage hides."""
        size = self._catalog["bytes"][shard.shard].as_py()
        if shard.damage is None:
            self._whole.add(shard.num_samples, size)
            return
        before = shard.damage.offset
        if shard.damage.unpacked_bytes:  # a place in what it holds → its share of what is stored
            before = before * size // shard.damage.unpacked_bytes
        self._broken.add(shard.num_samples, before)
        successes = known_successes(self._catalog["url"][shard.shard].as_py())
        known = None if successes is None else max(0, successes - shard.num_samples)
        self._behind[shard.shard] = _Behind(known, size - before)

    @property
    def damaged(self) -> dict[int, int]:
        """Shard → about how many samples lie behind its damage: by `_stats.json`, else by bytes left × mean samples per
        byte, of whole shards where there are any."""
        rate = (self._whole if self._whole.bytes else self._broken).samples_per_byte
        return {s: int(b.num_bytes * rate) if b.known is None else b.known for s, b in self._behind.items()}

    def _check_budget(self, from_samples: int) -> None:
        broken, unknown = len(self._behind), sum(self.damaged.values())
        # A shard that broke has a reject, too, which is no sample: it stands for those that lie behind.
        rejected = self.rejects.total() - self.rejects[Reason.FILTERED] - broken
        seen = self.num_samples + unknown
        is_judged = seen >= from_samples or self.max_rejects == 0
        if not is_judged or rejected + max(unknown, broken) <= self.max_rejects * seen:
            return
        counts = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.rejects.items()))
        broken_off = f"; {counted(broken, 'shard')} broke off, and about {unknown:,} samples lie behind damage"
        behind = broken_off if broken else ""
        raise TooManyRejectsError(
            f"{self.dest}: {rejected:,} of {self.num_samples:,} samples were rejected ({counts}){behind}: more than "
            f"--max-rejects {self.max_rejects:.0%}. Committed work stays, `mmstream rejects {self.dest}` shows why. "
            "Raise --max-rejects and run the same embed again; or mend the source, and `mmstream rejects "
            f"{self.dest} --replay` takes it in."
        )

    def finish(self, source: str) -> Totals:
        """The totals of a set without gaps, after the error budget was judged for the last time.

        Raises:
            UsageError: no shard of `source` gave a sample.
            TooManyRejectsError: the error budget is spent.
        """
        missing = [shard for shard in range(self._catalog.num_rows) if shard not in self.shards]
        if missing:
            raise RefusedError(
                f"{self.dest}: {counted(len(missing), 'shard')} with gaps, first {missing[0]}. Run it again."
            )
        if self.num_samples == 0:
            broken = [s.damage for s in self.shards.values() if s.damage]
            why = f" (the first: {broken[0].reason}, {broken[0].detail})" if broken else ""
            raise UsageError(
                f"{source}: no shard gave a sample{why}. Are these WebDataset tars? If they are mended, `mmstream "
                f"rejects {self.dest} --replay` takes them in; for others use another folder."
            )
        self._check_budget(BUDGET_AT_END_FROM_SAMPLES)
        return totals_of(self.shards.values())
