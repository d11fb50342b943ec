"""Made videos whose frames say which one they are: the grey of frame i of n is 10 + 230 · i / (n - 1)."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np

CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "gif": "gif", "mov": "mpeg4"}


def grey(i: int, n: int) -> int:
    return 10 + round(230 * i / max(1, n - 1))


def picture(value: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 [height, width, 3], `value` all over but for a red upper left corner."""
    pixels = np.full((height, width, 3), value, np.uint8)
    pixels[: height // 4, : width // 4] = (255, 0, 0)
    return pixels


def video(
    kind: str = "mp4", num_frames: int = 48, rate: int = 24, *, sound: np.ndarray | None = None, rotation: float = 0,
    gop: int = 12, options: dict[str, str] | None = None, size: tuple[int, int] = (64, 96),
) -> bytes:  # fmt: skip
    """A video of `num_frames`; `sound` is float32 [n] at 16 kHz for its sound track."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind, options=options or {}) as container:
        stream: Any = container.add_stream(CODECS[kind], rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb8" if kind == "gif" else "yuv420p"
        stream.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        track: Any = None if sound is None else container.add_stream({"webm": "libopus"}.get(kind, "aac"), rate=48_000)
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(grey(i, num_frames), *size), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
        if track is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.rate = 16_000
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=48_000, frame_size=track.frame_size or 960)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(track.encode(part))
            container.mux(track.encode())
    return out.getvalue()
