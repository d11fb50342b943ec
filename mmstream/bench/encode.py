"""How fast an encoder makes vectors of compressed pictures, of texts or of sounds, and what it waits for; one JSON.

    mmstream bench encode --random ViT-B/32 --json
    mmstream bench encode --model hf:sentence-transformers/all-MiniLM-L6-v2
    python -m mmstream.bench.encode --random ViT-B/32 --json
    python -m mmstream.bench.encode --random ViT-B/32 --json

Three speeds are measured in rounds that take turns, the best round of each counts: the model alone on tensors that lie
on its device, preprocessing alone (bytes → pixels or features, on threads; texts → tokens), and both together from
bytes to vectors as `embed` does it. The last command needs neither Ray nor the libraries of the command line: torch,
transformers or timm, Pillow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmstream.bench.encode_run import DeviceRun, Run
from mmstream.bench.list_runs import SOUND_SECONDS, TEXT_WORDS, ListRun, sound_run, sounds, text_run, texts
from mmstream.bench.pictures import jpegs
from mmstream.encoders.base import Encoder
from mmstream.errors import MmstreamError, UsageError

ROUNDS = 3
NUM_MADE = 64  # different pictures, texts or sounds
TARGET = 0.9
_LIBRARIES = ("torch", "transformers", "timm", "torchvision", "pillow", "simplejpeg")


@dataclass(frozen=True)
class EncodeBench:
    """Speeds are of what `of` names, per second. `limit` is the slower of `model_only` and `preprocess_only`,
    `measured` is `end_to_end`, `ratio` is measured / limit."""

    model: str
    of: str  # image, text or audio
    device: str
    dtype: str
    micro_batch: int
    decode: str  # cpu, or what decodes and resizes on the device
    threads: int
    cores: int
    size: int  # edge of the made pictures in pixels, words of the texts, seconds of the sounds
    bytes_each: int
    model_only: float
    preprocess_only: float
    end_to_end: float
    limit: float
    measured: float
    ratio: float
    device_waits: float  # share of the time that the device has nothing to do, end to end
    waits_for: str | None  # the stage that it waits for most
    stages: dict[str, float]  # shares of the time of the thread that feeds the device
    cpu_seconds_per_1000: float
    peak_bytes: int
    device_bytes: int | None
    startup_seconds: float
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        memory = f"{self.peak_bytes >> 20:,} MiB" + (
            f", on the device {self.device_bytes >> 20:,} MiB" if self.device_bytes is not None else ""
        )
        verdict = "" if self.ratio >= TARGET else f", the target is {TARGET}"
        waits = f"{100 * self.device_waits:.0f} %" + (f", for {self.waits_for}" if self.waits_for else "")
        made = {
            "image": f"JPEG, {self.size} × {self.size}, {self.bytes_each:,} bytes on average",
            "text": f"of {self.size} words",
            "audio": f"WAV, {self.size} s, {self.bytes_each:,} bytes",
        }
        rows = [
            ("model", f"{self.model} on {self.device}, {self.dtype}, micro-batches of {self.micro_batch}"),
            ({"image": "pictures", "text": "texts", "audio": "sounds"}[self.of], made[self.of]),
            ("model only", f"{self.model_only:,.1f} per second"),
            ("preprocessing only", f"{self.preprocess_only:,.1f} per second on {self.threads} threads"),
            ("end to end", f"{self.end_to_end:,.1f} per second, {self.ratio:.2f} of the slower of the two{verdict}"),
            ("decoded by", self.decode),
            ("the device waits", waits),
            ("memory", memory),
        ]
        return "\n".join(["bench encode", *(f"  {name:<18}  {value}" for name, value in rows)])


def bench_encode(
    model: str | None = None,
    *,
    random: str | None = None,
    of: str | None = None,
    device: str = "auto",
    decode: str = "cpu",
    batch: int | None = None,
    seconds: float = 30.0,
    size: int = 256,
    threads: int | None = None,
) -> EncodeBench:
    """
    Args:
        model: a model spec; or
        random: a published size of a model of pictures, with random weights (`bench.random_weights`).
        of: image, text or audio; the first of them that the model gives.
        device: auto, cpu or cuda.
        decode: cpu, as `embed` does it; or device, where compressed pictures are decoded and resized.
        batch: rows of a micro-batch, where not the encoder's own.
        seconds: about how long all measurements take together; at least two micro-batches are run in each round.
        size: edge of the made JPEGs, in pixels.
        threads: that decode; also the model's, on a CPU. All cores by default.

    Raises:
        UsageError: what was asked for cannot be measured here.
    """
    start = time.perf_counter()
    threads = threads or cores()
    if decode not in ("cpu", "device"):
        raise UsageError(f"--decode {decode}: give cpu or device.")
    encoder = _encoder(model, random, device, threads)
    encoder.micro_batch = batch or encoder.micro_batch
    of = of or next(m for m in ("image", "text", "audio") if m in encoder.modalities)
    encoder.needs(of)
    with ThreadPoolExecutor(threads, "decode") as pool:
        run, size, bytes_each = _run(of, encoder, pool, decode, size)
        run.model_only(0)  # everything is loaded and warm
        startup = time.perf_counter() - start
        best, stages = _best_rounds(run, seconds / (3 * ROUNDS))
    limit = min(best["model_only"], best["preprocess_only"])
    waits = max(0.0, 1 - best["end_to_end"] / best["model_only"])
    return EncodeBench(
        model=encoder.spec,
        of=of,
        device=encoder.device,
        dtype=encoder.dtype,
        micro_batch=encoder.micro_batch,
        decode=run.backend,
        threads=threads,
        cores=cores(),
        size=size,
        bytes_each=bytes_each,
        **{name: round(speed, 2) for name, speed in best.items()},
        limit=round(limit, 2),
        measured=round(best["end_to_end"], 2),
        ratio=round(best["end_to_end"] / limit, 4),
        device_waits=round(waits, 4),
        waits_for=max(("decode", "transfer"), key=lambda s: stages.get(s, 0.0)) if waits >= 0.01 else None,
        stages={name: round(share, 4) for name, share in stages.items()},
        cpu_seconds_per_1000=round(run.cpu_seconds_per_1000, 3),
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        device_bytes=_device_bytes(encoder),
        startup_seconds=round(startup, 2),
        versions=_versions(),
    )


def _run(of: str, encoder: Encoder, pool: ThreadPoolExecutor, decode: str, size: int) -> tuple[Run | ListRun, int, int]:
    """The measurements, and the size and mean bytes of what they take."""
    if of == "image":
        pictures = jpegs(NUM_MADE, size)
        run = (DeviceRun if decode == "device" else Run)(encoder, pictures, pool)
        return run, size, sum(map(len, pictures)) // len(pictures)
    if decode == "device":
        raise UsageError("--decode device: only pictures are decoded on a device.")
    if of == "text":
        return text_run(encoder, made := texts(NUM_MADE)), TEXT_WORDS, sum(map(len, made)) // NUM_MADE
    if of == "audio":
        return sound_run(encoder, made := sounds(NUM_MADE), pool), SOUND_SECONDS, len(made[0])
    raise UsageError(f"--of {of}: give image, text or audio.")


def _best_rounds(run: Run | ListRun, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """The best speed of each measurement, and the stages of the best end-to-end round."""
    measurements: dict[str, Callable[[float], float]] = {
        "model_only": run.model_only,
        "preprocess_only": run.preprocess_only,
        "end_to_end": run.end_to_end,
    }
    best, stages = dict.fromkeys(measurements, 0.0), {}
    for _ in range(ROUNDS):
        for name, measure in measurements.items():
            speed = measure(seconds)
            if speed > best[name]:
                best[name] = speed
                stages = run.stages if name == "end_to_end" else stages
    return best, stages


def _encoder(model: str | None, random: str | None, device: str, threads: int) -> Encoder:
    if (model is None) == (random is None):
        raise UsageError("bench encode: give --model SPEC, or --random SIZE for random weights of a published size.")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: give auto, cpu or cuda.")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: every family takes a GPU where there is one
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device here.")
    torch.set_num_threads(threads)
    if random is not None:
        from mmstream.bench.random_weights import RandomPictures

        encoder: Encoder = RandomPictures(random)
        encoder.choose_micro_batch()
    else:
        from mmstream.encoders.build import load_encoder

        encoder = load_encoder(str(model))
    return encoder


def _device_bytes(encoder: Encoder) -> int | None:
    """The most that was allocated on the GPU; None on a CPU."""
    if encoder.device == "cpu":
        return None
    import torch

    return torch.cuda.max_memory_allocated()


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> int:
    """The command without the command line's libraries; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mmstream.bench.encode", description="Speed of an encoder.")
    parser.add_argument("--model", help="a model spec")
    parser.add_argument("--random", help="a published size with random weights, as ViT-B/32")
    parser.add_argument("--of", choices=("image", "text", "audio"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--decode", default="cpu", choices=("cpu", "device"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    try:
        report = bench_encode(options.pop("model"), **options)
    except MmstreamError as e:
        print(f"mmstream: {e}", file=sys.stderr)
        return int(e.exit_code)
    print(json.dumps(report.to_json(), indent=1, ensure_ascii=False) if as_json else report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
