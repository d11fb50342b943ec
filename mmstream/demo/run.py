"""The whole of mmstream in one command: scenes → train → embed → index → measure → ask → a page to look at.

Everything lies in one folder (`train/ test/ run/ emb/ index/ report.html`). Each stage is the public function that a
user would call; a demo that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa

from mmstream.demo.report import Answer, DemoReport, Stage, Swapped, write_report
from mmstream.demo.scene_shards import scene_of, write_scenes
from mmstream.demo.scenes import fits
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import DEFAULT_SPEC, load_encoder
from mmstream.errors import UsageError
from mmstream.index.build import build_index
from mmstream.metrics import retrieval
from mmstream.pipelines.embed import embed
from mmstream.pipelines.evaluate import pairs_of
from mmstream.pipelines.fit import train
from mmstream.pipelines.resources import cores, start_ray
from mmstream.search.pictures import read_picture
from mmstream.search.searcher import open_index
from mmstream.storage.files import absolute, exists, is_folder, join, list_files, read_bytes, write_bytes
from mmstream.telemetry import Progress, Report, to_look_at

NUM_TRAIN, NUM_TEST, NUM_UNSEEN = 20_000, 1_000, 1_000
FIELDS = ("fits", "unseen_pair", "swapped")
HITS = 8
# Which captions are asked: (unseen pair?, number of objects). Of each kind the one that is true of most pictures, not
# the one that is answered best.
QUESTIONS = ((False, 1), (True, 1), (False, 2), (True, 2), (False, 3))
_LIBRARIES = ("mmstream", "ray", "torch", "faiss", "webdataset", "pyarrow", "numpy")


class DemoRun(Report):
    dir: str
    retrieval: dict[str, Any]
    retrieval_unseen_pairs: dict[str, Any]
    relation_swap: dict[str, float]
    stages: dict[str, float]
    report: str
    seconds: float

    def title(self) -> str:
        return f"demo: {NUM_TRAIN:,} scenes to an answered query in {self.seconds:.0f} s"

    def lines(self) -> list[tuple[str, str]]:
        shown = []
        for name, r in (("seen pairs", self.retrieval), ("unseen pairs", self.retrieval_unseen_pairs)):
            t2i, i2t = r["text_to_image"], r["image_to_text"]
            shown += [
                (name, f"N = {r['n']:,}, chance R@1 {r['chance']['r@1']:.3f}, ceiling R@1 {r['ceiling']:.3f}"),
                ("  text → image", f"R@1 {t2i['r@1']:.3f}  R@5 {t2i['r@5']:.3f}  R@10 {t2i['r@10']:.3f}"),
                ("  image → text", f"R@1 {i2t['r@1']:.3f}  R@5 {i2t['r@5']:.3f}  R@10 {i2t['r@10']:.3f}"),
            ]
        swap = self.relation_swap
        shown.append(("swapped relations", f"{swap['accuracy']:.3f} of {swap['n']:,.0f} (chance 0.5)"))
        shown.append(("seconds", ", ".join(f"{stage} {s:.0f}" for stage, s in self.stages.items())))
        return [*shown, ("report", self.report)]


@dataclass
class _Stages:
    """Seconds by stage, as the report shows them."""

    shown: list[Stage]

    @contextmanager
    def timed(self, name: str, unit: str, about: str) -> Generator[list[int]]:
        """Yields a list to which the stage appends how many it did."""
        count: list[int] = []
        start = time.monotonic()
        yield count
        self.shown.append(Stage(name, sum(count), unit, time.monotonic() - start, about))


def demo(dir: str) -> DemoRun:
    """Runs the demo into the folder or URL `dir`.

    Raises:
        UsageError: something else is in `dir`.
    """
    start, dir = time.monotonic(), absolute(dir)
    stages = _Stages([])
    run, emb, index = join(dir, "run"), join(dir, "emb"), join(dir, "index")
    with stages.timed("scenes", "scenes with captions", "Rendered and written as WebDataset tars.") as count:
        count.append(_scenes(dir))
    start_ray()
    recipe = str(files("mmstream.demo") / "recipes" / "scenes.yaml")
    data = [f"data.train={join(dir, 'train')}", f"data.eval={join(dir, 'test')}"]
    with stages.timed("train", "samples seen", "Ray Data feeds two Ray Train workers; one exact loss.") as count:
        trained = train(recipe, out=run, overrides=data, evaluated=False)
        count.append(trained.samples)
    with stages.timed(
        "embed", "new pairs encoded", "Pictures and captions become vectors, every row recorded."
    ) as count:
        count.append(embed(join(dir, "test"), emb, f"run:{run}", fields=FIELDS).rows)
    with stages.timed("index", "vectors indexed", "An exact FAISS index, published as version 1.") as count:
        count.append(build_index(emb, index).num_vectors)
    with stages.timed("ask", "questions answered", "Words in, pictures out.") as count:
        seen, unseen, swapped = _measured(emb, f"run:{run}")
        answers = _answers(emb, index)
        count.append(len(answers))
    seconds = time.monotonic() - start
    page = join(dir, "report.html")
    commands = _next(dir, run, index, answers[0].query)
    write_report(
        page,
        DemoReport(
            retrieval=seen,
            retrieval_unseen_pairs=unseen,
            swapped=swapped,
            stages=stages.shown,
            training=_metrics(run),
            batch_size=trained.batch_size,
            answers=answers,
            next=commands,
            seconds=seconds,
            machine={"cores": str(cores()), "processor": platform.machine(), "system": platform.system()},
            versions={name: _version(name) for name in _LIBRARIES},
        ),
    )
    return DemoRun(
        dir=dir,
        retrieval=seen,
        retrieval_unseen_pairs=unseen,
        relation_swap={"accuracy": swapped.accuracy, "n": swapped.n},
        stages={s.name: round(s.seconds, 1) for s in stages.shown},
        report=page,
        seconds=round(seconds, 1),
        next=[*to_look_at(page), *(command for command, _ in commands)],
    )


def _scenes(dir: str) -> int:
    """Writes the scenes unless they are all there: the file that says so is written last."""
    done = join(dir, "scenes.json")
    if exists(done):
        return int(json.loads(read_bytes(done))["num_scenes"])
    if is_folder(dir) and any(not f.url.endswith(".tar") for f in list_files(dir)):
        raise UsageError(f"{dir}: holds something else. Give --dir a new folder.")
    total = NUM_TRAIN + NUM_TEST + NUM_UNSEEN
    with Progress("scenes", total, "scenes", rate_of="written") as progress:
        write_scenes(
            dir,
            num_train=NUM_TRAIN,
            num_test=NUM_TEST,
            num_unseen=NUM_UNSEEN,
            on_progress=lambda done, _: progress.update(done, written=done),
        )
    write_bytes(done, json.dumps({"num_scenes": total}).encode())
    return total


def _measured(emb_url: str, model: str) -> tuple[dict[str, Any], dict[str, Any], Swapped]:
    """Retrieval among the test pairs that training showed, among those it never did, and on swapped relations."""
    table = pa.concat_tables(EmbeddingSet.open(emb_url).tables(["image_embedding", "text_embedding", *FIELDS]))
    z_image, z_text, fits = pairs_of(table)
    unseen = np.array(table["unseen_pair"].to_pylist()) == "true"
    seen_r, unseen_r = (retrieval(z_image[m], z_text[m], fits=fits[m]) for m in (~unseen, unseen))
    captions = table["swapped"].to_pylist()
    rows = [i for i, caption in enumerate(captions) if caption is not None]
    z_swapped = load_encoder(model).encode_text([captions[i] for i in rows])
    right = (z_image[rows] * z_text[rows]).sum(1) > (z_image[rows] * z_swapped).sum(1)
    return seen_r, unseen_r, Swapped(float(right.mean()), len(rows))


def _answers(emb_url: str, index_url: str) -> list[Answer]:
    """Captions of the test set as questions, each hit with whether the question is true of it."""
    table = pa.concat_tables(EmbeddingSet.open(emb_url).tables(["key", "caption", "fits"]))
    scenes = {key: scene_of(key) for key in table["key"].to_pylist()}
    asked: dict[tuple[bool, int], tuple[int, str, str]] = {}
    for row in table.to_pylist():
        scene = scenes[row["key"]]
        kind = scene.unseen_pair, len(scene.things)
        asked[kind] = max(asked.get(kind, (0, "", "")), (int(row["fits"]), row["key"], row["caption"]))
    index = open_index(index_url)
    answers = []
    for kind in QUESTIONS:
        num_true, key, caption = asked[kind]
        hits = index.search(caption, k=HITS)
        true = [fits(scenes[key].claim, scenes[hit.key].things) for hit in hits]
        answers.append(Answer(caption, hits, [read_picture(index, hit) for hit in hits], true, num_true, len(scenes)))
    return answers


def _metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_bytes(join(run, "metrics.jsonl")).splitlines() if line.strip()]


def _next(dir: str, run: str, index: str, question: str) -> list[tuple[str, str]]:
    page, tars = join(dir, "hits.html"), join(dir, "test", "*.tar")
    return [
        (shlex.join(["mmstream", "search", index, question, "-k", "5", "--html", page]), "ask it yourself"),
        (shlex.join(["mmstream", "eval", f"run:{run}", tars]), "measure it again, from pixels to recall"),
        (shlex.join(["mmstream", "audit", join(dir, "emb"), "--source"]), "check every record, row and hash"),
        (f"mmstream embed 's3://your-bucket/*.tar' s3://your-bucket/emb --model {DEFAULT_SPEC}", "your own pairs"),
    ]


def _version(name: str) -> str:
    for package in (name, f"{name}-cpu", f"{name}-gpu"):
        try:
            return version(package)
        except ImportError:
            continue
    return "unknown"
