"""What a run of `embed` says when it is over: rows and rejects, what was damaged, what a person should look at."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pyarrow as pa
from pydantic import BaseModel

from mmstream.errors import Reason
from mmstream.pipelines.ledger import Ledger
from mmstream.schema import Manifest
from mmstream.telemetry import Report, counted
from mmstream.timing import Diagnosis

NULLS = "was in the JSON of no sample of this run: its column holds nulls"


class DamagedShard(BaseModel):
    """A shard that broke. It gave `rows_seen` samples before `offset`; the rest is unknown, about `rows_behind`."""

    shard: int
    url: str
    reason: str
    offset: int
    detail: str
    rows_seen: int
    rows_behind: int


class EmbedReport(Report):
    dest: str
    shards: int
    rows: int
    rejects: dict[str, int]
    damaged: list[DamagedShard]
    seconds: float
    samples_per_second: float
    waited_for: str | None  # the stage that took most of the encoders' time, with its share
    encoder_waited: float | None  # share of their time in which the model had nothing to do
    advice: str | None  # what would help
    already_finished: bool = False
    resumed_samples: int = 0  # that earlier runs had committed
    model: str
    fingerprint: str
    absent_fields: list[str]  # that no row of this run had

    def title(self) -> str:
        return "nothing to do: this set is finished" if self.already_finished else "embedded"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("rows", f"{self.rows:,} from {counted(self.shards, 'shard')}")]
        shown += [("model", self.model), ("where", self.dest)]
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        if not self.already_finished:
            if self.resumed_samples:
                shown.append(("went on", f"with {counted(self.resumed_samples, 'sample')} committed by earlier runs"))
            speed = f", {self.samples_per_second:,.0f} samples/s" if self.samples_per_second >= 1 else ""
            shown.append(("time", f"{self.seconds:.1f} s{speed}"))
        if self.waited_for:
            share = f"{100 * (self.encoder_waited or 0):.0f} % of the time"
            shown.append(("encoder waited", f"{share}; what took most: {self.waited_for}"))
            shown.append(("would help", self.advice or ""))
        shown += [(f"field {name}", NULLS) for name in self.absent_fields]
        for d in self.damaged:
            where = f"{d.url}: {d.reason} at byte {d.offset:,} ({d.detail})"
            behind = f"about {d.rows_behind:,} lie behind" if d.rows_behind else "few or none lie behind"
            if d.reason == Reason.TAR_TRUNCATED and not d.rows_behind:
                behind = "what was cut off nobody knows"
            shown.append(("damaged", f"{where}: {counted(d.rows_seen, 'sample')} came before it, and {behind}"))
        return shown


def report_of(
    manifest: Manifest,
    ledger: Ledger,
    catalog: pa.Table,
    seconds: float = 0.0,
    found: Diagnosis | None = None,
    *,
    already: bool = False,
    absent_fields: Sequence[str] = (),
) -> EmbedReport:
    urls = catalog["url"].to_pylist()
    damaged = [
        DamagedShard(
            shard=s.shard,
            url=urls[s.shard],
            rows_seen=s.num_samples,
            rows_behind=ledger.damaged[s.shard],
            **s.damage.told(),
        )
        for s in ledger.shards.values()
        if s.damage
    ]
    return EmbedReport(
        dest=ledger.dest,
        shards=len(ledger.shards),
        rows=ledger.num_rows,
        rejects=dict(sorted(ledger.rejects.items())),
        damaged=damaged,
        seconds=round(seconds, 2),
        samples_per_second=round(ledger.num_encoded / seconds, 1) if seconds else 0.0,
        waited_for=found.most if found else None,
        encoder_waited=round(found.waited, 4) if found else None,
        advice=found.advice if found else None,
        already_finished=already,
        resumed_samples=0 if already else ledger.num_samples - ledger.num_encoded,
        model=manifest.encoder,
        fingerprint=manifest.fingerprint,
        absent_fields=list(absent_fields),
        next=is_next(ledger.dest, any_rejects=bool(ledger.rejects)),
    )


def is_next(dest: str, *, any_rejects: bool = False) -> list[str]:
    """The commands that come after a set is finished."""
    commands = [["rejects", dest]] if any_rejects else []
    commands += [["audit", dest], ["index", "build", dest, f"{dest}-index"]]
    return [shlex.join(["mmstream", *command]) for command in commands]
