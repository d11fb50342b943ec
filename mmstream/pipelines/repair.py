"""Parts of an embedding set are made anew: what was lost or damaged (`repair`), what was set aside (`replay`).

Chunks are recomputed from the source with the manifest's encoder and settings, by the same stages as in `embed`. New
objects and the next generation of the records are written beside the old ones; nothing is replaced or deleted, so
either command may be killed and run again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from mmstream.embeddings.layout import (
    Records,
    check_known,
    check_there,
    highest_valid,
    next_generations,
    read_records,
    totals_of,
    was_finished,
)
from mmstream.embeddings.listing import Generations, list_records
from mmstream.embeddings.reader import is_sound
from mmstream.errors import Reason, RefusedError, UsageError
from mmstream.pipelines.embed import run
from mmstream.pipelines.ledger import MAX_REJECTS, Ledger
from mmstream.pipelines.manifest import OpenSet, open_set, stored_encoder
from mmstream.pipelines.repair_report import RepairReport, ReplayReport
from mmstream.schema import ChunkRecord, ShardRecord
from mmstream.storage.files import FileInfo, absolute, how_to_restore, info, join, list_names
from mmstream.telemetry import counted

READ_THREADS = 8
_LOST = {"gone": Reason.UNREADABLE, "changed": Reason.SOURCE_CHANGED}
Chunks = dict[int, dict[int, ChunkRecord]]  # shard → chunk → record


def repair(dest: str, source: Sequence[str] = ()) -> RepairReport:
    """Recomputes what is wrong in the embedding set at `dest`, and just that.

    Wrong is a chunk whose objects are not there or not those of its record, and one without a valid record; in a set
    that is unfinished, that is also what `embed` had left to do. Each object is read once. Where all is sound and still
    not what the manifest vouches for, records were lost and older ones stand in for them: these lack what was made of
    rejects since, so the chunks that hold rejects are recomputed.

    Args:
        source: the shards as they were named to `embed`; asked for only where the catalog is lost.

    Raises:
        UsageError: there is no embedding set.
        RefusedError: the encoder is another one, or sources changed; what could be repaired is, the rest is named.
            Another command wrote records at the same time, and those count.
        DifferencesError: the catalog is lost, and `source` does not give the same one; or a manifest is lost that named
            more shards.
        UnreachableError: a store does not answer.
    """
    catalogs = list_names(join(absolute(dest), "catalog"))
    opened, names = _open(dest, source)
    records = read_records(opened.dest, opened.catalog, names)
    chunks = records.by_chunk()
    wrong = _wrong(opened.dest, chunks)
    behind = {s: {} for s, record in records.shards.items() if _is_behind(s, record, names[s])}
    ledger, changed = _made_anew(opened, _without(records, chunks, behind | wrong), wrong, names)
    if changed:
        raise RefusedError(
            f"{opened.dest}: source differs: {_first(changed)} changed or went away since the set was made, so that "
            "lost parts of it cannot be made anew; all else is repaired. Restore them and run it again."
            + _if_the_same(opened, changed[0])
        )
    num_folded = ledger.num_folded
    if _is_other(opened, ledger):
        ledger, changed = _rejects_anew(opened, Records(dict(ledger.shards), {}))
        num_folded += ledger.num_folded
    if changed and _is_other(opened, ledger):
        raise RefusedError(
            f"{opened.dest}: records were lost and older ones stand in for them; source differs: {_first(changed)} "
            f"changed or went away, and may have been among them. Restore them and run it again, or take them as they "
            f"are: `mmstream rejects {opened.dest} --replay`."
        )
    finished = opened.finished(ledger.finish(opened.dest))
    known = {c.attempt for of_shard in chunks.values() for c in of_shard.values()}
    new = [c for record in ledger.shards.values() for c in record.chunks if c.attempt not in known]
    vouched = opened.manifest.totals
    return RepairReport(
        dest=opened.dest,
        shards=len(ledger.shards),
        rows=sum(s.num_rows for s in ledger.shards.values()),
        rows_before=vouched.rows if vouched and _is_other(opened, ledger) else None,
        chunks_checked=sum(map(len, chunks.values())),
        chunks_recomputed=len(new),
        shards_folded=num_folded,
        manifest_written=finished != opened,
        catalog_written=list_names(join(opened.dest, "catalog")) != catalogs,
        different=[d for c in new if (d := _difference(c, wrong.get(c.shard, {}).get(c.chunk)))],
        next=[shlex.join(["mmstream", "audit", opened.dest])],
    )


def _is_behind(shard: int, record: ShardRecord, names: Generations) -> bool:
    """Whether the record that counts is not the newest folded one: that is damaged, or chunks were made since."""
    is_newest = len(names.folded) < 2 or highest_valid(ShardRecord, names.folded[:1], shard, record.source)
    return names.is_behind or not is_newest


def _made_anew(
    opened: OpenSet, kept: Records, lost: Chunks, names: Mapping[int, Generations]
) -> tuple[Ledger, list[str]]:
    """The ledger after all that `kept` lacks was made, and the URLs of shards from which that was not possible. `lost`
    is what is known of it."""
    ledger = _ledger(opened, kept, lost, names)
    tasks = ledger.plan()
    able = [t for t in tasks if _can_be_read(opened, t.shard, [] if t.skip else lost.get(t.shard, {}).values())]
    if able:
        run(opened, ledger, able, stored_encoder(opened), "repair")
    _check_not_outrun(ledger)
    return ledger, [t.url for t in tasks if t not in able]


def _rejects_anew(opened: OpenSet, records: Records) -> tuple[Ledger, list[str]]:
    """As `_made_anew`, of all chunks that hold rejects; a shard that cannot be read again keeps what it has."""
    chunks = records.by_chunk()
    held = {s: {n: c for n, c in of.items() if c.num_rejects} for s, of in chunks.items()}
    again = {s: of for s, of in held.items() if of and _can_be_read(opened, s, of.values())}
    names = list_records(opened.dest)
    ledger, _ = _made_anew(opened, _without(records, chunks, again), again, names)
    return ledger, [_url(opened, s) for s, of in held.items() if of and s not in again]


def _can_be_read(opened: OpenSet, shard: int, lost: Collection[ChunkRecord]) -> bool:
    """Whether a shard still gives what it gave; `lost` are chunks of it that are known. One that had gone or changed
    before it was read gives the same nothing again, as long as it is like that."""
    state = _entry_state(opened.catalog, shard)
    nothing = [c.damage.reason for c in lost if c.damage and c.end and c.chunk == c.num_samples == 0]
    return state == "same" or nothing == [_LOST[state]]


def _is_other(opened: OpenSet, ledger: Ledger) -> bool:
    """Whether what is there is not what a finished set's manifest vouches for."""
    totals = opened.manifest.totals
    return totals is not None and totals_of(ledger.shards.values()) != totals


