"""A video's vector is the mean of its frames' vectors, and words find it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import save_bert, save_clip
from videos import video

from mmstream.encoders.base import unit
from mmstream.encoders.build import load_encoder
from mmstream.errors import UsageError
from mmstream.media.video import decode


def png(frame: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_video_is_the_mean_of_the_vectors_that_its_frames_have_as_pictures(kind: str, tmp_path: Path):
    encoder = load_encoder(f"frames:5:hf:{save_clip(tmp_path / 'clip')}")
    data = [video(kind, 48), video(kind, 7)]
    assert encoder.modalities == ("image", "text", "video")
    alone = [encoder.encode_image([png(f) for f in decode(d, 5).frames]) for d in data]
    found = encoder.encode_video(data)
    assert np.abs(found - unit(np.stack([a.mean(axis=0) for a in alone]))).max() < 1e-6
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert not np.allclose(alone[0][0], alone[0][-1]), "frames differ, or a mean proves nothing"
    assert encoder.encode_video([]).shape == (0, encoder.dimension)


def test_pictures_and_texts_keep_their_vectors_and_the_number_of_frames_is_in_the_fingerprint(tmp_path: Path):
    spec = f"hf:{save_clip(tmp_path / 'clip')}"
    plain, four, five = load_encoder(spec), load_encoder(f"frames:4:{spec}"), load_encoder(f"frames:5:{spec}")
    assert len({plain.fingerprint, four.fingerprint, five.fingerprint}) == 3
    assert load_encoder(four.spec).fingerprint == four.fingerprint
    assert np.array_equal(four.encode_text(["a map"]), plain.encode_text(["a map"]))
    with pytest.raises(UsageError, match="gives image and text vectors, not video"):
        plain.encode_video([b""])


@pytest.mark.parametrize("spec", ["frames:", "frames:8", "frames:0:fake:4", "frames:65:fake:4", "frames:x:fake:4"])
def test_a_spec_without_a_sensible_number_is_told_what_to_write(spec: str):
    with pytest.raises(UsageError, match=r"is no model spec|give a number of frames from 1 to 64"):
        load_encoder(spec)


def test_an_encoder_without_pictures_has_no_frames(tmp_path: Path):
    with pytest.raises(UsageError, match="gives text vectors, not image"):
        load_encoder(f"frames:8:hf:{save_bert(tmp_path / 'bert')}")
