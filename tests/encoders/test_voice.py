"""`voice:`: the real weights tell speakers apart, and each vector is what a forward of its own gives."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from sounds import encoded, tones
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from mmstream.encoders.build import load_encoder
from mmstream.encoders.voice import VoiceModel
from mmstream.errors import UsageError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("voice") / "voice.safetensors"
    safetensors.torch.save_file(VoiceModel(40, 24, 2, 16).state_dict(), file)
    return file


def reference(file: Path, samples: np.ndarray) -> np.ndarray:
    """float32 [d], with the spectrogram of the transformers library, window by window."""
    bank = mel_filter_bank(201, 40, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    samples = samples * max(1.0, 10 ** (-30 / 20) / np.sqrt((samples.astype(np.float64) ** 2).mean()))
    mel = spectrogram(
        samples, window_function(400, "hann"), 400, 160, power=2.0, mel_filters=bank, mel_floor=1e-10
    ).T.astype(np.float32)  # fmt: skip
    model, vectors, start = load_encoder(f"voice:{file}").module, [], 0
    while True:
        window = mel[start : start + 160]
        window = np.pad(window, ((0, 160 - len(window)), (0, 0)))
        vector = model(torch.from_numpy(window)[None])[0].numpy()
        vectors.append(vector / np.linalg.norm(vector))
        if start + 160 >= len(mel):
            break
        start += 80
    mean = np.mean(vectors, axis=0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("seconds", [0.4, 1.6, 1.7, 5.0])
def test_a_vector_is_the_mean_over_windows_of_a_forward_of_its_own(weights: Path, seconds: float) -> None:
    sound = tones(seconds, channels=1)
    with torch.inference_mode():
        wanted = reference(weights, sound[:, 0])
    assert np.abs(load_encoder(f"voice:{weights}").encode_audio([encoded("float", sound)])[0] - wanted).max() <= 1e-4


def test_the_same_sound_gives_the_same_vector_beside_any_others(weights: Path) -> None:
    encoder = load_encoder(f"voice:{weights}")
    sounds = [encoded("float", tones(s, channels=1)) for s in (0.3, 4.0, 1.0, 7.0)]
    together = encoder.encode_audio(sounds)
    assert together.shape == (4, 16) and encoder.modalities == ("audio",)
    assert all(np.array_equal(encoder.encode_audio([s])[0], v) for s, v in zip(sounds, together, strict=True))
    silent = io.BytesIO()
    soundfile.write(silent, np.zeros(16_000, np.float32), 16_000, format="WAV")
    assert np.isfinite(encoder.encode_audio([silent.getvalue()])).all()


def test_what_is_no_voice_encoder_is_said(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, other)
    (tmp_path / "text.safetensors").write_text("no weights")
    safetensors.torch.save_file(VoiceModel(80, 8, 1, 8).state_dict(), tmp_path / "wide.safetensors")
    for file, said in (
        (other, "holds no lstm"), (tmp_path / "text.safetensors", "holds no lstm"),
        (tmp_path / "none", "no such file"), (tmp_path / "wide.safetensors", "takes 80 mel bands"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            load_encoder(f"voice:{file}")
    assert load_encoder(f"voice:{weights}").fingerprint == load_encoder(f"voice:{weights}").fingerprint


def test_real_weights_find_the_speaker(shared: Path) -> None:
    sounds, speakers, digits = [], [], []
    with tarfile.open(shared / "data/spoken_digits/00000.tar") as tar:
        for member in tar:
            data = tar.extractfile(member).read()  # ty: ignore[unresolved-attribute]
            if member.name.endswith(".json"):
                about = json.loads(data)
                speakers.append(about["speaker"])
                digits.append(about["caption"])
            elif member.name.endswith(".wav"):
                sounds.append(data)
    vectors = load_encoder(f"voice:{shared / 'models/voice_encoder.safetensors'}").encode_audio(sounds)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -1)
    nearest = cosine.argmax(1)
    same_speaker = np.mean([speakers[i] == speakers[j] for i, j in enumerate(nearest)])
    same_digit = np.mean([digits[i] == digits[j] for i, j in enumerate(nearest)])
    print(f"nearest of {len(sounds)}: the same speaker {same_speaker:.2f}, the same digit {same_digit:.2f}")
    assert same_speaker >= 0.9 and same_digit >= 0.5  # by chance 0.17 and 0.1
