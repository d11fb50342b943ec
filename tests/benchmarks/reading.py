"""How fast shards are read, beside `tarfile` and `webdataset`, in one run: `python tests/benchmarks/reading.py`.

Local tars of img2dataset's shape, warm in the page cache; CPU seconds of one thread, the least of repetitions that
take turns, so that a shared machine changes the ratios little.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from webdataset.tariterators import group_by_keys, tar_file_expander

from mmstream.shards.group import count_rows, read_chunks
from mmstream.shards.tar import members
from mmstream.storage.ranges import RangeReader

TOTAL_BYTES = 64 << 20


def write_tar(path: Path, image_bytes: int, *, with_sha256: bool) -> None:
    rng = Random(1)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(TOTAL_BYTES // (image_bytes + 4096)):
            image = rng.randbytes(image_bytes)
            about = {"url": f"https://example.org/{i}.jpg", "caption": "a caption " * 5, "status": "success"}
            about |= {"sha256": hashlib.sha256(image).hexdigest()} if with_sha256 else {"digest": "0" * 64}
            for suffix, data in (("jpg", image), ("txt", b"a caption " * 5), ("json", json.dumps(about).encode())):
                header = tarfile.TarInfo(f"{i:09}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def walk(path: Path) -> int:
    with RangeReader(str(path)) as reader:
        return sum(len(m.data or b"") for m in members(reader))


def walk_tarfile(path: Path) -> int:
    with path.open("rb") as f, tarfile.open(fileobj=f, mode="r|") as tar:
        num_bytes = 0
        for member in tar:
            num_bytes += len(tar.extractfile(member).read())  # ty: ignore[unresolved-attribute]
            tar.members = []
    return num_bytes


def group(path: Path, columns: tuple[str, ...] | None = None) -> int:
    selected = {} if columns is None else {"columns": columns}
    with RangeReader(str(path)) as reader:
        return sum(c.num_samples for c in read_chunks(reader, 0, **selected))  # ty: ignore[invalid-argument-type]


def group_webdataset(path: Path) -> int:
    with path.open("rb") as f:
        return sum(1 for _ in group_by_keys(tar_file_expander([{"url": str(path), "stream": f}])))


def count(path: Path) -> int:
    with RangeReader(str(path)) as reader:
        return count_rows(reader)


def best(runs: dict[str, Callable[[], int]], repetitions: int) -> dict[str, float]:
    """The least CPU seconds of each; they take turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repetitions):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    repetitions = parser.parse_args().repetitions
    print("| image | walk, µs a member | × tarfile | samples, µs | × webdataset | and SHA-256 | text only | count |")
    print("|---|---|---|---|---|---|---|---|")
    for image_bytes in (3_000, 30_000, 300_000):
        with tempfile.TemporaryDirectory() as folder:
            plain, vouched = Path(folder, "plain.tar"), Path(folder, "vouched.tar")
            write_tar(plain, image_bytes, with_sha256=False)
            write_tar(vouched, image_bytes, with_sha256=True)
            num_samples = count(plain)
            assert num_samples == group(plain) == group(vouched) == group_webdataset(plain)
            runs = {"walk": walk, "tarfile": walk_tarfile, "group": group, "webdataset": group_webdataset}
            runs |= {"text": partial(group, columns=("text",)), "count": count}
            named = {name: partial(run, plain) for name, run in runs.items()} | {"sha256": partial(group, vouched)}
            took = {name: s / num_samples * 1e6 for name, s in best(named, repetitions).items()}
        print(
            f"| {image_bytes // 1000} kB | {took['walk'] / 3:.1f} | {took['tarfile'] / took['walk']:.1f} "
            f"| {took['group']:.1f} | {took['webdataset'] / took['group']:.1f} | {took['sha256']:.1f} "
            f"| {took['text']:.1f} | {took['count']:.1f} |"
        )


if __name__ == "__main__":
    main()
