"""`bench encode`: plausible numbers, on a machine that has only torch, transformers and Pillow too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import save_bert, save_clap

from mmstream.bench.encode import EncodeBench, bench_encode
from mmstream.bench.list_runs import sounds, texts
from mmstream.bench.pictures import jpegs
from mmstream.encoders.fake import FakeEncoder
from mmstream.errors import UsageError
from mmstream.media import audio
from mmstream.media.image import decode

ABSENT = [
    "ray", "pydantic", "simplejpeg", "av", "typer", "rich", "pyarrow", "webdataset", "s3fs", "soundfile",
    "soxr", "aiohttp", "faiss", "matplotlib", "tensorboard", "braceexpand",
]  # fmt: skip
BLOCKER = f"""
import sys
class Without:
    # Not an error of its own: libraries ask whether a package is there, and are to be told no.
    def __init__(self, finder):
        self._finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT} else self._finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self._finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
KEYS = {"limit", "measured", "ratio", "cpu_seconds_per_1000", "peak_bytes", "startup_seconds"}


def test_it_runs_where_only_torch_transformers_and_pillow_are_installed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    options = ["--random", "ViT-S/32", "--device", "cpu", "--batch", "2", "--seconds", "0", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mmstream.bench.encode", *options],
        capture_output=True, text=True, timeout=300, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) >= KEYS
    assert report["model"] == "ViT-S/32 with random weights"
    assert report["measured"] == report["end_to_end"] > 0
    assert report["limit"] == min(report["model_only"], report["preprocess_only"])
    assert report["device_bytes"] is None


class Slow(FakeEncoder):
    """A model that takes 20 ms a picture, and preprocessing of `prepare_seconds`."""

    prepare_seconds = 0.0
    micro_batch = 8

    def preprocess(self, picture):
        time.sleep(self.prepare_seconds)
        return np.ones(self.dimension, np.float32)

    def _image_batch(self, pixels):
        time.sleep(0.02 * len(pixels))
        return pixels


def measured(monkeypatch: pytest.MonkeyPatch, prepare_seconds: float) -> EncodeBench:
    monkeypatch.setattr(Slow, "prepare_seconds", prepare_seconds)
    monkeypatch.setattr("mmstream.encoders.build.load_encoder", Slow)
    return bench_encode("fake:4", seconds=0, size=32, threads=2)


def test_a_model_that_is_the_slower_one_is_fed_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(monkeypatch, prepare_seconds=0.0)
    assert 25 < report.limit == report.model_only <= 50
    assert report.ratio >= 0.8  # 0.99 alone on a machine
    assert report.stages["model"] > 0.7


def test_slow_preprocessing_is_what_the_device_is_said_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    report = measured(monkeypatch, prepare_seconds=0.1)  # 20 per second on two threads
    assert report.limit == report.preprocess_only <= 20
    assert report.ratio >= 0.8
    assert report.device_waits > 0.3
    assert report.waits_for == "decode"
    assert "the device waits" in str(report)


def test_the_devices_way_is_measured_too_and_named() -> None:
    report = bench_encode(random="ViT-S/32", device="cpu", decode="device", batch=2, seconds=0, size=64)
    assert report.decode == "turbo+matmul/1"
    assert report.measured == report.end_to_end > 0


def test_texts_and_sounds_are_measured_too(tmp_path: Path) -> None:
    words = bench_encode(f"hf:{save_bert(tmp_path / 'bert')}", seconds=0, threads=2)
    assert (words.of, words.size, words.device_bytes) == ("text", 16, None)
    assert words.ratio > 0 and set(words.stages) == {"decode", "model"} and "texts" in str(words)
    clap = f"hf:{save_clap(tmp_path / 'clap', fused=False)}"
    heard = bench_encode(clap, of="audio", batch=2, seconds=0, threads=2)
    assert (heard.of, heard.size, heard.bytes_each) == ("audio", 5, 44 + 2 * 16_000 * 5)
    assert heard.preprocess_only > 0 and heard.limit == min(heard.model_only, heard.preprocess_only)
    assert bench_encode("fake:4", of="text", seconds=0).of == "text"


def test_made_texts_and_sounds_are_the_same_every_time() -> None:
    assert texts(3) == texts(3) and len(set(texts(3))) == 3 and len(texts(1)[0].split()) == 16
    made = sounds(2, 0.5)
    assert made == sounds(2, 0.5) and made[0] != made[1]
    assert audio.decode(made[0]).samples.shape == (8_000, 1)


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(UsageError, match="gives image and text vectors, not audio"):
        bench_encode("fake:4", of="audio")
    with pytest.raises(UsageError, match="only pictures are decoded on a device"):
        bench_encode("fake:4", of="text", decode="device")
    with pytest.raises(UsageError, match="--model SPEC, or --random SIZE"):
        bench_encode()
    with pytest.raises(UsageError, match="ViT-B/32"):
        bench_encode(random="ViT-X/99")
    with pytest.raises(UsageError, match="does not take its pictures from a device"):
        bench_encode("fake:4", decode="device")
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        bench_encode("fake:4", device="tpu")


def test_made_pictures_are_jpegs_of_that_size_and_the_same_every_time() -> None:
    pictures = jpegs(3, 96)
    assert pictures == jpegs(3, 96)
    assert len(set(pictures)) == 3
    assert all(decode(data).rgb.shape == (96, 96, 3) for data in pictures)


@pytest.mark.gpu
def test_it_measures_a_gpu() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    for where in ("cpu", "device"):
        report = bench_encode(random="ViT-B/32", device="cuda", decode=where, seconds=20)
        print(report)
        assert report.device_bytes and report.device_bytes > 1 << 28
        assert report.ratio >= 0.9
