"""What `mmstream stats` says when it is over: each feature in a line, what was rejected and damaged."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from pydantic import BaseModel

from mmstream.media.statistics import FeatureStatistics
from mmstream.media.statistics_file import KINDS, BrokenShard, StatisticsFile
from mmstream.telemetry import Report, counted

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
SHOWN_FEATURES = 12  # of a kind, to a person


class FeatureSummary(BaseModel):
    """Of one channel, band or field. Null where it has no value."""

    name: str
    count: int
    missing: int
    non_finite: int
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    quantiles: dict[str, float | None]

    def line(self) -> str:
        if self.mean is None:
            return "no value"
        ends = f"min {self.minimum:.6g}, median {self.quantiles['0.5']:.6g}, max {self.maximum:.6g}"
        lost = f", {self.missing:,} missing" if self.missing else ""
        lost += f", {self.non_finite:,} not finite" if self.non_finite else ""
        return f"mean {self.mean:.6g}, std {self.std:.6g}, {ends}{lost}"


class StatsReport(Report):
    """`samples` = `used` + all of `rejects`; behind the damage of a shard nothing was seen."""

    dest: str
    shards: int
    samples: int
    used: int
    rejects: dict[str, int]
    damaged: list[BrokenShard]
    present: dict[str, int]
    features: dict[str, list[FeatureSummary]]
    seconds: float
    already_finished: bool = False

    def title(self) -> str:
        return "nothing to do: these statistics are there" if self.already_finished else "counted"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("samples", f"{self.used:,} used of {self.samples:,} in {counted(self.shards, 'shard')}")]
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        for kind, features in self.features.items():
            shown.append((kind, counted(self.present[kind], "sample")))
            shown += [(f"  {f.name}", f.line()) for f in features[:SHOWN_FEATURES]]
            if len(features) > SHOWN_FEATURES:
                shown.append(("  …", f"{len(features) - SHOWN_FEATURES:,} more: see --json"))
        for d in self.damaged:
            where = f"{d.url}: {d.reason} at byte {d.offset:,} ({d.detail})"
            shown.append(("damaged", f"{where}: what lies behind it was not counted"))
        shown.append(("where", self.dest))
        if not self.already_finished:
            rate = self.samples / max(self.seconds, 1e-9)
            shown.append(("time", f"{self.seconds:.1f} s{f', {rate:,.0f} samples/s' if rate >= 1 else ''}"))
        return shown


def report_of(
    dest: str,
    sources: Sequence[str],
    file: StatisticsFile,
    num_shards: int,
    seconds: float = 0.0,
    *,
    already: bool = False,
) -> StatsReport:
    kinds = {kind: getattr(file, kind) for kind in KINDS}
    return StatsReport(
        dest=dest,
        shards=num_shards,
        samples=file.samples,
        used=file.used,
        rejects=file.rejects,
        damaged=file.damaged,
        present=file.present,
        features={kind: [_summary(f) for f in found.features] for kind, found in kinds.items() if found},
        seconds=round(seconds, 2),
        already_finished=already,
        next=[_next(dest, sources, file)],
    )


def _next(dest: str, sources: Sequence[str], file: StatisticsFile) -> str:
    """Training scales pictures by their statistics; of other things they are to be read."""
    if not file.present.get("image"):
        return shlex.join(["mmstream", "inspect", *sources])
    train = sources[0] if len(sources) == 1 else json.dumps(list(sources))
    return shlex.join(
        ["mmstream", "train", "RECIPE.yaml", "--out", "RUN", f"data.train={train}", f"data.statistics={dest}"]
    )


def _summary(feature: FeatureStatistics) -> FeatureSummary:
    mean = None if feature.mean is None else feature.mean + feature.mean_low
    return FeatureSummary(
        **feature.model_dump(include={"name", "count", "missing", "non_finite", "minimum", "maximum"}),
        mean=mean,
        std=feature.std if feature.count else None,
        quantiles={f"{q:g}": feature.quantile(q) for q in QUANTILES},
    )
