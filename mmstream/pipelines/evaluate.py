"""Pairs are encoded, or read from an embedding set, and retrieval is measured both ways among all of them.

Vectors come to the driver, so the number of pairs is bounded: exact retrieval among n pairs is a matter of n², and
its score is comparable only at the same n, which is why n, chance and ceiling always stand beside it.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import NAMES, load_encoder
from mmstream.errors import UsageError
from mmstream.metrics import retrieval
from mmstream.pipelines.contain import Containment, containment
from mmstream.pipelines.embed import encode_stage, load_on_worker, tables_of
from mmstream.pipelines.encode import columns_of, encode_chunk
from mmstream.pipelines.frozen import limited
from mmstream.pipelines.read import chunk_dataset, shard_tasks
from mmstream.pipelines.resources import encode_shares, our_errors, start_ray, streaming_context
from mmstream.pipelines.source import as_list, from_row
from mmstream.shards.catalog import build_catalog
from mmstream.telemetry import Progress, Report, counted
from mmstream.timing import Stopwatch

MAX_PAIRS = 50_000
FITS = "fits"  # the JSON field of made data: how many scenes a caption is true of


class EvalReport(Report):
    retrieval: dict[str, Any]
    model: str
    rejects: dict[str, int]
    num_unpaired: int  # rows that lack an image or a text
    seconds: float

    def title(self) -> str:
        return f"retrieval among {counted(self.retrieval['n'], 'pair')}"

    def lines(self) -> list[tuple[str, str]]:
        r = self.retrieval
        shown = [("model", self.model)]
        for direction in ("text_to_image", "image_to_text"):
            scores = "  ".join(f"{k.upper()} {v:.3f}" for k, v in r[direction].items())
            shown.append((direction.replace("_to_", " → "), scores))
        shown.append(("chance", "  ".join(f"{k.upper()} {v:.4f}" for k, v in r["chance"].items())))
        if r["ceiling"] is not None:
            why = ": captions fit several pictures, no model can do better" if r["ceiling"] < 1 else ""
            shown.append(("ceiling", f"R@1 {r['ceiling']:.3f}{why}"))
        shown.append(("rejects", ", ".join(f"{reason} {n:,}" for reason, n in self.rejects.items()) or "none"))
        return shown


def evaluate(what: str, source: str | Sequence[str] = (), *, limit: int | None = None) -> EvalReport:
    """Recall@1, 5 and 10 of text→image and image→text.

    Args:
        what: a model spec, with `source`; or the URL of a finished embedding set, without.
        source: shards of pairs to encode.
        limit: take at most this many samples; never more than 50,000 pairs are compared.

    Raises:
        UsageError: nothing to measure, or the encoder lacks a modality.
    """
    start = time.monotonic()
    if source:
        tables, model, rejects = _encoded(what, source, limit)
    elif "://" not in what and what.partition(":")[0] in NAMES:
        raise UsageError(f"{what} is a model: give the shards to measure it on, as in mmstream eval {what} SRC….")
    else:
        emb = EmbeddingSet.open(what)
        columns = [*_columns(emb.manifest.modalities, what), *([FITS] if FITS in emb.manifest.fields else [])]
        tables, model = list(_up_to(emb.tables(columns), limit or MAX_PAIRS)), emb.manifest.encoder
        rejects = emb.manifest.totals.rejects if emb.manifest.totals else {}
    pairs = [pairs_of(t) for t in tables]
    if not pairs:
        raise UsageError(f"{what}: there is no pair to measure.")
    z_image, z_text, fits = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = fits if (fits > 0).all() else None
    return EvalReport(
        retrieval=retrieval(z_image, z_text, fits=known),
        model=model,
        rejects=rejects,
        num_unpaired=sum(t.num_rows for t in tables) - len(z_image),
        seconds=round(time.monotonic() - start, 2),
        next=[_next(what, [source] if isinstance(source, str) else source)],
    )


def _next(what: str, sources: Sequence[str]) -> str:
    """Vectors that were measured are indexed; of a model they are made first."""
    if not sources:
        return shlex.join(["mmstream", "index", "build", what, f"{what}-index"])
    dest = f"{what.removeprefix('run:')}-emb" if what.startswith("run:") else "emb"
    return shlex.join(["mmstream", "embed", *sources, dest, "--model", what])


def _columns(modalities: Sequence[str], what: str) -> list[str]:
    if not {"image", "text"} <= set(modalities):
        raise UsageError(f"{what}: holds {' and '.join(modalities)} vectors; retrieval needs image and text.")
    return ["image_embedding", "text_embedding"]


def _up_to(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    for table in tables:
        yield table.slice(0, rows)
        rows -= table.num_rows
        if rows <= 0:
            return


def pairs_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image vectors, text vectors float32 [n, d], fits int64 [n], 0 where unknown) of the rows that have both."""
    image, text = (table[f"{m}_embedding"].combine_chunks() for m in ("image", "text"))
    both = np.asarray(image.is_valid()) & np.asarray(text.is_valid())
    fits = np.zeros(table.num_rows, np.int64)
    if FITS in table.column_names:
        fits = np.array([int(v) if v else 0 for v in table[FITS].to_pylist()], np.int64)
    return _matrix(image)[both], _matrix(text)[both], fits[both]


