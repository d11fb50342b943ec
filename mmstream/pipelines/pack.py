"""A table or a folder in, WebDataset shards out: `00000.tar`, `00000_stats.json`, …, each written once, no row lost.

Files are read on threads, in the order of the rows, so equal input gives equal tars. `pack.json` comes first and says
what is packed, `packed.json` last: a run that was killed is repeated by the same command, which finds its own shards
byte for byte, and anything else that lies at the destination is refused, never written over.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.encoders.pipelined import prepared
from mmstream.errors import RefusedError, Rejected, TooManyRejectsError, UsageError
from mmstream.pipelines.ledger import BUDGET_AT_END_FROM_SAMPLES, BUDGET_FROM_SAMPLES, MAX_REJECTS
from mmstream.pipelines.pack_report import PackReport, report_of
from mmstream.pipelines.packing import Origin, open_origin, read_file
from mmstream.schema import REJECT, Sealed
from mmstream.shards.packing import Cut, Draft, Packed, class_names, cut, sample_of
from mmstream.shards.writer import tar_of
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import absolute, is_file, join, list_names, read_bytes
from mmstream.telemetry import Progress

R = TypeVar("R", bound=Sealed)

SAMPLES_PER_SHARD, SHARD_BYTES = 1_000, 256 << 20
_THREADS, _AHEAD = 8, 16  # files are waited for, not computed


class PackRecord(Sealed):
    """`pack.json`: what is packed and how, so that nothing else is packed into the same folder."""

    source: str
    digest: str
    settings: dict[str, Any]


class PackedRecord(Sealed):
    """`packed.json`: that all of it is there."""

    shards: int
    rows: int
    samples: int
    bytes: int
    rejects: dict[str, int]
    classes: int | None


def pack(
    source: str,
    dest: str,
    *,
    columns: dict[str, str | None] | None = None,
    numbers: Sequence[str] = (),
    label_folders: bool = False,
    sha256: bool = False,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    shard_bytes: int = SHARD_BYTES,
    limit: int | None = None,
    max_rejects: float = MAX_REJECTS,
) -> PackReport:
    """Packs a table (CSV, TSV, JSON lines, Parquet) or the files of a folder into shards.

    Args:
        columns: which is the image, audio, video, file, text, label, key; by their names where it is not said.
        numbers: columns that have to be numbers. All that has no part goes to the sample's JSON.
        label_folders: of a folder: the folders in it are the labels of what is in them.
        sha256: put the SHA-256 of each picture into its JSON, which `embed` and `audit` hold it against.
        samples_per_shard, shard_bytes: whatever comes first ends a shard.
        limit: take at most this many rows.
        max_rejects: share of rows that may be set aside; judged from 1,000 on, and at the end from 100.

    Raises:
        UsageError: there is nothing at `source`, no such column, or no row gave a sample.
        RefusedError: `dest` holds something else.
        TooManyRejectsError: the share of rejects is over `max_rejects`; shards that are written stay.
        UnreachableError: a store does not answer.
    """
    start, source, dest = time.monotonic(), absolute(source), absolute(dest)
    origin = open_origin(source, dest, columns or {}, numbers, label_folders=label_folders)
    settings = {
        "columns": origin.columns,
        "numbers": list(numbers),
        "label_folders": label_folders,
        "sha256": sha256,
        "samples_per_shard": samples_per_shard,
        "shard_bytes": shard_bytes,
        "limit": limit,
    }
    _begin(dest, PackRecord(source=source, digest=origin.digest, settings=settings))
    if (done := _record(PackedRecord, join(dest, "packed.json"))) is not None:
        return report_of(dest, done, origin, already=True)
    names = class_names(_drafts(origin, limit, labels_only=True)) if origin.has_labels else None
    out = _Out(dest, max_rejects)
    if names is not None:
        out.publish("classes.json", (json.dumps(names, ensure_ascii=False, indent=0) + "\n").encode())
    places = None if names is None else {name: i for i, name in enumerate(names)}

    def read(row: tuple[int, Draft | Rejected]) -> Packed:
        number, draft = row
        if isinstance(draft, Rejected):
            return Packed(number, None, draft)
        try:
            return Packed(number, draft.key, sample_of(draft, read_file, classes=places, sha256=sha256))
        except Rejected as e:
            return Packed(number, draft.key, e)

    rows = enumerate(_drafts(origin, limit))
    with ThreadPoolExecutor(_THREADS, "read") as pool, Progress("pack", None, "shards", rate_of="samples") as progress:
        found = out.counted(prepared(rows, read, pool, _AHEAD))
        for shard in cut(found, max_samples=samples_per_shard, max_bytes=shard_bytes):
            out.write(shard)
            progress.update(out.shards, samples=out.samples, MB=out.bytes >> 20, rejects=len(out.rejects))
    return report_of(dest, out.finish(None if names is None else len(names)), origin, time.monotonic() - start)


def _drafts(origin: Origin, limit: int | None, *, labels_only: bool = False) -> Iterator[Draft | Rejected]:
    for number, draft in enumerate(origin.drafts(labels_only)):
        if number == limit:
            return
        yield draft


def _begin(dest: str, record: PackRecord) -> None:
    """
    Raises:
        UsageError: a file is at `dest`.
        RefusedError: `dest` holds something, and no pack of this source in this way has begun there.
    """
    if is_file(dest):
        raise UsageError(f"{dest}: is a file where a folder is needed. pack takes a table or folder, then a folder.")
    url, names = join(dest, "pack.json"), [n for n in list_names(dest) if not n.startswith(".")]
    if not names and put_if_absent(url, record.to_bytes()):
        return
    before = _record(PackRecord, url) if not names or "pack.json" in names else None
    if before is None:
        shown = ", ".join(names[:3])
        raise RefusedError(f"{dest}: holds other things than pack writes ({shown}). Choose a folder that is not there.")
    changed = [k for k, v in record.settings.items() if before.settings.get(k) != v]
    if before.source != record.source or before.digest != record.digest:
        what = f"{before.source} was packed there, and {record.source} is another, or has changed since"
    elif changed:
        what = f"{changed[0]} was {before.settings.get(changed[0])} and is now {record.settings[changed[0]]}"
    else:
        return
    raise RefusedError(f"{dest}: {what}. Nothing is written over; choose another folder.")


def _record(kind: type[R], url: str) -> R | None:
    if not is_file(url):
        return None
    try:
        return kind.from_bytes(read_bytes(url))
    except ValueError as e:
        why = " ".join(str(e).split())[:200]
        raise RefusedError(f"{url}: is not what pack writes ({why}). Choose another folder.") from e


class _Out:
    """What goes to the destination, and what was counted on the way."""

    def __init__(self, dest: str, max_rejects: float) -> None:
        self._dest, self._max_rejects = dest, max_rejects
        self._written = {"pack.json"}
        self.shards = self.samples = self.rows = self.bytes = 0
        self.rejects: list[Packed] = []

    def publish(self, name: str, data: bytes) -> None:
        """
        Raises:
            RefusedError: something else is there under this name.
        """
        self._written.add(name)
        if not put_if_absent(join(self._dest, name), data):
            what = "is there, and is not what this run would write: a file of the source has changed meanwhile"
            raise RefusedError(f"{join(self._dest, name)}: {what}. Choose another folder.")

    def counted(self, found: Iterator[Packed]) -> Iterator[Packed]:
        """
        Raises:
            TooManyRejectsError: the budget is spent.
        """
        num_rejects = Counter[str]()
        first: Packed | None = None
        for packed in found:
            self.rows += 1
            if isinstance(packed.result, Rejected):
                num_rejects[str(packed.result.reason)] += 1
                first = first or packed
                self._check_budget(num_rejects, first, BUDGET_FROM_SAMPLES)
            yield packed
        self._check_budget(num_rejects, first, BUDGET_AT_END_FROM_SAMPLES)

    def _check_budget(self, rejects: Counter[str], first: Packed | None, from_rows: int) -> None:
        if first is None or self.rows < from_rows or rejects.total() <= self._max_rejects * self.rows:
            return
        counts = ", ".join(f"{reason} {n:,}" for reason, n in sorted(rejects.items()))
        raise TooManyRejectsError(
            f"{rejects.total():,} of {self.rows:,} rows were rejected ({counts}): more than --max-rejects "
            f"{self._max_rejects:.0%}. The first is row {first.number:,}: {first.result}. Mend the source and pack "
            "into another folder, or raise --max-rejects and run the same command."
        )

    def write(self, shard: Cut) -> None:
        """The tar, then what is known of it beside it. A stretch of nothing but rejects makes no tar."""
        self.rejects += shard.rejects
        if not shard.samples:
            return
        name = f"{self.shards:05}"
        tar = tar_of(shard.samples, join(self._dest, f"{name}.tar"))
        self.publish(f"{name}.tar", tar)
        successes, count = len(shard.samples), len(shard.samples) + len(shard.rejects)
        stats = {"count": count, "successes": successes, "failed_to_download": 0, "failed_to_resize": 0}
        stats["rejected"] = len(shard.rejects)
        self.publish(f"{name}_stats.json", (json.dumps(stats) + "\n").encode())
        self.shards, self.samples, self.bytes = self.shards + 1, self.samples + successes, self.bytes + len(tar)

    def finish(self, num_classes: int | None) -> PackedRecord:
        """
        Raises:
            UsageError: no row gave a sample.
            RefusedError: more lies at the destination than was written.
        """
        if not self.samples:
            why = f" (the first, row {self.rejects[0].number:,}: {self.rejects[0].result})" if self.rejects else ""
            raise UsageError(f"no row gave a sample{why}. Are the columns the right ones?")
        if self.rejects:
            self.publish("rejects.parquet", _table_of(self.rejects))
        names = [n for n in list_names(self._dest) if not n.startswith(".")]
        if more := sorted(set(names) - self._written - {"packed.json"}):
            raise RefusedError(f"{join(self._dest, more[0])}: is none of what this run wrote. Choose another folder.")
        counts = Counter(str(p.result.reason) for p in self.rejects if isinstance(p.result, Rejected))
        record = PackedRecord(
            shards=self.shards,
            rows=self.rows,
            samples=self.samples,
            bytes=self.bytes,
            rejects=dict(sorted(counts.items())),
            classes=num_classes,
        )
        self.publish("packed.json", record.to_bytes())
        return record


def _table_of(rejects: Sequence[Packed]) -> bytes:
    rows = [
        {"row": p.number, "key": p.key, "reason": str(p.result.reason), "detail": p.result.detail}
        for p in rejects
        if isinstance(p.result, Rejected)
    ]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=REJECT), out)
    return out.getvalue()
