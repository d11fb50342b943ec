"""`voice:<file or URL in safetensors>`: whose voice a sound is. An LSTM over mel bands, of the layout of Resemblyzer.

As in "Generalized End-to-End Loss for Speaker Verification" (Wan et al., 2018): windows of 1.6 s, half over each other,
each become the last layer's last state, through a linear layer and ReLU to unit length; the sound's vector is their
mean. A quiet sound is made louder first; pauses are left in, where Resemblyzer cuts them out with a voice detector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from mmstream.encoders.base import Encoder, fingerprint, unit
from mmstream.encoders.folder import absolute_source, sha256
from mmstream.encoders.pictures import to_device
from mmstream.errors import UsageError
from mmstream.media.audio import LogMel, Sound, clean, log_mel, resample
from mmstream.storage.cache import local_folder

MEL = LogMel(
    rate=16_000, n_fft=400, hop=160, num_mels=40, f_max=8_000.0, scale="slaney", norm="slaney", log=None, power=2
)
WINDOW_FRAMES = 160
STEP_FRAMES = 80
LOUDNESS = 10 ** (-30 / 20)  # root mean square, of full scale
_ROWS = 64  # windows that the model sees at once


class VoiceEncoder(Encoder):
    modalities = ("audio",)

    def __init__(self, spec: str) -> None:
        source = spec.removeprefix("voice:")
        self.spec, path = f"voice:{absolute_source(source)}", _local(source, spec)
        self._on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.cuda.get_device_name() if self._on.type == "cuda" else "cpu"
        self.module = _loaded(path, spec).to(self._on)
        self.dimension = self.module.linear.out_features
        self.fingerprint = fingerprint(
            {"encoder": "voice/1", "weights": sha256(path), "mel": MEL.model_dump(mode="json"), "resampler": "soxr-hq"}
        )

    def listen(self, sound: Sound) -> np.ndarray:
        """float32 [windows, 160, 40]: the mel bands of each window; behind its end a sound is silent.

        Raises:
            Rejected: `audio`, the samples are no sound.
        """
        samples = resample(clean(sound), sound.rate, MEL.rate)
        loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
        if 0 < loudness < LOUDNESS:
            samples = samples * np.float32(LOUDNESS / loudness)
        mel = log_mel(samples, MEL)
        steps = max(0, -(-(len(mel) - WINDOW_FRAMES) // STEP_FRAMES))
        padded = np.pad(mel, ((0, WINDOW_FRAMES + steps * STEP_FRAMES - len(mel)), (0, 0)))
        return np.stack([padded[i * STEP_FRAMES :][:WINDOW_FRAMES] for i in range(steps + 1)])

    def _audio_batch(self, sounds: list[np.ndarray]) -> np.ndarray:
        windows = np.concatenate(sounds)
        vectors = np.concatenate([self._vectors(windows[i : i + _ROWS]) for i in range(0, len(windows), _ROWS)])
        ends = np.cumsum([len(s) for s in sounds])[:-1]
        return np.stack([of_sound.mean(0) for of_sound in np.split(vectors, ends)])

    @torch.inference_mode()
    def _vectors(self, windows: np.ndarray) -> np.ndarray:
        padded = np.pad(windows, ((0, _ROWS - len(windows)), (0, 0), (0, 0)))
        return unit(self.module(to_device(padded, self._on)).cpu().numpy()[: len(windows)])


class VoiceModel(nn.Module):
    """Mel bands [n, frames, num_mels] → [n, d], not negative."""

    def __init__(self, num_mels: int, width: int, num_layers: int, dimension: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(num_mels, width, num_layers, batch_first=True)
        self.linear = nn.Linear(width, dimension)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        _, (states, _) = self.lstm(mels)
        return torch.relu(self.linear(states[-1]))


def _loaded(path: Path, spec: str) -> VoiceModel:
    """
    Raises:
        UsageError: the file is no model of this kind.
    """
    try:
        weights = safetensors.torch.load_file(path)
        num_layers = sum(name.startswith("lstm.weight_ih_l") for name in weights)
        dimension, width = weights["linear.weight"].shape
        model = VoiceModel(weights["lstm.weight_ih_l0"].shape[1], width, num_layers, dimension)
        model.load_state_dict(weights)
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RuntimeError) as e:
        what = f"{type(e).__name__}: {str(e).splitlines()[0][:120]}"
        raise UsageError(f"{spec}: {path} holds no lstm.* and linear.* of a voice encoder ({what}).") from e
    if model.lstm.input_size != MEL.num_mels:
        raise UsageError(f"{spec}: takes {model.lstm.input_size} mel bands; {MEL.num_mels} are made here.")
    return model.float().eval().requires_grad_(False)


def _local(source: str, spec: str) -> Path:
    path = Path(source).expanduser()
    if "://" in source:
        parent, name = source.rsplit("/", 1)
        path = local_folder(parent, (name,)) / name
    if not path.is_file():
        raise UsageError(f"{spec}: there is no such file. Give the weights of a voice encoder in safetensors.")
    return path.absolute()
