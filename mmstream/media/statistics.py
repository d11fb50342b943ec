"""Streamed statistics per feature: what comes in batches, on many workers, ends as if NumPy had seen it in one array.

A feature is a column of numbers, a mel band or a colour channel. Counted are the values, the missing and the
non-finite ones; mean and sum of squares are merged by the formula of Chan, Golub and LeVeque (1979); the mean is kept
in two doubles, since one of them at an offset of 1e8 would round away what the variance is made of. Whatever the
partition and the order of merges, mean and variance are those of NumPy to 1e-12. Quantiles are sketched
(`media/sketch.py`). Of pictures the values themselves are counted, so that everything is exact.

`Statistics` is the record that is stored; `media/scaling.py` and `media/numeric.py` are what it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from pydantic import Field

from mmstream.errors import UsageError
from mmstream.media.sketch import Sketch, SketchRecord
from mmstream.schema import Record, Sealed

LARGEST = 1e150  # a value beyond it counts as non-finite: its square is no double
_BAND_PIXELS = 1 << 20  # counted at a time


class FeatureStatistics(Record):
    """Of one feature. `mean + mean_low` is the mean; `mean`, `minimum` and `maximum` are null where count is 0."""

    name: str
    count: int = Field(ge=0)  # of finite values, which alone make up what follows `non_finite`
    missing: int = Field(ge=0)
    non_finite: int = Field(ge=0)
    mean: float | None
    mean_low: float
    m2: float = Field(ge=0)  # sum of (value - mean) ** 2
    minimum: float | None
    maximum: float | None
    sketch: SketchRecord

    @property
    def variance(self) -> float:
        """Of the whole: m2 / count, as np.var; 0 where there is nothing."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        return self.variance**0.5

    def quantile(self, q: float) -> float | None:
        """The least value that at least `q` of all do not exceed; null where there is none."""
        if self.minimum is None or self.maximum is None:
            return None
        if q <= 0 or q >= 1:
            return self.minimum if q <= 0 else self.maximum
        found = float(Sketch.of_record(self.sketch).quantiles(np.array([q]))[0])
        return min(max(found, self.minimum), self.maximum)


class Statistics(Sealed):
    """Of all features of one kind, in their order. `settings` says how the features were made."""

    of: str  # "numbers", "audio" or "image"
    features: list[FeatureStatistics]
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [f.name for f in self.features]

    def select(self, names: Sequence[str]) -> list[FeatureStatistics]:
        """
        Raises:
            UsageError: there are no statistics of one of them.
        """
        known = {f.name: f for f in self.features}
        if unknown := [n for n in names if n not in known]:
            has = ", ".join(known) or "none"
            raise UsageError(f"no statistics of {', '.join(unknown)}; the file has {has}. Make it with these columns.")
        return [known[n] for n in names]


