"""Broken captions, sounds and videos through a real `embed` with a real encoder, each among good neighbours.

Each ends as the reason that stands beside it here, and costs neither more than 10 s nor more than 1 GiB.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import av
import numpy as np
import pytest
from peak import Peak
from small_models import save_clap, save_clip
from sounds import encoded, tones
from tars import make_tar
from videos import video

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import load_encoder
from mmstream.errors import Rejected
from mmstream.media.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("ray_local")
EMBEDS = "embeds"
NUM_FRAMES = 4
MAX_SECONDS, MAX_BYTES = 10, 1 << 30


def flipped(data: bytes, at: float) -> bytes:
    place = int(at * len(data))
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def with_nan(samples: np.ndarray) -> np.ndarray:
    samples = samples.copy()
    samples[17, 0] = np.nan
    return samples


def ten_hours() -> bytes:
    """A WAV header that claims ten hours, and a thousand bytes."""
    claimed = 2 * 16_000 * 36_000
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data"
    return b"RIFF" + struct.pack("<I", claimed + 36) + head + struct.pack("<I", claimed) + bytes(1000)


def without_frames() -> bytes:
    data = video("mp4", 24)
    at = data.index(b"stsz")  # the sizes of its frames: none
    return data[: at + 12] + struct.pack(">I", 0) + data[at + 16 :]


def only_a_sound_track() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.rate = 48_000
        for part in [*track.encode(frame), *track.encode()]:
            container.mux(part)
    return out.getvalue()


GOOD = encoded("wav", tones(0.5, 48_000), 48_000)
CAPTIONS = {
    "fine": (b"two people talk", EMBEDS),
    "bad-utf8": (b"caf\xe9 au lait", "caption"),
    "cut-utf8": ("café".encode()[:-1], "caption"),
    "utf16": ("a map".encode("utf-16"), "caption"),
    "nul-inside": (b"a map\0 of the world", EMBEDS),
    "nul-alone": (b"\0\0\0", "caption"),
    "ten-mb": (b"a map " * 1_700_000, "member_too_large"),
    "one-word-of-ten-mb": (b"a" * 10_000_000, "member_too_large"),
    "just-allowed": (b"a map " * 10_900, EMBEDS),
    "empty": (b"", "missing_member"),
    "blank": (b" \n\t ", "missing_member"),
}
SOUNDS = {
    "fine": (GOOD, EMBEDS),
    "empty-file": (b"", "audio"),
    "no-samples": (encoded("wav", tones()[:0]), "audio"),
    "no-samples-flac": (encoded("vorbis", tones()[:0]), "audio"),
    "one-sample": (encoded("wav", tones()[:1]), EMBEDS),
    "html": (b"<html>not found</html>", "audio"),
    "cut-wav": (GOOD[: len(GOOD) // 2], "audio"),
    "cut-flac": (encoded("flac", tones(2.0))[:5000], "audio"),
    "cut-ogg": (encoded("vorbis", tones(2.0))[:5000], "audio"),
    "cut-mp3": (encoded("mp3", tones(2.0))[:5000], "audio"),
    "flipped-flac": (flipped(encoded("flac", tones(2.0)), 0.5), "audio"),
    "not-a-number": (encoded("float", with_nan(tones())), "audio"),
    "ten-hours": (ten_hours(), "audio"),
    "twelve-minutes": (encoded("flac", np.zeros((8_000 * 720, 1), np.float32), 8_000), "audio"),
    "m4a": (b"\0\0\0\x20ftypM4A " + bytes(64), "format"),
}
VIDEOS = {
    "fine": (video("mp4", 24), EMBEDS),
    "one-frame": (video("webm", 1), EMBEDS),
    "gif-named-mp4": (video("gif", 6), EMBEDS),
    "empty-file": (b"", "video"),
    "html": (b"<html>not found</html>", "video"),
    "no-frames": (without_frames(), "video"),
    "only-sound": (only_a_sound_track(), "video"),
    "cut-mp4": (video("mp4", 96)[:2500], "video"),
    "cut-webm": (video("webm", 96)[:2500], "video"),
    "broken-header": (flipped(video("mp4", 24), 0.001), "video"),
    "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "format"),
    "concat": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "video"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "format"),
}
Table = dict[str, tuple[bytes, str]]


def embedded(folder: Path, spec: str, tables: dict[str, Table]) -> tuple[dict[str, str], EmbeddingSet]:
    """What became of each sample: the samples of each table, by suffix, one by one in a shard."""
    files = [
        (f"{suffix}-{name}.{suffix}", data) for suffix, table in tables.items() for name, (data, _) in table.items()
    ]
    (folder / "a.tar").write_bytes(make_tar(files))
    with Peak() as peak:
        report = mm.embed(str(folder / "a.tar"), str(folder / "emb"), model=spec, max_rejects=1.0)
    assert 0 < peak.bytes < MAX_BYTES, "in the worker, the model's own included"
    emb = EmbeddingSet.open(report.dest)
    found = {key: EMBEDS for t in emb.tables(["key"]) for key in t["key"].to_pylist()}
    found |= {r["key"]: r["reason"] for t in emb.rejects() for r in t.to_pylist()}
    assert mm.audit(report.dest, source=True).ok
    return found, emb


def expected(tables: dict[str, Table]) -> dict[str, str]:
    return {f"{suffix}-{name}": end for suffix, table in tables.items() for name, (_, end) in table.items()}


def test_bad_captions_and_sounds_have_a_reason_and_good_ones_a_vector(tmp_path: Path) -> None:
    tables = {"txt": CAPTIONS, "wav": SOUNDS}
    found, emb = embedded(tmp_path, f"hf:{save_clap(tmp_path / 'clap', fused=False)}", tables)
    assert found == expected(tables)
    rows = {r["key"]: r for t in emb.tables() for r in t.to_pylist()}
    assert rows["txt-nul-inside"]["caption"] == "a map of the world"
    for key, row in rows.items():
        has = {m: row[f"{m}_embedding"] is not None for m in ("text", "audio")}
        assert has == {"text": key.startswith("txt"), "audio": key.startswith("wav")}


def test_a_bad_part_beside_a_good_one_rejects_the_sample_and_an_empty_caption_does_not(tmp_path: Path) -> None:
    files = [
        ("a.txt", b""),
        ("a.wav", GOOD),
        ("b.txt", b"a map"),
        ("b.wav", GOOD[:999]),
        ("c.txt", b"\xff"),
        ("c.wav", GOOD),
    ]
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    spec = f"hf:{save_clap(tmp_path / 'clap', fused=False)}"
    emb = EmbeddingSet.open(mm.embed(str(tmp_path / "a.tar"), str(tmp_path / "emb"), model=spec, max_rejects=1.0).dest)
    rows = [r for t in emb.tables() for r in t.to_pylist()]
    assert [(r["key"], r["caption"], r["text_embedding"]) for r in rows] == [("a", None, None)]
    rejects = {r["key"]: r["reason"] for t in emb.rejects() for r in t.to_pylist()}
    assert rejects == {"b": "audio", "c": "caption"}


def test_bad_videos_have_a_reason_and_good_ones_the_vector_that_words_find(tmp_path: Path) -> None:
    spec, tables = f"frames:{NUM_FRAMES}:hf:{save_clip(tmp_path / 'clip')}", {"mp4": VIDEOS}
    found, emb = embedded(tmp_path, spec, tables)
    assert found == expected(tables)
    rows = [r for t in emb.tables() for r in t.to_pylist()]
    alone = load_encoder(spec).encode_video([VIDEOS[r["key"].removeprefix("mp4-")][0] for r in rows])
    stored = np.array([r["video_embedding"] for r in rows], np.float32)
    assert np.abs(stored - alone).max() <= 1e-3, "float16 of the same"
    assert [(r["width"], r["height"], r["image_embedding"]) for r in rows] == [(96, 64, None)] * 3
    index = mm.build_index(emb.url, str(tmp_path / "index"), of="video").index
    hits = mm.open_index(index).search("a map", k=3)
    scores = stored @ load_encoder(spec).encode_text(["a map"])[0]
    assert [h.key for h in hits] == [rows[i]["key"] for i in np.argsort(-scores)]


@pytest.mark.parametrize(
    ("table", "decoded"),
    [
        (SOUNDS, lambda child, data: child.sound(data)),
        (VIDEOS, lambda child, data: child.frames(data, NUM_FRAMES)),
    ],
    ids=["sounds", "videos"],
)
def test_none_takes_ten_seconds_or_a_gibibyte(
    table: Table, decoded: Callable[[Sandbox, bytes], AbstractContextManager]
) -> None:
    with Sandbox() as child:  # which may not take more than a gibibyte
        with decoded(child, table["fine"][0]):
            pass
        for name, (data, _) in table.items():
            start = time.monotonic()
            with suppress(Rejected), decoded(child, data):
                pass
            assert time.monotonic() - start < MAX_SECONDS, name
