"""A recipe: everything that decides what a training run learns, complete and named, from one YAML file.

`workers` and `epochs` may change between two starts of the same run; anything else makes it another run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from mmstream.config import Config
from mmstream.media.augment import Augmentation
from mmstream.models.dual import DualEncoderConfig
from mmstream.train.optim import OptimConfig

MAY_CHANGE = frozenset({"workers", "epochs"})


class DataConfig(Config):
    train: str | list[str]
    eval: str | list[str] | None = Field(None, description="measured when training is over")
    captions: str | None = Field(None, description="a JSON field with a list of captions; one is drawn an epoch")
    statistics: str | None = Field(None, description="a file of `mmstream stats`; its pictures scale those of training")
    scaling: Literal["standardize", "minmax"] = Field("standardize", description="how, where there are statistics")
    augment: Augmentation = Augmentation()
    shuffle_rows: int = Field(2048, ge=0, le=1 << 20, description="mixed at once, beside the order of shards")


class Recipe(Config):
    data: DataConfig
    seed: int = 0
    epochs: int = Field(1, gt=0)
    batch_size: int = Field(256, gt=1, description="of all workers together")
    workers: int = Field(2, gt=0)
    order: Literal["streaming"] = "streaming"
    model: DualEncoderConfig = DualEncoderConfig()
    task: Literal["contrastive"] = "contrastive"
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _equal_parts(self) -> Recipe:
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of workers = {self.workers}")
        return self

    @model_validator(mode="after")
    def _can_be_done(self) -> Recipe:
        if self.data.augment.audio:
            raise ValueError("data.augment.audio: training takes pictures and captions, it has no sounds to vary")
        if self.data.scaling != "standardize" and not self.data.statistics:
            raise ValueError(f"data.scaling {self.data.scaling} needs data.statistics, a file of `mmstream stats`")
        return self

    def identity(self) -> str:
        """The same for two recipes that may go on in one run."""
        return self.fingerprint(apart=MAY_CHANGE)

    def first_difference(self, other: Recipe) -> tuple[str, Any, Any] | None:
        """(dotted key, our value, the other's) of the first value that makes `other` another run, or None."""
        ours, theirs = (dict(_flat(r.model_dump(mode="json", exclude=set(MAY_CHANGE)))) for r in (self, other))
        return next(((k, ours.get(k), theirs.get(k)) for k in ours | theirs if ours.get(k) != theirs.get(k)), None)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
