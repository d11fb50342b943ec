"""What an embedding set had to set aside: counts by reason, the first ones of each, and a page to look at.

Counts come from the records; of the rejects themselves only the objects that hold one to show are read. A set that is
unfinished, such as one whose run ended over its error budget, is listed as far as it was committed.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.layout import read_records
from mmstream.embeddings.reader import EmbeddingSet, read_object
from mmstream.errors import Reason, UsageError
from mmstream.pipelines.rejects_page import Reject, write_page
from mmstream.schema import ChunkRecord
from mmstream.telemetry import Report, counted, to_look_at

LIMIT = 12


class RejectsReport(Report):
    dest: str
    samples: int
    damaged: int  # shards that break off; each has one reject, for its rest
    rejects: dict[str, int]
    shown: list[Reject]
    html: str | None = None

    def title(self) -> str:
        aside = f"{sum(self.rejects.values()) - self.damaged:,} of {counted(self.samples, 'sample')} set aside"
        broken = f"{counted(self.damaged, 'shard')} broken off"
        return f"{aside}, {broken}" if self.damaged else aside

    def lines(self) -> list[tuple[str, str]]:
        lines = [("where", self.dest)]
        for reason, n in self.rejects.items():
            lines.append((reason, f"{n:,}"))
            lines += [("", _line(r)) for r in self.shown if r.reason == reason]
        return [*lines, ("page", self.html)] if self.html else lines


def _line(reject: Reject) -> str:
    where = f"{reject.url.rsplit('/', 1)[-1]} byte {reject.offset:,}"
    what = f"row {reject.row:,} {reject.key!r}" if reject.key is not None else f"from row {reject.row:,} on"
    return f"{where}, {what}: {reject.detail}"


def rejects(dest: str, *, reason: str | None = None, limit: int = LIMIT, html: str | None = None) -> RejectsReport:
    """Lists what the embedding set at `dest` has set aside.

    Args:
        reason: show these only; one of errors.Reason.
        limit: show at most so many of each reason, the first ones.
        html: a path or URL for a page with their pictures.

    Raises:
        UsageError: there is no embedding set, or no such reason.
        DifferencesError: an object is not what its record says.
    """
    if reason is not None and reason not in set(Reason):
        raise UsageError(f"--reason {reason}: is none of the reasons: {', '.join(Reason)}.")
    emb = EmbeddingSet.open(dest, finished=False)
    chunks = list(committed(emb))
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts.update({r: n for r, n in chunk.num_rejects.items() if reason in (None, r)})
    shown = sorted(_first(emb, chunks, dict.fromkeys(counts, limit)), key=lambda r: (r.reason, r.shard, r.row))
    report = RejectsReport(
        dest=emb.url,
        samples=sum(c.num_samples for c in chunks),
        damaged=sum(c.damage is not None and c.damage.reason in counts for c in chunks),
        rejects=dict(sorted(counts.items())),
        shown=shown,
        html=html,
        next=_next(emb.url, html, bool(counts)),
    )
    if html is not None:
        write_page(html, emb, report.title(), shown, counts)
    return report


def _next(url: str, html: str | None, any_rejects: bool) -> list[str]:
    if html is not None:
        return to_look_at(html)
    return [shlex.join(["mmstream", *(["rejects", url, "--html", "rejects.html"] if any_rejects else ["audit", url])])]


def committed(emb: EmbeddingSet) -> Iterator[ChunkRecord]:
    """The records of all chunks, of unfinished shards too, in order."""
    for of_shard in read_records(emb.url, emb.catalog).by_chunk().values():
        yield from of_shard.values()


def _first(emb: EmbeddingSet, chunks: list[ChunkRecord], wanted: Mapping[str, int]) -> Iterator[Reject]:
    """The first `wanted[reason]` rejects of each reason; chunks that have none of these are not read."""
    left = dict(wanted)
    urls = emb.catalog["url"].to_pylist()
    for chunk in chunks:
        if chunk.rejects is None or not any(left.get(r) for r in chunk.num_rejects):
            continue
        for row in pq.read_table(pa.BufferReader(read_object(emb.url, chunk.rejects))).to_pylist():
            if left.get(row["reason"]):
                left[row["reason"]] -= 1
                yield Reject(url=urls[row["shard"]], **row)
