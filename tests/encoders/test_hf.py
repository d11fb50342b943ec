"""Encoders of the transformers library against the library itself, on small models with random weights."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from samples import photographs
from small_models import save_bert, save_clip, save_dinov2, save_siglip, save_vit
from transformers import (
    AutoModel,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTImageProcessorPil,
)

from mmstream.encoders.build import load_encoder
from mmstream.errors import UnreachableError, UsageError
from mmstream.storage.files import write_bytes

TEXTS = ["a map of the world", "two people talk", "the world " * 60, "something else"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip"))


def cosines(a: np.ndarray, b: torch.Tensor) -> np.ndarray:
    b = torch.nn.functional.normalize(b, dim=-1).numpy()
    return (a * b).sum(1)


@pytest.mark.parametrize("save", [save_clip, save_siglip, save_vit, save_dinov2])
def test_in_bfloat16_as_on_a_gpu_vectors_are_near(save: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder = load_encoder(f"hf:{save(tmp_path)}")
    exact = [
        encoder.encode_image(photographs()),
        *([encoder.encode_text(TEXTS)] if "text" in encoder.modalities else []),
    ]
    encoder.in_bfloat16()
    near = [
        encoder.encode_image(photographs()),
        *([encoder.encode_text(TEXTS)] if "text" in encoder.modalities else []),
    ]
    for a, b in zip(exact, near, strict=True):
        assert b.dtype == np.float32
        assert 0 < np.abs(a - b).max() < 0.05
        assert np.einsum("nd,nd->n", a, b).min() >= 0.999


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_vectors_equal_the_librarys_own_forward(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(family)
    model, processor = (
        (CLIPModel, CLIPImageProcessorPil) if family == "clip" else (SiglipModel, SiglipImageProcessorPil)
    )
    reference = model.from_pretrained(folder).eval()
    images = [Image.open(io.BytesIO(p)).convert("RGB") for p in photographs()]
    pixels = processor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    length = 77 if family == "clip" else 64
    tokens = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    tokens = {k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        image = reference.get_image_features(pixel_values=pixels).pooler_output
        text = reference.get_text_features(**tokens).pooler_output
    encoder = load_encoder(f"hf:{folder}")
    assert cosines(encoder.encode_image(photographs()), image).min() >= 0.9999
    assert cosines(encoder.encode_text(TEXTS), text).min() >= 0.99999
    assert encoder.dimension == image.shape[1] == text.shape[1]


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_picture_vectors_are_the_class_token_of_the_librarys_own_forward(family: str, tmp_path: Path) -> None:
    folder, processor = {
        "vit": (save_vit(tmp_path), ViTImageProcessorPil),
        "dinov2": (save_dinov2(tmp_path), BitImageProcessorPil),
    }[family]
    images = [Image.open(io.BytesIO(p)).convert("RGB") for p in photographs()]
    pixels = processor.from_pretrained(folder)(images=images, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state
    encoder = load_encoder(f"hf:{folder}")
    assert encoder.modalities == ("image",)
    wanted = torch.nn.functional.normalize(states[:, 0], dim=-1).numpy()
    assert np.abs(encoder.encode_image(photographs()) - wanted).max() <= 1e-5
    with pytest.raises(UsageError, match="gives image vectors, not text"):
        encoder.encode_text(["a map"])


@pytest.mark.parametrize("pooling", [None, "mean", "cls", "max"])
def test_text_is_pooled_as_the_models_own_modules_say(pooling: str | None, tmp_path: Path) -> None:
    folder = save_bert(tmp_path, pooling)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    encoder = load_encoder(f"hf:{folder}")
    for text, found in zip(TEXTS, encoder.encode_text(TEXTS), strict=True):
        tokens = tokenizer(text, truncation=True, max_length=100 if pooling else 128, return_tensors="pt")
        with torch.inference_mode():
            states = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[0]
        wanted = {"cls": states[0], "max": states.amax(0)}.get(pooling or "mean", states.mean(0))
        assert np.abs(found - torch.nn.functional.normalize(wanted, dim=-1).numpy()).max() <= 1e-5


def test_a_text_vector_depends_neither_on_its_neighbours_nor_on_their_length(tmp_path: Path) -> None:
    encoder = load_encoder(f"hf:{save_bert(tmp_path)}")
    together = encoder.encode_text(TEXTS * 20)
    assert np.array_equal(together[-4:], np.concatenate([encoder.encode_text([t]) for t in TEXTS]))


def test_other_pooling_is_another_fingerprint_and_unknown_pooling_is_refused(tmp_path: Path) -> None:
    made = [save_bert(folder(tmp_path / str(p)), p) for p in ("mean", "cls", None)]
    assert len({load_encoder(f"hf:{f}").fingerprint for f in made}) == 3
    edit(made[0] / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)
    with pytest.raises(UsageError, match="pools by pooling_mode_lasttoken"):
        load_encoder(f"hf:{made[0]}")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_checkpoint_without_all_weights_is_refused_and_not_filled_with_random_numbers(tmp_path: Path) -> None:
    save_vit(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if "layernorm" in name))
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="weights of the model are in none of its files"):
        load_encoder(f"hf:{tmp_path}")


def test_a_sentence_model_on_s3_keeps_the_files_of_its_subfolders(
    s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSTREAM_CACHE", str(tmp_path / "cache"))
    local, url = save_bert(folder(tmp_path / "bert"), "cls"), s3.bucket("sentences") + "/bert"
    for file in local.rglob("*.*"):
        write_bytes(f"{url}/{file.relative_to(local)}", file.read_bytes())
    assert load_encoder(f"hf:{url}").fingerprint == load_encoder(f"hf:{local}").fingerprint


def test_real_sentences_that_mean_the_same_are_near(shared_models: Path) -> None:
    encoder = load_encoder(f"hf:{shared_models / 'minilm'}")
    z = encoder.encode_text(["a cat sits on a mat", "a kitten is on the rug", "stock markets fell today"])
    assert encoder.dimension == 384
    assert z[0] @ z[1] > 0.55 and z[0] @ z[2] < 0.15


def test_vectors_are_of_unit_length_and_do_not_depend_on_their_neighbours(clip: Path) -> None:
    encoder = load_encoder(f"hf:{clip}")
    together = encoder.encode_text(TEXTS * 20)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    alone = np.concatenate([encoder.encode_text([t]) for t in TEXTS])
    assert np.array_equal(together[-4:], alone)


def test_the_fingerprint_follows_weights_preprocessing_and_tokenizer_and_nothing_else(
    clip: Path, tmp_path: Path
) -> None:
    def copy(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in clip.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    original = load_encoder(f"hf:{clip}").fingerprint
    assert load_encoder(f"hf:{copy('same')}").fingerprint == original
    version = copy("version")
    edit(version / "config.json", transformers_version="0.0.0")
    assert load_encoder(f"hf:{version}").fingerprint == original
    mean = copy("mean")
    edit(mean / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    words = copy("words")
    tokenizer = words / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"map"', '"plan"'))
    pad = copy("pad")
    edit(pad / "tokenizer_config.json", pad_token="a")
    others = [mean, words, pad, save_clip(tmp_path / "weights", seed=7)]
    assert len({original, *(load_encoder(f"hf:{f}").fingerprint for f in others)}) == 5


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_on_s3_gives_the_same_vectors_as_on_disk(
    clip: Path, s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSTREAM_CACHE", str(tmp_path))
    url = s3.bucket("models") + "/clip"
    for file in clip.iterdir():
        write_bytes(f"{url}/{file.name}", file.read_bytes())
    remote, local = load_encoder(f"hf:{url}"), load_encoder(f"hf:{clip}")
    assert remote.fingerprint == local.fingerprint
    assert remote.spec == f"hf:{url}"
    assert np.array_equal(remote.encode_text(TEXTS), local.encode_text(TEXTS))


def test_weights_in_pickles_are_not_read(clip: Path, tmp_path: Path) -> None:
    for file in clip.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \.safetensors file"):
        load_encoder(f"hf:{tmp_path}")


def test_what_is_no_model_is_said_in_one_sentence(tmp_path: Path) -> None:
    for spec, said in [
        (f"hf:{tmp_path}", r"config\.json is missing"),
        (f"hf:{tmp_path}/none", "no such folder"),
        ("nonsense:x", "no family of models"),
        ("plain", "is no model spec"),
        ("fake:0", "give a dimension"),
    ]:
        with pytest.raises(UsageError, match=said):
            load_encoder(spec)


@pytest.mark.skipif(os.path.exists(os.path.expanduser("~/.cache/huggingface/hub")), reason="a hub cache is here")  # noqa: PTH110, PTH111
def test_an_unreachable_hub_says_how_to_give_a_folder() -> None:
    with pytest.raises(UnreachableError, match="--model hf:/path/to/folder"):
        load_encoder("hf:openai/clip-vit-base-patch32")
