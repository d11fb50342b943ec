"""A card gives back the very model that was saved, or says which of its files is not one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mmstream.errors import UsageError
from mmstream.media.image import Picture
from mmstream.media.text import Tokenizer, train_tokenizer
from mmstream.models.card import Card, Preprocessing, fingerprint, load_card, save_card
from mmstream.models.dual import DualEncoder, DualEncoderConfig
from mmstream.models.towers import ImageTowerConfig, TextTowerConfig

CONFIG = DualEncoderConfig(
    dimension=16,
    image=ImageTowerConfig(size=32, widths=(16, 16, 16), hidden=16),
    text=TextTowerConfig(length=8, vocab_size=300, width=16, layers=1, heads=2),
)
PREPROCESSING = Preprocessing(size=32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red circle", "a blue star"], 300)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(CONFIG)


@pytest.fixture
def url(tmp_path: Path, model: DualEncoder, tokenizer: Tokenizer) -> str:
    save_card(str(tmp_path / "card"), model, PREPROCESSING, tokenizer)
    return str(tmp_path / "card")


def vectors(card: Card) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.arange(2 * 32 * 32 * 3, dtype=torch.uint8).view(2, 32, 32, 3)
    tokens = torch.from_numpy(card.tokenize(["a red star", "a blue circle"]))
    return card.model.encode_image(card.preprocessing.normalized(pixels)), card.model.encode_text(tokens)


def test_a_loaded_card_gives_the_same_vectors_as_the_model_that_was_saved(
    url: str, model: DualEncoder, tokenizer: Tokenizer
):
    card = load_card(url)
    assert card.dimension == 16 and card.preprocessing == PREPROCESSING and not card.model.training
    for a, b in zip(vectors(card), vectors(Card(model.eval(), PREPROCESSING, tokenizer, "")), strict=True):
        assert torch.equal(a, b) and torch.allclose(a.norm(dim=1), torch.ones(2))


def test_a_card_travels_through_an_object_store(s3, model: DualEncoder, tokenizer: Tokenizer):
    url = s3.bucket("cards") + "/run/card"
    assert save_card(url, model, PREPROCESSING, tokenizer) == load_card(url).fingerprint


def test_the_fingerprint_follows_everything_that_a_vector_depends_on(tmp_path: Path, url: str, model, tokenizer):
    base = fingerprint(url)
    assert base == load_card(url).fingerprint == save_card(str(tmp_path / "again"), model, PREPROCESSING, tokenizer)
    torch.manual_seed(1)
    others = [
        save_card(str(tmp_path / "a"), DualEncoder(CONFIG), PREPROCESSING, tokenizer),
        save_card(str(tmp_path / "b"), model, PREPROCESSING.model_copy(update={"algorithm": "box"}), tokenizer),
        save_card(str(tmp_path / "c"), model, PREPROCESSING, train_tokenizer(["another text"], 300)),
    ]
    assert len({base, *others}) == 4


def test_versions_of_libraries_are_recorded_but_do_not_change_the_fingerprint(url: str):
    base, path = fingerprint(url), Path(url) / "config.json"
    config = json.loads(path.read_text())
    assert {"torch", "pillow", "tokenizers"} <= set(config["libraries"])
    config["libraries"]["torch"] = "1.0"
    path.write_text(json.dumps(config))
    assert fingerprint(url) == base


def test_pictures_of_the_right_size_are_taken_as_they_are_and_others_are_squeezed():
    exact = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    assert PREPROCESSING.pixels(Picture(exact, 32, 32, b"")) is exact
    wide = np.full((40, 90, 3), 7, np.uint8)
    assert (PREPROCESSING.pixels(Picture(wide, 90, 40, b"")) == np.full((32, 32, 3), 7)).all()


def test_pixels_are_scaled_by_mean_and_standard_deviation():
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    found = PREPROCESSING.normalized(pixels)
    assert found.shape == (1, 3, 1, 1)
    assert torch.allclose(found.flatten(), torch.tensor([-0.4 / 0.2, (128 / 255 - 0.5) / 0.3, 0.4 / 0.4]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{}", "config.json: not a card"),
        ("config.json", b"\xff\xfe", "config.json: not the config of a card"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer"),
        ("model.safetensors", b"12345678", "model.safetensors: does not fit config.json"),
    ],
)
def test_a_broken_file_of_a_card_is_named(url: str, name: str, content: bytes, said: str):
    (Path(url) / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        load_card(url)


def test_a_config_that_claims_another_size_than_the_weights_is_refused(url: str):
    path = Path(url) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["image"]["hidden"] = 8192
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not fit config"):
        load_card(url)


def test_weights_that_lack_a_tensor_are_refused(url: str):
    path = Path(url) / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    del tensors["log_scale"]
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(UsageError, match=r"does not fit config.*log_scale"):
        load_card(url)


def test_where_no_card_is_the_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=r"config\.json: nothing is there"):
        load_card(str(tmp_path))
