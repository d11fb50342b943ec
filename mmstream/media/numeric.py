"""Fields of JSON, CSV and Parquet become numbers: decode (field → float) → clean (missing, outliers) → transform (→ one
scale) → collate.

A number is a number, a boolean (1 or 0), or a string that writes either (`" 1e3 "`, `"TRUE"`). Missing are null, NaN,
an absent field and the words of `MISSING`. Anything else, such as `"tall"`, a list or `"1,000"`, whose comma means a
thousand here and a point there, is rejected as `metadata` with the column's name, never guessed. An infinite value
counts as missing when it is cleaned. What is missing or far out is settled by a `Rule` a column, from statistics of
the training data (`media/statistics.py`), so that a row means the same in training and in use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AllowInfNan, Field, model_validator

from mmstream.config import Config
from mmstream.errors import Reason, Rejected
from mmstream.media.scaling import MinMax, Robust, Scaling, Standardize
from mmstream.media.statistics import FeatureStatistics, Statistics

MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?"})  # in lower case
_WORDS = {"true": 1.0, "false": 0.0}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.ASCII)
_LONGEST = 400  # characters of a number


class Rule(Config):
    """What to do with one column.

    `missing`: `drop` the row (it is rejected), or fill in the `mean`, the `median` or a number. `clip`: None, or the
    two quantiles that values are cut to. `scale`: None, or how `transform` brings it to a common scale.
    """

    missing: Literal["drop", "mean", "median"] | Annotated[float, AllowInfNan(False)] = "drop"
    clip: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(le=1)]] | None = None
    scale: Literal["standardize", "minmax", "robust"] | None = "standardize"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.clip and not self.clip[0] < self.clip[1]:
            raise ValueError(
                f"clip quantiles {self.clip[0]:g} and {self.clip[1]:g} must be in order, such as 0.01, 0.99"
            )
        return self


@dataclass(frozen=True, eq=False)
class Columns:
    """Rules and statistics, made ready: float64 [f] each. `fill` is NaN where a row without the value is dropped."""

    names: list[str]
    fill: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scaling: Scaling

    @classmethod
    def of(cls, rules: Mapping[str, Rule], statistics: Statistics) -> Self:
        """
        Raises:
            UsageError: a column has a rule but no statistics.
        """
        features = statistics.select(list(rules))
        pairs = list(zip(rules.values(), features, strict=True))
        ends = [_ends(rule, feature) for rule, feature in pairs]
        scalings = [_scaling(rule, feature) for rule, feature in pairs]
        return cls(
            names=list(rules),
            fill=np.array([_fill(rule, feature) for rule, feature in pairs], np.float64),
            low=np.array([low for low, _ in ends], np.float64),
            high=np.array([high for _, high in ends], np.float64),
            scaling=Scaling(
                np.array([s.centre[0] for s in scalings], np.float64),
                np.array([s.spread[0] for s in scalings], np.float64),
            ),
        )


def _fill(rule: Rule, feature: FeatureStatistics) -> float:
    if rule.missing == "drop":
        return math.nan
    if rule.missing == "mean":
        return feature.mean or 0.0  # 0 for a column that never had a value
    if rule.missing == "median":
        return feature.quantile(0.5) or 0.0
    return float(rule.missing)


def _ends(rule: Rule, feature: FeatureStatistics) -> tuple[float, float]:
    low, high = (feature.quantile(q) for q in rule.clip) if rule.clip else (None, None)
    return -math.inf if low is None else low, math.inf if high is None else high


def _scaling(rule: Rule, feature: FeatureStatistics) -> Scaling:
    match rule.scale:
        case "standardize":
            return Standardize.of([feature])
        case "minmax":
            return MinMax.of([feature])
        case "robust":
            return Robust.of([feature])
    return Scaling(np.zeros(1), np.ones(1))


def decode(fields: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """float64 [f] of the columns `names` of one row (a JSON object, a CSV or Arrow row); NaN where it is missing.

    Raises:
        Rejected: `metadata`, where a field holds what is no number.
    """
    return np.array([_number(fields.get(name), name) for name in names], np.float64)


def _number(value: Any, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        return _written(value, name)
    if isinstance(value, (Real, Decimal, np.bool_)):
        try:
            return float(value)
        except OverflowError:  # an integer of JSON may have any number of digits
            return math.inf if value > 0 else -math.inf
        except ValueError:  # a signalling NaN of Decimal
            return math.nan
    raise _no_number(value, name)


def _written(value: str, name: str) -> float:
    text = value.strip()
    if _NUMBER.fullmatch(text[:_LONGEST]) and len(text) <= _LONGEST:
        return float(text)
    word = text[:_LONGEST].lower()
    if word in MISSING:
        return math.nan
    if word in _WORDS:
        return _WORDS[word]
    if _INFINITE.fullmatch(word):
        return -math.inf if word[0] == "-" else math.inf
    raise _no_number(value, name)


def _no_number(value: Any, name: str) -> Rejected:
    held = repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"  # which may be of megabytes
    return Rejected(Reason.METADATA, f"column {name!r} holds {held}, which is no number")


def clean(values: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """One row of `decode` → (float64 [f], all finite; bool [f], which of them were missing and are filled in).

    Raises:
        Rejected: `metadata`, where a value is missing whose rule is to drop the row.
    """
    missing = ~np.isfinite(values)
    filled = np.where(missing, columns.fill, np.clip(values, columns.low, columns.high))
    if np.isnan(filled).any():
        lost = [name for name, bad in zip(columns.names, np.isnan(filled), strict=True) if bad]
        raise Rejected(Reason.METADATA, f"no value of {', '.join(lost)}; the rule there is to drop the row")
    return filled, missing


def transform(values: np.ndarray, columns: Columns) -> np.ndarray:
    """float64 [..., f] → float32 of that shape, each column by the scale of its rule."""
    return columns.scaling(values)


def collate(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(values [f], missing [f]) each → float32 [n, f] and the mask, bool [n, f]: True where the value was there."""
    values, missing = zip(*rows, strict=True)
    return np.stack(values).astype(np.float32), ~np.stack(missing)
