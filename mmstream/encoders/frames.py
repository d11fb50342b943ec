"""`frames:<n>:<spec of an encoder of pictures>`: that encoder, which gives vectors of videos beside its others.

A video's vector is the mean of the unit vectors of `n` evenly spaced frames (`media.video.decode`), scaled to length 1
again: the usual zero-shot baseline, blind to order and motion. Its sound track is not heard. Pictures and texts keep
the vectors that the encoder gives them alone, so that words find videos.
"""

from __future__ import annotations

from collections.abc import Callable

from mmstream.encoders.base import Encoder, fingerprint
from mmstream.errors import UsageError

MAX_FRAMES = 64


def with_frames(spec: str, load: Callable[[str], Encoder]) -> Encoder:
    """
    Args:
        load: how the encoder of pictures is made of its own spec.

    Raises:
        UsageError: `spec` has no sensible number, or the encoder takes no pictures.
    """
    _, number, inner = (*spec.split(":", 2), "", "")[:3]
    if not number.isdecimal() or not 1 <= int(number) <= MAX_FRAMES or not inner or inner.startswith("frames:"):
        raise UsageError(
            f"{spec}: give a number of frames from 1 to {MAX_FRAMES} and an encoder of pictures, as in "
            "frames:8:hf:openai/clip-vit-base-patch32."
        )
    encoder = load(inner)
    encoder.needs("image")
    encoder.spec = f"frames:{int(number)}:{encoder.spec}"
    encoder.num_frames = int(number)
    encoder.modalities = (*encoder.modalities, "video")
    rule = {"frames": int(number), "pooling": "mean of unit vectors/1"}
    encoder.fingerprint = fingerprint({"encoder": encoder.fingerprint, **rule})
    return encoder
