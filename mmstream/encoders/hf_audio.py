"""CLAP: sounds and texts in one space.

Sounds are made mono, resampled to the model's rate and cut or filled to its length, then log-mel features, by the same
numbers as the library's feature extractor. Where that draws at random what it takes of a longer sound, here it is
always the same: the middle of each part that it would have drawn from. The same sound gives the same vector.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mmstream.encoders.base import Tokens
from mmstream.encoders.folder import read_json
from mmstream.encoders.hf_model import HfModel, tokenizer_hash, tokens_of
from mmstream.encoders.hf_text import ByWidth
from mmstream.encoders.pictures import to_device
from mmstream.errors import UsageError
from mmstream.media.audio import LogMel, Sound, clean, log_mel, resample

MAX_TEXT = 512


@dataclass(frozen=True)
class Hearing:
    """How CLAP wants its sounds: `length` samples at `mel.rate`; `fused` models look at four views of a longer one."""

    mel: LogMel
    length: int
    fused: bool
    padding: str  # "repeatpad": whole repetitions, then silence; "repeat": cut repetitions; "pad": silence

    @property
    def num_frames(self) -> int:
        return self.length // self.mel.hop + 1

    def features(self, sound: Sound) -> np.ndarray:
        """float32 [1, frames, mels]; [4, frames, mels] of a sound that is longer than `length`, where `fused`.

        Raises:
            Rejected: `audio`, the samples are no sound.
        """
        samples = resample(clean(sound), sound.rate, self.mel.rate)
        if len(samples) <= self.length:
            return log_mel(self._filled(samples), self.mel)[None]
        if not self.fused:
            start = (len(samples) - self.length) // 2
            return log_mel(samples[start : start + self.length], self.mel)[None]
        mel = log_mel(samples, self.mel)
        return mel[None] if len(mel) == self.num_frames else self._views(mel)

    def _filled(self, samples: np.ndarray) -> np.ndarray:
        times = self.length // len(samples)
        if self.padding == "repeat":
            return np.tile(samples, times + 1)[: self.length]
        repeated = np.tile(samples, times) if self.padding == "repeatpad" else samples
        return np.pad(repeated, (0, self.length - len(repeated)))

    def _views(self, mel: np.ndarray) -> np.ndarray:
        """The whole, shrunk, and the middle window of each third of where a window can begin."""
        frames = self.num_frames
        thirds = np.array_split(np.arange(len(mel) - frames + 1), 3)
        starts = [int(t[len(t) // 2]) if len(t) else 0 for t in thirds]
        shape = (frames, self.mel.num_mels)
        shrunk = torch.nn.functional.interpolate(torch.from_numpy(mel)[None, None], shape, mode="bilinear")
        return np.stack([shrunk[0, 0].numpy(), *(mel[s : s + frames] for s in starts)])


class HfSounds(ByWidth):
    modalities = ("audio", "text")

    def __init__(self, model: HfModel) -> None:
        self.spec, self._on, self.device = model.spec, model.device, model.device_name
        self.micro_batch = model.micro_batch // 4
        self.hearing = hearing_of(read_json(model.folder / "preprocessor_config.json", model.spec), model.spec)
        self.module, self._tokenizer = model.module(), model.tokenizer()
        text = self.module.config.text_config
        positions = (
            int(text.max_position_embeddings) - int(text.pad_token_id) - 1
        )  # RoBERTa's begin behind the padding's
        self.text_length = min(MAX_TEXT, positions, int(self._tokenizer.model_max_length))
        self.dimension = int(self.module.config.projection_dim)
        self.fingerprint = model.fingerprint(
            tokenizer=tokenizer_hash(self._tokenizer),
            text_length=self.text_length,
            hearing={**asdict(self.hearing), "mel": self.hearing.mel.model_dump(mode="json"), "resampler": "soxr-hq"},
            dimension=self.dimension,
        )

    def listen(self, sound: Sound) -> np.ndarray:
        """float32 [1 or 4, frames, mels], see `Hearing.features`."""
        return self.hearing.features(sound)

    def tokenize(self, texts: list[str]) -> Tokens:
        """int64 [n, text_length]; longer texts are cut."""
        return tokens_of(self._tokenizer, texts, self.text_length)

    @torch.inference_mode()
    def _audio_batch(self, sounds: list[np.ndarray]) -> np.ndarray:
        views = 4 if self.hearing.fused else 1
        mels = np.stack([np.broadcast_to(s, (views, *s.shape[1:])) for s in sounds])
        is_longer = torch.tensor([[len(s) > 1] for s in sounds], device=self._on)
        found = self.module.get_audio_features(input_features=to_device(mels, self._on), is_longer=is_longer)
        return found.pooler_output.float().cpu().numpy()

    @torch.inference_mode()
    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        inputs = {name: to_device(values, self._on) for name, values in tokens.items()}
        return self.module.get_text_features(**inputs).pooler_output.float().cpu().numpy()


def hearing_of(config: dict[str, Any], spec: str) -> Hearing:
    """From a CLAP preprocessor_config.json.

    Raises:
        UsageError: it asks for something that is not done here.
    """
    truncation, padding = config.get("truncation", "fusion"), config.get("padding", "repeatpad")
    if truncation not in ("fusion", "rand_trunc") or padding not in ("repeatpad", "repeat", "pad"):
        raise UsageError(f"{spec}: cuts by {truncation} and fills by {padding}, which is not done here.")
    rate, fused = int(config.get("sampling_rate", 48_000)), truncation == "fusion"
    mel = LogMel(
        rate=rate,
        n_fft=int(config.get("fft_window_size", 1024)),
        hop=int(config.get("hop_length", 480)),
        num_mels=int(config.get("feature_size", 64)),
        f_min=float(config.get("frequency_min", 0)),
        f_max=float(config.get("frequency_max", 14_000)),
        scale="htk" if fused else "slaney",
        norm=None if fused else "slaney",
    )
    return Hearing(mel, math.floor(config.get("max_length_s", 10) * rate), fused, padding)
