"""A sample that crashes its decoder, hangs in it or eats memory costs itself, not the job.

A chunk is marked as at work, in Ray's key-value store, before an actor begins it. Should the actor die of it, or its
watchdog end it, Ray starts the actor again and hands it the same chunk, which is found marked: it is then decoded in a
sandbox, where the culprit is known by name and becomes a reject. Other chunks that waited at the dead actor bear no
mark and are decoded as ever. Ray would do all this again for ever; `MAX_DEATHS` ends it where a sandbox did not help.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
from ray import get_runtime_context
from ray.experimental import internal_kv

from mmstream.errors import MmstreamError, Reason, Rejected
from mmstream.media import audio, sandbox, video
from mmstream.media.audio import Sound
from mmstream.media.decoding import Decoder, T
from mmstream.media.image import Picture, decode
from mmstream.pipelines.source import ChunkInfo
from mmstream.pipelines.watchdog import Watchdog

MAX_DEATHS = 3
LARGE_PIXELS = 1 << 24  # above it pictures are decoded one at a time, or a few of them would fill the memory


@dataclass(frozen=True)
class Containment:
    """What the actors of a run share: how often each chunk was begun. Small, and made by `containment` alone."""

    run: str

    @contextmanager
    def chunk(self, info: ChunkInfo) -> Generator[Decoder]:
        """How the samples of this chunk are to be decoded, while it is at work in this actor.

        Raises:
            MmstreamError: the chunk has cost `MAX_DEATHS` actors.
        """
        mark = f"{self.run}/at-work/{info.epoch}/{info.shard}/{info.chunk}".encode()
        contained = f"{self.run}/contained/{info.shard}/{info.chunk}".encode()  # remembered for epochs to come
        deaths = int(internal_kv._internal_kv_get(mark) or 0)
        if deaths >= MAX_DEATHS * (1 + self._is_another_to_blame()):
            raise _poisonous(info, deaths, "although its pictures were decoded in a process of their own")
        in_sandbox = deaths > 0 or (info.epoch > 0 and internal_kv._internal_kv_exists(contained))
        internal_kv._internal_kv_put(mark, str(deaths + 1).encode())
        try:
            if in_sandbox:
                internal_kv._internal_kv_put(contained, b"1")
                with sandbox.Sandbox() as child:
                    yield child
            else:
                with watched("the work is done again in a sandbox") as decoder:
                    yield decoder
        finally:
            internal_kv._internal_kv_del(mark)

    @contextmanager
    def writing(self, info: ChunkInfo) -> Generator[None]:
        """Around the commit of a chunk, while the actor encodes others.

        Raises:
            MmstreamError: the commit has cost `MAX_DEATHS` actors.
        """
        mark = f"{self._marks_of_writing}{info.epoch}/{info.shard}/{info.chunk}".encode()
        deaths = int(internal_kv._internal_kv_get(mark) or 0)
        if deaths >= MAX_DEATHS:
            raise _poisonous(info, deaths, "as it was written")
        internal_kv._internal_kv_put(mark, str(deaths + 1).encode())
        try:
            yield
        finally:
            internal_kv._internal_kv_del(mark)

    @property
    def _marks_of_writing(self) -> str:
        return f"{self.run}/writing/"

    def _is_another_to_blame(self) -> bool:
        """Whether the commit of some chunk has killed its actor: then those that were encoded beside it need not."""
        marks = internal_kv._internal_kv_list(self._marks_of_writing.encode())
        return any(int(internal_kv._internal_kv_get(mark) or 0) > 1 for mark in marks)

    @contextmanager
    def loading(self, spec: str) -> Generator[None]:
        """Around the load of the model in an actor's constructor: Ray starts an actor that dies there again for ever.

        Raises:
            MmstreamError: this actor has died of it `MAX_DEATHS` times.
        """
        mark = f"{self.run}/loading/{get_runtime_context().get_actor_id()}".encode()
        deaths = int(internal_kv._internal_kv_get(mark) or 0)
        if deaths >= MAX_DEATHS:
            raise MmstreamError(
                f"{spec}: a worker died {deaths} times while it loaded the model, most likely for want of memory. Run "
                "with fewer workers or a smaller model; what is committed stays."
            )
        internal_kv._internal_kv_put(mark, str(deaths + 1).encode())
        yield
        internal_kv._internal_kv_del(mark)


@contextmanager
def containment() -> Generator[Containment]:
    """The containment of one run; nothing of it stays in Ray afterwards."""
    run = f"mmstream/{uuid4().hex}"
    try:
        yield Containment(run)
    finally:
        internal_kv._internal_kv_del(f"{run}/".encode(), del_by_prefix=True)


@contextmanager
def watched(then: str) -> Generator[Decoder]:
    """A decoder in this process, which ends where a sample takes too much time or memory; `then` is what follows."""
    with Watchdog(sandbox.SAMPLE_SECONDS, sandbox.MEMORY_BYTES, then=then) as watchdog:
        yield _Watched(watchdog)


class _Watched:
    """Decodes in the actor's own threads, under a watchdog."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._one_large = threading.Lock()

    @contextmanager
    def picture(self, data: bytes) -> Generator[Picture]:
        what = f"a picture of {len(data):,} bytes"
        with self._watchdog.work(what):
            picture = _unless_large(data)
            if picture is not None:
                yield picture
                return
        with self._one_large, self._watchdog.work(what):
            yield decode(data)

    @contextmanager
    def sound(self, data: bytes) -> Generator[Sound]:
        with self._watchdog.work(f"a sound of {len(data):,} bytes"):
            yield audio.decode(data)

    @contextmanager
    def track(self, data: bytes) -> Generator[Sound | None]:
        with self._watchdog.work(f"the sound track of a video of {len(data):,} bytes"):
            yield video.track(data)

    @contextmanager
    def frames(self, data: bytes, num_frames: int) -> Generator[tuple[np.ndarray, float]]:
        # One at a time: a few of them in full size would fill the memory that all are watched for.
        with self._one_large, self._watchdog.work(f"a video of {len(data):,} bytes"):
            clip = video.decode(data, num_frames)
            yield clip.frames, clip.duration

    def together(self, decode: Callable[[], T], num: int) -> T | None:
        with self._watchdog.work(f"{num} pictures on the device"):
            return decode()


def _unless_large(data: bytes) -> Picture | None:
    try:
        return decode(data, max_pixels=LARGE_PIXELS)
    except Rejected as e:
        if e.reason != Reason.TOO_MANY_PIXELS:
            raise
        return None


def _poisonous(info: ChunkInfo, deaths: int, when: str) -> MmstreamError:
    rows = f"rows {info.first_row:,} to {info.first_row + info.num_samples - 1:,}"
    return MmstreamError(
        f"{info.source_url}: {deaths} workers died of chunk {info.chunk} of shard {info.shard} ({rows}), {when}. "
        "It is the model, the machine's memory or its GPU: see the "
        "workers' logs, then run the same command again; what is committed stays."
    )
