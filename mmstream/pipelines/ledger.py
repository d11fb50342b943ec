"""What the driver of `embed` knows: what is committed, what is missing, how many samples were set aside.

It reads O(shards) folded records (and chunk records of unfinished shards only), hands out tasks for what is missing,
folds the records of a shard whose last gap closed, and ends a run whose error budget is spent. Counts are kept, not
recounted: a chunk costs the same at the end of a long run as at its start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from mmstream.embeddings.layout import Records, fold, list_records, next_generations, read_records
from mmstream.embeddings.writer import commit_shard
from mmstream.errors import RefusedError, TooManyRejectsError, UsageError
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import ShardTask
from mmstream.schema import ChunkRecord, ShardRecord, Totals
from mmstream.shards.catalog import known_successes

MAX_REJECTS = 0.05  # the error budget where none is given
BUDGET_FROM_SAMPLES = 1_000
BUDGET_AT_END_FROM_SAMPLES = 100


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
        num_encoded: samples that this run committed.
        damaged: shard → about how many samples lie behind its damage.
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
        self.num_samples = 0
        self.num_rows = 0
        self.rejects: Counter[str] = Counter()
        self._catalog, self._fingerprint = catalog, fingerprint
        self._keeps_chunks = True
        self.damaged: dict[int, int] = {}
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
            self._note_damage(shard)

    def _summed_up(self, record: ShardRecord) -> ShardRecord:
        self._check(record)
        return record.model_copy(update={"chunks": []})

    def _check(self, record: ChunkRecord | ShardRecord) -> None:
        for chunk in record.chunks if isinstance(record, ShardRecord) else [record]:
            if chunk.fingerprint != self._fingerprint:
                raise RefusedError(
                    f"{self.dest}: fingerprint of shard {chunk.shard} chunk {chunk.chunk} is {chunk.fingerprint}, "
                    f"the encoder's is {self._fingerprint}. Use another folder."
                )

    def _count(self, record: ChunkRecord | ShardRecord) -> None:
        self.num_samples += record.num_samples
        self.num_rows += record.num_rows
        self.rejects.update(record.num_rejects)

    def plan(self) -> list[ShardTask]:
        """Tasks for what is not committed; shards of which every chunk is there are folded on the way."""
        tasks = []
        for task in shard_tasks(self._catalog):
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
        record = commit_shard(self.dest, record, self.generations.get(shard, 0))
        self.shards[shard] = record if self._keeps_chunks else self._summed_up(record)
        del self._chunks[shard]
        self._note_damage(record)
        return True

    def _note_damage(self, shard: ShardRecord) -> None:
        if shard.damage is not None:
            self.damaged[shard.shard] = self._samples_behind(shard)

    def _samples_behind(self, shard: ShardRecord) -> int:
        """About how many samples lie behind a damage: by `_stats.json`, else by bytes left × mean samples per byte."""
        entry = self._catalog.slice(shard.shard, 1).to_pylist()[0]
        if (successes := known_successes(entry["url"])) is not None:
            return max(0, successes - shard.num_samples)
        assert shard.damage is not None
        left = entry["bytes"] - shard.damage.offset
        own = shard.num_samples / shard.damage.offset if shard.damage.offset else 0.0
        return int(left * (self._samples_per_byte() or own))

    def _samples_per_byte(self) -> float:
        """Over the shards that are whole; 0 before there is one."""
        whole = [s for s in self.shards.values() if s.damage is None]
        size = sum(self._catalog["bytes"][s.shard].as_py() for s in whole)
        return sum(s.num_samples for s in whole) / size if size else 0.0

    def _check_budget(self, from_samples: int) -> None:
        rejected, unknown = self.rejects.total(), sum(self.damaged.values())
        seen = self.num_samples + unknown
        if seen < from_samples or rejected + unknown <= self.max_rejects * seen:
            return
        counts = ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.rejects.items()))
        behind = f", and about {unknown:,} samples lie behind damage" if unknown else ""
        raise TooManyRejectsError(
            f"{self.dest}: {rejected:,} of {self.num_samples:,} samples were rejected ({counts}){behind}: more than "
            f"--max-rejects {self.max_rejects:.0%}. Committed work stays; mend the source, or raise --max-rejects "
            "and run the same command again."
        )

    def finish(self, source: str) -> Totals:
        """The totals of a set without gaps, after the error budget was judged for the last time.

        Raises:
            UsageError: no shard of `source` gave a sample.
            TooManyRejectsError: the error budget is spent.
        """
        missing = [shard for shard in range(self._catalog.num_rows) if shard not in self.shards]
        if missing:
            raise RefusedError(f"{self.dest}: {len(missing)} shards have gaps, first {missing[0]}. Run it again.")
        if self.num_samples == 0:
            broken = [s.damage for s in self.shards.values() if s.damage]
            why = f" (the first: {broken[0].reason}, {broken[0].detail})" if broken else ""
            raise UsageError(f"{source}: no shard gave a sample{why}. Are these WebDataset tars?")
        self._check_budget(BUDGET_AT_END_FROM_SAMPLES)
        rejects: Counter[str] = Counter()
        for record in self.shards.values():
            rejects.update(record.num_rejects)
        return Totals(
            shards=len(self.shards),
            samples=sum(s.num_samples for s in self.shards.values()),
            rows=sum(s.num_rows for s in self.shards.values()),
            rejects=dict(sorted(rejects.items())),
            damaged=sorted(self.damaged),
        )
