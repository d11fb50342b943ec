"""Each stage is made slow in turn, and named: the real reader and the real actor of `embed`, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tars import make_tar

from mmstream import timing
from mmstream.bench.pictures import jpegs
from mmstream.encoders.fake import FakeEncoder
from mmstream.encoders.pipelined import prepared
from mmstream.media.decoding import Decoder, Direct
from mmstream.media.filters import Filters
from mmstream.pipelines import embed, source
from mmstream.storage import ranges
from mmstream.timing import ADVICE, Diagnosis, diagnosed

NUM_CHUNKS, CHUNK_ROWS, SLEEP = 4, 4, 0.15


class Uncontained:
    """In the place of `Containment`, which keeps its marks in Ray."""

    @contextmanager
    def chunk(self, info: source.ChunkInfo) -> Generator[Decoder]:
        yield Direct()

    @contextmanager
    def writing(self, info: source.ChunkInfo) -> Generator[None]:
        yield

    @contextmanager
    def loading(self, spec: str) -> Generator[None]:
        yield


def after_a_sleep(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(SLEEP)
        return function(*arguments, **named)

    return slow


def slowly(chunks: Any) -> Any:
    for chunk in chunks:
        time.sleep(SLEEP)
        yield chunk


# Where each stage is slowed down.
FAULTS: dict[str, tuple[Any, str]] = {
    "store": (ranges._Source, "fetch"),
    "decode": (FakeEncoder, "preprocess"),
    "transfer": (FakeEncoder, "place"),
    "model": (FakeEncoder, "forward"),
    "write": (embed, "commit_chunk"),
}


def ran(folder: Path) -> Diagnosis:
    files = [(f"{i:02}.jpg", data) for i, data in enumerate(jpegs(NUM_CHUNKS * CHUNK_ROWS, 200))]
    tar = make_tar(files)
    (folder / "a.tar").write_bytes(tar)
    encoder = FakeEncoder("fake:8")
    settings = ("fake:8", encoder.fingerprint, str(folder / "emb"), (), Filters(), 2, 32, {}, Uncontained())
    actor, seconds = embed._Encode(*settings), dict.fromkeys(embed.STAGES, 0.0)
    task = source.ShardTask(0, str(folder / "a.tar"), len(tar), "")
    num_rows = 0
    with ThreadPoolExecutor(embed.CALLS) as calls:  # as Ray calls it
        for table in prepared(source.read_rows(task), actor, calls, embed.CALLS):
            done = table.to_pylist()[0]
            num_rows += 1
            for stage in embed.STAGES:
                seconds[stage] += done[f"{stage}_seconds"]
    assert num_rows >= NUM_CHUNKS
    found = diagnosed(seconds)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", embed.STAGES)
def test_the_stage_that_is_slow_is_named_with_what_would_help(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "MIN_SECONDS", 0.1)
    monkeypatch.setattr(source, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(ranges, "LOCAL_BLOCK_BYTES", 32 << 10)
    if stage == "tar":
        read = source.read_chunks
        monkeypatch.setattr(source, "read_chunks", lambda *args, **named: slowly(read(*args, **named)))
    else:
        place, name = FAULTS[stage]
        monkeypatch.setattr(place, name, after_a_sleep(getattr(place, name)))
    found = ran(tmp_path)
    assert found.stage == stage
    assert found.share > 0.5
    assert found.advice == ADVICE[stage]
    assert found.waited < 0.5 if stage == "model" else found.waited > 0.5


def test_nothing_is_said_of_a_moment() -> None:
    assert diagnosed(dict.fromkeys(embed.STAGES, 0.0)) is None
    assert diagnosed({"decode": 1.5, "model": 0.4}) is None
    assert diagnosed({"decode": 1.5, "model": 0.6}) == Diagnosis(pytest.approx(5 / 7), "decode", pytest.approx(5 / 7))
    assert set(embed.STAGES) == set(ADVICE)
