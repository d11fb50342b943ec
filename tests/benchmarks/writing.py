"""What a distant destination costs `embed`: `PYTHONPATH=.:tests python tests/benchmarks/writing.py`.

A shard on this disk is embedded with a model that costs next to nothing, into sets on an S3 server whose every reply
comes late. The best of repetitions that take turns; the start of the encoders is in the time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import ray
from faults.places import BUCKET, s3
from faults.proxy import proxy
from tars import make_tar

import mmstream as mm
from mmstream.bench.pictures import jpegs
from mmstream.pipelines.resources import start_ray


def make_shard(folder: Path, num_samples: int, side: int) -> str:
    pictures = jpegs(64, side)
    (folder / "a.tar").write_bytes(make_tar([(f"{i:06}.jpg", pictures[i % 64]) for i in range(num_samples)]))
    return f"{folder}/a.tar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_480)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--latencies", type=float, nargs="*", default=[0.0, 0.1, 0.3], help="seconds of each request")
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    best: dict[float, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory() as name, s3(Path(name)) as place:
        source = make_shard(Path(name), options.samples, options.side)
        with (
            proxy(int(str(place.endpoint).rsplit(":", 1)[1])) as (endpoint, wire),
            mock.patch.dict(os.environ, {"AWS_ENDPOINT_URL": endpoint}),
        ):
            start_ray()
            for repetition in range(options.repetitions):
                for latency in options.latencies:
                    wire.latency = latency
                    start = time.perf_counter()
                    report = mm.embed(source, f"s3://{BUCKET}/{latency}/{repetition}", "fake:64")
                    assert report.rows == options.samples
                    speed = options.samples / (time.perf_counter() - start)
                    waited = f"{100 * (report.encoder_waited or 0):.0f} %, most: {report.waited_for}"
                    best[latency] = max(best.get(latency, (0.0, "")), (speed, waited))
            ray.shutdown()
    print("| latency of a request, ms | samples per second | encoder waited |\n|---|---|---|")
    for latency, (speed, waited) in best.items():
        print(f"| {1000 * latency:.0f} | {speed:,.0f} | {waited} |")


if __name__ == "__main__":
    main()
