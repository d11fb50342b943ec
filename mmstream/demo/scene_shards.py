"""Scenes become WebDataset shards: `train/*.tar` and `test/*.tar` of samples `KEY.jpg KEY.txt KEY.json`.

The same seed gives the same bytes. The JSON says in how many scenes of its set a caption is true (`fits`): the mean of
1 / fits bounds what a perfect model can reach at R@1. Pairs of colour and shape that training never shows are in the
test set only, marked `unseen_pair`.
"""

from __future__ import annotations

import io
import json
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from random import Random

from mmstream.demo.scenes import Scene, draw, fits, make_scene
from mmstream.storage.files import join
from mmstream.telemetry import Report, counted

SHARD_SAMPLES = 1_000


class ScenesReport(Report):
    dest: str
    num_train: int
    num_test: int
    num_unseen: int
    shards: int
    ceiling: float  # mean of 1 / fits over the test scenes of seen pairs
    ceiling_unseen_pairs: float

    def title(self) -> str:
        return "scenes"

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("to train on", counted(self.num_train, "scene")),
            ("to test with", f"{counted(self.num_test, 'scene')}, a perfect model reaches R@1 = {self.ceiling:.3f}"),
            (
                "unseen pairs",
                f"{counted(self.num_unseen, 'scene')}, a perfect model reaches R@1 = {self.ceiling_unseen_pairs:.3f}",
            ),
            ("where", f"{self.dest}, {counted(self.shards, 'shard')}"),
        ]


@dataclass(frozen=True)
class _Part:
    """One shard to be: scenes `start .. start + count - 1` of a kind."""

    url: str
    seed: int
    kind: str  # train, seen or unseen
    start: int
    count: int

    def rng(self, index: int) -> Random:
        return Random(f"{self.seed}/{self.kind}/{index}")


def scene_of(key: str, seed: int = 0) -> Scene:
    """The scene that the sample `key` shows."""
    kind, index = key.rsplit("-", 1)
    return make_scene(_Part("", seed, kind, 0, 0).rng(int(index)), unseen_pair=kind == "unseen")


def count_fits(scenes: Sequence[Scene]) -> list[int]:
    """For each scene: in how many of `scenes` its first caption is true. At least 1, its own."""
    alike: dict[tuple[tuple[str, str], ...], list[int]] = defaultdict(list)
    for n, scene in enumerate(scenes):
        alike[tuple(sorted((t.colour, t.shape) for t in scene.things))].append(n)
    counts = [0] * len(scenes)
    for group in alike.values():
        for n in group:
            counts[n] = sum(fits(scenes[n].claim, scenes[m].things) for m in group)
    return counts


def write_scenes(
    dest: str,
    *,
    num_train: int = 20_000,
    num_test: int = 1_000,
    num_unseen: int = 1_000,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> ScenesReport:
    """Writes `dest/train/*.tar` and `dest/test/*.tar`; `on_progress(done, total)` counts scenes.

    The test set holds `num_test` scenes of pairs that training shows and `num_unseen` scenes with a held-out pair; no
    caption of the one kind fits a scene of the other. Works on as many processes as there are cores.
    """
    train = _parts(join(dest, "train"), seed, {"train": num_train})
    test = _parts(join(dest, "test"), seed, {"seen": num_test, "unseen": num_unseen})
    total, done = num_train + num_test + num_unseen, 0
    ceilings: dict[str, list[float]] = {"train": [], "seen": [], "unseen": []}
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for parts in (train, test):
            scenes = list(pool.map(_scenes_of, parts))
            counts = iter(count_fits([s for part in scenes for s in part]))
            numbers = [[next(counts) for _ in part] for part in scenes]
            for part, fit in zip(parts, numbers, strict=True):
                ceilings[part.kind] += [1 / n for n in fit]
            for written in pool.map(_write_part, parts, scenes, numbers):
                done += written
                if on_progress:
                    on_progress(done, total)
    means = {kind: sum(values) / max(1, len(values)) for kind, values in ceilings.items()}
    return ScenesReport(
        dest=dest,
        num_train=num_train,
        num_test=num_test,
        num_unseen=num_unseen,
        shards=len(train) + len(test),
        ceiling=means["seen"],
        ceiling_unseen_pairs=means["unseen"],
        next=[
            shlex.join(["mmstream", "inspect", join(dest, "train")]),
            shlex.join(["mmstream", "embed", join(dest, "test"), join(dest, "emb"), "--model", "SPEC"]),
        ],
    )


def _parts(folder: str, seed: int, counts: dict[str, int]) -> list[_Part]:
    parts: list[_Part] = []
    for kind, count in counts.items():
        for start in range(0, count, SHARD_SAMPLES):
            url = join(folder, f"{len(parts):05d}.tar")
            parts.append(_Part(url, seed, kind, start, min(SHARD_SAMPLES, count - start)))
    return parts


def _scenes_of(part: _Part) -> list[Scene]:
    indices = range(part.start, part.start + part.count)
    return [make_scene(part.rng(i), unseen_pair=part.kind == "unseen") for i in indices]


def _write_part(part: _Part, scenes: list[Scene], counts: list[int]) -> int:
    from mmstream.shards.writer import write_shard  # loads webdataset, which only the workers need

    return write_shard(part.url, _samples(part, scenes, counts))


def _samples(part: _Part, scenes: list[Scene], counts: list[int]) -> Iterator[dict[str, bytes | str]]:
    for n, (scene, count) in enumerate(zip(scenes, counts, strict=True), part.start):
        jpeg = io.BytesIO()
        draw(scene, Random(f"{part.seed}/{part.kind}/{n}/drawn")).save(jpeg, "JPEG", quality=90)
        about = {
            "captions": scene.captions,
            "fits": count,
            "unseen_pair": scene.unseen_pair,
            "swapped": scene.swapped,
            "objects": [asdict(t) for t in scene.things],
        }
        yield {
            "__key__": f"{part.kind}-{n:06d}",
            "jpg": jpeg.getvalue(),
            "txt": scene.captions[0],
            "json": json.dumps(about),
        }
