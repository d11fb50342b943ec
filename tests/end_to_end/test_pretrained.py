"""A pretrained encoder from pixels to query: the index knows its model, and refuses any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from small_models import save_clip

import mmstream as mm
from mmstream.encoders.build import load_encoder
from mmstream.errors import RefusedError, UsageError


@pytest.mark.usefixtures("ray_local")
def test_an_index_answers_with_its_own_model_and_refuses_another(shared: Path, tmp_path: Path) -> None:
    model, elsewhere = save_clip(tmp_path / "clip"), tmp_path / "moved"
    emb, index = str(tmp_path / "emb"), str(tmp_path / "index")
    source = str(shared / "data" / "pairs" / "00006.tar")
    embedded = mm.embed(source, emb, model=f"hf:{model}", limit=60)
    assert (embedded.rows, embedded.model) == (60, f"hf:{model}")
    mm.build_index(emb, index)

    hits = mm.open_index(index).search(text="a map of the world", k=60)
    query = load_encoder(f"hf:{model}").encode_text(["a map of the world"])[0]
    from mmstream.embeddings.reader import EmbeddingSet

    table = next(EmbeddingSet.open(emb).tables())
    vectors = np.array(table["image_embedding"].to_pylist(), np.float32)
    scores = dict(zip(table["id"].to_pylist(), vectors @ query, strict=True))
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert all(abs(h.score - scores[h.id]) < 1e-5 for h in hits)

    shutil.move(model, elsewhere)
    with pytest.raises(UsageError, match="say so with --model"):
        mm.open_index(index).search(text="a map")
    assert mm.open_index(index, encoder=f"hf:{elsewhere}").search(text="a map", k=1)

    other = save_clip(tmp_path / "other", seed=5)
    with pytest.raises(RefusedError, match="fingerprint differs"):
        mm.open_index(index, encoder=f"hf:{other}").search(text="a map")
    shutil.move(other, model)
    with pytest.raises(RefusedError, match="fingerprint differs"):
        mm.open_index(index).search(text="a map")
    with pytest.raises(RefusedError, match="fingerprint differs"):
        mm.embed(source, emb, model=f"hf:{model}", limit=60)
