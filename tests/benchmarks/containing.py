"""What containment costs where nothing is wrong, and where a chunk is at work in a sandbox:
`PYTHONPATH=tests python tests/benchmarks/containing.py`.

The same chunks of JPEGs are decoded by two threads bare, watched (as every chunk is first: with its mark in Ray's
key-value store and a watchdog), and in a sandbox (as the few chunks are that cost a worker: its start is in the time).
The least of repetitions that take turns.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import ray
from PIL import Image

from mmstream.media.decoding import Decoder, Direct
from mmstream.media.sandbox import Sandbox
from mmstream.pipelines.contain import Containment, containment
from mmstream.pipelines.source import ChunkInfo

SIDES = (256, 512)


def jpegs(side: int, num: int) -> list[bytes]:
    """Smooth noise: about as many bytes as a photograph of that size."""
    rng, made = np.random.default_rng(side), []
    for _ in range(num):
        small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
        out = io.BytesIO()
        small.resize((side, side), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


@contextmanager
def bare(shared: Containment, chunk: int) -> Iterator[Decoder]:
    yield Direct()


@contextmanager
def watched(shared: Containment, chunk: int) -> Iterator[Decoder]:
    with shared.chunk(ChunkInfo(0, chunk, 0, 0, False, None, "", 0, "", 0, 0.0, 0)) as decoder:
        yield decoder


@contextmanager
def in_sandbox(shared: Containment, chunk: int) -> Iterator[Decoder]:
    with Sandbox() as decoder:
        yield decoder


def seconds(way, shared: Containment, pictures: list[bytes], chunk_rows: int, pool: ThreadPoolExecutor) -> float:
    def decode(data: bytes, decoder: Decoder) -> int:
        with decoder.picture(data) as picture:
            return picture.width

    start = time.perf_counter()
    for first in range(0, len(pictures), chunk_rows):
        with way(shared, first) as decoder:
            sizes = list(pool.map(lambda data: decode(data, decoder), pictures[first : first + chunk_rows]))
        assert min(sizes) in SIDES
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=2048)
    parser.add_argument("--chunk-rows", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    print("| picture | bare, µs | watched | in a sandbox |\n|---|---|---|---|")
    with containment() as shared, ThreadPoolExecutor(2) as pool:
        for side in SIDES:
            pictures = jpegs(side, options.pictures)
            best = dict.fromkeys((bare, watched, in_sandbox), float("inf"))
            for _ in range(options.repetitions):
                for way in best:
                    best[way] = min(best[way], seconds(way, shared, pictures, options.chunk_rows, pool))
            a, b, c = (best[way] for way in best)
            kilobytes = sum(map(len, pictures)) / len(pictures) / 1e3
            each = 1e6 * a / len(pictures)
            print(f"| {side} px, {kilobytes:.0f} kB | {each:.0f} | × {b / a:.2f} | × {c / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
