"""A picture decoded in a sandbox is the same picture, and one that takes its decoder down is a reject by name."""

from __future__ import annotations

import io
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import videos
from PIL import Image

from mmstream.errors import Reason, Rejected
from mmstream.media import audio, sandbox, video
from mmstream.media.image import Picture, decode
from mmstream.media.sandbox import Sandbox

HOSTILE = Path(__file__).parents[1] / "hostile" / "sitecustomize.py"


def _png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


GOOD = _png()


@pytest.fixture
def struck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The children's decoder misbehaves when asked to; the file that tells how often it did."""
    shutil.copy(HOSTILE, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sandbox, "SAMPLE_SECONDS", 5.0)
    return tmp_path / "struck"


def reason(child: Sandbox, data: bytes) -> tuple[Reason, str]:
    with pytest.raises(Rejected) as caught:
        picture(child, data)
    return caught.value.reason, caught.value.detail


def picture(child: Sandbox, data: bytes) -> Picture:
    with child.picture(data) as found:
        return found


def test_sounds_and_rejects_are_those_of_decode_and_take_turns_with_pictures() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.random.default_rng(0).normal(0, 0.1, (8_000, 2)), 8_000, format="FLAC")
    with Sandbox() as child:
        with child.sound(out.getvalue()) as sound:
            assert (sound.rate, sound.samples.shape) == (8_000, (8_000, 2))
            assert np.array_equal(sound.samples, audio.decode(out.getvalue()).samples)
        picture(child, GOOD)
        with pytest.raises(Rejected, match="no sound") as caught:
            child.sound(b"no sound at all, and that is all")
        assert caught.value.reason == Reason.AUDIO


def test_frames_and_rejects_are_those_of_decode_too() -> None:
    data = videos.video("mp4", 24)
    with Sandbox() as child:
        with child.frames(data, 3) as (frames, seconds):
            assert np.array_equal(frames, video.decode(data, 3).frames)
            assert seconds == 1.0
        with child.frames(data, 8) as (frames, _):
            assert len(frames) == 8
        with pytest.raises(Rejected, match="no video") as caught:
            child.frames(b"no video at all, and that is all", 3)
        assert caught.value.reason == Reason.VIDEO


def test_pictures_and_rejects_are_those_of_decode(shared: Path) -> None:
    with Sandbox() as child:
        for path in sorted((shared / "data" / "bad_inputs" / "images").iterdir()):
            data = path.read_bytes()
            try:
                expected = decode(data)
            except Rejected as e:
                assert reason(child, data) == (e.reason, e.detail), path.name
            else:
                found = picture(child, data)
                assert np.array_equal(found.rgb, expected.rgb), path.name
                assert (found.width, found.height, found.data) == (expected.width, expected.height, data)


def test_a_picture_that_takes_its_decoder_down_is_named_at_once_and_the_next_ones_are_decoded(struck: Path) -> None:
    whole = decode(GOOD).rgb
    with Sandbox() as child:
        for end, expected, why in (
            (b"!crash", Reason.DECODER_CRASH, "SIGSEGV"),
            (b"!bomb", Reason.DECODER_CRASH, "memory|exit code 1"),
            (b"!sleep", Reason.DECODE_TIMEOUT, "no picture after 5 s"),
            (b"!hold", Reason.DECODE_TIMEOUT, "no picture after 5 s"),
        ):
            found, detail = reason(child, GOOD + end)
            assert found == expected
            assert any(w in detail for w in why.split("|")), detail
            assert np.array_equal(picture(child, GOOD).rgb, whole)
    assert len(struck.read_text().splitlines()) == 4, "once for each"


@pytest.mark.timeout(60)
def test_a_child_that_is_stopped_is_ended_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SAMPLE_SECONDS", 1.0)
    with Sandbox() as child:
        picture(child, GOOD)
        assert child._child
        os.kill(child._child.pid, signal.SIGSTOP)  # its own alarm does not wake it
        assert reason(child, GOOD)[0] == Reason.DECODE_TIMEOUT
        picture(child, GOOD)


def test_a_child_that_someone_else_kills_costs_no_picture() -> None:
    whole = decode(GOOD).rgb
    with Sandbox() as child:
        picture(child, GOOD)
        assert child._child
        os.kill(child._child.pid, signal.SIGKILL)
        assert np.array_equal(picture(child, GOOD).rgb, whole)


def test_a_child_has_no_credentials_and_few_files_and_ends_with_its_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    with Sandbox() as child:
        picture(child, GOOD)
        assert child._child
        process = Path("/proc") / str(child._child.pid)
        assert b"hidden" not in (process / "environ").read_bytes()
        limits = (process / "limits").read_text()
        assert limits.split("Max open files")[1].split()[0] == "16"
        assert limits.split("Max core file size")[1].split()[0] == "0"
        assert limits.split("Max address space")[1].split()[0].isdecimal()
    until = time.monotonic() + 5
    while process.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not process.exists()


def test_sound_tracks_are_those_of_decode_too() -> None:
    tone = np.sin(np.arange(16_000) / 9).astype(np.float32)
    with Sandbox() as child:
        for data in (videos.video("mp4", 24, sound=tone), videos.video("mp4", 24)):
            with child.track(data) as found:
                wanted = video.track(data)
                assert (found is None) == (wanted is None)
                assert not (found and wanted) or found.rate == wanted.rate
                assert not (found and wanted) or np.array_equal(found.samples, wanted.samples)
        with pytest.raises(Rejected, match="no video"):
            child.track(b"no video at all, and that is all")
        picture(child, GOOD)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (b"P", b'{"shape": [-1, -1, 3], "number": 0}'),
        (b"P", b'{"shape": [99999, 99999, 3], "number": 0}'),
        (b"P", b'{"shape": [2, 2, 4], "number": 0}'),
        (b"S", b'{"shape": [8, 1], "number": 0}'),
        (b"S", b'{"shape": [99999999999, 1], "number": 8000}'),
        (b"S", b'{"shape": [0, 1], "number": 1}'),
        (b"T", b'{"shape": [0, 2], "number": 1}'),
        (b"V", b'{"shape": [3, 2, 2, 3], "number": 0}'),
        (b"V", b'{"shape": [4, 99999, 99999, 3], "number": 0}'),
        (b"V", b'{"shape": [4, 4294967296, 4294967296, 3], "number": 0}'),
        (b"P", b'{"height": 1, "width": 1}'),
        (b"P", b"[]"),
        (b"P", b"{"),
        (b"P", b'{"reason": "x"}'),
    ],
)
def test_an_answer_that_no_child_of_ours_gives_is_not_believed(kind: bytes, line: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        sandbox._told(kind, line + b"\n", 4)


def test_the_answers_of_our_children_are_believed() -> None:
    assert sandbox._told(b"P", b'{"shape": [2, 5, 3], "number": 0}\n', 0) == ((2, 5, 3), 0)
    assert sandbox._told(b"S", b'{"shape": [8, 2], "number": 8000}\n', 0) == ((8, 2), 8000)
    assert sandbox._told(b"T", b'{"shape": [0, 1], "number": 1}\n', 0) == ((0, 1), 1)
    assert sandbox._told(b"V", b'{"shape": [4, 2, 5, 3], "number": 0}\n', 4) == ((4, 2, 5, 3), 0)
