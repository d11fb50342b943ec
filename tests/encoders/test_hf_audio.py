"""CLAP against the transformers library itself, on small models with random weights and real speech."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_models import save_clap
from transformers import ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from mmstream.encoders.build import load_encoder
from mmstream.errors import Reason, Rejected
from mmstream.media import audio
from mmstream.media.audio import clean, resample

RATE = 48_000


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def clap(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clap(tmp_path_factory.mktemp("clap"), fused=request.param)


@pytest.fixture(scope="module")
def speech(shared: Path) -> list[bytes]:
    with tarfile.open(shared / "data" / "spoken_digits" / "00000.tar") as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(".wav")][:5]


def wav(samples: np.ndarray) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format="WAV", subtype="FLOAT")
    return out.getvalue()


def reference(folder: Path, sounds: list[np.ndarray]) -> np.ndarray:
    """The library's own vectors. It marks one short sound of a batch as longer, at random, for its training's sake."""
    extract = ClapFeatureExtractor.from_pretrained(folder)
    features = [extract(s, sampling_rate=RATE, return_tensors="pt")["input_features"] for s in sounds]
    model, no = ClapModel.from_pretrained(folder).eval(), torch.tensor([[False]])
    with torch.inference_mode():
        z = [model.get_audio_features(input_features=f, is_longer=no).pooler_output for f in features]
    return torch.nn.functional.normalize(torch.cat(z), dim=-1).numpy()


def test_sounds_as_long_as_the_model_hears_equal_the_librarys_own_forward(clap: Path, speech: list[bytes]) -> None:
    encoder = load_encoder(f"hf:{clap}")
    assert encoder.modalities == ("audio", "text")
    decoded = [audio.decode(s) for s in speech]
    wanted = reference(clap, [resample(clean(s), s.rate, RATE) for s in decoded])
    assert np.abs(encoder.encode_audio(speech) - wanted).max() <= 1e-5


def test_texts_equal_the_librarys_own_forward(clap: Path) -> None:
    texts = ["a map of the world", "two people talk", "the world " * 60]
    tokens = PreTrainedTokenizerFast.from_pretrained(clap)(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        model = ClapModel.from_pretrained(clap).eval()
        z = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
    wanted = torch.nn.functional.normalize(z, dim=-1).numpy()
    assert np.abs(load_encoder(f"hf:{clap}").encode_text(texts) - wanted).max() <= 1e-5


def test_a_longer_sound_gives_the_same_vector_every_time_and_is_heard_beyond_its_start(clap: Path) -> None:
    encoder, rng = load_encoder(f"hf:{clap}"), np.random.default_rng(0)
    loud = np.concatenate([rng.normal(0, 0.1, RATE * 8), rng.normal(0, 0.5, RATE * 7)]).astype(np.float32)
    other = loud.copy()
    other[RATE * 7 : RATE * 9] = 0
    first, again, changed = (encoder.encode_audio([wav(s)])[0] for s in (loud, loud, other))
    assert np.array_equal(first, again)
    assert np.abs(first - changed).max() > 1e-4


def test_a_sound_vector_does_not_depend_on_its_neighbours(clap: Path, speech: list[bytes]) -> None:
    encoder = load_encoder(f"hf:{clap}")
    together = encoder.encode_audio(speech)
    assert np.array_equal(together[3], encoder.encode_audio(speech[3:4])[0])
    assert encoder.encode_audio([]).shape == (0, 32)


def test_silence_is_heard_and_nothing_is_rejected(clap: Path) -> None:
    encoder = load_encoder(f"hf:{clap}")
    assert np.isfinite(encoder.encode_audio([wav(np.zeros(RATE, np.float32))])).all()
    with pytest.raises(Rejected) as caught:
        encoder.encode_audio([wav(np.zeros(0, np.float32))])
    assert caught.value.reason == Reason.AUDIO
