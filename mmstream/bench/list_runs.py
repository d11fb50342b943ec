"""`bench encode` of texts and sounds: prepared, then encoded, as `embed` does it with those of a chunk."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Any

import numpy as np

from mmstream.encoders.base import Encoder
from mmstream.encoders.pipelined import AHEAD, prepared
from mmstream.timing import Stopwatch

TEXT_WORDS = 16
SOUND_SECONDS = 5
_RATE = 16_000
_WORDS = ("a map of the old town", "two red boats", "under heavy clouds", "one white house", "on green hills", "near")


class ListRun:
    """As `encode_run.Run`, of `items` in lists of two micro-batches."""

    backend = "cpu"

    def __init__(self, encoder: Encoder, items: list[Any], prepare: Callable[[list[Any]], Any], embed: Any) -> None:
        self._items = list(islice(cycle(items), 2 * encoder.micro_batch))
        self._prepare, self._embed, self._ready = prepare, embed, prepare(self._items)
        self.stages: dict[str, float] = {}
        self.cpu_seconds_per_1000 = 0.0

    def model_only(self, seconds: float) -> float:
        return self._speed(lambda: self._embed(self._ready), seconds)

    def preprocess_only(self, seconds: float) -> float:
        return self._speed(lambda: self._prepare(self._items), seconds)

    def end_to_end(self, seconds: float) -> float:
        watch, cpu, start = Stopwatch(), time.process_time(), time.perf_counter()

        def once() -> None:
            with watch("decode"):
                ready = self._prepare(self._items)
            with watch("model"):
                self._embed(ready)

        speed = self._speed(once, seconds)
        took = time.perf_counter() - start
        self.stages = {stage: s / took for stage, s in watch.seconds.items()}
        self.cpu_seconds_per_1000 = 1000 * (time.process_time() - cpu) / (speed * took)
        return speed

    def _speed(self, once: Callable[[], object], seconds: float) -> float:
        start, num = time.perf_counter(), 0
        while not num or time.perf_counter() - start < seconds:
            once()
            num += len(self._items)
        return num / (time.perf_counter() - start)


def text_run(encoder: Encoder, items: list[str]) -> ListRun:
    return ListRun(encoder, items, encoder.tokenize, encoder.embed_tokens)


def sound_run(encoder: Encoder, items: list[bytes], pool: ThreadPoolExecutor) -> ListRun:
    from mmstream.media import audio

    def listen(data: bytes) -> np.ndarray:
        return encoder.listen(audio.decode(data))

    ahead = AHEAD * encoder.micro_batch
    return ListRun(encoder, items, lambda sounds: list(prepared(sounds, listen, pool, ahead)), encoder.embed_sounds)


def texts(num: int, words: int = TEXT_WORDS) -> list[str]:
    """Made captions; the same arguments give the same."""
    rng, known = np.random.default_rng(0), " ".join(_WORDS).split()
    return [" ".join(rng.choice(known, words)) for _ in range(num)]


def sounds(num: int, seconds: float = SOUND_SECONDS) -> list[bytes]:
    """Made WAV files of noise with a beat, one channel of 16 kHz; the same arguments give the same."""
    rng, time_of = np.random.default_rng(0), np.arange(int(seconds * _RATE)) / _RATE
    return [_wav(rng.normal(0, 0.1, len(time_of)) * (1 + np.sin(6 * time_of))) for _ in range(num)]


def _wav(samples: np.ndarray) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes((samples.clip(-1, 1) * 32_767).astype("<i2").tobytes())
    return out.getvalue()
