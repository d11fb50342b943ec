"""The real `embed`, `repair` and `replay` in this process, with a loop in Ray's place and small chunks."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from mmstream.embeddings.writer import ChunkResult, commit_chunk
from mmstream.pipelines import embed, manifest, repair, source
from mmstream.pipelines.encode import encode_chunk
from mmstream.pipelines.resources import Shares
from mmstream.pipelines.source import from_row, read_rows
from mmstream.schema import ChunkRecord
from mmstream.timing import Stopwatch


@contextmanager
def without_ray(chunk_rows: int, committed: Callable[[ChunkRecord], None] = lambda record: None) -> Generator[None]:
    """`committed` is told of each chunk when its record is there, before the driver knows of it; what it raises ends
    the command at that point."""

    def in_turn(opened: Any, ledger: Any, tasks: list, encoder: Any, title: str = "embed") -> embed.Ran:
        ran = embed.Ran()
        for task in tasks:
            for row in read_rows(task):
                record = _commit(opened, ledger, row, encoder)
                committed(record)
                ledger.add(record)
                ran.num_rows += record.num_rows
        return ran

    with ExitStack() as stack:
        for module in (source, manifest):
            stack.enter_context(patch.object(module, "CHUNK_ROWS", chunk_rows))
        for module in (embed, repair):
            stack.enter_context(patch.object(module, "run", in_turn))
        stack.enter_context(patch.object(embed, "start_ray", lambda: None))
        stack.enter_context(patch.object(embed, "encode_shares", lambda *_: Shares(1, 0.5, 1, 1.0, 0.0, 1)))
        yield


def _commit(opened: Any, ledger: Any, row: Any, encoder: Any) -> ChunkRecord:
    info, samples = from_row(row)
    rows, rejects = encode_chunk(info, samples, encoder, (), pool=_Here(), watch=Stopwatch())
    origin = (info.end, info.damage, info.source_bytes, info.source_etag)
    result = ChunkResult(info.shard, info.chunk, info.first_row, info.num_samples, rows, rejects, *origin)
    return commit_chunk(opened.dest, result, encoder.fingerprint, ledger.generations.get(info.shard, 0))


class _Here(Executor):
    """A pool of no threads."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as e:
            done.set_exception(e)
        return done
