"""The small interface of everything that gives vectors: pictures, texts and sounds in, unit vectors [n, d] out.

An encoder is used in steps, so that decoding, preprocessing and the model can run in different threads and be timed
apart:

    picture: media.image.decode → `preprocess` → `embed_pixels`, or ahead of it `decode_ahead` of many at once
    video:   media.video.decode → `preprocess` of each frame → `embed_pixels` → `video_vectors`
    text:    media.text.clean   → `tokenize`   → `embed_tokens`
    sound:   media.audio.decode → `listen`     → `embed_sounds`

`encode_image`, `encode_video`, `encode_text` and `encode_audio` do all of it. The model always sees batches of exactly
`micro_batch` rows, the last one padded: the shape of a batch changes a result in its last bit, and the same input must
give the same bytes. A family implements the steps of the modalities it has; a trainer takes `module` as a tower, with
`preprocess` and `tokenize` as what it was made for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmstream.errors import UsageError
from mmstream.media.image import Picture, decode

if TYPE_CHECKING:  # who only has pictures needs none of what sounds are read with
    from mmstream.media.audio import Sound

Tokens = dict[str, np.ndarray]
VECTOR_FORMAT = "unit-float32/1"


class Encoder:
    """
    Attributes:
        spec: what `load_encoder` makes this encoder from, absolute.
        fingerprint: hash of weights, preprocessing, tokenizer, dimension and format.
        dimension: d of the vectors.
        modalities: which of "image", "text", "audio" and "video" it gives.
        num_frames: of a video, whose mean vector is its own (see `encoders.frames`); 0 where it gives none.
        micro_batch: rows of every batch that the model sees.
        group: how many pictures are decoded at once.
        device: "cpu", or the name of the GPU.
        dtype: what the model computes in.
        module: the torch module, where there is one.
    """

    spec: str
    fingerprint: str
    dimension: int
    modalities: tuple[str, ...]
    num_frames: int = 0
    micro_batch: int = 32
    group: int = 1
    device: str = "cpu"
    dtype: str = "float32"
    module: Any = None

    def preprocess(self, picture: Picture) -> Any:
        """One decoded picture as what `place` and `embed_pixels` take a list of: an array of fixed shape, or what lies
        on the device already."""
        raise self._lacks("image")

    def decode_ahead(self, images: Sequence[bytes]) -> list[Any]:
        """Encoded pictures, `group` of them, decoded at once where the device does so: what stands for a `Picture`, or
        None for one that `media.image.decode` must look at."""
        return [None] * len(images)

    def tokenize(self, texts: list[str]) -> Tokens:
        """Named arrays [n, …] of fixed width for `embed_tokens`."""
        raise self._lacks("text")

    def listen(self, sound: Sound) -> np.ndarray:
        """One decoded sound as the features that `embed_sounds` takes a list of.

        Raises:
            Rejected: nothing can be made of it.
        """
        raise self._lacks("audio")

    def choose_micro_batch(self) -> None:
        """Sets `micro_batch` to what fits the device, before anything is encoded with it; on a CPU it is as it is."""

    def place(self, pixels: Sequence[Any]) -> Any:
        """Exactly `micro_batch` pictures as one batch where the model is; the copy may still be under way."""
        return np.stack(pixels)

    def forward(self, placed: Any) -> Any:
        """What `place` gave → [micro_batch, d] where the model is, not yet normalised; it may still be at work."""
        return self._image_batch(placed)

    def fetch(self, vectors: Any) -> np.ndarray:
        """What `forward` gave, when it is done → float32 [micro_batch, d]."""
        return vectors

    def _image_batch(self, pixels: np.ndarray) -> np.ndarray:
        """Exactly `micro_batch` stacked pictures → float32 [micro_batch, d], not yet normalised."""
        raise self._lacks("image")

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        """Exactly `micro_batch` rows of tokens → float32 [micro_batch, d], not yet normalised."""
        raise self._lacks("text")

    def _audio_batch(self, sounds: list[np.ndarray]) -> np.ndarray:
        """Exactly `micro_batch` features → float32 [micro_batch, d], not yet normalised."""
        raise self._lacks("audio")

    def embed_pixels(self, pixels: Sequence[Any] | np.ndarray) -> np.ndarray:
        """What `preprocess` gave, of n pictures → unit vectors float32 [n, d]; a row that is not finite is left as it
        is."""
        self.needs("image")
        return self._in_lists(pixels, lambda batch: self.fetch(self.forward(self.place(batch))))

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """Tokens [n, …] → unit vectors float32 [n, d]; a row that is not finite is left as it is."""
        self.needs("text")
        return self._in_micro_batches(tokens, self._text_batch)

    def embed_sounds(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        """Features of n sounds → unit vectors float32 [n, d]; a row that is not finite is left as it is."""
        self.needs("audio")
        return self._in_lists(sounds, self._audio_batch)

    def encode_image(self, images: Sequence[bytes]) -> np.ndarray:
        """Encoded pictures (JPEG, PNG, …) → float32 [n, d].

        Raises:
            Rejected: a picture cannot be decoded.
            UsageError: the encoder gives no image vectors.
        """
        self.needs("image")
        return self.embed_pixels([self.preprocess(decode(data)) for data in images])

    def encode_video(self, videos: Sequence[bytes]) -> np.ndarray:
        """Encoded videos (MP4, WebM, GIF) → float32 [n, d].

        Raises:
            Rejected: a video cannot be decoded.
            UsageError: the encoder gives no video vectors, or the extra `video` is not installed.
        """
        from mmstream.media import video

        self.needs("video")
        vectors = [np.zeros((0, self.num_frames, self.dimension), np.float32)]
        for data in videos:
            frames = [self.preprocess(p) for p in video.pictures(video.decode(data, self.num_frames).frames)]
            vectors.append(self.embed_pixels(frames)[None])
        return video_vectors(np.concatenate(vectors))

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → float32 [n, d].

        Raises:
            UsageError: the encoder gives no text vectors.
        """
        self.needs("text")
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        return self.embed_tokens(self.tokenize(list(texts)))

    def encode_audio(self, sounds: Sequence[bytes]) -> np.ndarray:
        """Encoded sounds (WAV, FLAC, OGG, MP3) → float32 [n, d].

        Raises:
            Rejected: a sound cannot be decoded.
            UsageError: the encoder gives no audio vectors, or the extra `audio` is not installed.
        """
        from mmstream.media import audio

        self.needs("audio")
        return self.embed_sounds([self.listen(audio.decode(data)) for data in sounds])

    def needs(self, modality: str) -> None:
        """
        Raises:
            UsageError: the encoder does not give vectors of `modality`.
        """
        if modality not in self.modalities:
            raise self._lacks(modality)

    def _lacks(self, modality: str) -> UsageError:
        gives = " and ".join(self.modalities)
        return UsageError(f"{self.spec} gives {gives} vectors, not {modality}.")

    def _in_lists(self, rows: Sequence[Any] | np.ndarray, run: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        size, results = self.micro_batch, [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(rows), size):
            batch = list(rows[start : start + size])
            padded = batch + batch[:1] * (size - len(batch))
            results.append(np.asarray(run(padded), np.float32)[: len(batch)])
        return unit(np.concatenate(results))

    def _in_micro_batches(self, arrays: Mapping[str, np.ndarray], run: Callable[[Tokens], np.ndarray]) -> np.ndarray:
        n, size = len(next(iter(arrays.values()))), self.micro_batch
        results = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, n, size):
            batch = {name: a[start : start + size] for name, a in arrays.items()}
            rows = min(size, n - start)
            if rows < size:
                batch = {name: np.concatenate([a, np.repeat(a[:1], size - rows, axis=0)]) for name, a in batch.items()}
            results.append(np.asarray(run(batch), np.float32)[:rows])
        return unit(np.concatenate(results))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; rows of length 0 or with NaN stay as they are."""
    vectors = vectors.astype(np.float32, copy=False)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.divide(vectors, length, out=vectors.copy(), where=length > 0)


def video_vectors(frames: np.ndarray) -> np.ndarray:
    """Unit vectors of frames, float32 [n, t, d] → unit vectors of videos, float32 [n, d]: their means, scaled."""
    return unit(frames.mean(axis=1, dtype=np.float32))


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256 over named parts (hashes of files, preprocessing, dimension …) in canonical JSON."""
    canonical = json.dumps({"format": VECTOR_FORMAT, **parts}, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
