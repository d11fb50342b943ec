"""Pictures are prepared on threads while the model is at work on those that came before: bounded, and in order.

    for vectors in picture_vectors(prepared(…), encoder, watch): …

Which pictures share a micro-batch depends on their order alone, so that the bytes of the vectors do not depend on how
fast anything was. At most `ahead` items are prepared and not yet used: a chunk's pixels are never held all at once.
On a GPU the vectors of a batch are fetched when the next one has been handed over; so copy, model and decoding overlap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from mmstream.encoders.base import Encoder, unit

AHEAD = 2  # micro-batches of pictures that are prepared and not yet used, wherever a model is fed


class Watch(Protocol):
    """Is told how long each stage takes: `with watch("model"): …`, as `timing.Stopwatch` is."""

    def __call__(self, stage: str) -> AbstractContextManager[None]: ...


A = TypeVar("A")
B = TypeVar("B")


def prepared(items: Iterable[A], prepare: Callable[[A], B], pool: Executor, ahead: int) -> Iterator[B]:
    """`prepare(item)` of each item, in their order, at most `ahead` of them begun and not yet taken.

    Raises:
        what `prepare` raises; what is not begun by then never is.
    """
    remaining = iter(items)
    begun: deque[Future[B]] = deque(pool.submit(prepare, item) for item in islice(remaining, ahead))
    try:
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(prepare, item) for item in islice(remaining, 1))
            yield result
    finally:
        for future in begun:
            future.cancel()


def picture_vectors(pixels: Iterable[np.ndarray], encoder: Encoder, watch: Watch) -> Iterator[np.ndarray]:
    """Unit vectors float32 [k, d] of one micro-batch after the other, of arrays as `Encoder.preprocess` gives them.

    `watch` is told how long was waited for "decode", and how long the copy ("transfer") and the "model" took of the
    caller's thread. A row that is not finite is left as it is.
    """
    batches, at_work = _batches(iter(pixels), encoder.micro_batch), None
    while True:
        with watch("decode"):
            rows = next(batches)
        if rows:
            with watch("transfer"):
                placed = encoder.place(rows + rows[:1] * (encoder.micro_batch - len(rows)))
            with watch("model"):
                begun = (encoder.forward(placed), len(rows))
        if at_work:
            with watch("model"):
                vectors = _fetched(encoder, *at_work)
            yield vectors
        if not rows:
            return
        at_work = begun


def _batches(pixels: Iterator[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of `size` arrays, a shorter one, and empty ones for ever."""
    while True:
        yield list(islice(pixels, size))


def _fetched(encoder: Encoder, vectors: Any, num_rows: int) -> np.ndarray:
    return unit(np.asarray(encoder.fetch(vectors), np.float32)[:num_rows])
