"""Which sound samples are wanted: a filter says in a sentence why one is not, and that becomes a reject, `filtered`.

Lengths of captions, their language, sizes of pictures, seconds of sounds and videos. What a limit is not set for is
not looked at, nor is what a sample lacks. Each part is judged when it is decoded and cleaned, the caption first.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from mmstream.config import Config
from mmstream.errors import Reason, Rejected
from mmstream.media.extras import codec

UNKNOWN = "und"  # ISO 639-3 for a text whose language cannot be told

_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Code = Annotated[str, Field(pattern="^[a-z]{2,3}$")]


class Filters(Config):
    """Limits, each of them wanted themselves; None is no limit. Sides and pixels are those of the upright picture."""

    min_characters: _Count | None = None
    max_characters: _Count | None = None
    min_words: _Count | None = None
    max_words: _Count | None = None
    languages: tuple[_Code, ...] | None = None  # ISO 639-1: en, de, …; by py3langid, the extra `language`
    min_side: _Count | None = None  # pixels, of the shorter side
    max_side: _Count | None = None  # pixels, of the longer one
    min_pixels: _Count | None = None
    max_pixels: _Count | None = None
    min_aspect: _Positive | None = None  # width / height
    max_aspect: _Positive | None = None
    min_seconds: _Positive | None = None
    max_seconds: _Positive | None = None

    @field_validator("languages", mode="before")
    @classmethod
    def _as_codes(cls, value: Any) -> Any:
        """One code, or several between commas, are a list too; Norwegian is `no`, which YAML takes for false."""
        codes = value.replace(",", " ").split() if isinstance(value, str) else value
        codes = [codes] if isinstance(codes, bool) else codes
        return tuple("no" if c is False else c for c in codes) if isinstance(codes, list | tuple) else codes

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("characters", "words", "pixels", "aspect", "seconds"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{name} {low:g} is above max_{name} {high:g}: nothing would be left")
        return self

    @property
    def set(self) -> dict[str, Any]:
        """The limits that are set, as JSON values."""
        return self.model_dump(mode="json", exclude_none=True)

    def options(self) -> list[str]:
        """As words of a command line."""
        return [word for k, v in self.set.items() for word in ("--filter", f"{k}={json.dumps(v)}")]

    def caption(self, text: str) -> str | None:
        """Why this cleaned caption is not wanted, or None.

        Raises:
            UsageError: `languages` is set and py3langid is not installed.
        """
        words = len(text.split())
        return (
            _outside(len(text), self.min_characters, self.max_characters, "caption of {} characters")
            or _outside(words, self.min_words, self.max_words, "caption of {} words")
            or self._foreign(text)
        )

    def _foreign(self, text: str) -> str | None:
        """A text whose language cannot be told, such as a name or a number, is in none that is not wanted."""
        if self.languages is None or (found := language(text)) in (UNKNOWN, *self.languages):
            return None
        return f"caption in {found}, wanted is {', '.join(self.languages)}"

    def picture(self, width: int, height: int) -> str | None:
        """Why a picture of this size is not wanted, or None."""
        size = f"picture of {width:,} × {height:,} pixels"
        return (
            _outside(min(width, height), self.min_side, None, size + ": the shorter side is {}")
            or _outside(max(width, height), None, self.max_side, size + ": the longer side is {}")
            or _outside(width * height, self.min_pixels, self.max_pixels, size + ", {} in all")
            or _outside(width / height, self.min_aspect, self.max_aspect, size + ": width / height is {}")
        )

    def length(self, seconds: float) -> str | None:
        """Why a sound or video of this length is not wanted, or None."""
        return _outside(seconds, self.min_seconds, self.max_seconds, "{} s long")


def _outside(value: float, low: float | None, high: float | None, what: str) -> str | None:
    said = what.format(f"{value:,}" if isinstance(value, int) else f"{value:,.3g}")
    if low is not None and value < low:
        return f"{said}, wanted are at least {low:,g}"
    if high is not None and value > high:
        return f"{said}, wanted are at most {high:,g}"
    return None


def check(why: str | None) -> None:
    """
    Raises:
        Rejected: `filtered`, where there is a reason.
    """
    if why is not None:
        raise Rejected(Reason.FILTERED, why)


def language(text: str) -> str:
    """ISO 639-1 code of the language that `text` most likely is in, `UNKNOWN` where nothing in it tells.

    Raises:
        UsageError: py3langid is not installed.
    """
    code, score = _identify()(text)
    # Where no letters were recognised, py3langid names the first of its languages, with a score that is none.
    return UNKNOWN if abs(score) > 1e30 or not any(c.isalpha() for c in text) else code


@lru_cache(maxsize=1)
def _identify() -> Any:
    return codec("py3langid", "language").classify