def _check_not_outrun(ledger: Ledger) -> None:
    if ledger.outrun:
        raise RefusedError(
            f"{ledger.dest}: another command wrote the records of {counted(len(ledger.outrun), 'shard')} meanwhile, "
            f"the first of them shard {ledger.outrun[0]}, and those count. Run it again."
        )


def _first(urls: Sequence[str]) -> str:
    return ", ".join(urls[:3]) + (f" and {len(urls) - 3} more" if len(urls) > 3 else "")


def _if_the_same(opened: OpenSet, url: str) -> str:
    """What to do where the shard may only have another time."""
    shard = opened.catalog["url"].to_pylist().index(url)
    size, etag = (opened.catalog[name][shard].as_py() for name in ("bytes", "etag"))
    now = _info(url)
    return how_to_restore(url, etag) if now and now.bytes == size else ""


def _url(opened: OpenSet, shard: int) -> str:
    return opened.catalog["url"][shard].as_py()


def replay(dest: str, reasons: Collection[str] | None = None) -> ReplayReport:
    """Recomputes the chunks of the set at `dest` that hold rejects (of `reasons`, or any that its filters did not
    want), with the present code.

    A shard that holds such rejects and was mended at the source is taken in anew as a whole, under a new generation of
    the catalog; its samples' ids are `shard << 32 | row` as ever.

    Raises:
        UsageError: there is no embedding set, or no such reason.
        RefusedError: the encoder is another one than made the set, or another command wrote records at the same time.
        DifferencesError: the set has lost something; `repair` makes that anew.
        UnreachableError: a store does not answer.
    """
    wanted = set(reasons or set(Reason) - {Reason.FILTERED})
    if unknown := wanted - set(Reason):
        raise UsageError(f"--reason {' '.join(sorted(unknown))}: no such reason. Give one of {', '.join(Reason)}.")
    opened, names = _open(dest)
    records = read_records(opened.dest, opened.catalog, names)
    if opened.manifest.finished and (reasons is not None or len(records.finished()) < opened.catalog.num_rows):
        opened.check_whole(records.finished())  # an unfinished manifest forgets what was vouched for
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
    # An earlier replay may have been killed, or outrun by a command that said what it had seen before.
    if again or not opened.manifest.finished or totals_of(before) != opened.manifest.totals:
        encoder = stored_encoder(opened)
        opened = opened.with_catalog(_mended(opened.catalog, mended)) if mended else opened.unfinished()
        ledger = _ledger(opened, _without(records, chunks, again), again, names)
        tasks = ledger.plan()
        run(opened, ledger, tasks, encoder, "replay")
        _check_not_outrun(ledger)
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


def _open(dest: str, sources: Sequence[str] = ()) -> tuple[OpenSet, Mapping[int, Generations]]:
    """The set, and the names of its records."""
    opened = open_set(absolute(dest), sources)
    check_there(absolute(dest), opened)
    assert opened is not None
    names = list_records(opened.dest)
    check_known(opened.dest, opened.stored, opened.catalog, names)
    return opened, names


def _wrong(dest: str, chunks: Chunks) -> Chunks:
    """The chunks whose objects are missing, or differ from their SHA-256."""
    every = [c for of_shard in chunks.values() for c in of_shard.values()]
    wrong: Chunks = {}
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for chunk, sound in zip(every, pool.map(lambda c: is_sound(dest, c), every), strict=True):
            if not sound:
                wrong.setdefault(chunk.shard, {})[chunk.chunk] = chunk
    return wrong


def _difference(new: ChunkRecord, lost: ChunkRecord | None) -> dict[str, Any] | None:
    """Which object of a chunk has other bytes than the lost one; None where both agree, or what was lost is unknown."""
    for what in ("data", "rejects"):
        before, now = (getattr(c, what, None) for c in (lost, new))
        if lost is not None and (before and before.sha256) != (now and now.sha256):
            expected, found = before.sha256 if before else None, now.sha256 if now else None
            return {"shard": new.shard, "chunk": new.chunk, "what": what, "expected": expected, "found": found}
    return None


def _without(records: Records, chunks: Chunks, left_out: Chunks) -> Records:
    """The records but for the chunks `left_out`; all shards of these are to be folded anew."""
    open_chunks = {shard: of for shard, of in records.chunks.items() if shard not in left_out}
    for shard, out in left_out.items():
        open_chunks[shard] = {n: c for n, c in chunks[shard].items() if n not in out}
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
