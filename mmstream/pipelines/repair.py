"""Parts of an embedding set are made anew: what was lost or damaged (`repair`), what was set aside (`replay`).

Chunks are recomputed from the source with the manifest's encoder and settings, by the same stages as in `embed`. New
objects and the next generation of the records are written beside the old ones; nothing is replaced or deleted, so
either command may be killed and run again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from mmstream.embeddings.layout import (
    Generations,
    Records,
    list_records,
    next_generations,
    read_chunk_records,
    read_records,
    was_finished,
)
from mmstream.embeddings.reader import is_sound
from mmstream.errors import Reason, RefusedError, UsageError
from mmstream.pipelines.embed import run
from mmstream.pipelines.ledger import MAX_REJECTS, Ledger
from mmstream.pipelines.manifest import OpenSet, open_set, stored_encoder
from mmstream.schema import ChunkRecord
from mmstream.storage.files import FileInfo, absolute, info
from mmstream.telemetry import Report

READ_THREADS = 8
Chunks = dict[int, dict[int, ChunkRecord]]  # shard → chunk → record


class RepairReport(Report):
    """`chunks_recomputed` of those that are there now; `different` lists those whose bytes are not the lost ones'."""

    dest: str
    shards: int
    rows: int
    chunks_checked: int
    chunks_recomputed: int
    shards_folded: int
    different: list[dict[str, Any]]

    def title(self) -> str:
        if self.chunks_recomputed or self.shards_folded:
            return f"repaired: {self.chunks_recomputed:,} chunks recomputed"
        return "nothing to repair: every record and every object is sound"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rows", f"{self.rows:,} in {self.shards:,} shards")]
        shown.append(("checked", f"{self.chunks_checked:,} chunks"))
        shown.append(("records", f"of {self.shards_folded:,} shards written anew"))
        for d in self.different:
            shown.append(("other bytes", f"shard {d['shard']} chunk {d['chunk']}: {d['what']} is not what was lost"))
        return shown


class ReplayReport(Report):
    """`rejects` is what the set still sets aside, `rejects_before` what it did; `mended` are the shards that changed
    at the source and were taken in anew, `gone` those that are not there any more."""

    dest: str
    chunks_recomputed: int
    rows_gained: int
    rejects_before: dict[str, int]
    rejects: dict[str, int]
    mended: list[str]
    gone: list[str]

    def title(self) -> str:
        return f"replayed {self.chunks_recomputed:,} chunks: {self.rows_gained:,} more rows"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rejects before", _counts(self.rejects_before))]
        shown.append(("rejects now", _counts(self.rejects)))
        shown += [("mended at the source", url) for url in self.mended]
        return [*shown, *(("gone at the source", url) for url in self.gone)]


def _counts(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in rejects.items()) or "none"


def repair(dest: str) -> RepairReport:
    """Recomputes what is wrong in the embedding set at `dest`, and just that.

    Wrong is a chunk whose objects are not there or not those of its record, and one without a valid record; in a set
    that is unfinished, that is also what `embed` had left to do. Each object is read once.

    Raises:
        UsageError: there is no embedding set.
        RefusedError: the encoder is another one, or sources changed; what could be repaired is, the rest is named.
        DifferencesError: the catalog is damaged, and with it what the set was made from.
        UnreachableError: a store does not answer.
    """
    opened = _open(dest)
    names = list_records(opened.dest)
    records = read_records(opened.dest, opened.catalog, names)
    chunks = records.by_chunk()
    wrong = _wrong(opened.dest, chunks)
    kept = _without(records, chunks, {s: _sound_twins(opened, s, w, names[s]) for s, w in wrong.items()}, wrong)
    ledger = _ledger(opened, kept, wrong, names)
    tasks = ledger.plan()
    changed = [t.url for t in tasks if _state(t.url, t.bytes, t.etag) != "same"]
    if tasks:
        run(opened, ledger, [t for t in tasks if t.url not in changed], stored_encoder(opened), "repair")
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RefusedError(
            f"{opened.dest}: source differs: {', '.join(changed[:3])}{more} changed or went away since the set was "
            "made, so that lost parts of it cannot be made anew; all else is repaired. Restore them and run it again."
        )
    opened.finished(ledger.finish(opened.dest))
    made = [r for shard, r in ledger.shards.items() if shard not in kept.shards]
    known = {c.attempt for of_shard in kept.chunks.values() for c in of_shard.values()}
    new = [c for record in made for c in record.chunks if c.attempt not in known]
    return RepairReport(
        dest=opened.dest,
        shards=len(ledger.shards),
        rows=sum(s.num_rows for s in ledger.shards.values()),
        chunks_checked=sum(map(len, chunks.values())),
        chunks_recomputed=len(new),
        shards_folded=len(made),
        different=[d for c in new if (d := _difference(c, wrong.get(c.shard, {}).get(c.chunk)))],
        next=[shlex.join(["mmstream", "audit", opened.dest])],
    )


