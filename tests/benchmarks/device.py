"""What the steps of the device's way with pictures reach, each alone: `python tests/benchmarks/device.py`.

Decoders by their speed and by how far their pixels are from the CPU codec's, the resize, and the model by the type of
its numbers. `bench encode` measures them together. For a GPU; without one the tables show a CPU. Neither Ray nor the
libraries of the command line are needed.
"""

from __future__ import annotations

import argparse
import copy
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmstream.bench.pictures import jpegs
from mmstream.bench.random_weights import RandomPictures
from mmstream.encoders.device_pictures import GROUP, BatchDecoder, jpeg_decoder, nvimagecodec
from mmstream.encoders.resample import normalized, on_canvas
from mmstream.media.image import decode

BATCH = 256


def speed(run: Callable[[], Any], num: int, seconds: float) -> float:
    """Items per second of `run`, which does `num` of them."""
    run()
    _wait()
    start, times = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        times += 1
    _wait()
    return num * times / (time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parity(decoder: BatchDecoder, pictures: Sequence[bytes]) -> str:
    """Of the mean absolute errors of 255, in each picture: the median, the worst, and how many are over 1."""
    errors = []
    for start in range(0, len(pictures), 32):
        batch = list(pictures[start : start + 32])
        for data, pixels in zip(batch, decoder(batch, shapes_of(batch)), strict=True):
            if pixels is None:
                errors.append(np.inf)
                continue
            wanted = decode(data).rgb.astype(np.float32)
            errors.append(float(np.abs(pixels.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy() - wanted).mean()))
    return f"{np.median(errors):.3f} | {max(errors):.3f} | {sum(e > 1 for e in errors)} of {len(errors)}"


def shapes_of(pictures: Sequence[bytes]) -> list[tuple[int, int]]:
    return [decode(data).rgb.shape[:2] for data in pictures]


def torchvisions(device: torch.device) -> BatchDecoder | None:
    """nvJPEG as torchvision calls it, for comparison."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError):
        return None

    def run(pictures: list[bytes], _: list[tuple[int, int]]) -> list[torch.Tensor | None]:
        data = [torch.frombuffer(bytearray(p), dtype=torch.uint8) for p in pictures]
        return list(decode_jpeg(data, mode=ImageReadMode.RGB, device=device))

    return run if device.type == "cuda" else None


def decoders(device: torch.device, batch: list[bytes], real: list[bytes], seconds: float) -> None:
    print("| decoder | pictures per second | median error of 255 | worst | over 1 |\n|---|---|---|---|---|")
    for threads in sorted({1, 4, os.cpu_count() or 1}):
        with ThreadPoolExecutor(threads) as pool:
            found = speed(lambda pool=pool: list(pool.map(decode, batch)), len(batch), seconds)
        print(f"| media.image, {threads} threads | {found:,.0f} | 0 | 0 | 0 |", flush=True)
    shapes = shapes_of(batch)
    for name, decoder in (("nvImageCodec", nvimagecodec(device)), ("torchvision's nvJPEG", torchvisions(device))):
        if decoder is None:
            print(f"| {name} | not here | | | |")
            continue
        found = speed(lambda decoder=decoder: decoder(batch, shapes), len(batch), seconds)
        print(f"| {name}, batches of {len(batch)} | {found:,.0f} | {parity(decoder, real)} |", flush=True)


def resizes(encoder: RandomPictures, batch: list[bytes], seconds: float) -> None:
    print("\n| step | pictures per second |\n|---|---|")
    pictures = [torch.from_numpy(decode(d).rgb.copy()).permute(2, 0, 1).to(encoder.on) for d in batch]
    wanted = encoder.preprocessing
    canvas = on_canvas(pictures, wanted)
    zero, one = torch.zeros(1, 3, 1, 1, device=encoder.on), torch.ones(1, 3, 1, 1, device=encoder.on)
    compiled = torch.compile(normalized, dynamic=True)
    for name, run in (
        ("onto one canvas, with weights", lambda: on_canvas(pictures, wanted)),
        ("resized and normalised", lambda: normalized(*canvas, 1 / 255, zero, one)),
        ("the same, compiled", lambda: compiled(*canvas, 1 / 255, zero, one)),
    ):
        print(f"| {name} | {speed(run, len(batch), seconds):,.0f} |", flush=True)


def models(encoder: RandomPictures, rows: int, seconds: float) -> None:
    """The same weights in float32, by autocast, in bfloat16 and compiled."""
    print(f"\n| {encoder.spec} | pictures per second | worst cosine to float32 |\n|---|---|---|")
    exact = copy.deepcopy(encoder.module).float()
    half = copy.deepcopy(exact).to(torch.bfloat16)
    images = torch.randn(rows, 3, 224, 224, device=encoder.on)
    as_half = images.to(torch.bfloat16)
    compiled = torch.compile(half)

    def autocast() -> torch.Tensor:
        with torch.autocast(encoder.on.type, torch.bfloat16):
            return exact(pixel_values=images).image_embeds

    with torch.inference_mode():
        reference = exact(pixel_values=images).image_embeds
        for name, run in (
            ("float32", lambda: exact(pixel_values=images).image_embeds),
            ("autocast", autocast),
            ("bfloat16", lambda: half(pixel_values=as_half).image_embeds),
            ("bfloat16, compiled", lambda: compiled(pixel_values=as_half).image_embeds),
        ):
            cosine = torch.cosine_similarity(run().float(), reference).min().item()
            print(f"| {name}, {rows} rows | {speed(run, rows, seconds):,.0f} | {cosine:.5f} |", flush=True)


def together(encoder: RandomPictures, batch: list[bytes], seconds: float) -> None:
    """What decoder and model reach beside each other, the model on the default stream, as it is, and on its own."""
    decoder = jpeg_decoder(encoder.on)
    if decoder is None:
        print("\nwithout a GPU and nvImageCodec nothing decodes beside the model")
        return
    shapes, over = shapes_of(batch), threading.Event()
    images = torch.randn(encoder.micro_batch, 3, 224, 224, device=encoder.on)

    def decode_on() -> float:
        start, num = time.perf_counter(), 0
        while not over.is_set():
            decoder(batch, shapes)
            num += len(batch)
        return num / (time.perf_counter() - start)

    print("\n| beside each other, the model on | decoded per second | encoded per second |\n|---|---|---|")
    for name, stream in (
        ("the default stream", torch.cuda.default_stream()),
        ("a stream of its own", torch.cuda.Stream()),
    ):
        over.clear()
        with ThreadPoolExecutor(1) as pool, torch.cuda.stream(stream):
            encoder._recorded = None
            encoder.fetch(encoder.forward_images(images))
            decoding = pool.submit(decode_on)
            found = speed(lambda: encoder.fetch(encoder.forward_images(images)), len(images), seconds)
            over.set()
        print(f"| {name} | {decoding.result():,.0f} | {found:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of the device's way with pictures, each alone.")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--rows", type=int, default=BATCH)
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--real", type=Path, help="folder of JPEGs for the errors; made ones without")
    options = parser.parse_args()
    encoder = RandomPictures(options.model)
    made = jpegs(64, 256)
    real = [f.read_bytes() for f in sorted(options.real.glob("*.jpg"))] if options.real else made
    batch = list(islice(cycle(made), options.rows))
    print(f"{encoder.device}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    decoders(encoder.on, batch, real, options.seconds)
    resizes(encoder, batch, options.seconds)
    models(encoder, options.rows, options.seconds)
    together(encoder, batch[:GROUP], options.seconds)


if __name__ == "__main__":
    main()
