from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import save_clip

import mmstream as mm
from mmstream.errors import UsageError
from mmstream.metrics import retrieval
from mmstream.pipelines.inspect import inspect

pytestmark = pytest.mark.usefixtures("ray_local")


def test_vectors_from_shards_and_from_a_set_give_the_same_recall(shared: Path, tmp_path: Path) -> None:
    spec, source = f"hf:{save_clip(tmp_path / 'clip')}", str(shared / "data" / "pairs" / "00006.tar")
    fresh = mm.evaluate(spec, source)
    mm.embed(source, str(tmp_path / "emb"), model=spec)
    stored = mm.evaluate(str(tmp_path / "emb"))
    assert fresh.retrieval == stored.retrieval
    assert fresh.retrieval["n"] == 125
    assert fresh.retrieval["ceiling"] is None
    assert fresh.next == [f"mmstream embed {source} emb --model {spec}"]
    assert stored.next == [f"mmstream index build {tmp_path / 'emb'} {tmp_path / 'emb'}-index"]
    assert fresh.retrieval["chance"]["r@10"] == pytest.approx(0.08)
    from mmstream.embeddings.reader import EmbeddingSet
    from mmstream.pipelines.evaluate import pairs_of

    z_image, z_text, _ = pairs_of(next(EmbeddingSet.open(str(tmp_path / "emb")).tables()))
    assert stored.retrieval == retrieval(z_image, z_text)
    assert np.linalg.norm(z_image, axis=1) == pytest.approx(1, abs=1e-3)


def test_there_must_be_pairs(tmp_path: Path) -> None:
    for model in ("fake:8", "open_clip:ViT-B-32/openai", "frames:8:hf:clip"):
        with pytest.raises(UsageError, match="is a model: give the shards"):
            mm.evaluate(model)


def test_inspect_counts_members_and_names_sizes(shared: Path) -> None:
    report = inspect(str(shared / "data" / "pairs"))
    assert report.shards == 7
    assert report.members["image"] == report.members["text"] == report.samples_seen == 381
    assert report.sizes[0] == "448×236"
    assert not report.damaged
