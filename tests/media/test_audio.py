"""Every sound becomes float samples by one rule and features equal to transformers' own, or is rejected in time."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import SUBTYPES, encoded, tones
from tars import Source
from transformers import audio_utils
from transformers.models.clap.feature_extraction_clap import ClapFeatureExtractor

from mmstream.config import Config
from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.audio import LogMel, Sound, clean, collate, decode, log_mel, mel_bank, resample, sniff, transform
from mmstream.media.filters import Filters
from mmstream.shards.tar import members

CLAP = LogMel()
CLAP_SHORT = LogMel(scale="slaney", norm="slaney")
VOICE = LogMel(rate=16_000, n_fft=400, hop=160, num_mels=40, f_max=8000, scale="slaney", norm="slaney", log=None)


def outcome(data: bytes) -> str:
    """`decodes`, or the reason; whatever it is, within ten seconds."""
    started = time.monotonic()
    try:
        sound = decode(data)
        assert sound.samples.dtype == np.float32 and sound.samples.ndim == 2 and len(sound.samples)
        said = "decodes"
    except Rejected as rejected:
        assert rejected.detail
        said = rejected.reason
    assert time.monotonic() - started < 10
    return said


@pytest.mark.parametrize("kind", SUBTYPES)
def test_every_format_gives_back_what_was_written_at_its_own_rate(kind: str):
    rate = 48_000 if kind == "opus" else 22_050
    written = tones(2.0, rate)
    data = encoded(kind, written, rate)
    sound = decode(data)
    assert sound.rate == rate and sound.samples.shape == written.shape and sound.data is data
    assert sound.seconds == pytest.approx(2.0)
    tolerance = {"float": 0, "wav": 1e-4, "flac": 1e-4}.get(kind, 0.06)
    assert np.abs(sound.samples - written)[2000:-2000].max() <= tolerance


@pytest.mark.parametrize("kind", SUBTYPES)
def test_reading_in_blocks_is_reading_at_once(kind: str, monkeypatch: pytest.MonkeyPatch):
    data = encoded(kind, tones(3.0))
    monkeypatch.setattr("mmstream.media.audio._BLOCK_VALUES", 3000)
    at_once, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert np.abs(decode(data).samples - at_once).max() < 1e-6


def test_the_first_bytes_tell_the_format():
    for kind, (format, _) in SUBTYPES.items():
        assert sniff(encoded(kind, tones(0.1))) == format
    id3 = b"ID3\4\0\0\0\0\2\0" + bytes(256)
    assert sniff(id3 + encoded("mp3", tones(0.1))) == "MP3" and decode(id3 + encoded("mp3", tones(0.1))).rate == 16_000
    assert sniff(id3 + encoded("flac", tones(0.1))) == "FLAC"
    assert sniff(b"\0\0\0\x20ftypM4A ") == "M4A" and sniff(b"") is None and sniff(b"hello") is None


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", Reason.AUDIO, "0 bytes that are no sound"),
        (b"<html>not found</html>", Reason.AUDIO, "no sound"),
        (b"\0\0\0\x20ftypM4A " + bytes(64), Reason.FORMAT, "M4A is not read"),
        (b"RIFF\0\0\0\0WAVE", Reason.AUDIO, "WAV of 12 bytes"),
        (b"OggS" + bytes(100), Reason.AUDIO, "OGG of 104 bytes"),
        (encoded("wav", tones()[:0]), Reason.AUDIO, "without a single sample"),
        (encoded("float", tones()[:0]), Reason.AUDIO, "without a single sample"),
        (encoded("vorbis", tones()[:0]), Reason.AUDIO, "without a single sample"),
    ],
)
def test_what_is_no_sound_and_what_holds_none_is_rejected(data: bytes, reason: Reason, said: str):
    with pytest.raises(Rejected, match=said) as e:
        decode(data)
    assert e.value.reason == reason


@pytest.mark.parametrize("kind", SUBTYPES)
def test_a_file_cut_anywhere_is_rejected(kind: str):
    data = encoded(kind, tones(2.0))
    for cut in sorted({*range(0, 64, 7), *np.linspace(64, len(data) - 40, 40).astype(int).tolist()}):
        assert outcome(data[:cut]) != "decodes", cut


def test_an_mp3_that_does_not_say_how_long_it_is_is_decoded_to_its_end_or_rejected():
    quiet_then_loud = tones(20.0, channels=1) * (np.arange(320_000) > 160_000)[:, None]
    out = io.BytesIO()
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(out, quiet_then_loud, 16_000, format="MP3", subtype="MPEG_LAYER_III", **options)
    data = out.getvalue()
    assert b"Xing" in data[:64] and len(decode(data).samples) == 320_000
    bare = data[data.index(data[:2], 10) :]  # its first frame, which has the Xing header, taken away
    assert len(decode(bare).samples) == pytest.approx(320_000, abs=2 * 1152)
    loud_first = bytes(bare[len(bare) // 2 :] + bare[: len(bare) // 2])
    assert outcome(loud_first) in ("decodes", Reason.AUDIO)


@pytest.mark.parametrize("kind", SUBTYPES)
def test_flipped_bits_end_as_samples_or_as_a_reason(kind: str):
    data, random, ends = encoded(kind, tones(1.0)), np.random.default_rng(7), []
    for at in [*range(0, 120), *random.integers(0, len(data), 120).tolist()]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(random.integers(8))
        ends.append(outcome(bytes(flipped)))
    assert set(ends) <= {"decodes", Reason.AUDIO, Reason.FORMAT, Reason.DECODER_CRASH}


def test_a_flac_is_right_to_the_last_bit_or_rejected():
    data, ends = encoded("flac", tones(1.0)), []
    whole = decode(data).samples
    for at in range(0, len(data), 41):
        flipped = bytearray(data)
        flipped[at] ^= 4
        try:
            ends.append(np.array_equal(decode(bytes(flipped)).samples, whole))
        except Rejected:
            continue
    assert all(ends) and len(ends) < 10  # a flip in a tag harms no sample


def huge_wav(rate: int = 16_000, channels: int = 1) -> bytes:
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, 2 * rate * channels, 2 * channels, 16)
    claimed = 2 * 16_000 * 36_000
    return b"RIFF" + struct.pack("<I", claimed + 36) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", claimed)


def huge_flac() -> bytes:
    data = bytearray(encoded("flac", tones(0.1))[:1000])
    data[21] |= 0x0F  # the number of samples, 36 bits in the first block
    data[22:26] = b"\xff" * 4
    return bytes(data)


def test_a_small_file_that_claims_ten_hours_costs_nothing():
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(Rejected, match=r"cut after 1,000 of 1,152,000,000 bytes"):
        decode(huge_wav() + bytes(1000))
    with pytest.raises(Rejected, match=r"FLAC of 4,294,967 s with 2 channels.*limits are 600 s and 256 MiB"):
        decode(huge_flac())
    assert time.monotonic() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # in KiB


def test_a_long_sound_in_a_small_file_is_stopped_at_the_limits():
    silence = encoded("flac", np.zeros((16_000 * 700, 1), np.float32))
    assert len(silence) < 200_000
    with pytest.raises(Rejected, match=r"FLAC of 700 s.*600 s"):
        decode(silence)
    with pytest.raises(Rejected, match=r"WAV of 2 s with 2 channels.* 1 s"):
        decode(encoded("wav", tones(2.0)), max_seconds=1)
    with pytest.raises(Rejected, match="MiB of samples"):
        decode(encoded("wav", tones(2.0)), max_bytes=16_000 * 8)
    with pytest.raises(Rejected, match="OGG of 2 s"):
        decode(encoded("opus", tones(2.0)), max_seconds=1)


@pytest.mark.parametrize("rate", [0, 1, 999, 768_001, 0x7FFF_FFFF])
def test_rates_that_nobody_records_at_are_rejected(rate: int):
    data = bytearray(encoded("wav", tones()))
    data[24:28] = struct.pack("<I", rate)
    assert outcome(bytes(data)) == Reason.AUDIO


def test_a_wav_of_a_pipe_is_read_to_its_end():
    data = bytearray(encoded("wav", tones()))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert len(decode(bytes(data)).samples) == 16_000


def test_channels_become_their_mean_and_what_is_not_finite_is_rejected():
    left = tones(0.5, channels=1)[:, 0]
    stereo = Sound(np.stack([left, np.zeros_like(left)], 1), 16_000, b"")
    assert np.allclose(clean(stereo), left / 2, atol=1e-7) and clean(stereo).dtype == np.float32
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        spoiled = stereo.samples.copy()
        spoiled[17, 1] = bad
        with pytest.raises(Rejected, match=r"1 of 16,000 values are not finite") as e:
            clean(decode(encoded("float", spoiled)))
        assert e.value.reason == Reason.AUDIO
    with pytest.raises(Rejected, match="without a single sample"):
        clean(Sound(np.zeros((0, 2), np.float32), 16_000, b""))


def test_a_sound_of_a_length_that_is_not_wanted_is_filtered():
    sound = decode(encoded("wav", tones(2.0)))
    assert len(clean(sound, Filters(min_seconds=2))) == 32_000
    with pytest.raises(Rejected, match="2 s long, wanted are at most 1") as e:
        clean(sound, Filters(max_seconds=1))
    assert e.value.reason == Reason.FILTERED


def test_resampling_keeps_a_tone_and_removes_what_the_new_rate_cannot_hold():
    t = np.arange(48_000) / 48_000
    low, high = np.sin(2 * np.pi * 440 * t).astype(np.float32), np.sin(2 * np.pi * 15_000 * t).astype(np.float32)
    slow = resample(low, 48_000, 16_000)
    assert slow.shape == (16_000,) and slow.dtype == np.float32
    assert np.abs(slow - np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000))[200:-200].max() < 1e-3
    assert np.abs(resample(high, 48_000, 16_000))[200:-200].max() < 1e-3
    assert resample(low, 48_000, 48_000) is low


def reference(samples: np.ndarray, config: LogMel) -> np.ndarray:
    """transformers' own, one frame after the other."""
    bank = audio_utils.mel_filter_bank(
        config.n_fft // 2 + 1, config.num_mels, config.f_min, config.f_max, config.rate, config.norm, config.scale
    )
    return audio_utils.spectrogram(
        samples,
        audio_utils.window_function(config.n_fft, "hann"),
        config.n_fft,
        config.hop,
        power=float(config.power),
        mel_filters=bank,
        log_mel={"db": "dB", "ln": "log", "log10": "log10", None: None}[config.log],
        center=config.centre,
        min_value=1e-10 if config.power == 2 else 1e-5,
    ).T


