"""Samples become one file of statistics: pictures by channel, sounds by mel band, numbers by field, captions by length.

`measured` looks at one sample, a `SampleTally` takes in what it gives, and tallies of parts of the data merge into that
of the whole (`MergedInOrder`: the same bytes however the parts come in). What is stored is a
`media.statistics_file.StatisticsFile`. A sample that cannot be used counts under its reason and in nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media import audio, numeric
from mmstream.media.audio import LogMel
from mmstream.media.decoding import Decoder
from mmstream.media.image import Picture
from mmstream.media.statistics import PixelTally, Statistics, Tally
from mmstream.media.statistics_file import KINDS, BrokenShard, StatisticsFile
from mmstream.media.text import caption_of, parse_object

MAX_FIELDS = 1000  # numbers of a sample's JSON, and of all of them, where no field was named
_NAME = 200  # characters of a field's name
_FRAMES = 4096  # of mel spectrograms, counted at a time: a call costs the same for one
_CAPTION = ("characters", "words")


@dataclass(frozen=True)
class Wanted:
    """What is looked at: `of` are some of `KINDS`; `fields` are dotted names in the JSON, None for every number."""

    of: frozenset[str] = frozenset(KINDS)
    fields: tuple[str, ...] | None = None
    mel: LogMel = field(default_factory=LogMel)


@dataclass(frozen=True, eq=False)
class Measured:
    """One sample. `caption` are its characters and words, `mel` is float32 [frames, mels]; None is absent."""

    pixels: PixelTally | None = None
    mel: np.ndarray | None = None
    caption: tuple[int, int] | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


def measured(sample: Mapping[str, Any], wanted: Wanted, decoder: Decoder) -> Measured:
    """
    Raises:
        Rejected: the sample cannot be used, or has nothing of what is wanted (`missing_member`).
    """
    if sample["reason"] is not None:
        raise Rejected(Reason(sample["reason"]), sample["detail"] or "")
    about = parse_object(sample["json"])
    numbers = numbers_of(about, wanted.fields) if "numbers" in wanted.of else {}
    caption = caption_of(sample["text"], about) if "captions" in wanted.of else None
    pixels = mel = None
    if "image" in wanted.of and sample["image"] is not None:
        with decoder.picture(sample["image"]) as picture:
            pixels = _counted(picture)
    if "audio" in wanted.of and sample["audio"] is not None:
        with decoder.sound(sample["audio"]) as sound:
            mel = audio.transform(audio.clean(sound), sound.rate, wanted.mel)
    if pixels is None and mel is None and caption is None and not numbers:
        raise Rejected(Reason.MISSING_MEMBER, f"the sample has none of {', '.join(sorted(wanted.of))}")
    return Measured(pixels, mel, (len(caption), len(caption.split())) if caption else None, numbers)


def _counted(picture: Picture) -> PixelTally:
    tally = PixelTally()
    tally.update(picture.rgb)
    return tally


def numbers_of(about: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, float]:
    """Numbers of a sample's JSON by dotted name; NaN for one that is named there and missing.

    Of named `fields` the rules of `media/numeric.py` hold. Without, all that JSON writes as numbers or booleans count,
    in objects within objects too, and what else a field of that name may hold in another sample is missing there.

    Raises:
        Rejected: `metadata`, where a named field holds what is no number, or there are too many unnamed ones.
    """
    if fields is not None:
        values = numeric.decode({name: _looked_up(about, name) for name in fields}, fields)
        return {} if np.isnan(values).all() else dict(zip(fields, values.tolist(), strict=True))
    found = _all_numbers(about)
    return dict(zip(found, numeric.decode(found, list(found)).tolist(), strict=True))


def _looked_up(about: Mapping[str, Any], name: str) -> Any:
    if name in about:
        return about[name]
    first, dot, rest = name.partition(".")
    within = about.get(first)
    return _looked_up(within, rest) if dot and isinstance(within, dict) else None


def _all_numbers(about: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    objects = [("", about)]
    while objects:
        prefix, values = objects.pop()
        for key, value in values.items():
            if isinstance(value, dict):
                objects.append((f"{prefix}{key}.", value))
            elif isinstance(value, (int, float)):
                found.setdefault(_checked_name(f"{prefix}{key}"), value)
        if len(found) > MAX_FIELDS:
            what = f"the JSON has over {MAX_FIELDS:,} numbers; name the fields that are wanted"
            raise Rejected(Reason.METADATA, what)
    return found


def _checked_name(name: str) -> str:
    if len(name) > _NAME or not name.isprintable():  # lone surrogates are not
        raise Rejected(Reason.METADATA, f"the JSON has a number under the name {name[:40]!r}, which is none to keep")
    return name


class SampleTally:
    """Statistics of samples in the making. `flush` before it is read from or merged."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.samples, self.rejects, self.present = 0, Counter[str](), Counter[str]()
        self.pixels, self.mels = PixelTally(), Tally([f"mel{i:03}" for i in range(wanted.mel.num_mels)])
        self.captions, self.numbers = Tally(_CAPTION), dict[str, Tally]()
        self._mels, self._captions, self._numbers = list[np.ndarray](), list[tuple[int, int]](), list[Mapping]()

    @property
    def used(self) -> int:
        return self.samples - self.rejects.total()

    def add(self, sample: Measured | Rejected) -> None:
        self.samples += 1
        if isinstance(sample, Rejected):
            self.rejects[str(sample.reason)] += 1
            return
        if sample.pixels is not None:
            self.present["image"] += 1
            self.pixels.merge(sample.pixels)
        if sample.mel is not None:
            self.present["audio"] += 1
            self._mels.append(sample.mel)
            if sum(map(len, self._mels)) >= _FRAMES:
                self._flush_mels()
        if sample.caption is not None:
            self.present["captions"] += 1
            self._captions.append(sample.caption)
        if sample.numbers:
            self.present["numbers"] += 1
            self._numbers.append(sample.numbers)

    def flush(self) -> None:
        self._flush_mels()
        self.captions.update(np.array(self._captions, np.float64).reshape(-1, len(_CAPTION)))
        for name in dict.fromkeys(n for numbers in self._numbers for n in numbers):
            values = np.array([numbers[name] for numbers in self._numbers if name in numbers])
            known = values[~np.isnan(values)]
            self.numbers.setdefault(name, Tally([name])).update(known[:, None])
        self._captions, self._numbers = [], []

    def _flush_mels(self) -> None:
        if self._mels:
            frames, self._mels = np.concatenate(self._mels), []
            for start in range(0, len(frames), _FRAMES):
                self.mels.update(frames[start : start + _FRAMES])

    def merge(self, other: SampleTally) -> None:
        """
        Raises:
            UsageError: there are too many fields with numbers, and none was named.
        """
        self.samples += other.samples
        self.rejects.update(other.rejects)
        self.present.update(other.present)
        self.pixels.merge(other.pixels)
        self.mels.merge(other.mels)
        self.captions.merge(other.captions)
        for name, tally in other.numbers.items():
            self.numbers.setdefault(name, Tally([name])).merge(tally)
        if self.wanted.fields is None and len(self.numbers) > MAX_FIELDS:
            some = ", ".join(sorted(self.numbers)[:5])
            raise UsageError(
                f"the JSON of the samples has over {MAX_FIELDS:,} fields with numbers ({some}, …). Name those that are "
                "wanted, as --field width, or leave numbers out, as --of image."
            )

    def to_json(self) -> str:
        """For another process: `of_json` gives the same tally."""
        numbers = [tally.statistics("numbers").features[0].model_dump() for _, tally in sorted(self.numbers.items())]
        return json.dumps(
            {
                "samples": self.samples,
                "rejects": self.rejects,
                "present": self.present,
                "pixels": self.pixels.counts.tolist(),
                "mels": self.mels.statistics("audio").model_dump() if self.present["audio"] else None,
                "captions": self.captions.statistics("captions").model_dump(),
                "numbers": {"of": "numbers", "features": numbers},
            }
        )

    @classmethod
    def of_json(cls, text: str, wanted: Wanted) -> Self:
        state, tally = json.loads(text), cls(wanted)
        tally.samples = state["samples"]
        tally.rejects, tally.present = Counter(state["rejects"]), Counter(state["present"])
        tally.pixels.counts = np.array(state["pixels"], np.int64)
        if state["mels"]:
            tally.mels = Tally.of_statistics(Statistics.model_validate(state["mels"]))
        tally.captions = Tally.of_statistics(Statistics.model_validate(state["captions"]))
        for feature in Statistics.model_validate(state["numbers"]).features:
            tally.numbers[feature.name] = Tally.of_statistics(Statistics(of="numbers", features=[feature]))
        return tally

    def file(self, catalog_sha256: str, limit: int | None, damaged: Sequence[BrokenShard] = ()) -> StatisticsFile:
        wanted, present = self.wanted, self.present
        mel = {"mel": wanted.mel.model_dump(mode="json")}
        captions = self._of_used(self.captions.statistics("captions"))
        return StatisticsFile(
            catalog_sha256=catalog_sha256,
            limit=limit,
            of=[k for k in KINDS if k in wanted.of],
            fields=None if wanted.fields is None else list(wanted.fields),
            samples=self.samples,
            used=self.used,
            rejects=dict(sorted(self.rejects.items())),
            damaged=list(damaged),
            present={k: present[k] for k in KINDS if k in wanted.of},
            image=self.pixels.statistics({"pixels": "as decoded, upright RGB"}) if present["image"] else None,
            audio=self.mels.statistics("audio", mel) if present["audio"] else None,
            numbers=self._number_statistics() if present["numbers"] or wanted.fields else None,
            captions=captions if present["captions"] else None,
        )

    def _number_statistics(self) -> Statistics:
        named = self.wanted.fields or sorted(self.numbers)
        parts = [self.numbers.get(name, Tally([name])).statistics("numbers").features[0] for name in named]
        return self._of_used(Statistics(of="numbers", features=parts))

    def _of_used(self, statistics: Statistics) -> Statistics:
        """With the used samples that gave no value as missing."""
        features = [f.model_copy(update={"missing": self.used - f.count - f.non_finite}) for f in statistics.features]
        return statistics.model_copy(update={"features": features})


class MergedInOrder:
    """Tallies 0, 1, … n - 1 of parts, in whatever order they come, merged along one fixed binary tree: the order in
    which rounded numbers are added up is that of the parts alone, and few of them are held."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], SampleTally] = {}  # (level, place on it)

    def add(self, number: int, tally: SampleTally) -> None:
        level, place = 0, number
        self._held[0, number] = tally
        while (level, place ^ 1) in self._held:
            left, right = self._held.pop((level, place & ~1)), self._held.pop((level, place | 1))
            left.merge(right)
            level, place = level + 1, place // 2
            self._held[level, place] = left

    def total(self, empty: SampleTally) -> SampleTally:
        """All that came, merged into `empty`."""
        for _, tally in sorted(self._held.items(), key=lambda held: held[0][1] << held[0][0]):
            empty.merge(tally)
        return empty


def checked_kinds(of: Collection[str]) -> frozenset[str]:
    """
    Raises:
        UsageError: one of them is none of `KINDS`.
    """
    if unknown := sorted(set(of) - set(KINDS)):
        raise UsageError(f"--of {unknown[0]}: there are statistics of {', '.join(KINDS)}.")
    return frozenset(of or KINDS)