class Tally:
    """Takes in values and other tallies. Give it batches: what one call costs hardly depends on the rows in it."""

    def __init__(self, names: Sequence[str]) -> None:
        shape = len(names)
        self.names = list(names)
        self.count, self.missing, self.non_finite = (np.zeros(shape, np.int64) for _ in range(3))
        self.mean, self.mean_low, self.m2 = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.minimum, self.maximum = np.full(shape, np.inf), np.full(shape, -np.inf)
        self.sketches = [Sketch() for _ in names]

    def update(self, values: np.ndarray, missing: np.ndarray | None = None) -> None:
        """`values` are numbers [n, features]; those where `missing`, bool of that shape, holds are only counted."""
        # By feature, so that NumPy sums pairwise: rows added up one by one would lose digits.
        x = np.ascontiguousarray(np.asarray(values, np.float64).T)
        absent = np.zeros(x.shape, bool) if missing is None else np.ascontiguousarray(np.asarray(missing, bool).T)
        usable = (np.abs(x) <= LARGEST) & ~absent  # NaN is not
        batch = Tally(self.names)
        batch.count, batch.missing = usable.sum(axis=1), absent.sum(axis=1)
        batch.non_finite = x.shape[1] - batch.count - batch.missing
        divisor = np.maximum(batch.count, 1)
        batch.mean = np.where(usable, x, 0).sum(axis=1) / divisor
        away = np.where(usable, x - batch.mean[:, None], 0)
        batch.mean_low = away.sum(axis=1) / divisor
        batch.m2 = np.maximum(np.square(away).sum(axis=1) - batch.count * np.square(batch.mean_low), 0)
        batch.minimum = np.where(usable, x, np.inf).min(axis=1, initial=np.inf)
        batch.maximum = np.where(usable, x, -np.inf).max(axis=1, initial=-np.inf)
        for sketch, row, chosen in zip(batch.sketches, x, usable, strict=True):
            sketch.update(row[chosen])
        self.merge(batch)

    def merge(self, other: Tally) -> None:
        """Take in `other`, of the same features; `other` stays as it is.

        Raises:
            UsageError: its features are others.
        """
        if other.names != self.names:
            raise UsageError(f"statistics of {other.names} cannot be merged with those of {self.names}.")
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        delta = np.where(self.count > 0, (other.mean - self.mean) + (other.mean_low - self.mean_low), 0)
        start = np.where(self.count > 0, self.mean, other.mean)
        low = np.where(self.count > 0, self.mean_low, other.mean_low)
        self.m2 = self.m2 + other.m2 + np.square(delta) * self.count * share
        self.mean, self.mean_low = _two_sum(start, low + delta * share)
        self.count = count
        self.missing, self.non_finite = self.missing + other.missing, self.non_finite + other.non_finite
        self.minimum = np.minimum(self.minimum, other.minimum)
        self.maximum = np.maximum(self.maximum, other.maximum)
        for mine, theirs in zip(self.sketches, other.sketches, strict=True):
            mine.merge(theirs)

    def statistics(self, of: str, settings: dict[str, Any] | None = None) -> Statistics:
        return Statistics(of=of, features=[self._feature(i) for i in range(len(self.names))], settings=settings or {})

    def _feature(self, i: int) -> FeatureStatistics:
        some = self.count[i] > 0
        constant = some and self.minimum[i] == self.maximum[i]  # the sums may be off by a last bit, this is not
        return FeatureStatistics(
            name=self.names[i],
            count=int(self.count[i]),
            missing=int(self.missing[i]),
            non_finite=int(self.non_finite[i]),
            mean=float(self.minimum[i] if constant else self.mean[i]) if some else None,
            mean_low=0.0 if constant else float(self.mean_low[i]),
            m2=0.0 if constant else float(self.m2[i]),
            minimum=float(self.minimum[i]) if some else None,
            maximum=float(self.maximum[i]) if some else None,
            sketch=self.sketches[i].record(),
        )

    @classmethod
    def of_statistics(cls, statistics: Statistics) -> Self:
        """To go on from what is stored."""
        tally, features = cls(statistics.names), statistics.features
        for name in ("count", "missing", "non_finite"):
            setattr(tally, name, np.array([getattr(f, name) for f in features], np.int64))
        tally.mean = np.array([f.mean or 0.0 for f in features], np.float64)
        tally.mean_low = np.array([f.mean_low for f in features], np.float64)
        tally.m2 = np.array([f.m2 for f in features], np.float64)
        tally.minimum = np.array([np.inf if f.minimum is None else f.minimum for f in features], np.float64)
        tally.maximum = np.array([-np.inf if f.maximum is None else f.maximum for f in features], np.float64)
        tally.sketches = [Sketch.of_record(f.sketch) for f in features]
        return tally


def _two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rounded sum, what the rounding took away), exactly: Knuth, TAOCP 2, §4.2.2."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


class PixelTally:
    """How often each of the 256 values occurs in each channel: of pictures everything is exact, in units of 0 to 255.

    A picture counts with all its pixels, a large one more than a small one.
    """

    def __init__(self, names: Sequence[str] = ("red", "green", "blue")) -> None:
        self.names = list(names)
        self.counts = np.zeros((len(self.names), 256), np.int64)

    def update(self, pixels: np.ndarray) -> None:
        """`pixels` are uint8 [..., channels]: a picture, or a stack of them."""
        flat = pixels.reshape(-1, len(self.names))
        for start in range(0, len(flat), _BAND_PIXELS):
            band = flat[start : start + _BAND_PIXELS]
            for channel in range(len(self.names)):
                self.counts[channel] += np.bincount(band[:, channel], minlength=256)

    def merge(self, other: PixelTally) -> None:
        """
        Raises:
            UsageError: its channels are others.
        """
        if other.names != self.names:
            raise UsageError(f"statistics of {other.names} cannot be merged with those of {self.names}.")
        self.counts += other.counts

    def statistics(self, settings: dict[str, Any] | None = None) -> Statistics:
        features = [self._feature(name, counts) for name, counts in zip(self.names, self.counts, strict=True)]
        return Statistics(of="image", features=features, settings=settings or {})

    def _feature(self, name: str, counts: np.ndarray) -> FeatureStatistics:
        present = np.flatnonzero(counts)
        exact = [int(c) for c in counts]  # Python's integers: the squares of a billion pictures are beyond 64 bits
        n, total = sum(exact), sum(v * c for v, c in enumerate(exact))
        squares = sum(v * v * c for v, c in enumerate(exact))
        return FeatureStatistics(
            name=name,
            count=n,
            missing=0,
            non_finite=0,
            mean=total / n if n else None,
            mean_low=0.0,
            m2=(squares * n - total * total) / n if n else 0.0,
            minimum=float(present[0]) if n else None,
            maximum=float(present[-1]) if n else None,
            sketch=Sketch.of_counts(np.arange(256), counts).record(),
        )
