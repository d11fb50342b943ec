"""Equal bytes have equal hashes; pictures that look alike have near ones, others have not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import Source

from mmstream.media.duplicates import NEAR, content_hash, hamming, perceptual_hash
from mmstream.media.image import decode, resize
from mmstream.shards.tar import members


@pytest.fixture(scope="module")
def pictures(shared: Path) -> list[np.ndarray]:
    source = Source((shared / "data" / "pairs" / "00001.tar").read_bytes())
    return [decode(m.data).rgb for m in members(source) if m.name.endswith((".jpg", ".png"))][:100]


def saved_again(rgb: np.ndarray, quality: int) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=quality)
    return decode(out.getvalue()).rgb


def test_equal_bytes_have_equal_hashes():
    assert content_hash(b"abc") == content_hash(bytearray(b"abc")) != content_hash(b"abd")
    assert content_hash(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_picture_saved_again_resized_or_darkened_stays_near(pictures: list[np.ndarray]):
    for changed in (
        lambda p: saved_again(p, 30),
        lambda p: resize(p, (p.shape[0] // 2, p.shape[1] // 2)),
        lambda p: (p * 0.8).astype(np.uint8),
    ):
        away = [int(hamming(perceptual_hash(p), perceptual_hash(changed(p)))) for p in pictures]
        assert np.mean([a <= NEAR for a in away]) >= 0.98


def test_different_pictures_are_not_near(pictures: list[np.ndarray]):
    hashes = np.array([perceptual_hash(p) for p in pictures], np.uint64)
    away = hamming(hashes[:, None], hashes[None])[np.triu_indices(len(hashes), 1)]
    assert (away <= NEAR).mean() < 1e-3 and np.median(away) > 25


def test_a_mirrored_picture_is_another_one_and_a_plain_one_has_a_stable_hash(pictures: list[np.ndarray]):
    assert hamming(perceptual_hash(pictures[0]), perceptual_hash(pictures[0][:, ::-1])) > NEAR
    plain = [perceptual_hash(np.full((h, 40, 3), v, np.uint8)) for h, v in ((30, 0), (50, 77), (1, 255))]
    assert len(set(plain)) == 1


def test_hamming_counts_bits():
    assert hamming(0b1011, 0b0010) == 2 and hamming(0, (1 << 64) - 1) == 64
    assert hamming(np.array([1, 2, 3], np.uint64), 3).tolist() == [1, 1, 0]