def digits(shared: Path, count: int) -> list[bytes]:
    source = Source((shared / "data" / "spoken_digits" / "00000.tar").read_bytes())
    return [m.data for m in members(source) if m.name.endswith(".wav")][:count]


@pytest.mark.parametrize(
    "config",
    [
        CLAP,
        CLAP_SHORT,
        LogMel(power=1, floor=1e-5),
        LogMel(rate=16_000, n_fft=400, hop=160, num_mels=80, f_max=8000, log="log10", norm="slaney", scale="slaney"),
        LogMel(rate=16_000, n_fft=512, hop=128, num_mels=30, f_min=80, f_max=7600, log="ln", centre=False),
    ],
    ids=["clap", "clap-short", "magnitude", "whisper", "uncentred"],
)
def test_log_mel_is_that_of_transformers_to_a_ten_thousandth(config: LogMel, shared: Path):
    for data in digits(shared, 8):
        sound = decode(data)
        samples = resample(clean(sound), sound.rate, config.rate)
        ours, theirs = log_mel(samples, config), reference(samples, config)
        assert ours.shape == theirs.shape and ours.dtype == np.float32
        assert np.abs(ours - theirs).max() <= 1e-4


def test_log_mel_is_what_claps_own_extractor_computes(shared: Path):
    clap = ClapFeatureExtractor()
    loud = np.random.default_rng(0).standard_normal(48_000).astype(np.float32) * np.geomspace(1e-6, 1, 48_000)
    for bank, config in ((clap.mel_filters, CLAP), (clap.mel_filters_slaney, CLAP_SHORT)):
        assert np.allclose(bank, mel_bank(config), rtol=1e-9, atol=1e-12)
        assert np.abs(clap._np_extract_fbank_features(loud, bank) - log_mel(loud, config)).max() <= 1e-4


