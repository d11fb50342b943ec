"""Does an embedding set hold what its records say, and do its records say what the shards hold?

This shares with the writer only the files and the declared schema: names are taken apart here again, and every figure
is counted anew from the objects, so that a mistake in the writer cannot hide itself. With `source` the tars are
counted again too. Whatever lies in the set, torn, missing or a stranger's, is named and never ends the audit, nor
does what the store does not give out. Of several generations of a record the highest valid one counts, and a damaged
one above it is a difference. Shards are checked side by side, one chunk of each in memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from mmstream.embeddings.absent import no_set
from mmstream.embeddings.findings import Difference, Findings, Unchecked
from mmstream.embeddings.shard_check import Terms, check_shard
from mmstream.errors import ExitCode, RefusedError, UnreachableError, UsageError
from mmstream.schema import CATALOG, FORMAT, ChunkRecord, Manifest, Sealed, ShardRecord
from mmstream.storage.files import absolute, below, join, list_files, read_bytes
from mmstream.telemetry import Progress, Report, counted

THREADS = 8
USUAL_REJECTS = 0.05  # that embed takes without being told
SHOWN_UNKNOWN = SHOWN_DIFFERENCES = 20

_MANIFEST = re.compile(r"manifest/([0-9]{6,9})\.json")
_FOLDED = re.compile(r"commits/([0-9]{6,9})\.([0-9]{1,9})\.json")
_CHUNK = re.compile(r"commits/([0-9]{6,9})/([0-9]{6,9})\.([0-9]{1,9})\.json")
_CATALOG = re.compile(r"catalog/([0-9]+\.parquet)")
_OTHER = re.compile(r"((data|rejects)/[0-9]+-[0-9]+-[0-9a-f]+)\.parquet|(.*/)?\.[^/]*")  # or temporary
_LOSS = re.compile(r"record .*/|(data|rejects) object |SHA-256 of |catalog ")  # of what is different
R = TypeVar("R", bound=Sealed)
Source = tuple[int, str]  # bytes and etag of a shard
A = TypeVar("A")
B = TypeVar("B")


class Counted(BaseModel):
    """What was counted in the tars themselves."""

    shards: int
    samples: int


class AuditReport(Report):
    """`ok` is a set without differences all of which could be looked at. A difference is known and makes exit code 6;
    where there is none, but something stayed `unchecked`, it is 5: ask again."""

    ok: bool
    finished: bool
    dest: str
    shards: int
    rows: int
    rejects: dict[str, int]
    damaged: list[dict[str, Any]]
    source: Counted | None  # where it was asked for
    differences: list[Difference]
    unchecked: list[Unchecked]
    unknown: list[str]  # files that are no part of an embedding set; they do no harm

    @property
    def exit_code(self) -> ExitCode:
        if self.differences:
            return ExitCode.DIFFERENCES
        return ExitCode.UNREACHABLE if self.unchecked else ExitCode.DONE

    def title(self) -> str:
        if not self.finished and not any(_LOSS.match(d.what) for d in self.differences):
            return "audit: this set is unfinished, the same embed command goes on with it"
        if self.ok:
            return "audit: everything agrees"
        said = [counted(len(self.differences), "difference")] if self.differences else []
        return "audit: " + ", ".join(said + ([f"{len(self.unchecked):,} unchecked"] if self.unchecked else []))

    def lines(self) -> list[tuple[str, str]]:
        shown = [("where", self.dest), ("rows", f"{self.rows:,} in {counted(self.shards, 'shard')}")]
        shown.append(("rejects", ", ".join(f"{r} {n:,}" for r, n in self.rejects.items()) or "none"))
        for d in self.damaged:
            where = f"shard {d['shard']}: {d['reason']} at byte {d['offset']:,}"
            shown.append(("damaged at the source", f"{where} ({d['url']})"))
        if self.unknown:
            shown.append(("unknown files", ", ".join(self.unknown)))
        if self.source:
            samples, shards = counted(self.source.samples, "sample"), counted(self.source.shards, "shard")
            shown.append(("in the source", f"{samples} counted in {shards}"))
        for name, found in (("difference", self.differences), ("unchecked", self.unchecked)):
            shown += [(name, str(one)) for one in found[:SHOWN_DIFFERENCES]]
            if (more := len(found) - SHOWN_DIFFERENCES) > 0:
                shown.append(("and", f"{more:,} more of these; --json names all of them"))
        return shown


def audit(dest: str, *, source: bool = False) -> AuditReport:
    """Checks the embedding set at `dest`; with `source` also against the tars that it was made from.

    Raises:
        UsageError: there is no embedding set.
        UnreachableError: it cannot be listed, or so much of it cannot be read that its store is down.
    """
    return _Audit(absolute(dest), source).run()


class _Audit:
    def __init__(self, root: str, source: bool) -> None:
        self.root, self.source = root, source
        self.manifests: dict[int, str] = {}
        self.folded: dict[int, dict[int, str]] = {}  # shard → generation → URL
        self.begun: dict[int, int] = {}  # shard that has records of chunks → their highest generation
        self.lost_catalog = self.is_behind = False  # of records that no catalog knows
        self.catalogs: list[str] = []
        self.unknown: list[str] = []
        self.found = Findings()

    def run(self) -> AuditReport:
        self._list()
        manifest = self._manifest()
        catalog = self._catalog(manifest) if manifest else None
        self.lost_catalog = manifest is not None and not catalog
        terms = Terms(self.root, manifest, self.source)
        shards = sorted({*(catalog or {}), *self.folded, *self.begun})
        with Progress("audit", len(shards), "shards", rate_of="rows") as progress:
            for findings in _in_order(lambda shard: self._check(shard, catalog, terms), shards):
                self.found.add(findings)
                progress.update(progress.done + 1, rows=self.found.num_rows, differences=len(self.found.differences))
        if manifest and not self.found.unchecked:
            self._check_totals(manifest)
        counted = Counted(shards=self.found.num_source_shards, samples=self.found.num_source_samples)
        return AuditReport(
            ok=not (self.found.differences or self.found.unchecked),
            finished=manifest is None or manifest.finished,
            dest=self.root,
            shards=self.found.num_shards,
            rows=self.found.num_rows,
            rejects=dict(sorted(self.found.rejects.items())),
            damaged=self.found.damaged,
            source=counted if self.source else None,
            differences=self.found.differences,
            unchecked=self.found.unchecked,
            unknown=self.unknown,
            next=[shlex.join(["mmstream", *command]) for command in self._next(manifest)],
        )

    def _next(self, manifest: Manifest | None) -> list[list[str]]:
        if manifest is None:
            source = f"{self.root}/catalog/{max(self.catalogs)}" if self.catalogs else "SRC"
            return [["embed", source, self.root, "--model", "SPEC"]] if not self.manifests else []
        if not manifest.finished and not self._lost:
            return [self._to_go_on(manifest)]
        if self.is_behind and not self._lost:
            return [["embed", "SRC", self.root, "--model", manifest.encoder, "--append"]]
        if self.found.differences:
            replay = self.source and (self.found.damaged or self.found.rejects)  # for sources that were mended
            repair = ["repair", self.root, *(["--source", "SRC"] if self.lost_catalog else [])]
            return [repair, *([["rejects", self.root, "--replay"]] if replay else [])]
        if self.found.unchecked:
            return [["audit", self.root, *(["--source"] if self.source else [])]]
        return [["index", "build", self.root, f"{self.root}-index"]]

    @property
    def _lost(self) -> bool:
        """Whether something is damaged or gone that was there once: an unfinished set as such lacks nothing."""
        return any(_LOSS.match(d.what) for d in self.found.differences)

    def _to_go_on(self, manifest: Manifest) -> list[str]:
        """The embed that finishes the set: its frozen catalog stands for the sources that it was begun with."""
        options = [word for field in manifest.fields for word in ("--field", field)]
        for name, value in manifest.filters.items():
            options += ["--filter", f"{name}={json.dumps(value)}"]
        options += ["--limit", str(manifest.limit)] if manifest.limit is not None else []
        share = self.found.rejects.total() / max(1, self.found.num_samples)
        options += ["--max-rejects", f"{min(100, math.ceil(100 * share + 1))}%"] if share > USUAL_REJECTS else []
        return ["embed", join(self.root, manifest.catalog), self.root, "--model", manifest.encoder, *options]

    def _list(self) -> None:
        for file in list_files(self.root):
            path = below(self.root, file.url)
            if name := _FOLDED.fullmatch(path):
                self.folded.setdefault(int(name[1]), {})[int(name[2])] = file.url
            elif name := _CHUNK.fullmatch(path):
                self.begun[int(name[1])] = max(self.begun.get(int(name[1]), -1), int(name[3]))
            elif name := _MANIFEST.fullmatch(path):
                self.manifests[int(name[1])] = file.url
            elif name := _CATALOG.fullmatch(path):
                self.catalogs.append(name[1])
            elif not _OTHER.fullmatch(path) and len(self.unknown) < SHOWN_UNKNOWN:
                self.unknown.append(file.url)
        if not (self.manifests or self.folded or self.begun):
            raise no_set(self.root)

    def _manifest(self) -> Manifest | None:
        try:
            newest = _newest(Manifest, self.manifests, self.found)
        except UnreachableError as e:
            self.found.cannot_read("manifest", e)
            return None
        manifest = newest[1] if newest else None
        if manifest is None:
            what_to_do = f"none of {len(self.manifests)}; without such files, the same embed command begins anew and "
            self.found.differ("manifests", "a valid one", f"{what_to_do}takes up all records that fit")
        elif not manifest.finished:
            self.found.differ("manifest", "finished", "unfinished")
        return manifest

    def _catalog(self, manifest: Manifest) -> dict[int, dict[str, Any]] | None:
        """Its rows by shard; None where it cannot be gone by."""
        if not re.fullmatch(r"catalog/[0-9]+\.parquet", manifest.catalog):
            self.found.differ("path of the catalog", "catalog/….parquet", manifest.catalog)
            return None
        try:
            data = read_bytes(join(self.root, manifest.catalog))
        except UsageError:
            self.found.differ(f"catalog {manifest.catalog}", "there", "missing")
            return None
        except UnreachableError as e:
            self.found.cannot_read(f"catalog {manifest.catalog}", e)
            return None
        if (found := hashlib.sha256(data).hexdigest()) != manifest.catalog_sha256:
            self.found.differ(f"SHA-256 of {manifest.catalog}", manifest.catalog_sha256, found)
            return None
        try:
            catalog = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as e:
            self.found.differ(f"catalog {manifest.catalog}", "Parquet", e)
            return None
        if catalog.schema.names != CATALOG.names or catalog["shard"].to_pylist() != list(range(catalog.num_rows)):
            self.found.differ(f"catalog {manifest.catalog}", f"{CATALOG.names}, shards from 0 on", catalog.schema.names)
            return None
        return dict(enumerate(catalog.to_pylist()))

    def _check(self, shard: int, catalog: dict[int, dict[str, Any]] | None, terms: Terms) -> Findings:
        found, entry = Findings(shard), (catalog or {}).get(shard)
        try:
            record = self._record(shard, (entry["bytes"], entry["etag"]) if entry else None, found)
        except UnreachableError as e:
            found.cannot_read("records", e)
            return found
        if catalog is not None and entry is None:
            found.differ("shard of a record", "in the catalog", "not there")
            self.is_behind = True
        if record is not None:
            found.add(check_shard(terms, record, shard, entry))
        return found

    def _record(self, shard: int, source: Source | None, found: Findings) -> ShardRecord | None:
        """The record that counts: the folded one of the highest valid generation, with what newer records of chunks say
        in its place, if that makes a whole; at worst whatever there is."""
        try:
            generation, folded = self._folded(shard, source, found)
        except UnreachableError as e:
            found.cannot_read("record of the shard", e)
            made = self._of_chunks(shard, -1, source, found)
            return _made_of(shard, made) if _is_whole(made) else None  # what is below it may have been replaced
        since = self._of_chunks(shard, generation, source, found)
        chunks = {**{c.chunk: c for c in folded.chunks}, **since} if folded else since
        if not self.folded.get(shard):
            found.differ("record of the shard", "one", "none")
        if folded and (chunks == {c.chunk: c for c in folded.chunks} or not _is_whole(chunks)):
            return folded
        if folded and generation == max(self.folded[shard]):
            found.differ("record of the shard", "one with all records of its chunks", f"generation {generation}")
        other = None if _is_whole(chunks) else _newest(ShardRecord, self.folded.get(shard, {}), Findings())
        return other[1] if other else _made_of(shard, chunks)

    def _folded(self, shard: int, source: Source | None, found: Findings) -> tuple[int, ShardRecord | None]:
        """The folded record of this source, with its generation; -1 and None where there is none."""
        generations = self.folded.get(shard, {})
        newest = {g: url for g, url in generations.items() if g == max(generations)}
        # What is below the newest has been replaced: no difference, whatever became of it.
        best = _newest(ShardRecord, newest, found, source) or _newest(ShardRecord, generations, Findings(), source)
        return best or (-1, None)

    def _of_chunks(self, shard: int, above: int, source: Source | None, found: Findings) -> dict[int, ChunkRecord]:
        """The records of chunks that are of a higher generation than `above`."""
        generations: dict[int, dict[int, str]] = {}
        for file in list_files(join(self.root, f"commits/{shard:06}")) if self.begun.get(shard, -1) > above else []:
            if (name := _CHUNK.fullmatch(below(self.root, file.url))) and int(name[3]) > above:
                generations.setdefault(int(name[2]), {})[int(name[3])] = file.url
        valid = {n: _newest(ChunkRecord, urls, found, source) for n, urls in sorted(generations.items())}
        return {n: best[1] for n, best in valid.items() if best}

    def _check_totals(self, manifest: Manifest) -> None:
        if manifest.totals is None:
            return
        found = {
            "shards": self.found.num_shards,
            "samples": self.found.num_samples,
            "rows": self.found.num_rows,
            "rejects": dict(sorted(self.found.rejects.items())),
            "damaged": [d["shard"] for d in self.found.damaged],
        }
        for name, value in found.items():
            if (expected := getattr(manifest.totals, name)) != value:
                self.found.differ(f"total {name}", expected, value)


def _newest(
    kind: type[R], generations: dict[int, str], found: Findings, source: Source | None = None
) -> tuple[int, R] | None:
    """The record of the highest generation that is one, and of this source if one is given. Each damaged one above it
    is a difference; one of another source is not: a source that was mended is recorded before the catalog names it."""
    for generation, url in sorted(generations.items(), reverse=True):
        try:
            record = kind.from_bytes(read_bytes(url))
        except UsageError:
            found.differ(f"record {url}", "there", "missing")
        except RefusedError as e:
            found.differ(f"record {url}", f"format {FORMAT}", e)
        except ValueError as e:
            found.differ(f"record {url}", f"a valid {kind.__name__}", str(e).splitlines()[0])
        else:
            if source is None or getattr(record, "source", source) == source:
                return generation, record
    return None


def _is_whole(chunks: dict[int, ChunkRecord]) -> bool:
    """Whether they adjoin, from the first row of a shard to its end."""
    next_row = 0
    for number, (name, chunk) in enumerate(sorted(chunks.items())):
        if name != number or chunk.first_row != next_row or chunk.end != (number == len(chunks) - 1):
            return False
        next_row += chunk.num_samples
    return bool(chunks)


def _made_of(shard: int, chunks: dict[int, ChunkRecord]) -> ShardRecord | None:
    """The chunks' records folded here, gaps or not; None where there is none."""
    if not chunks:
        return None
    ordered = [chunk for _, chunk in sorted(chunks.items())]
    return ShardRecord(
        shard=shard,
        num_samples=sum(c.num_samples for c in ordered),
        num_rows=sum(c.num_rows for c in ordered),
        num_rejects=dict(sum((Counter(c.num_rejects) for c in ordered), Counter())),
        damage=ordered[-1].damage,
        chunks=ordered,
    )


def _in_order(call: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """`call` of each item, a few at a time in threads; results come in order and never pile up."""
    with ThreadPoolExecutor(THREADS) as pool:
        window: list[Future[B]] = []
        for item in items:
            window.append(pool.submit(call, item))
            if len(window) == 2 * THREADS:
                yield window.pop(0).result()
        for future in window:
            yield future.result()
