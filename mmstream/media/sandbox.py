"""Pictures, sounds and videos are decoded one by one in a process of their own, which may crash, hang or eat memory.

Encoded bytes go in over a pipe; what comes back is JSON and plain numbers (never pickle), and is checked. A process
that dies names its culprit: the sample it had. The caller only ever sees `Rejected`, and the next one gets a fresh
process. The child has no credentials in its environment, can open next to no files, may take `MEMORY_BYTES` beyond
what it starts with, and is killed when a sample takes longer than `SAMPLE_SECONDS`.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import IO

import numpy as np

from mmstream.errors import MmstreamError, Reason, Rejected
from mmstream.media import audio, video
from mmstream.media.audio import MAX_BYTES, Sound
from mmstream.media.image import MAX_PIXELS, Picture, decode

SAMPLE_SECONDS = 30.0
START_SECONDS = 120.0
MEMORY_BYTES = 1 << 30
_OPEN_FILES = 16
_GRACE_SECONDS = 5.0  # after which the child ends itself, should its parent be gone
_NUMBER_BYTES = 8
_PICTURE, _SOUND, _TRACK, _VIDEO = b"P", b"S", b"T", b"V"
_NAMES = {_PICTURE: "picture", _SOUND: "sound", _TRACK: "sound track", _VIDEO: "video"}
_NO_TRACK = (0, 1)  # the shape of what a video without sound has
_READY = b"ready\n"
_LINE_BYTES = 1 << 16
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class _Died(Exception):
    """The child ended with this code before it had answered (negative: the signal)."""

    def __init__(self, code: int, in_time: bool) -> None:
        super().__init__(code)
        self.code, self.in_time = code, in_time

    def __str__(self) -> str:
        return signal.Signals(-self.code).name if self.code < 0 else f"exit code {self.code}"


class Sandbox:
    """A child that decodes, replaced whenever it dies. Threads may share it: they take turns."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            if self._child is not None:
                self._child.kill()
                self._reap(self._child)

    def picture(self, data: bytes) -> AbstractContextManager[Picture]:
        """The same as `image.decode` gives.

        Raises:
            Rejected: as there; `decode_timeout` or `decoder_crash` where the child had to be killed, or died.
        """
        rgb, _ = self._decode(_PICTURE, data)
        return nullcontext(Picture(rgb, rgb.shape[1], rgb.shape[0], data))

    def sound(self, data: bytes) -> AbstractContextManager[Sound]:
        """The same as `audio.decode` gives.

        Raises:
            Rejected: as there; `decode_timeout` or `decoder_crash` where the child had to be killed, or died.
        """
        samples, rate = self._decode(_SOUND, data)
        return nullcontext(Sound(samples, rate, data))

    def track(self, data: bytes) -> AbstractContextManager[Sound | None]:
        """The same as `video.track` gives.

        Raises:
            Rejected: as there; `decode_timeout` or `decoder_crash` where the child had to be killed, or died.
        """
        samples, rate = self._decode(_TRACK, data)
        return nullcontext(Sound(samples, rate, data) if len(samples) else None)

    def frames(self, data: bytes, num_frames: int) -> AbstractContextManager[tuple[np.ndarray, float]]:
        """The same frames as `video.decode` gives, and the video's seconds, to the millisecond.

        Raises:
            Rejected: as there; `decode_timeout` or `decoder_crash` where the child had to be killed, or died.
        """
        frames, milliseconds = self._decode(_VIDEO, data, num_frames)
        return nullcontext((frames, milliseconds / 1000))

    def together(self, decode: Callable[[], object], num: int) -> None:
        """None: only of one that is decoded alone it is known what it did."""

    def _decode(self, kind: bytes, data: bytes, count: int = 0) -> tuple[np.ndarray, int]:
        with self._turn:
            try:
                return self._attempt(kind, data, count)
            except _Died as first:
                if first.code != -signal.SIGKILL or not first.in_time:
                    raise _rejected(first, kind, data) from first
            try:  # someone else killed it: the system, for want of memory, or a person. It may not be this sample.
                return self._attempt(kind, data, count)
            except _Died as second:
                raise _rejected(second, kind, data) from second

    def _attempt(self, kind: bytes, data: bytes, count: int) -> tuple[np.ndarray, int]:
        child = self._child = self._child or _start()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(SAMPLE_SECONDS, expire)
        timer.start()
        try:
            return _ask(child, kind, data, count)
        except (EOFError, BrokenPipeError):
            code = self._reap(child)  # before the timer ends: it may have let go of the pipes and still live
            raise _Died(code, in_time=not expired.is_set()) from None
        finally:
            timer.cancel()

    def _reap(self, child: subprocess.Popen[bytes]) -> int:
        self._child = None
        for pipe in (child.stdin, child.stdout):
            try:
                if pipe:
                    pipe.close()
            except BrokenPipeError:  # what was not sent yet has no reader any more
                pass
        return child.wait()


