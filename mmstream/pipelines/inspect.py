"""What is in these shards: read the catalog and the first chunk of a few shards, and say what is there.

No Ray and no model: a look before a job, in seconds, whatever the number of shards.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmstream.encoders.build import DEFAULT_SPEC
from mmstream.errors import RefusedError, Rejected, UsageError
from mmstream.media.image import decode
from mmstream.pipelines.read import shard_tasks
from mmstream.pipelines.source import CHUNK_ROWS, chunks_of
from mmstream.schema import SAMPLE
from mmstream.shards.catalog import build_catalog, named_sources, to_parquet
from mmstream.shards.lists import is_catalog
from mmstream.storage.files import exists, write_bytes
from mmstream.telemetry import Report, counted

LOOK_AT_SHARDS = 3
SHOW_SAMPLES = 5
_PARTS = ("image", "text", "json", "cls", "audio", "video")


class InspectReport(Report):
    source: list[str]
    shards: int
    bytes: int
    looked_at: list[str]
    samples_seen: int
    members: dict[str, int]  # of the samples seen, how many have an image, a text, …
    sizes: list[str]
    reasons: dict[str, int]
    damaged: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    catalog: str | None  # the file that was written

    def title(self) -> str:
        return f"{counted(self.shards, 'shard')}, {self.bytes / 1e6:,.1f} MB"

    def lines(self) -> list[tuple[str, str]]:
        shown = [("looked at", ", ".join(self.looked_at))]
        seen = f"{self.samples_seen:,} seen, up to {CHUNK_ROWS} at the start of each of these"
        shown.append(("samples", seen if self.samples_seen else "none in these: are they WebDataset tars?"))
        if self.members:
            shown.append(("members", ", ".join(f"{part} {n:,}" for part, n in self.members.items())))
        if self.sizes:
            shown.append(("pictures", ", ".join(self.sizes)))
        if self.reasons:
            shown.append(("bad", ", ".join(f"{reason} {n:,}" for reason, n in self.reasons.items())))
        shown += [("damaged", f"{d['url']}: {d['reason']} at byte {d['offset']:,}") for d in self.damaged]
        shown += [(s["key"], s["text"] or f"({s['reason'] or 'no text'})") for s in self.samples]
        if self.catalog:
            shown.append(("catalog", f"written to {self.catalog}: a source that stands for these very shards"))
        return shown


def inspect(source: str | Sequence[str], *, catalog_to: str | None = None, checksums: bool = False) -> InspectReport:
    """Looks at the first chunk (up to 512 samples) of up to three shards.

    Args:
        source: globs, braces, folders, lists, URLs of shards, a stored catalog.
        catalog_to: a new `.parquet` file for the frozen catalog; it can stand for these shards as a source.
        checksums: read every shard once for its SHA-256, which is verified whenever the catalog is read from.

    Raises:
        UsageError: nothing matches, or `catalog_to` is no name of a catalog.
        RefusedError: there is a file at `catalog_to`: numbers of shards would change under whoever counts on them.
        UnreachableError: a store does not answer.
    """
    _check_free(catalog_to, checksums)
    src = named_sources(source)
    catalog = build_catalog(src, checksums=checksums)
    if catalog_to:
        write_bytes(catalog_to, to_parquet(catalog))
    members: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    sizes: list[str] = []
    damaged, shown, looked_at, seen = [], [], [], 0
    tasks = shard_tasks(catalog)
    for task in tasks[:LOOK_AT_SHARDS]:
        looked_at.append(task.url)
        chunk = next(chunks_of(task))
        seen += chunk.num_samples
        if chunk.damage:
            damaged.append({"url": task.url, **chunk.damage.told()})
        for part in _PARTS:
            members[part] += chunk.num_samples - chunk.table[part].null_count
        reasons.update(r for r in chunk.table["reason"].to_pylist() if r)
        for sample in chunk.table.select(SAMPLE.names).slice(0, SHOW_SAMPLES).to_pylist():
            size = _size(sample["image"])
            sizes += [size] if size and size not in sizes else []
            text = (sample["text"] or "").strip()
            shown.append({"key": sample["key"], "size": size, "text": text[:120], "reason": sample["reason"]})
    return InspectReport(
        source=src,
        shards=catalog.num_rows,
        bytes=sum(catalog["bytes"].to_pylist()),
        looked_at=looked_at,
        samples_seen=seen,
        members={part: n for part, n in members.items() if n},
        sizes=sizes[:SHOW_SAMPLES],
        reasons=dict(sorted(reasons.items())),
        damaged=damaged,
        samples=shown[:SHOW_SAMPLES],
        catalog=catalog_to,
        next=_next([catalog_to] if catalog_to else src, members),
    )


def _next(sources: list[str], members: Counter[str]) -> list[str]:
    """To embed what was seen, by a model that takes it; nothing where no sample has such a part."""
    takes = {"image": DEFAULT_SPEC, "text": DEFAULT_SPEC, "video": f"frames:8:{DEFAULT_SPEC}", "audio": "SPEC"}
    model = next((spec for part, spec in takes.items() if members[part]), None)
    return [shlex.join(["mmstream", "embed", *sources, "DEST", "--model", model])] if model else []


def _check_free(catalog_to: str | None, checksums: bool) -> None:
    if catalog_to is None:
        if checksums:
            raise UsageError("--checksums: they are kept in a catalog; give --catalog FILE.parquet too.")
        return
    if not is_catalog(catalog_to):
        raise UsageError(f"--catalog {catalog_to}: the name of a catalog ends with .parquet.")
    if exists(catalog_to):
        raise RefusedError(f"{catalog_to}: is there already, and ids may count on its numbers. Choose another name.")


def _size(image: bytes | None) -> str | None:
    """`"448×236"`, or the reason why the picture cannot be decoded."""
    if image is None:
        return None
    try:
        picture = decode(image)
    except Rejected as e:
        return str(e.reason)
    return f"{picture.width}×{picture.height}"
