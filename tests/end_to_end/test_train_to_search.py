"""A model of one's own: real pairs on S3 → train → embed with the run → index → search."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mmstream as mm
from mmstream.errors import RefusedError, UsageError

RECIPE = str(Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "pairs.yaml")


@pytest.fixture(scope="module")
def bucket(s3, shared: Path) -> str:
    url = s3.bucket("own-model")
    for tar in sorted((shared / "data" / "pairs").glob("*.tar"))[4:]:
        shutil.copy(tar, s3.root / "own-model" / tar.name)
    return url


@pytest.mark.usefixtures("ray_local")
def test_a_model_trained_on_pairs_embeds_and_answers_through_s3(bucket: str) -> None:
    run, emb, index = f"{bucket}/run", f"{bucket}/emb", f"{bucket}/index"
    data = [f"data.train={bucket}/{{00004,00005}}.tar", f"data.eval={bucket}/00006.tar"]
    settings = [*data, "epochs=3", "batch_size=64", "model.image.size=48", "model.text.length=24"]
    trained = mm.train(RECIPE, out=run, overrides=settings)
    assert (trained.steps, trained.samples) == (254 * 3 // 64, 254 * 3 // 64 * 64)
    assert trained.leftover == 254 * 3 % 64
    assert trained.rejects == {}
    assert trained.retrieval is not None
    assert trained.retrieval["n"] == 125

    assert mm.train(RECIPE, out=run, overrides=settings).already_finished
    with pytest.raises(RefusedError, match="seed differs"):
        mm.train(RECIPE, out=run, overrides=[*settings, "seed=1"])
    with pytest.raises(UsageError, match="must be a multiple of workers"):
        mm.train(RECIPE, out=f"{bucket}/other", batch_size=63, **{"optim.clip": 2.0})
    with pytest.raises(UsageError, match="unknown key 'batchsize'; the nearest valid key is 'batch_size'"):
        mm.train(RECIPE, out=f"{bucket}/other", overrides=["batchsize=3"])

    embedded = mm.embed(f"{bucket}/00006.tar", emb, model=f"run:{run}")
    assert (embedded.rows, embedded.model) == (125, f"run:{run}")
    measured = mm.evaluate(emb).retrieval
    for way in ("text_to_image", "image_to_text"):
        assert measured[way]["r@10"] == pytest.approx(trained.retrieval[way]["r@10"], abs=0.02)
    mm.build_index(emb, index)
    hits = mm.open_index(index).search(text="a map of the world", k=5)
    assert len(hits) == 5
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
