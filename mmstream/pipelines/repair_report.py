"""What `repair` and a replay of rejects say when they are over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmstream.telemetry import Report, counted


class RepairReport(Report):
    """`chunks_recomputed` of those that are there now; `different` lists those whose bytes are not the lost ones', and
    `rows_before` is what the manifest said, where the records cannot be made to say so again."""

    dest: str
    shards: int
    rows: int
    chunks_checked: int
    chunks_recomputed: int
    shards_folded: int
    manifest_written: bool
    catalog_written: bool
    rows_before: int | None = None
    different: list[dict[str, Any]]

    def title(self) -> str:
        if self.chunks_recomputed or self.shards_folded:
            return f"repaired: {counted(self.chunks_recomputed, 'chunk')} recomputed"
        sound = "every record and every object is sound"
        if self.catalog_written:
            return f"repaired: the catalog is made again, {sound}"
        if self.manifest_written:
            return f"repaired: the manifest says now what is there, {sound}"
        return f"nothing to repair: {sound}"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rows", f"{self.rows:,} in {counted(self.shards, 'shard')}")]
        shown.append(("checked", counted(self.chunks_checked, "chunk")))
        if self.shards_folded:
            shown.append(("records", f"of {counted(self.shards_folded, 'shard')} written anew"))
        if self.catalog_written:
            shown.append(("catalog", "made again from the shards that were named, or another of its files"))
        if self.rows_before is not None:
            shown.append(("manifest", f"said {counted(self.rows_before, 'row')}, and says now what is there"))
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
        return f"replayed {counted(self.chunks_recomputed, 'chunk')}: {counted(self.rows_gained, 'more row')}"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rejects before", _counts(self.rejects_before))]
        shown.append(("rejects now", _counts(self.rejects)))
        shown += [("mended at the source", url) for url in self.mended]
        return [*shown, *(("gone at the source", url) for url in self.gone)]


def _counts(rejects: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in rejects.items()) or "none"