def replay(dest: str, reasons: Collection[str] | None = None) -> ReplayReport:
    """Recomputes the chunks of the set at `dest` that hold rejects (of `reasons`, or any), with the present code.

    A shard that holds such rejects and was mended at the source is taken in anew as a whole, under a new generation of
    the catalog; its samples' ids are `shard << 32 | row` as ever.

    Raises:
        UsageError: there is no embedding set, or no such reason.
        RefusedError: the encoder is another one than made the set.
        UnreachableError: a store does not answer.
    """
    wanted = set(reasons or Reason)
    if unknown := wanted - set(Reason):
        raise UsageError(f"--reason {' '.join(sorted(unknown))}: no such reason. Give one of {', '.join(Reason)}.")
    opened = _open(dest)
    names = list_records(opened.dest)
    records = read_records(opened.dest, opened.catalog, names)
    before = records.finished().values()
    rejects_before = sum((Counter(r.num_rejects) for r in before), Counter[str]())
    rows_before = sum(r.num_rows for r in before)
    chunks = records.by_chunk()
    aside = {s: {n: c for n, c in of.items() if wanted & set(c.num_rejects)} for s, of in chunks.items()}
    state = {shard: _entry_state(opened.catalog, shard) for shard, found in aside.items() if found}
    again = {s: chunks[s] if state[s] == "changed" else aside[s] for s in state if state[s] != "gone"}
    mended = [shard for shard, is_now in state.items() if is_now == "changed"]
    urls = opened.catalog["url"].to_pylist()
    count = {"rows_gained": 0, "chunks_recomputed": 0, "rejects": dict(sorted(rejects_before.items()))}
    if again or not opened.manifest.finished:  # an earlier replay may have been killed
        encoder = stored_encoder(opened)
        opened = opened.with_catalog(_mended(opened.catalog, mended)) if mended else opened.unfinished()
        ledger = _ledger(opened, _without(records, chunks, {}, again), again, names)
        tasks = ledger.plan()
        run(opened, ledger, tasks, encoder, "replay")
        totals = ledger.finish(opened.dest)
        opened.finished(totals)
        known = {c.attempt for of_shard in chunks.values() for c in of_shard.values()}
        new = sum(c.attempt not in known for t in tasks for c in ledger.shards[t.shard].chunks)
        count = {"rows_gained": totals.rows - rows_before, "chunks_recomputed": new, "rejects": totals.rejects}
    return ReplayReport(
        dest=opened.dest,
        rejects_before=dict(sorted(rejects_before.items())),
        mended=[urls[s] for s in mended],
        gone=[urls[s] for s, is_now in state.items() if is_now == "gone"],
        next=[shlex.join(["mmstream", "audit", opened.dest])],
        **count,
    )


def _open(dest: str) -> OpenSet:
    opened = open_set(absolute(dest))
    if opened is None:
        raise UsageError(f"{dest}: no embedding set is there. Make one with `mmstream embed SRC {dest}`.")
    return opened


def _wrong(dest: str, chunks: Chunks) -> Chunks:
    """The chunks whose objects are missing, or differ from their SHA-256."""
    every = [c for of_shard in chunks.values() for c in of_shard.values()]
    wrong: Chunks = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for chunk, sound in zip(every, pool.map(lambda c: is_sound(dest, c), every), strict=True):
            if not sound:
                wrong.setdefault(chunk.shard, {})[chunk.chunk] = chunk
    return wrong


def _sound_twins(
    opened: OpenSet, shard: int, wrong: Mapping[int, ChunkRecord], names: Generations
) -> dict[int, ChunkRecord]:
    """What a repair that was killed had made already in the place of wrong chunks: other objects of the same bytes."""
    found = read_chunk_records(shard, names, next(iter(wrong.values())).source)
    twins = {n: c for n, c in found.items() if n in wrong and c.attempt != wrong[n].attempt}
    return {n: c for n, c in twins.items() if _difference(c, wrong[n]) is None and is_sound(opened.dest, c)}


def _difference(new: ChunkRecord, lost: ChunkRecord | None) -> dict[str, Any] | None:
    """Which object of a chunk has other bytes than the lost one; None where both agree, or what was lost is unknown."""
    for what in ("data", "rejects"):
        before, now = (getattr(c, what, None) for c in (lost, new))
        if lost is not None and (before and before.sha256) != (now and now.sha256):
            expected, found = before.sha256 if before else None, now.sha256 if now else None
            return {"shard": new.shard, "chunk": new.chunk, "what": what, "expected": expected, "found": found}
    return None


def _without(records: Records, chunks: Chunks, instead: Chunks, left_out: Chunks) -> Records:
    """The records but for the chunks `left_out`, of which those in `instead` stand in for some."""
    open_chunks = {shard: of for shard, of in records.chunks.items() if shard not in left_out}
    for shard, out in left_out.items():
        rest = {n: c for n, c in chunks[shard].items() if n not in out} | instead.get(shard, {})
        open_chunks[shard] = rest
    return Records({s: r for s, r in records.shards.items() if s not in left_out}, open_chunks)


def _ledger(opened: OpenSet, kept: Records, anew: Iterable[int], names: Mapping[int, Generations]) -> Ledger:
    generations = next_generations(names, kept) | {shard: names[shard].next for shard in anew}
    fingerprint = opened.manifest.fingerprint
    # The budget of a set that was finished once has been judged, by whatever was asked for then.
    budget = 1.0 if was_finished(opened.dest) else MAX_REJECTS
    return Ledger(opened.dest, opened.catalog, fingerprint, budget, records=kept, generations=generations)


def _entry_state(catalog: pa.Table, shard: int) -> str:
    return _state(*(catalog[name][shard].as_py() for name in ("url", "bytes", "etag")))


def _state(url: str, size: int, etag: str) -> str:
    """`same` as in the catalog, `changed` or `gone`."""
    now = _info(url)
    if now is None:
        return "gone"
    return "same" if now.bytes == size and (now.etag == etag or not (now.etag and etag)) else "changed"


def _info(url: str) -> FileInfo | None:
    try:
        return info(url)
    except UsageError:
        return None


def _mended(catalog: pa.Table, shards: Collection[int]) -> pa.Table:
    """The catalog with sizes and etags of these shards as they are now; a checksum of what was is dropped."""
    rows = catalog.to_pylist()
    for shard in shards:
        now = info(rows[shard]["url"])
        rows[shard] |= {"bytes": now.bytes, "etag": now.etag, "sha256": None}
    return pa.Table.from_pylist(rows, schema=catalog.schema)
