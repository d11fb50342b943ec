"""mmstream: buckets of multimodal shards in; embeddings, trained models and a searchable index out.

    import mmstream as mm

    mm.embed("s3://bucket/*.tar", "s3://bucket/emb", model="hf:openai/clip-vit-base-patch32")
    mm.build_index("s3://bucket/emb", "s3://bucket/index")
    for hit in mm.open_index("s3://bucket/index").search(text="a map of the world"):
        print(hit.score, hit.caption)

Names are loaded when they are first used: importing mmstream imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmstream.embeddings.audit import audit
    from mmstream.embeddings.reader import EmbeddingSet
    from mmstream.encoders.build import load_encoder
    from mmstream.index.build import build_index
    from mmstream.pipelines.embed import embed
    from mmstream.pipelines.evaluate import evaluate
    from mmstream.pipelines.fit import train
    from mmstream.pipelines.pack import pack
    from mmstream.pipelines.read import read_webdataset
    from mmstream.pipelines.repair import repair
    from mmstream.pipelines.statistics import stats
    from mmstream.search.searcher import open_index

__all__ = [
    "EmbeddingSet",
    "audit",
    "build_index",
    "embed",
    "evaluate",
    "load_encoder",
    "open_index",
    "pack",
    "read_webdataset",
    "repair",
    "stats",
    "train",
]

_MODULES = {
    "EmbeddingSet": "mmstream.embeddings.reader",
    "audit": "mmstream.embeddings.audit",
    "build_index": "mmstream.index.build",
    "embed": "mmstream.pipelines.embed",
    "evaluate": "mmstream.pipelines.evaluate",
    "load_encoder": "mmstream.encoders.build",
    "open_index": "mmstream.search.searcher",
    "pack": "mmstream.pipelines.pack",
    "read_webdataset": "mmstream.pipelines.read",
    "repair": "mmstream.pipelines.repair",
    "stats": "mmstream.pipelines.statistics",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mmstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`mm.train` is the function, though there is a room of that name: importing the room must not replace it."""

    @property
    def train(self) -> Any:
        return importlib.import_module("mmstream.pipelines.fit").train

    @train.setter
    def train(self, room: ModuleType) -> None:
        """The import system hands every room to its package; this one is found in `sys.modules` all the same."""


sys.modules[__name__].__class__ = _Package