def test_the_voice_encoders_mels_have_no_logarithm(shared: Path):
    for data in digits(shared, 8):
        sound = decode(data)
        samples = resample(clean(sound), sound.rate, VOICE.rate)
        theirs = reference(samples, VOICE)
        assert np.abs(transform(clean(sound), sound.rate, VOICE) - theirs).max() <= 1e-6 * theirs.max()


def test_log_mel_is_several_times_faster_than_frame_by_frame(capsys: pytest.CaptureFixture[str]):
    samples = np.random.default_rng(0).standard_normal(480_000).astype(np.float32)
    bank = audio_utils.mel_filter_bank(513, 64, 0.0, 14_000.0, 48_000)
    window = audio_utils.window_function(1024, "hann")

    def theirs() -> None:
        audio_utils.spectrogram(samples, window, 1024, 480, power=2.0, mel_filters=bank, log_mel="dB")

    def seconds(work: object) -> float:
        started = time.perf_counter()
        work()  # type: ignore[operator]
        return time.perf_counter() - started

    pairs = [(seconds(theirs), seconds(lambda: log_mel(samples, CLAP))) for _ in range(5)]
    slow, fast = min(p[0] for p in pairs), min(p[1] for p in pairs)
    with capsys.disabled():
        print(
            f"\nlog-mel of 10 s at 48 kHz: {1000 * fast:.1f} ms, transformers {1000 * slow:.1f} ms: × {slow / fast:.1f}"
        )
    assert slow / fast > 2


