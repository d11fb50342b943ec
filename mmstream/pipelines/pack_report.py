"""What `pack` says when it is over."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from mmstream.storage.files import join
from mmstream.telemetry import Report, counted

if TYPE_CHECKING:
    from mmstream.pipelines.pack import PackedRecord
    from mmstream.pipelines.packing import Origin


class PackReport(Report):
    """`rows` = `samples` + all of `rejects`. `columns` says which column was taken for which part."""

    dest: str
    shards: int
    rows: int
    samples: int
    rejects: dict[str, int]
    bytes: int
    columns: dict[str, str]
    left_out: list[str]
    classes: int | None
    seconds: float
    already_finished: bool = False

    def title(self) -> str:
        return "nothing to do: these shards are there" if self.already_finished else "packed"

    def lines(self) -> list[tuple[str, str]]:
        shown = [
            ("samples", f"{self.samples:,} of {counted(self.rows, 'row')}"),
            ("shards", f"{self.shards:,}, {self.bytes:,} bytes"),
        ]
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        if self.rejects:
            shown.append(("", join(self.dest, "rejects.parquet")))
        if self.columns:
            shown.append(("columns", ", ".join(f"{role}: {name}" for role, name in self.columns.items())))
        if self.left_out:
            shown.append(("left out", f"{', '.join(self.left_out)}: bytes of no part that was named"))
        if self.classes is not None:
            shown.append(("classes", f"{self.classes:,}, named in {join(self.dest, 'classes.json')}"))
        shown.append(("where", self.dest))
        if not self.already_finished:
            shown.append(("time", f"{self.seconds:.1f} s, {self.samples / max(self.seconds, 1e-9):,.0f} samples/s"))
        return shown


def report_of(
    dest: str, record: PackedRecord, origin: Origin, seconds: float = 0.0, *, already: bool = False
) -> PackReport:
    return PackReport(
        dest=dest,
        **record.model_dump(include={"shards", "rows", "samples", "bytes", "rejects", "classes"}),
        columns=origin.columns,
        left_out=origin.left_out,
        seconds=round(seconds, 2),
        already_finished=already,
        next=[
            shlex.join(["mmstream", "inspect", dest]),
            shlex.join(["mmstream", "embed", dest, f"{dest}-emb", "--model", "SPEC"]),
        ],
    )
