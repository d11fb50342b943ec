"""What a training run came to: its samples accounted for, its rate, its scores, and what to do next."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.pipelines.survey import Survey
from mmstream.schema import REJECT
from mmstream.storage.files import join, list_files, read_bytes
from mmstream.telemetry import Report, counted
from mmstream.timing import diagnosed
from mmstream.train.checkpoint import CheckpointRecord
from mmstream.train.log import read_metrics
from mmstream.train.recipe import Recipe


class TrainReport(Report):
    """`leftover` samples of the last epoch did not fill a batch. Who waited is said of this run alone, without what it
    went on from, and from 2 s of training on."""

    run: str
    card: str
    steps: int
    samples: int
    leftover: int
    batch_size: int
    rejects: dict[str, int]
    loss: float | None
    seconds: float
    samples_per_second: float
    waited_for: str | None = None  # the stage that took most of the time, with its share
    workers_waited: float | None = None  # share of the time in which the model had nothing to do
    advice: str | None = None  # what would help
    retrieval: dict[str, Any] | None = None
    already_finished: bool = False

    def title(self) -> str:
        return "nothing to do: this run is finished" if self.already_finished else "trained"

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        return values if self.retrieval else {k: v for k, v in values.items() if k != "retrieval"}

    def lines(self) -> list[tuple[str, str]]:
        shown = [("run", self.run), ("steps", f"{self.steps:,} of {counted(self.batch_size, 'sample')}")]
        if self.loss is not None:
            shown.append(("loss", f"{self.loss:.3f} (by chance {np.log(self.batch_size):.3f})"))
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        if self.leftover:
            shown.append(("leftover", f"{counted(self.leftover, 'sample')} of the last epoch did not fill a batch"))
        if not self.already_finished:
            shown.append(("time", f"{self.seconds:.1f} s, {self.samples_per_second:,.0f} samples/s"))
        if self.waited_for:
            share = f"{100 * (self.workers_waited or 0):.0f} % of the time"
            shown.append(("workers waited", f"{share}; what took most: {self.waited_for}"))
            shown.append(("would help", self.advice or ""))
        if self.retrieval:
            scores = "  ".join(f"{k.upper()} {v:.3f}" for k, v in self.retrieval["text_to_image"].items())
            shown.append(("text → image", f"{scores} among {self.retrieval['n']:,}"))
        return shown


ADVICE = {
    "store": "the source answers slowly: run nearer to it, or give Ray more CPUs, so that more shards are read at once",
    "tar": "reading the shards does not keep up: give Ray more CPUs, so that more of them are read at once",
    "decode": "decoding does not keep up: give Ray more CPUs, each that the workers leave decodes; or smaller pictures",
    "transfer": "batches are long on their way between processes: a node with the workers and more CPUs, or a larger "
    "batch_size",
    "model": "the model is the limit, which is as it should be: a GPU, more workers, or a smaller model",
    "write": "checkpoints take long to be written: give --out a faster store",
}


def seconds_by_stage(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Where the time of rank 0 went, from rows of the metrics.

    What was waited for is divided as the work of the feed was, as far as that work accounts for it; the rest of the
    waiting is for what lies between the processes. Rows of runs of older versions say nothing.
    """
    total, waited, written, store, tar, decode = (
        sum(row.get(name, 0.0) for row in rows)
        for name in ("seconds", "waited_seconds", "write_seconds", "store_seconds", "tar_seconds", "decode_seconds")
    )
    work = store + tar + decode
    explained = min(waited, work)
    part = explained / work if work else 0.0
    fed = {"store": part * store, "tar": part * tar, "decode": part * decode, "transfer": waited - explained}
    return {**fed, "model": max(0.0, total - waited - written), "write": written}


def rejects_of(run: str) -> pa.Table:
    """All reject rows of the run. What a killed write left beside them has another name and is not read."""
    names = [f.url for f in list_files(join(run, "rejects"))]
    tables = [
        pq.read_table(pa.BufferReader(read_bytes(url)))
        for url in names
        if url.endswith(".parquet") and not url.rsplit("/", 1)[1].startswith(".")
    ]
    return pa.concat_tables(tables) if tables else REJECT.empty_table()


def leftover_of(recipe: Recipe, record: CheckpointRecord, survey: Survey, rejects: pa.Table) -> int:
    """Usable samples × epochs, less those that were in a step."""
    usable = survey.num_rows - (rejects.num_rows - rejects["key"].null_count)  # without a key: a shard's unknown rest
    return max(0, usable * recipe.epochs - record.samples)


def report_of(
    run: str,
    recipe: Recipe,
    record: CheckpointRecord,
    survey: Survey,
    *,
    retrieval: dict[str, Any] | None = None,
    already: bool = False,
    from_step: int = 0,
) -> TrainReport:
    """
    Args:
        from_step: of the checkpoint that this run went on from.
    """
    rows, rejects = read_metrics(run), rejects_of(run)
    found = None if already else diagnosed(seconds_by_stage([row for row in rows if row["step"] > from_step]))
    rates = [row["samples_per_second"] for row in rows[1:]]
    rate = len(rates) / sum(1 / r for r in rates) if rates else 0.0
    shards = recipe.data.eval or recipe.data.train
    source = [shards] if isinstance(shards, str) else shards
    return TrainReport(
        run=run,
        card=join(run, "card"),
        steps=record.step,
        samples=record.samples,
        leftover=leftover_of(recipe, record, survey, rejects),
        batch_size=recipe.batch_size,
        rejects=dict(sorted(Counter(rejects["reason"].to_pylist()).items())),
        loss=rows[-1]["loss"] if rows else None,
        seconds=round(record.samples / rate, 1) if rate else 0.0,
        samples_per_second=round(rate, 1),
        waited_for=found.most if found else None,
        workers_waited=round(found.waited, 4) if found else None,
        advice=ADVICE[found.stage] if found else None,
        retrieval=retrieval,
        already_finished=already,
        next=[
            shlex.join(["mmstream", "embed", *source, f"{run}-emb", "--model", f"run:{run}"]),
            shlex.join(["mmstream", "eval", f"run:{run}", *source]),
        ],
    )
