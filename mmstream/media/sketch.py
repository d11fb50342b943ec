"""Quantiles of a stream in little memory: a KLL sketch, mergeable, and the same for the same stream and merges.

A level holds values that each stand for 2 ** level of the stream. One that is too full is sorted and every other value
of it goes up a level (Z. Karnin, K. Lang, E. Liberty, Optimal Quantile Approximation in Streams, 2016). Whether the
odd or the even ones go is decided by a hash of how often that has happened, not by a clock, so that a repeated run
gives the same bytes. Up to `k` values nothing is lost; from then on the rank of a quantile is off by about 1 / k of
the stream (tests/media/test_sketch.py). Stored as plain numbers: no foreign parser reads the file.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from mmstream.schema import Record

K = 512  # capacity of the highest level; those below have two thirds of the one above
_LEAST = 8


class SketchRecord(Record):
    """A sketch as it is stored: `levels[h]` are values that stand for 2 ** h each."""

    levels: list[list[float]]
    compactions: int


class Sketch:
    """Values in, quantiles out."""

    def __init__(self) -> None:
        self.levels: list[np.ndarray] = [np.empty(0)]
        self.compactions = 0

    @property
    def count(self) -> int:
        return sum(len(level) << h for h, level in enumerate(self.levels))

    def update(self, values: np.ndarray) -> None:
        """Take in finite `values`, float64 [n]."""
        self.levels[0] = np.concatenate([self.levels[0], values])
        self._compact()

    def merge(self, other: Sketch) -> None:
        """Take in what `other` holds; `other` stays as it is."""
        self.levels += [np.empty(0)] * (len(other.levels) - len(self.levels))
        for h, level in enumerate(other.levels):
            self.levels[h] = np.concatenate([self.levels[h], level])
        self.compactions += other.compactions
        self._compact()

    def _compact(self) -> None:
        """From the lowest level up, until none holds more than it may; a new highest level narrows those below."""
        h = 0
        while h < len(self.levels):
            if len(self.levels[h]) <= self._capacity(h):
                h += 1
                continue
            if h + 1 == len(self.levels):
                self.levels.append(np.empty(0))
            level = np.sort(self.levels[h])
            even = len(level) // 2 * 2
            chosen = level[:even][_coin(self.compactions) :: 2]
            self.levels[h], self.levels[h + 1] = level[even:], np.concatenate([self.levels[h + 1], chosen])
            self.compactions += 1
            h = 0

    def _capacity(self, h: int) -> int:
        return max(_LEAST, int(K * (2 / 3) ** (len(self.levels) - 1 - h)))

    def quantiles(self, q: np.ndarray) -> np.ndarray:
        """The least value that at least `q` of the stream do not exceed, for each q in [0, 1]; NaN where it is empty.

        NumPy calls this `inverted_cdf`.
        """
        values = np.concatenate(self.levels)
        if not len(values):
            return np.full(np.shape(q), np.nan)
        weights = np.concatenate([np.full(len(level), 1 << h, np.int64) for h, level in enumerate(self.levels)])
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(weights[order])
        at = np.searchsorted(reached, np.asarray(q) * reached[-1], side="left")
        return values[order][np.minimum(at, len(values) - 1)]

    @classmethod
    def of_counts(cls, values: np.ndarray, counts: np.ndarray) -> Self:
        """An exact sketch of `values`, each `counts` times (int64): a value is on the levels of its count's bits."""
        sketch, counts = cls(), np.asarray(counts, np.int64)
        bits = int(counts.max(initial=0)).bit_length()
        sketch.levels = [np.asarray(values, np.float64)[counts >> h & 1 == 1] for h in range(max(bits, 1))]
        return sketch

    def record(self) -> SketchRecord:
        return SketchRecord(levels=[level.tolist() for level in self.levels], compactions=self.compactions)

    @classmethod
    def of_record(cls, record: SketchRecord) -> Self:
        sketch = cls()
        sketch.levels = [np.array(level, np.float64) for level in record.levels] or [np.empty(0)]
        sketch.compactions = record.compactions
        return sketch


def _coin(n: int) -> int:
    """0 or 1, without a pattern in n: the top bit of Fibonacci hashing, mixed once (Steele et al., SplitMix64)."""
    z = (n + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    return (z ^ z >> 27) >> 63
