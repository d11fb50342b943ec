from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmstream.encoders.build import load_encoder
from mmstream.errors import UsageError
from mmstream.media.text import train_tokenizer
from mmstream.models.card import Preprocessing, save_card
from mmstream.models.dual import DualEncoder, DualEncoderConfig

WORDS = ["a red circle", "a blue square left of a green star", "two people talk"]


def make_card(url: str, seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(WORDS, 300)
    config = DualEncoderConfig.checked({"dimension": 32, "text": {"vocab_size": tokenizer.vocab_size}})
    model = DualEncoder(config).eval()
    save_card(url, model, Preprocessing(size=config.image.size), tokenizer)
    return model


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


def test_vectors_are_those_of_the_model_that_was_saved(tmp_path: Path) -> None:
    model = make_card(str(tmp_path / "run" / "card"))
    encoder = load_encoder(f"run:{tmp_path}/run")
    images = [jpeg(i) for i in range(70)]
    size = model.config.image.size
    squares = [Image.open(io.BytesIO(i)).resize((size, size), Image.Resampling.BICUBIC) for i in images]
    pixels = torch.from_numpy(np.stack([np.asarray(s) for s in squares])).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = model.encode_image((pixels / 255 - 0.5) / 0.5).numpy()
    assert np.allclose(encoder.encode_image(images), expected, atol=1e-5)
    tokens = torch.from_numpy(encoder.tokenize(WORDS)["tokens"])
    with torch.inference_mode():
        words = model.encode_text(tokens).numpy()
    assert np.allclose(encoder.encode_text(WORDS), words, atol=1e-6)
    encoder.in_bfloat16()  # as on a GPU
    assert np.einsum("nd,nd->n", encoder.encode_image(images), expected).min() >= 0.999
    assert np.einsum("nd,nd->n", encoder.encode_text(WORDS), words).min() >= 0.999


def test_a_run_and_its_card_are_the_same_encoder_and_other_weights_another(tmp_path: Path) -> None:
    make_card(str(tmp_path / "run" / "card"))
    make_card(str(tmp_path / "other"), seed=1)
    run, card = load_encoder(f"run:{tmp_path}/run"), load_encoder(f"run:{tmp_path}/run/card")
    assert run.fingerprint == card.fingerprint
    assert load_encoder(f"run:{tmp_path}/other").fingerprint != run.fingerprint


def test_a_run_without_a_card_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no card is there"):
        load_encoder(f"run:{tmp_path}")
