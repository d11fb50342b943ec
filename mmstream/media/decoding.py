"""How encoded bytes come to be a picture, a sound or frames: here and now, under a watchdog, or in a sandbox.

Whoever uses samples is handed a `Decoder` and does not know which. What it gives is valid for the length of a `with`
block, so that one who counts what is held at once can do so.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import numpy as np

from mmstream.media import audio, image, video
from mmstream.media.audio import Sound
from mmstream.media.image import Picture

T = TypeVar("T")


class Decoder(Protocol):
    """
    Raises:
        Rejected: on entering, what cannot be decoded.
    """

    def picture(self, data: bytes) -> AbstractContextManager[Picture]: ...

    def sound(self, data: bytes) -> AbstractContextManager[Sound]: ...

    def track(self, data: bytes) -> AbstractContextManager[Sound | None]:
        """The sound track of a video, if it has one."""
        ...

    def frames(self, data: bytes, num_frames: int) -> AbstractContextManager[tuple[np.ndarray, float]]:
        """uint8 [num_frames, H, W, 3] of a video, and the seconds that it lasts."""
        ...

    def together(self, decode: Callable[[], T], num: int) -> T | None:
        """What `decode` makes of `num` pictures at once; None where each must be decoded alone."""
        ...


class Direct:
    """Decodes in the caller's thread, without a guard."""

    def picture(self, data: bytes) -> AbstractContextManager[Picture]:
        return nullcontext(image.decode(data))

    def sound(self, data: bytes) -> AbstractContextManager[Sound]:
        return nullcontext(audio.decode(data))

    def track(self, data: bytes) -> AbstractContextManager[Sound | None]:
        return nullcontext(video.track(data))

    def frames(self, data: bytes, num_frames: int) -> AbstractContextManager[tuple[np.ndarray, float]]:
        clip = video.decode(data, num_frames)
        return nullcontext((clip.frames, clip.duration))

    def together(self, decode: Callable[[], T], num: int) -> T | None:
        return decode()
