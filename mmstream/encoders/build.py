"""A spec string becomes an encoder: one match, one place that knows the families."""

from __future__ import annotations

from mmstream.encoders.base import Encoder
from mmstream.errors import UsageError

FAMILIES = (
    "hf:<id, folder or URL>, open_clip:<architecture>/<tag, folder or file>, timm:<name>[/folder or file], "
    "words:<file or folder>, voice:<file>, run:<folder or URL of a run>, fake:<dimension>, "
    "frames:<number>:<any of them, for videos>, fused:<any of them, for pictures on a GPU>"
)
NAMES = ("hf", "open_clip", "timm", "words", "voice", "run", "fake", "frames", "fused")
DEFAULT_SPEC = "hf:openai/clip-vit-base-patch32"


def load_encoder(spec: str) -> Encoder:
    """
    Raises:
        UsageError: no such family, or the model cannot be loaded.
        UnreachableError: a hub or store does not answer.
    """
    encoder = _of_family(spec)
    encoder.choose_micro_batch()
    return encoder


def _of_family(spec: str) -> Encoder:
    family, _, rest = spec.partition(":")
    if not rest:
        raise UsageError(f"{spec!r} is no model spec. Give one of: {FAMILIES}.")
    match family:
        case "fake":
            from mmstream.encoders.fake import FakeEncoder

            return FakeEncoder(spec)
        case "hf":
            from mmstream.encoders.hf import load_hf

            return load_hf(spec)
        case "open_clip":
            from mmstream.encoders.open_clip import OpenClipEncoder

            return OpenClipEncoder(spec)
        case "timm":
            from mmstream.encoders.timm import TimmEncoder

            return TimmEncoder(spec)
        case "words":
            from mmstream.encoders.words import WordsEncoder

            return WordsEncoder(spec)
        case "voice":
            from mmstream.encoders.voice import VoiceEncoder

            return VoiceEncoder(spec)
        case "run":
            from mmstream.encoders.trained import TrainedEncoder

            return TrainedEncoder(spec)
        case "frames":
            from mmstream.encoders.frames import with_frames

            return with_frames(spec, _of_family)
        case "fused":
            from mmstream.encoders.fused import with_device_pictures

            return with_device_pictures(spec, _of_family)
        case _:
            raise UsageError(f"{spec}: {family}: is no family of models. Give one of: {FAMILIES}.")
