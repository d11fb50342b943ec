"""Samples become batches: decode and tokenize, mix, and cut into groups that all ranks take together.

`prepare` makes pixels and tokens of a chunk's samples and sets aside what cannot be used, so that nothing is dropped
later, when ranks count on equal steps. `Batcher` mixes prepared samples within an epoch and cuts them into whole
batches; what does not fill one is held back for the next epoch. Both are functions of their input and a seed.

Legend: n samples, S pixels of a side, L tokens, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mmstream.errors import Reason, Rejected
from mmstream.media import augment
from mmstream.media.augment import Augmentation
from mmstream.media.decoding import Decoder, Direct
from mmstream.media.scaling import MinMax, Standardize
from mmstream.media.statistics_file import StatisticsFile
from mmstream.media.text import Tokenizer, clean, parse_object
from mmstream.models.card import Preprocessing
from mmstream.schema import REJECT
from mmstream.train.recipe import Recipe

_HERE = Direct()
_UNVARIED = Augmentation()


@dataclass(frozen=True)
class Batch:
    """`pixels` uint8 [n, S, S, 3], `tokens` int32 [n, L], `ids` int64 [n] of the samples."""

    pixels: np.ndarray
    tokens: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray | slice) -> Batch:
        return Batch(self.pixels[rows], self.tokens[rows], self.ids[rows])

    @staticmethod
    def joined(batches: list[Batch]) -> Batch:
        return Batch(*(np.concatenate([getattr(b, name) for b in batches]) for name in ("pixels", "tokens", "ids")))


def preprocessing_of(recipe: Recipe, statistics: StatisticsFile | None) -> Preprocessing:
    """How the recipe's pictures become the tower's input; scaled channel by channel where there are `statistics`.

    Raises:
        UsageError: these have no pictures.
    """
    size = recipe.model.image.size
    if statistics is None:
        return Preprocessing(size=size)
    kind = {"standardize": Standardize, "minmax": MinMax}[recipe.data.scaling]
    scaling = kind.of(statistics.kind("image", str(recipe.data.statistics)).select(["red", "green", "blue"]))
    mean, std = (tuple(float(v) / 255 for v in values) for values in (scaling.centre, scaling.spread))
    return Preprocessing(size=size, mean=mean, std=std)


@dataclass(frozen=True)
class Prepare:
    """How samples become a `Batch`."""

    preprocessing: Preprocessing
    tokenizer: Tokenizer
    length: int
    captions: str | None  # the JSON field with a list of captions
    seed: int
    augment: Augmentation = _UNVARIED

    def __call__(self, samples: pa.Table, epoch: int, decoder: Decoder = _HERE) -> tuple[Batch, list[dict[str, Any]]]:
        """Samples (schema.SAMPLE) → what can be used, in their order, and reject rows (schema.REJECT) for the rest.

        Decoding goes by way of `decoder`.

        Which of several captions is drawn, and how a sample is varied, depends on the seed, the epoch and the sample
        alone; whether a sample is rejected does not depend on the epoch.
        """
        pixels, texts, ids, rejects = [], [], [], []
        for sample in samples.to_pylist():
            try:
                image, captions = self._pixels(sample, epoch, decoder), captions_of(sample, self.captions)
            except Rejected as e:
                rejects.append(_reject(sample, e))
                continue
            pixels.append(image)
            texts.append(self._varied(captions[_draw(self.seed, epoch, sample["id"]) % len(captions)], epoch, sample))
            ids.append(sample["id"])
        size = self.preprocessing.size
        return Batch(
            np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8),
            self.tokenizer.tokenize(texts, self.length),
            np.array(ids, np.int64),
        ), rejects

    def _varied(self, caption: str, epoch: int, sample: dict[str, Any]) -> str:
        if not self.augment.text:
            return caption
        return augment.caption(caption, self.augment.text, augment.generator(self.seed, epoch, sample["id"], "text"))

    def _pixels(self, sample: dict[str, Any], epoch: int, decoder: Decoder) -> np.ndarray:
        if sample["reason"]:
            raise Rejected(Reason(sample["reason"]), sample["detail"] or "")
        if sample["image"] is None:
            raise Rejected(Reason.MISSING_MEMBER, "no image, and training needs one")
        with decoder.picture(sample["image"]) as picture:
            if not self.augment.image:
                return self.preprocessing.pixels(picture)
            random = augment.generator(self.seed, epoch, sample["id"], "image")
            size = (self.preprocessing.size, self.preprocessing.size)
            return augment.picture(picture.rgb, size, self.augment.image, random)


def captions_of(sample: dict[str, Any], field: str | None) -> list[str]:
    """The clean captions of a sample: those of its JSON's `field`, else its text member, else its JSON's `caption`.

    Raises:
        Rejected: `metadata` where the JSON cannot be read, `caption` or `missing_member` where there is no caption.
    """
    if sample["reason"]:
        raise Rejected(Reason(sample["reason"]), sample["detail"] or "")
    about = parse_object(sample["json"]) if field or not (sample["text"] or "").strip() else {}
    listed = about.get(field) if field else None
    candidates = listed if isinstance(listed, list) else [sample["text"], about.get("caption")]
    texts = [c for c in candidates if isinstance(c, str) and c.strip()]  # a blank caption is an absent one
    if not texts:
        raise Rejected(Reason.MISSING_MEMBER, "no caption, and training needs one")
    captions, problem = [], None
    for text in texts:
        try:
            captions.append(clean(text))
        except Rejected as e:
            problem = e
    if not captions and problem:
        raise problem
    return captions if isinstance(listed, list) else captions[:1]


def _reject(sample: dict[str, Any], e: Rejected) -> dict[str, Any]:
    about = {"shard": sample["shard"], "row": sample["row"], "key": sample["key"], "offset": sample["offset"]}
    return {**dict.fromkeys(REJECT.names), **about, "reason": str(e.reason), "detail": e.detail}


def _draw(seed: int, epoch: int, sample: int) -> int:
    """A number below 2**32 that looks random (the finalizer of SplitMix64)."""
    x = (sample * 0x9E3779B97F4A7C15 + seed * 0xBF58476D1CE4E5B9 + epoch * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) >> 32


class Batcher:
    """Mixes the samples of an epoch in a buffer of `shuffle_rows` and hands on batches of exactly `batch_size`.

    Chunks come epoch by epoch. Every sample of an epoch leaves in a batch of that epoch, but for the last ones that
    do not fill a batch: they open the next epoch.
    """

    def __init__(self, batch_size: int, shuffle_rows: int, seed: int) -> None:
        self._batch_size, self._shuffle_rows, self._seed = batch_size, shuffle_rows, seed
        self._waiting: list[Batch] = []
        self._mixed: Batch | None = None
        self._rng = np.random.default_rng([seed, 0])

    @property
    def num_held(self) -> int:
        return sum(map(len, self._waiting)) + (len(self._mixed) if self._mixed else 0)

    def add(self, samples: Batch) -> Iterator[Batch]:
        """Takes samples in; hands on batches whenever twice the buffer is held, until the buffer is left."""
        if len(samples):
            self._waiting.append(samples)
        # Not sooner: what is kept is copied each time.
        if self.num_held >= self._shuffle_rows + max(self._shuffle_rows, self._batch_size):
            yield from self._batches(keep=self._shuffle_rows)

    def end_epoch(self, epoch: int) -> Iterator[Batch]:
        """Hands on all whole batches that are left of `epoch`; less than one batch stays."""
        yield from self._batches(keep=0)
        self._rng = np.random.default_rng([self._seed, epoch + 1])

    def _batches(self, keep: int) -> Iterator[Batch]:
        parts = [*([self._mixed] if self._mixed else []), *self._waiting]
        if not parts:
            return
        held, self._waiting = Batch.joined(parts), []
        num_batches = max(0, len(held) - keep) // self._batch_size
        order, cut = self._rng.permutation(len(held)), num_batches * self._batch_size
        self._mixed = held.take(np.sort(order[cut:]))
        for start in range(0, cut, self._batch_size):
            yield held.take(order[start : start + self._batch_size])
