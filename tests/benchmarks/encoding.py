"""What overlapping gains on a CPU, and what a scaled JPEG decode would cost: `PYTHONPATH=tests python …/encoding.py`.

Overlapped and one after the other take turns on the same pictures and give the same bytes; their ratio is printed, the
median of many turns. The second table compares pixels resized from a JPEG that libjpeg-turbo decoded at a smaller size
with those of the whole one, on the shared pictures: where their mean error is over 1/255 the parity table breaks.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
import torch
from samples import real_pictures

from mmstream.bench.encode import cores
from mmstream.bench.pictures import jpegs
from mmstream.bench.random_weights import RandomPictures
from mmstream.encoders.pipelined import AHEAD, picture_vectors, prepared
from mmstream.media.image import decode, resize
from mmstream.timing import Stopwatch

EDGE = 224


def gain(name: str, size: int, n: int, turns: int) -> float:
    """Median of (seconds one after the other / seconds overlapped)."""
    encoder, pictures = RandomPictures(name), jpegs(n, size)
    prepare: Callable[[bytes], np.ndarray] = lambda data: encoder.preprocess(decode(data))  # noqa: E731
    with ThreadPoolExecutor(cores()) as pool:

        def one_after_the_other() -> np.ndarray:
            return encoder.embed_pixels(np.stack(list(pool.map(prepare, pictures))))

        def overlapped() -> np.ndarray:
            pixels = prepared(pictures, prepare, pool, AHEAD * encoder.micro_batch)
            return np.concatenate(list(picture_vectors(pixels, encoder, Stopwatch())))

        assert one_after_the_other().tobytes() == overlapped().tobytes()
        ratios = []
        for turn in range(turns):
            both = [one_after_the_other, overlapped]
            took = {run: seconds(run) for run in (both if turn % 2 else both[::-1])}
            ratios.append(took[one_after_the_other] / took[overlapped])
    return statistics.median(ratios)


def seconds(run: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def scaled_errors(least: float) -> list[float]:
    """Mean absolute error in [0, 1] of each picture that can be decoded at a smaller size whose shortest edge is still
    at least `least` times the model's."""
    errors = []
    for data in real_pictures():
        if not data.startswith(b"\xff\xd8\xff"):
            continue
        whole = simplejpeg.decode_jpeg(data, "RGB")
        height, width = whole.shape[:2]
        eighths = math.ceil(8 * least * EDGE / min(height, width))
        if eighths >= 8:
            continue
        part = {"min_height": height * eighths // 8, "min_width": width * eighths // 8}
        small = simplejpeg.decode_jpeg(data, "RGB", **part)
        if small.shape == whole.shape:
            continue
        to = (int(EDGE * height / width), EDGE) if width <= height else (EDGE, int(EDGE * width / height))
        ours, reference = (resize(rgb, to, crop=(EDGE, EDGE)).astype(np.float32) for rgb in (small, whole))
        errors.append(float(np.abs(ours - reference).mean()) / 255)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=8)
    turns = parser.parse_args().turns
    torch.set_num_threads(cores())
    print("| model | pictures | one after the other / overlapped |\n|---|---|---|")
    for name, size, n in (("ViT-S/32", 256, 128), ("ViT-S/32", 768, 96)):
        print(f"| {name} | {n} of {size} × {size} | {gain(name, size, n, turns):.2f} |", flush=True)
    print("\n| shortest edge at least | pictures | median error × 255 | worst × 255 | over 1 / 255 |")
    print("|---|---|---|---|---|")
    for least in (1.0, 1.5):  # none of the pictures is large enough for more
        errors = scaled_errors(least)
        over = sum(e > 1 / 255 for e in errors)
        median, worst = 255 * statistics.median(errors), 255 * max(errors)
        print(f"| {least:g} × {EDGE} | {len(errors)} | {median:.2f} | {worst:.2f} | {over} |")


if __name__ == "__main__":
    main()
