"""Statistics become a transform: `Standardize`, `MinMax` and `Robust` bring each feature to a common scale.

The same for pixels [..., 3], mel bands [..., mels] and columns [..., features], computed in double precision and given
back as float32. A feature that never varies becomes 0, one that was never seen stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from mmstream.media.statistics import FeatureStatistics


@dataclass(frozen=True, eq=False)
class Scaling:
    """values → (values - centre) / spread, float64 [features] each."""

    centre: np.ndarray
    spread: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """[..., features] → float32 of that shape. NaN stays NaN."""
        return ((np.asarray(values, np.float64) - self.centre) / self.spread).astype(np.float32)

    def inverse(self, scaled: np.ndarray) -> np.ndarray:
        """float64 [..., features], in the units of before; a feature that never varied is at its one value."""
        return np.asarray(scaled, np.float64) * self.spread + self.centre

    @classmethod
    def _of(cls, ends: list[tuple[float, float]]) -> Self:
        """From (centre, spread) of each feature; a spread of 0 becomes 1."""
        centre, spread = np.array(ends, np.float64).reshape(-1, 2).T
        return cls(centre, np.where(spread > 0, spread, 1.0))


class Standardize(Scaling):
    """Mean 0 and standard deviation 1 (that of the whole, as np.std)."""

    @classmethod
    def of(cls, features: list[FeatureStatistics]) -> Self:
        return cls._of([(f.mean or 0.0, f.std) for f in features])


class MinMax(Scaling):
    """The least value becomes 0, the largest 1; what later lies beyond them lies beyond 0 and 1."""

    @classmethod
    def of(cls, features: list[FeatureStatistics]) -> Self:
        return cls._of([(f.minimum or 0.0, (f.maximum or 0.0) - (f.minimum or 0.0)) for f in features])


class Robust(Scaling):
    """The median becomes 0, the distance between the quartiles 1: a few wild values move neither."""

    @classmethod
    def of(cls, features: list[FeatureStatistics]) -> Self:
        quartiles = [tuple(f.quantile(q) or 0.0 for q in (0.25, 0.5, 0.75)) for f in features]
        return cls._of([(median, high - low) for low, median, high in quartiles])
