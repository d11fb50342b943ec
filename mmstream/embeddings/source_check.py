"""One shard of an embedding set against its tar, as a recount sees it now.

Chunk by chunk, in order: the keys of rows and rejects by row, and the places of the pictures. Then the number of
samples, where damage begins, and how many samples img2dataset's `_stats.json` beside the tar vouches for. Damage that
the set accounts for is no difference. One chunk is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmstream.embeddings.findings import Findings
from mmstream.embeddings.recount import Recount, Row
from mmstream.errors import Reason, Rejected, UnreachableError, UsageError
from mmstream.schema import ChunkRecord, Damage
from mmstream.storage.compressed import open_reader, stem_of
from mmstream.storage.files import how_to_restore, info, is_local, read_bytes
from mmstream.storage.ranges import BLOCK_BYTES, RangeReader

LOCAL_BLOCK_BYTES = 1 << 15  # payloads larger than this are not read; remote requests cost too much to be so small


class SourceCheck:
    """Use as a context manager: `chunk` for each chunk in order, then `finish`.

    Args:
        entry: the shard's row of the catalog.
        damage: what the set says of the shard.
        findings: where differences go (expected is what the source says, found is what the set says), and what was
            counted.
    """

    def __init__(self, entry: Mapping[str, Any], damage: Damage | None, findings: Findings) -> None:
        self._entry, self._damage, self._findings = entry, damage, findings
        self._rows: Iterator[Row] | None = None
        self._walk: Recount | None = None
        self._row = 0  # the next one of the walk
        self._stack = ExitStack()

    def __enter__(self) -> SourceCheck:
        try:
            if (url := self._readable()) is not None:
                block = LOCAL_BLOCK_BYTES if is_local(url) else BLOCK_BYTES
                self._walk = Recount(self._stack.enter_context(open_reader(url, block_bytes=block)))
                self._rows = iter(self._walk)
        except Rejected as e:
            if not (self._damage and self._damage.reason == e.reason == Reason.COMPRESSION):
                self._findings.differ("source", "there", e.detail)
        except UnreachableError as e:
            self._findings.cannot_read("source", e)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _readable(self) -> str | None:
        """The shard's URL, or None where there is nothing to compare with: it is gone, or the set says that it was
        another one, or not what its checksum says, and that is so."""
        url, reason = self._entry["url"], self._damage.reason if self._damage else None
        was_lost = reason in (Reason.UNREADABLE, Reason.SOURCE_CHANGED)
        try:
            now = info(url)
        except UsageError:
            if not was_lost:
                self._findings.differ("source", f"{url} is there", "nothing is there")
            return None
        size, etag = self._entry["bytes"], self._entry["etag"]
        if now.bytes != size or (etag and now.etag and now.etag != etag):
            if was_lost:
                return None
            hint = how_to_restore(url, etag) if now.bytes == size else ""
            self._findings.differ(
                "source since it was embedded (bytes, etag)", (size, etag), f"{(now.bytes, now.etag)}.{hint}"
            )
        return None if reason == Reason.CHECKSUM and self._fails_its_checksum() else url

    def _fails_its_checksum(self) -> bool:
        try:
            with RangeReader(self._entry["url"]) as reader:
                return reader.sha256() != self._entry.get("sha256")
        except Rejected:
            return True  # gone by now, too

    def chunk(
        self, chunk: ChunkRecord, keys: Mapping[int, str | None], pictures: Mapping[int, tuple[int, int]]
    ) -> None:
        """Compares one chunk: `keys` and `pictures` (offset and bytes in the shard) by row, as the set has them."""
        if self._rows is None or chunk.first_row < self._row:
            return
        self._take(chunk.first_row - self._row)
        rows = dict(enumerate(self._take(chunk.num_samples), chunk.first_row))
        wrong = [
            (row, walked.key, keys[row]) for row, walked in rows.items() if keys.get(row, walked.key) != walked.key
        ]
        if wrong:
            row, expected, found = wrong[0]
            self._findings.differ(f"key of row {row}{_kind(wrong, rows)}", expected, found, chunk.chunk)
            return
        for row, walked in rows.items():
            if row in pictures and pictures[row] not in walked.payloads:
                what = f"place of the picture of row {row} (offset, bytes)"
                self._findings.differ(what, f"one of {walked.payloads}", pictures[row], chunk.chunk)
                return

    def finish(self, num_samples: int) -> None:
        """Compares the shard as a whole; `num_samples` is what its record says."""
        if self._rows is None or self._walk is None:
            return
        max_rows = self._entry.get("max_rows")
        while self._take(512 if max_rows is None else min(512, max_rows - self._row)):
            pass
        if self._rows is None:
            return  # it went away meanwhile
        self._findings.num_source_shards += 1
        self._findings.num_source_samples += self._row
        if self._row != num_samples:
            self._findings.differ("samples of the source in the set", self._row, num_samples)
        found, expected = self._damage, self._walk.damage
        is_cut_short = max_rows is not None and self._row >= max_rows  # what lies behind the limit decides nothing
        if (found.offset if found else None) != (expected.offset if expected else None) and not (
            is_cut_short and found is None
        ):
            here = f"byte {expected.offset:,} ({expected.detail})" if expected else "none"
            self._findings.differ("damage", here, f"{found.reason} at byte {found.offset:,}" if found else "none")
        self._check_stats(num_samples)

    def _take(self, n: int) -> Sequence[Row]:
        taken: list[Row] = []
        try:
            while len(taken) < n and self._rows is not None and (row := next(self._rows, None)) is not None:
                taken.append(row)
        except Rejected as e:
            self._findings.differ("source", "there", e.detail)
            self._rows = None
        except UnreachableError as e:
            self._findings.cannot_read("source", e)
            self._rows = None
        self._row += len(taken)
        return taken

    def _check_stats(self, num_samples: int) -> None:
        if self._entry.get("max_rows") is not None:
            return
        try:
            successes = json.loads(read_bytes(stem_of(self._entry["url"]) + "_stats.json"))["successes"]
        except (UsageError, ValueError, KeyError, TypeError, RecursionError):
            return  # none is there, or none that says anything
        except UnreachableError as e:
            self._findings.cannot_read("the _stats.json beside the shard", e)
            return
        if not isinstance(successes, int):
            return
        if num_samples > successes or (self._damage is None and num_samples < successes):
            self._findings.differ("samples by the _stats.json beside the shard", successes, num_samples)


def _kind(wrong: list[tuple[int, str, str | None]], rows: Mapping[int, Row]) -> str:
    """How (row, expected key, found key) differ, where there is a word for it."""
    if len(wrong) == 1:
        return ""
    (_, first, found_first), (row, second, found_second), *more = wrong
    if not more and (first, second) == (found_second, found_first):
        return f" (swapped with row {row})"
    for step, neighbour in ((1, "next"), (-1, "previous")):
        moved = [found == rows[row + step].key for row, _, found in wrong if row + step in rows]
        if moved and all(moved):
            return f" (there and {len(wrong) - 1} times more stands the {neighbour} row's)"
    return f" (and of {len(wrong) - 1} more)"
