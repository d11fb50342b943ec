"""Every video becomes upright, evenly sampled frames by one rule, or is rejected in time, whatever is in its bytes."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from PIL import Image
from videos import CODECS, grey, video

from mmstream.errors import Reason, Rejected
from mmstream.media import audio
from mmstream.media.filters import Filters
from mmstream.media.video import Clip, clean, collate, decode, sniff, track, transform

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)


def outcome(data: bytes, **options: bool) -> str:
    """`decodes`, or the reason; whatever it is, within ten seconds."""
    started = time.monotonic()
    try:
        clip = decode(data, 4, **options)
        assert clip.frames.dtype == np.uint8 and clip.frames.shape[0] == 4 and clip.frames.shape[3] == 3
        said = "decodes"
    except Rejected as rejected:
        assert rejected.detail
        said = rejected.reason
    assert time.monotonic() - started < 10
    return said


def shown(clip: Clip) -> list[int]:
    return clip.frames[:, 40, 60].astype(int).mean(axis=1).round().astype(int).tolist()


def in_order(data: bytes) -> list[tuple[float, np.ndarray]]:
    """All frames, decoded from the first to the last: the slow twin."""
    with av.open(io.BytesIO(data)) as container:
        frames = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    return [(t - frames[0][0], rgb) for t, rgb in frames]


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 48, 60])
def test_frames_are_evenly_spaced_and_the_ones_that_are_shown_then(kind: str, num_frames: int):
    data = video(kind, 48, 24)
    clip = decode(data, num_frames)
    assert clip.frames.shape == (num_frames, 64, 96, 3) and clip.times.dtype == np.float64 and clip.data is data
    assert clip.duration == pytest.approx(2.0, abs=0.05) and clip.sound is None
    wanted = (np.arange(num_frames) + 0.5) / num_frames * clip.duration
    assert (clip.times <= wanted + 1e-9).all() and (wanted - clip.times < 2 / 24).all()
    if kind != "gif":  # whose colours are few
        off = np.abs(np.array(shown(clip)) - [grey(int(w * 24 + 1e-6), 48) for w in wanted])
        assert off.max() <= 6 and (off > 4).mean() < 0.1  # a frame is 5; WebM rounds times to milliseconds


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(("gop", "num_frames"), [(1, 7), (5, 3), (12, 30), (250, 6)])
def test_jumping_between_key_frames_gives_the_frames_of_decoding_them_all(kind: str, gop: int, num_frames: int):
    data = video(kind, 60, 30, gop=gop)
    clip, every = decode(data, num_frames), in_order(data)
    times = np.array([t for t, _ in every])
    for i, wanted in enumerate((np.arange(num_frames) + 0.5) / num_frames * clip.duration):
        at = max(0, int(np.searchsorted(times, wanted + 1e-9, side="right")) - 1)
        assert clip.times[i] == pytest.approx(times[at]) and np.array_equal(clip.frames[i], every[at][1])


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_a_rotation_that_the_phone_noted_is_carried_out(rotation: int, corner: tuple[int, int]):
    clip = decode(video(rotation=rotation), 1)
    assert clip.frames.shape[1:3] == ((96, 64) if rotation % 180 else (64, 96))
    red = [(y, x) for y in (0, -1) for x in (0, -1) if clip.frames[0, y, x, 0] > 200 > 100 > clip.frames[0, y, x, 1]]
    assert red == [corner]


@pytest.mark.parametrize("kind", ["mp4", "webm", "mov"])
def test_the_sound_track_is_a_sound(kind: str):
    data = video(kind, sound=TONE)
    assert decode(data).sound is None
    sound = decode(data, with_sound=True).sound
    assert sound is not None and sound.rate == 48_000 and sound.seconds == pytest.approx(2.0, abs=0.1)
    mono = audio.clean(sound)
    spectrum = np.abs(np.fft.rfft(mono[24_000:72_000]))
    assert spectrum.argmax() == 440 and np.abs(mono).max() == pytest.approx(0.3, abs=0.1)
    cleaned = clean(decode(data, with_sound=True))
    assert cleaned.sound is not None and np.array_equal(cleaned.sound.samples[:, 0], mono)
    assert decode(video(kind), with_sound=True).sound is None
    alone = track(data)
    assert alone is not None and alone.rate == sound.rate and np.array_equal(alone.samples, sound.samples)
    assert track(video(kind)) is None
    with pytest.raises(Rejected, match="no video"):
        track(b"no video at all, and that is all")


def test_a_gif_shows_each_frame_for_its_own_time():
    frames = [Image.new("L", (32, 32), 60 * i) for i in range(4)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=[100, 500, 100, 300])
    clip = decode(out.getvalue(), 10)
    assert clip.duration == pytest.approx(1.0)
    assert clip.frames[:, 5, 5, 0].tolist() == [0, 60, 60, 60, 60, 60, 120, 180, 180, 180]
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.6, 0.7, 0.7, 0.7])


def test_one_frame_is_a_video_too():
    for kind in CODECS:
        clip = decode(video(kind, 1), 3)
        assert len(clip.frames) == 3 and (clip.frames == clip.frames[0]).all()


def test_fragments_are_read_to_their_end():
    data = video("mp4", 48, 24, options={"movflags": "frag_keyframe+empty_moov"})
    assert decode(data, 4).duration == pytest.approx(2.0, abs=0.1)
    assert np.abs(np.array(shown(decode(data, 4))) - shown(decode(video("mp4", 48, 24), 4))).max() <= 1


def test_a_stream_without_a_length_is_measured():
    data = video("webm", 48, 24, options={"live": "1"})
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is None
    assert decode(data, 2).duration == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", Reason.VIDEO, "0 bytes that are no video"),
        (b"GIF89a", Reason.VIDEO, "GIF cut: 6 bytes"),
        (b"\x1aE\xdf\xa3", Reason.VIDEO, "WebM cut: 4 bytes"),
        (b"\0\0\0\x18ftypisom" + bytes(100), Reason.VIDEO, "MP4 of 112 bytes"),
        (b"\0\0\0\x18ftypavif" + bytes(100), Reason.FORMAT, "HEIF or AVIF is not read"),
        (b"RIFF\0\0\0\0AVI LIST", Reason.FORMAT, "AVI is not read; the formats are MP4, WebM, GIF"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", Reason.FORMAT, "HLS is not read"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", Reason.VIDEO, "no video"),
    ],
)
def test_what_is_no_video_and_what_would_lead_elsewhere_is_rejected(data: bytes, reason: Reason, said: str):
    with pytest.raises(Rejected, match=said) as e:
        decode(data)
    assert e.value.reason == reason


def test_only_the_container_that_was_told_by_the_first_bytes_is_tried():
    for disguised in (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", b"ffconcat version 1.0\nfile x.mp4\n"):
        for magic in (b"\0\0\0\x08ftyp", b"\x1aE\xdf\xa3", b"GIF89a"):
            assert outcome(magic + disguised) == Reason.VIDEO


def test_a_sound_without_pictures_and_a_video_without_frames_have_a_reason():
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.rate = 48_000
        for part in [*track.encode(frame), *track.encode()]:
            container.mux(part)
    with pytest.raises(Rejected, match="MP4 without moving pictures"):
        decode(out.getvalue())
    empty = video("mp4", 24)
    at = empty.index(b"stsz")  # the sizes of its frames: none
    empty = empty[: at + 12] + struct.pack(">I", 0) + empty[at + 16 :]
    assert outcome(empty) == Reason.VIDEO


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("fragments", [False, True])
def test_a_video_cut_anywhere_is_rejected(kind: str, fragments: bool):
    options = {"movflags": "frag_keyframe+empty_moov"} if fragments and kind in ("mp4", "mov") else {}
    data = video(kind, 96, 24, options=options)
    assert outcome(data) == "decodes"
    for cut in sorted({*range(0, 64, 9), *np.linspace(64, len(data) - 1, 40).astype(int).tolist()}):
        if data[cut + 4 : cut + 8] not in (b"moof", b"mfra"):  # between two fragments nothing tells
            assert outcome(data[:cut]) != "decodes", cut


@pytest.mark.parametrize("kind", CODECS)
def test_flipped_bits_end_as_frames_or_as_a_reason(kind: str):
    data, random, ends = video(kind, 48, sound=None if kind == "gif" else TONE), np.random.default_rng(3), []
    header = data.find(b"moov") if kind in ("mp4", "mov") else 0
    for at in [*range(header, header + 100), *random.integers(0, len(data), 100).tolist()]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(random.integers(8))
        ends.append(outcome(bytes(flipped), with_sound=True))
    assert set(ends) <= {"decodes", Reason.VIDEO, Reason.FORMAT, Reason.AUDIO, Reason.DECODER_CRASH}
    assert Reason.VIDEO in ends or kind == "gif"


def with_size(data: bytes, width: int, height: int) -> bytes:
    """`data` whose headers claim other sides."""
    if data[:3] == b"GIF":
        return data[:6] + struct.pack("<HH", width, height) + data[10:]
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


def test_huge_headers_cost_nothing():
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(Rejected, match=r"GIF of 0 × 0 pixels, the limit is 16,777,216"):
        decode(with_size(video("gif", 4), 65_535, 65_535))
    assert outcome(with_size(video("mp4", 4), 65_535, 65_535)) in ("decodes", Reason.VIDEO)  # its stream says it too
    with pytest.raises(Rejected, match="8 frames of 96 × 64 pixels are over the limit of 0 MiB"):
        decode(video(), max_bytes=100_000)
    with pytest.raises(Rejected, match=r"MP4 of 2 s, the limit is 1 s"):
        decode(video(), max_seconds=1)
    with pytest.raises(Rejected, match="the limit is 4,096 in all"):
        decode(video(), max_pixels=4096)
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 << 10  # in KiB


def test_a_stream_that_grows_on_the_way_stays_within_the_limit():
    small, large = video("webm", 12, size=(64, 96)), video("webm", 12, size=(512, 768))
    out = io.BytesIO()
    with av.open(io.BytesIO(small)) as a, av.open(io.BytesIO(large)) as b, av.open(out, "w", format="webm") as to:
        stream = to.add_stream_from_template(a.streams.video[0])
        for shift, container in ((0, a), (500, b)):
            for packet in container.demux(video=0):
                if packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    to.mux(packet)
    with pytest.raises(Rejected, match="change their size"):
        decode(out.getvalue(), 4)
    assert outcome_of(out.getvalue(), max_pixels=100 * 100) == Reason.VIDEO


def outcome_of(data: bytes, **limits: int) -> str:
    with pytest.raises(Rejected) as e:
        decode(data, 4, **limits)
    return e.value.reason


def test_a_video_of_a_size_or_length_that_is_not_wanted_is_filtered():
    clip = decode(video(), 1)
    assert clean(clip, Filters(min_side=64, min_seconds=1)) is clip
    for filters, said in ((Filters(min_side=65), "shorter side is 64"), (Filters(max_seconds=1), "2 s long")):
        with pytest.raises(Rejected, match=said) as e:
            clean(clip, filters)
        assert e.value.reason == Reason.FILTERED


def test_frames_are_resized_as_pictures_are_and_batched_with_a_mask():
    clip = decode(video(), 3)
    small = transform(clip, 32, crop=(32, 32))
    assert small.shape == (3, 32, 32, 3) and small.dtype == np.uint8
    batch, mask = collate([small, small[:2]])
    assert batch.shape == (2, 3, 32, 32, 3) and mask.tolist() == [[True] * 3, [True, True, False]]
    assert (batch[1, 2] == 0).all() and np.array_equal(batch[0], small)


def test_the_first_bytes_tell_the_format():
    assert [sniff(video(kind, 2)) for kind in CODECS] == ["MP4", "WebM", "GIF", "MP4"]
    assert sniff(b"\xff\xd8\xff") is None


def test_a_missing_codec_is_named_with_its_extra():
    program = (
        "import sys; sys.modules['av'] = None\nfrom mmstream.media.video import *\ndecode(b'GIF89a' + bytes(90) + b';')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UsageError" in ended.stderr and "pip install 'mmstream[video]'" in ended.stderr