def _matrix(column: pa.FixedSizeListArray) -> np.ndarray:
    d = column.type.list_size
    values = column.values.slice(column.offset * d, len(column) * d)
    return values.to_numpy(zero_copy_only=False).reshape(-1, d).astype(np.float32)


class _Vectors:
    """The encoder stage's actor where nothing is written: a chunk in, its vectors out as one row."""

    def __init__(self, spec: str, fingerprint: str, threads: int, contained: Containment) -> None:
        self._contained = contained
        with contained.loading(spec):
            self._encoder = load_on_worker(spec, fingerprint, threads)
        self._pool = ThreadPoolExecutor(threads, "decode")

    def __call__(self, row: pa.Table) -> pa.Table:
        info, samples = from_row(row)
        with self._contained.chunk(info) as decoder:
            rows, rejects = encode_chunk(
                info, samples, self._encoder, (FITS,), pool=self._pool, watch=Stopwatch(), decoder=decoder
            )
        names = ["image_embedding", "text_embedding", FITS]
        columns = {name: as_list(rows[name]) for name in names}
        return pa.table({**columns, "reasons": as_list(rejects["reason"])})


def _encoded(spec: str, source: str | Sequence[str], limit: int | None) -> tuple[list[pa.Table], str, dict[str, int]]:
    catalog = limited(build_catalog(source), limit)
    encoder = load_encoder(spec)
    encoder.needs("image")
    encoder.needs("text")
    start_ray()
    shares = encode_shares(catalog.num_rows)
    tables: list[pa.Table] = []
    rejects: Counter[str] = Counter()
    with (
        streaming_context(),
        our_errors(),
        containment() as contained,
        Progress("eval", None, "pairs", rate_of="encoded") as progress,
    ):
        settings = (encoder.spec, encoder.fingerprint, shares.encoder_threads, contained)
        dataset = chunk_dataset(shard_tasks(catalog), shares, columns_of(encoder))
        chunks = encode_stage(dataset, _Vectors, settings, shares)
        for row in tables_of(chunks):
            tables.append(
                pa.table({n: row[n].combine_chunks().flatten() for n in ("image_embedding", "text_embedding", FITS)})
            )
            rejects.update(row["reasons"].combine_chunks().flatten().to_pylist())
            num_rows = sum(t.num_rows for t in tables)
            progress.update(num_rows, encoded=num_rows, rejects=rejects.total())
            if num_rows >= MAX_PAIRS:
                break
    return list(_up_to(tables, MAX_PAIRS)), encoder.spec, dict(sorted(rejects.items()))