def _rejected(died: _Died, kind: bytes, data: bytes) -> Rejected:
    what = _NAMES[kind]
    if not died.in_time or died.code == -signal.SIGALRM:
        detail = f"no {what} after {SAMPLE_SECONDS:g} s, the limit for one, from {len(data):,} bytes"
        return Rejected(Reason.DECODE_TIMEOUT, detail)
    detail = f"the decoder died ({died}) of a {what} of {len(data):,} bytes; it may take {MEMORY_BYTES >> 20:,} MiB"
    return Rejected(Reason.DECODER_CRASH, detail)


def _start() -> subprocess.Popen[bytes]:
    """A child that is ready: the time it takes to start, long on a busy machine, is not the first picture's.

    Raises:
        MmstreamError: it does not start.
    """
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    paths = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)  # Ray adds a job's folder to it
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "mmstream.media.sandbox"],
        env={**kept, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout
    timer = threading.Timer(START_SECONDS, child.kill)
    timer.start()
    try:
        is_ready = child.stdout.readline(_LINE_BYTES) == _READY
    finally:
        timer.cancel()
    if not is_ready:
        raise MmstreamError(
            f"the process in which samples are decoded does not start within {START_SECONDS:g} s (exit code "
            f"{child.wait()}); its error is in this worker's log. Try: {sys.executable} -m mmstream.media.sandbox"
        )
    return child


def _ask(child: subprocess.Popen[bytes], kind: bytes, data: bytes, count: int) -> tuple[np.ndarray, int]:
    """The child's answer: an array, and the rate of a sound in Hz or the length of a video in milliseconds.

    Raises EOFError or BrokenPipeError where it is gone.
    """
    assert child.stdin and isinstance(child.stdout, BufferedReader)
    _send(child.stdin, kind, data, count)
    line = child.stdout.readline(_LINE_BYTES)
    if not line:
        raise EOFError
    try:
        shape, number = _told(kind, line, count)
    except (ValueError, KeyError, TypeError) as e:
        child.kill()  # a line cut short, or what no child of ours says
        raise EOFError from e
    array = np.empty(shape, np.float32 if kind in (_SOUND, _TRACK) else np.uint8)
    if array.size and child.stdout.readinto(array.data.cast("B")) != array.nbytes:
        raise EOFError
    return array, number


def _send(pipe: IO[bytes], kind: bytes, data: bytes, count: int) -> None:
    pipe.write(kind + b"".join(n.to_bytes(_NUMBER_BYTES, "little") for n in (count, len(data))))
    pipe.write(data)
    pipe.flush()


def _told(kind: bytes, line: bytes, count: int) -> tuple[tuple[int, ...], int]:
    """(shape, number) from an answer's first line, checked: a decoder that was taken over may write anything."""
    answer = json.loads(line)
    if "reason" in answer:
        raise Rejected(Reason(answer["reason"]), str(answer["detail"]))
    shape, number = tuple(int(n) for n in answer["shape"]), int(answer["number"])
    is_picture = len(shape) == 3 and shape[2] == 3 and shape[0] * shape[1] <= MAX_PIXELS
    is_sound = len(shape) == 2 and 4 * shape[0] * shape[1] <= MAX_BYTES + 4 * shape[1] and number > 0
    is_video = len(shape) == 4 and shape[::3] == (count, 3) and math.prod(shape) <= video.MAX_BYTES and number >= 0
    fits = {_PICTURE: is_picture, _SOUND: is_sound, _TRACK: is_sound, _VIDEO: is_video}[kind]
    if not (fits and min(shape) > 0) and (kind, shape) != (_TRACK, _NO_TRACK):
        raise ValueError(answer)
    return shape, number


def _serve() -> None:
    """The child: samples from stdin to what was stdout, until stdin ends."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints is no answer
    _confine()
    answers.write(_READY)
    answers.flush()
    while kind := requests.read(1):
        count, length = (int.from_bytes(requests.read(_NUMBER_BYTES), "little") for _ in range(2))
        data = requests.read(length)
        # The system's own alarm needs no thread and no interpreter lock, and ends the process.
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_SECONDS + _GRACE_SECONDS)
        _answer(kind, data, count, answers)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _confine() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _answer(kind: bytes, data: bytes, count: int, answers: IO[bytes]) -> None:
    try:
        if kind == _PICTURE:
            array, number = decode(data).rgb, 0
        elif kind == _VIDEO:
            clip = video.decode(data, count)
            array, number = clip.frames, round(1000 * clip.duration)
        elif kind == _TRACK:
            sound = video.track(data)
            array, number = (sound.samples, sound.rate) if sound else (np.zeros(_NO_TRACK, np.float32), 1)
        else:
            sound = audio.decode(data)
            array, number = sound.samples, sound.rate
    except Rejected as e:
        answers.write(json.dumps({"reason": e.reason, "detail": e.detail}).encode() + b"\n")
    else:
        answers.write(json.dumps({"shape": array.shape, "number": number}).encode() + b"\n")
        answers.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    answers.flush()


if __name__ == "__main__":
    _serve()
