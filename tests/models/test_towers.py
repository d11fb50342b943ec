"""Shapes are as promised, padding and neighbours change nothing, and what cannot be built says so."""

from __future__ import annotations

import pytest
import torch

from mmstream.errors import UsageError
from mmstream.media.text import PAD
from mmstream.models.dual import MAX_LOGIT_SCALE, DualEncoder, DualEncoderConfig
from mmstream.models.towers import ImageTower, ImageTowerConfig, TextTower, TextTowerConfig


@pytest.mark.parametrize(("size", "stem"), [(64, 4), (96, 8), (128, 8)])
def test_an_image_tower_takes_the_size_of_its_recipe(size: int, stem: int):
    tower = ImageTower(ImageTowerConfig(size=size, stem=stem), 24)
    assert tower(torch.randn(2, 3, size, size)).shape == (2, 24)


def test_where_a_thing_is_reaches_the_image_vector():
    tower = ImageTower(ImageTowerConfig(), 16).eval()
    left, right = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    left[..., 24:40, 8:24] = right[..., 24:40, 40:56] = 1
    assert (tower(left) - tower(right)).norm() > 0.01


def test_padding_does_not_change_a_text_vector_and_the_order_of_words_does():
    tower = TextTower(TextTowerConfig(length=12), 16).eval()
    tokens = torch.tensor([[1, 300, 301, 302]])
    padded = torch.nn.functional.pad(tokens, (0, 8), value=PAD)
    assert torch.allclose(tower(tokens), tower(padded), atol=1e-5)
    assert not torch.allclose(tower(tokens), tower(tokens[:, [0, 3, 2, 1]]), atol=1e-5)


def test_a_sample_in_evaluation_does_not_depend_on_its_neighbours():
    model = DualEncoder(DualEncoderConfig()).eval()
    images, tokens = torch.randn(4, 3, 64, 64), torch.randint(1, 300, (4, 26))
    z, w, _ = model(images, tokens)
    assert torch.allclose(model.encode_image(images[1:2]), z[1:2], atol=1e-5)
    assert torch.allclose(model.encode_text(tokens[2:3]), w[2:3], atol=1e-5)


def test_vectors_are_of_unit_length_and_float32_under_autocast():
    model = DualEncoder(DualEncoderConfig())
    with torch.autocast("cpu", torch.bfloat16):
        z, w, scale = model(torch.randn(4, 3, 64, 64), torch.randint(1, 300, (4, 26)))
    assert z.dtype == w.dtype == torch.float32 and scale.item() == pytest.approx(1 / 0.07)
    assert torch.allclose(z.norm(dim=1), torch.ones(4)) and torch.allclose(w.norm(dim=1), torch.ones(4))


def test_the_logit_scale_is_clamped_at_one_hundred_and_no_lower():
    model = DualEncoder(DualEncoderConfig())
    for given, kept in ((3.0, 3.0), (9.0, 4.605170)):
        model.log_scale.data.fill_(given)
        model.clamp_scale()
        assert model.log_scale.item() == pytest.approx(kept)
    assert model.log_scale.exp().item() == pytest.approx(MAX_LOGIT_SCALE)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image", {"size": 70}, "image: size 70 must be a multiple of 4 x stem = 16"),
        ("image", {"widths": [8, 16, 16]}, "image: widths must be multiples of 16"),
        ("text", {"width": 100, "heads": 3}, "text: width 100 must be a multiple of heads = 3"),
        ("text", {"lenght": 9}, "unknown key 'text.lenght'; the nearest valid key is 'text.length'"),
    ],
)
def test_a_tower_that_cannot_be_built_says_which_number_is_wrong(key: str, value: dict, said: str):
    with pytest.raises(UsageError, match=said):
        DualEncoderConfig.checked({key: value})
