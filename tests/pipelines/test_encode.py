"""The pure middle: what an encoder makes of a chunk, row by row."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from sounds import encoded, tones
from tars import make_tar
from videos import video

from mmstream.encoders.base import Tokens
from mmstream.encoders.build import load_encoder
from mmstream.encoders.fake import FakeEncoder
from mmstream.media.audio import Sound
from mmstream.media.decoding import Direct
from mmstream.media.duplicates import NEAR, hamming
from mmstream.media.filters import Filters
from mmstream.media.sandbox import Sandbox
from mmstream.pipelines.encode import columns_of, encode_chunk
from mmstream.pipelines.source import ShardTask, from_row, read_rows
from mmstream.shards.group import PAYLOADS
from mmstream.timing import Stopwatch


class Diverging(FakeEncoder):
    """A model that overflows on the second caption."""

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        vectors = tokens["vectors"].copy()
        vectors[1] = np.inf
        return vectors


def test_a_vector_that_is_not_finite_is_a_reject_at_the_place_of_its_sample(tmp_path: Path) -> None:
    tar = make_tar([("a.txt", b"one"), ("b.txt", b"two"), ("c.txt", b"three")])
    (tmp_path / "a.tar").write_bytes(tar)
    info, samples = from_row(next(iter(read_rows(ShardTask(0, str(tmp_path / "a.tar"), len(tar), "")))))
    with ThreadPoolExecutor(1) as pool:
        rows, rejects = encode_chunk(info, samples, Diverging("fake:4"), (), pool=pool, watch=Stopwatch())
    assert rows["key"].to_pylist() == ["a", "c"]
    assert np.isfinite(np.array(rows["text_embedding"].to_pylist())).all()
    assert [(r["row"], r["key"], r["offset"], r["reason"]) for r in rejects.to_pylist()] == [
        (1, "b", 1024, "bad_embedding")
    ]


def test_filters_make_rejects_and_hashes_are_columns(tmp_path: Path) -> None:
    def saved(width: int, quality: int = 90) -> bytes:
        blobs, out = np.random.default_rng(0).integers(0, 255, (12, 12), np.uint8), io.BytesIO()
        Image.fromarray(blobs).resize((width, 64)).save(out, "JPEG", quality=quality)
        return out.getvalue()

    texts = {"a": "good words", "b": "short", "c": "good words", "d": "good words", "e": "good words"}
    pictures = {"a": saved(64), "b": saved(64), "c": saved(400), "d": saved(64, 40), "e": saved(64)}
    tar = make_tar([f for key in "abcde" for f in ((f"{key}.txt", texts[key].encode()), (f"{key}.jpg", pictures[key]))])
    (tmp_path / "a.tar").write_bytes(tar)
    info, samples = from_row(next(iter(read_rows(ShardTask(0, str(tmp_path / "a.tar"), len(tar), "")))))
    fields, filters = ["image_sha256", "image_phash"], Filters(min_words=2, max_aspect=3)
    with ThreadPoolExecutor(2) as pool:
        rows, rejects = encode_chunk(
            info, samples, FakeEncoder("fake:4"), fields, pool=pool, watch=Stopwatch(), filters=filters
        )
    assert [(r["key"], r["reason"]) for r in rejects.to_pylist()] == [("b", "filtered"), ("c", "filtered")]
    assert "wanted are at least 2" in rejects["detail"][0].as_py() and "at most 3" in rejects["detail"][1].as_py()
    assert rows["key"].to_pylist() == ["a", "d", "e"]
    a, d, e = (tuple(row[f] for f in fields) for row in rows.to_pylist())
    assert a == e and a[0] == hashlib.sha256(pictures["a"]).hexdigest() != d[0]
    assert hamming(int(a[1], 16), int(d[1], 16)) <= NEAR


def test_a_video_is_filtered_by_its_length_and_by_the_size_of_its_frames(tmp_path: Path) -> None:
    tar = make_tar([(f"{n}.mp4", video("mp4", n)) for n in (24, 48)])
    (tmp_path / "a.tar").write_bytes(tar)
    info, samples = from_row(next(iter(read_rows(ShardTask(0, str(tmp_path / "a.tar"), len(tar), "")))))
    encoder, kept = load_encoder("frames:2:fake:4"), []
    with ThreadPoolExecutor(1) as pool:
        for filters in (Filters(), Filters(min_seconds=1.5), Filters(min_side=65)):
            rows, rejects = encode_chunk(info, samples, encoder, (), pool=pool, watch=Stopwatch(), filters=filters)
            kept.append(rows["key"].to_pylist())
            assert set(rejects["reason"].to_pylist()) <= {"filtered"}
    assert kept == [["24", "48"], ["48"], []]


class Listener(FakeEncoder):
    """Hears how loud a sound is, and reads words."""

    modalities = ("audio", "text")

    def listen(self, sound: Sound) -> np.ndarray:
        loud = np.abs(sound.samples).max() > 0.2
        return np.array([1, 0, 0, 0] if loud else [0, 1, 0, 0], np.float32)

    def _audio_batch(self, sounds: list[np.ndarray]) -> np.ndarray:
        return np.stack(sounds)


def test_the_sound_track_of_a_video_is_heard_where_there_is_no_other_sound(tmp_path: Path) -> None:
    loud, quiet = tones(channels=1)[:, 0], 0.01 * tones(channels=1)
    files = [
        ("a.mp4", video("mp4", 24, sound=loud)),
        ("b.mp4", video("mp4", 24, sound=loud)), ("b.wav", encoded("wav", quiet)),
        ("c.mp4", video("mp4", 24)), ("c.txt", b"a silent one"),
        ("d.mp4", video("mp4", 24)),
        ("e.mp4", video("mp4", 24, sound=loud)[:-400]),
    ]  # fmt: skip
    tar = make_tar(files)
    (tmp_path / "a.tar").write_bytes(tar)
    encoder = Listener("fake:4")
    assert columns_of(encoder) == ("text", "json", "cls", "audio", "video")
    task = ShardTask(0, str(tmp_path / "a.tar"), len(tar), "")
    info, samples = from_row(next(iter(read_rows(task, columns_of(encoder)))))
    made = []
    with ThreadPoolExecutor(2) as pool, Sandbox() as sandbox:
        for decoder in (Direct(), sandbox):
            made.append(encode_chunk(info, samples, encoder, (), pool=pool, watch=Stopwatch(), decoder=decoder))
    assert made[0] == made[1]
    rows, rejects = made[0]
    assert rows["key"].to_pylist() == ["a", "b", "c"]
    assert [v and v.index(1) for v in rows["audio_embedding"].to_pylist()] == [0, 1, None]
    assert [(r["key"], r["reason"]) for r in rejects.to_pylist()] == [("d", "missing_member"), ("e", "video")]


def test_what_an_encoder_does_not_take_is_not_read_and_changes_nothing(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    heavy = bytes(1 << 20)
    files = [("a.png", picture.getvalue()), ("a.mp4", heavy), ("a.wav", heavy), ("b.png", b""), ("b.mp4", heavy)]
    tar = make_tar([*files, ("c.txt", b"\xff"), ("d.cls", b"\xff"), ("d.png", picture.getvalue()), ("e.mp4", heavy)])
    (tmp_path / "a.tar").write_bytes(tar)
    task, encoder, made = ShardTask(0, str(tmp_path / "a.tar"), len(tar), ""), load_encoder("fake:4"), []
    for columns in (PAYLOADS, columns_of(encoder)):
        info, samples = from_row(next(iter(read_rows(task, columns))))
        with ThreadPoolExecutor(1) as pool:
            made.append((samples, encode_chunk(info, samples, encoder, (), pool=pool, watch=Stopwatch())))
    (every, of_every), (some, of_some) = made
    assert of_every == of_some and of_every[1].num_rows == 4
    assert every.nbytes > 4 * len(heavy) and some.nbytes < len(heavy)


def test_the_columns_of_an_encoder_are_the_texts_and_what_it_looks_at() -> None:
    assert columns_of(load_encoder("fake:4")) == ("text", "json", "cls", "image")
    assert columns_of(load_encoder("frames:2:fake:4")) == ("text", "json", "cls", "image", "video")