def test_a_sound_shorter_than_a_frame_still_has_one_and_an_empty_one_none():
    assert log_mel(np.ones(1, np.float32), CLAP).shape == (1, 64)
    assert log_mel(tones(0.001, 48_000, 1)[:, 0], CLAP).shape == (1, 64)
    assert log_mel(np.zeros(480, np.float32), CLAP).max() == pytest.approx(-100)
    for config in (CLAP, LogMel(centre=False)):
        with pytest.raises(Rejected, match="one frame of the spectrogram takes 1024"):
            log_mel(np.zeros(0, np.float32), config)


def test_long_sounds_are_computed_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    samples = np.random.default_rng(3).standard_normal(48_000).astype(np.float32)
    whole = log_mel(samples, CLAP)
    monkeypatch.setattr("mmstream.media.audio._BLOCK_FRAMES", 7)
    assert np.abs(log_mel(samples, CLAP) - whole).max() < 1e-5


def test_a_band_beyond_half_the_rate_is_a_usage_error():
    assert issubclass(LogMel, Config)
    with pytest.raises(UsageError, match="rate / 2 = 8000"):
        LogMel.checked({"rate": 16_000, "f_max": 14_000})


def test_a_batch_is_padded_and_knows_its_lengths():
    batch, lengths = collate([np.ones((3, 4), np.float32), np.ones((5, 4), np.float32), np.ones((0, 4), np.float32)])
    assert batch.shape == (3, 5, 4) and batch.dtype == np.float32 and lengths.tolist() == [3, 5, 0]
    assert batch.sum(axis=(1, 2)).tolist() == [12, 20, 0]
    filled, _ = collate([np.zeros((1, 2), np.float32), np.zeros((2, 2), np.float32)], fill=-100)
    assert (filled[0, 1] == -100).all()


@pytest.mark.parametrize("module", ["soundfile", "soxr"])
def test_a_missing_codec_is_named_with_its_extra_and_nothing_loads_it_early(module: str):
    call = {"soundfile": "decode(b'fLaC' + bytes(90))", "soxr": "resample(None, 8000, 16000)"}[module]
    program = f"import sys; sys.modules[{module!r}] = None\nfrom mmstream.media.audio import *\n{call}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UsageError" in ended.stderr and "pip install 'mmstream[audio]'" in ended.stderr


def test_all_spoken_digits_decode(shared: Path):
    for data in digits(shared, 300):
        sound = decode(data)
        assert sound.rate == 8000 and sound.samples.shape[1] == 1
        assert transform(clean(sound), sound.rate, VOICE).shape[1] == 40
