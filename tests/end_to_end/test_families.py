"""`embed`, `audit`, `index build`, `search` with an encoder of every family, on real pictures, captions and speech."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from small_models import save_bert, save_clap, save_clip, save_dinov2, save_siglip, save_vit

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import load_encoder
from mmstream.shards.group import COLUMN_OF, split_name

pytestmark = pytest.mark.usefixtures("ray_local")
LIMIT = 60


def members(tar: Path, modality: str) -> dict[str, bytes]:
    """By key, by way of Python's own tarfile."""
    with tarfile.open(tar) as opened:
        named = [(*split_name(m.name), opened.extractfile(m).read()) for m in opened]  # ty: ignore[unresolved-attribute]
    return {key: data for key, suffix, data in named if COLUMN_OF[suffix] == modality}


def checked(tar: Path, spec: str, folder: Path, modalities: Sequence[str]) -> None:
    """The first `LIMIT` samples end as rows; each vector is what the encoder gives alone, and finds its sample."""
    emb, encoder = str(folder / "emb"), load_encoder(spec)
    assert mm.embed(str(tar), emb, model=spec, limit=LIMIT).rows == LIMIT
    assert mm.audit(emb, source=True).differences == []
    rows = [r for t in EmbeddingSet.open(emb).tables() for r in t.to_pylist()]
    places = {r["id"]: i for i, r in enumerate(rows)}
    for modality in modalities:
        assert modality in encoder.modalities
        stored = members(tar, modality)
        parts = [stored[r["key"]] for r in rows]
        match modality:
            case "image":
                alone = encoder.encode_image(parts)
            case "audio":
                alone = encoder.encode_audio(parts)
            case _:
                alone = encoder.encode_text([p.decode() for p in parts])
        vectors = np.array([r[f"{modality}_embedding"] for r in rows], np.float32)
        assert np.abs(vectors - alone).max() <= 1e-3, "float16 of the same"
        index = str(folder / f"index-{modality}")
        mm.build_index(emb, index, of=modality)
        hits = [mm.open_index(index).search(vector=v, k=1)[0] for v in alone[:20]]
        found = vectors[[places[h.id] for h in hits]]
        assert min(h.score for h in hits) >= 0.998
        assert (found * alone[:20]).sum(axis=1).min() >= 0.998, "itself, or a twin"


def test_speech_is_embedded_by_an_encoder_that_hears(shared: Path, tmp_path: Path) -> None:
    spec = f"hf:{save_clap(tmp_path / 'clap', fused=False)}"
    checked(shared / "data/spoken_digits/00000.tar", spec, tmp_path, ["audio"])


def test_speech_is_embedded_by_the_real_voice_encoder(shared: Path, tmp_path: Path) -> None:
    spec = f"voice:{shared / 'models/voice_encoder.safetensors'}"
    checked(shared / "data/spoken_digits/00000.tar", spec, tmp_path, ["audio"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "modalities"),
    [
        (save_clip, ["image", "text"]),
        (save_siglip, ["image", "text"]),
        (save_vit, ["image"]),
        (save_dinov2, ["image"]),
        (save_bert, ["text"]),
    ],
)
def test_pictures_and_captions_are_embedded_by_small_models(
    shared: Path, tmp_path: Path, save: Callable[[Path], Path], modalities: Sequence[str]
) -> None:
    checked(shared / "data/pairs/00006.tar", f"hf:{save(tmp_path / 'model')}", tmp_path, modalities)


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["hf:minilm", "words:wordllama"])
def test_captions_are_embedded_by_real_weights(shared: Path, shared_models: Path, tmp_path: Path, spec: str) -> None:
    family, name = spec.split(":")
    checked(shared / "data/pairs/00006.tar", f"{family}:{shared_models / name}", tmp_path, ["text"])


@pytest.mark.vision
@pytest.mark.slow
def test_pictures_are_embedded_by_real_weights_of_timm(shared: Path, shared_models: Path, tmp_path: Path) -> None:
    spec = f"timm:tf_efficientnet_lite0/{shared_models / 'tf_efficientnet_lite0.safetensors'}"
    checked(shared / "data/pairs/00006.tar", spec, tmp_path, ["image"])
