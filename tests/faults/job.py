"""A small real job, and processes that carry it out and may be killed at any moment.

`make_source` writes tars whose every sample is known; `start` forks a process from a server that has everything
imported already. In it runs the real `embed`, with the real catalog, ledger, reader, encoder and writer; only Ray is
replaced by a loop in the same process, and chunks are small.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from faults import phases
from PIL import Image
from tars import make_tar

phases.install()

CHUNK_ROWS = 8
MODEL = "fake:16"


@dataclass(frozen=True)
class Truth:
    """What is in the tars, known because they were made: the keys of each shard's whole samples, in order."""

    keys: list[list[str]]

    def ids(self) -> dict[int, str]:
        return {shard << 32 | row: key for shard, keys in enumerate(self.keys) for row, key in enumerate(keys)}


@dataclass(frozen=True)
class Job:
    """One run of `embed`: what a process needs to carry it out. `log` gets what it says if it fails."""

    source: str
    dest: str
    log: str
    environment: dict[str, str] = field(default_factory=dict)
    planted: Callable[[], None] | None = None  # breaks the protocol on purpose, to test the test


def picture(seed: int, size: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sample(i: int) -> list[tuple[str, bytes]]:
    return [
        (f"{i:06}.png", picture(i)),
        (f"{i:06}.txt", b"picture number %d" % i),
        (f"{i:06}.json", json.dumps({"url": f"http://example.org/{i}.png"}).encode()),
    ]


def make_source(rows: tuple[int, ...] = (20, 16, 9, 8, 12, 24, 7, 14)) -> tuple[dict[str, bytes], Truth]:
    """Shards by name, and what is in them. Two samples of each shard are bad; the last shard is cut behind row 9."""
    shards, keys, i = {}, [], 0
    for shard, n in enumerate(rows):
        files = []
        for row in range(n):
            own = sample(i + row)
            if row == 3:
                own[0] = (own[0][0], b"<html>not found</html>")
            if row == 6:
                own[1] = (own[1][0], b"\xff\xfe not UTF-8")
            files += own
        data, whole = make_tar(files), n
        if shard == len(rows) - 1:
            data, whole = data[: data.index(f"{i + 9:06}.png".encode())], 9
        shards[f"{shard:05}.tar"] = data
        keys.append([f"{i + row:06}" for row in range(whole)])
        i += n
    return shards, Truth(keys)


def start(job: Job) -> tuple[ForkServerProcess, Connection]:
    """The process of a job, and the end of the pipe at which its phases arrive."""
    reader, writer = _context().Pipe(duplex=False)
    process = _context().Process(target=_run, args=(job, writer), daemon=True)
    process.start()
    writer.close()
    return process, reader


def _context() -> Any:
    """Processes are forked from a server that imported mmstream once: a start costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = python_path()
    context.set_forkserver_preload(["faults.kills", "mmstream.pipelines.embed", "s3fs", "pytest"])
    return context


def python_path() -> str:
    """PYTHONPATH with which a process finds this package and the one under test."""
    tests = Path(__file__).resolve().parents[1]
    path = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), str(tests.parent), str(tests)]
    return os.pathsep.join(dict.fromkeys(path))


def _run(job: Job, writer: Connection) -> None:
    os.environ.update(job.environment)
    phases.tell_to(writer.fileno())
    try:
        embed_here(job)
    except BaseException as e:
        Path(job.log).write_text(traceback.format_exc())
        sys.exit(int(getattr(e, "exit_code", 1)))


def embed_here(job: Job) -> None:
    """`embed` in this process, without Ray, in chunks of `CHUNK_ROWS`."""
    from mmstream.pipelines import embed as module
    from mmstream.pipelines.resources import Shares

    for loaded in [m for name, m in sys.modules.items() if name.startswith("mmstream.")]:
        if hasattr(loaded, "CHUNK_ROWS"):
            loaded.CHUNK_ROWS = CHUNK_ROWS  # ty: ignore[invalid-assignment]
    module.start_ray = lambda: None
    module.encode_shares = lambda *_: Shares(1, 0.5, 1, 1.0, 0.0, encoder_threads=1)
    module.run = _in_turn
    if job.planted:
        job.planted()
    module.embed(job.source, job.dest, model=MODEL, max_rejects=1.0)


def _in_turn(opened: Any, ledger: Any, tasks: list, encoder: Any) -> Any:
    """What Ray's stages do, one chunk after the other."""
    from mmstream.embeddings import writer
    from mmstream.pipelines.embed import Ran

    ran = Ran()
    for info, rows, rejects in encoded(tasks, encoder):
        place = {name: getattr(info, name) for name in ("shard", "chunk", "first_row", "num_samples", "end")}
        origin = {name: getattr(info, name) for name in ("damage", "source_bytes", "source_etag")}
        result = writer.ChunkResult(**place, **origin, rows=rows, rejects=rejects)
        generation = ledger.generations.get(info.shard, 0)
        ledger.add(writer.commit_chunk(opened.dest, result, encoder.fingerprint, generation))
        ran.num_rows += rows.num_rows
    return ran


def encoded(tasks: list, encoder: Any) -> Iterator[tuple[Any, pa.Table, pa.Table]]:
    """What the chunks of `tasks` say of themselves, their rows and their rejects."""
    from mmstream.pipelines import encode, source
    from mmstream.timing import Stopwatch

    with ThreadPoolExecutor(1) as pool:
        for task in tasks:
            for row in source.read_rows(task):
                info, samples = source.from_row(row)
                yield info, *encode.encode_chunk(info, samples, encoder, (), pool=pool, watch=Stopwatch())
