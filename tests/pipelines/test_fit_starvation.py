"""Each stage of training is made slow in turn, and named: the real stages of the feed and the real loop, in one
process. How a run says it is tested where runs are."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from tars import make_tar

from mmstream.bench.pictures import jpegs
from mmstream.media.decoding import Decoder, Direct
from mmstream.media.text import train_tokenizer
from mmstream.pipelines import feed, source
from mmstream.pipelines.feed import Feed, _Cut, _Decode
from mmstream.pipelines.fit_report import ADVICE, seconds_by_stage
from mmstream.storage import ranges
from mmstream.timing import diagnosed
from mmstream.train import data, loop
from mmstream.train.recipe import Recipe

CHUNK_ROWS, NUM_CHUNKS, SLEEP = 8, 8, 0.1
MODEL = {
    "dimension": 16,
    "image": {"size": 32, "widths": [16, 16, 16], "hidden": 16},
    "text": {"length": 8, "vocab_size": 300, "width": 16, "layers": 1, "heads": 2},
}


class Uncontained:
    """In the place of `Containment`, which keeps its marks in Ray."""

    @contextmanager
    def chunk(self, info: source.ChunkInfo) -> Generator[Decoder]:
        yield Direct()


def after_a_sleep(function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(SLEEP)
        return function(*arguments, **named)

    return slow


# Where each stage is slowed down, for each chunk or step.
FAULTS: dict[str, tuple[Any, str]] = {
    "store": (ranges._Source, "fetch"),
    "decode": (data.Prepare, "__call__"),
    "transfer": (feed, "part_of"),  # of the ranks and of the cutter: all that is done with batches on their way
    "model": (loop, "info_nce"),
    "write": (loop, "save_checkpoint"),
}


def ran(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run of one rank."""
    pictures = jpegs(NUM_CHUNKS * CHUNK_ROWS, 48)
    files = [(f"{i:02}.{s}", d) for i, p in enumerate(pictures) for s, d in (("jpg", p), ("txt", b"a picture"))]
    tar = make_tar(files)
    (folder / "a.tar").write_bytes(tar)
    values = {
        "data": {"train": "a.tar", "shuffle_rows": 1},
        "epochs": 1,
        "workers": 1,
        "batch_size": CHUNK_ROWS,
        "model": MODEL,
    }
    recipe = Recipe.checked(values)
    decode = _Decode(recipe, train_tokenizer(["a picture"], 300).to_json(), str(folder), Uncontained())  # ty: ignore[invalid-argument-type]
    cut = _Cut(recipe, [0], skip_batches=0)

    def parts() -> Iterator[pa.Table]:
        for row in source.read_rows(source.ShardTask(0, str(folder / "a.tar"), len(tar), "")):
            yield from cut(decode(row))

    rows: list[dict[str, Any]] = []
    fed = Feed(parts(), 1, 1)
    learning = loop.Loop(
        recipe, str(folder / "run"), 8, torch.device("cpu"), on_metrics=rows.append, log_every=2, checkpoint_every=1,
        fed=fed.spent,
    )  # fmt: skip
    loop.train_loop(learning, fed, None)
    assert rows[-1]["step"] == NUM_CHUNKS
    assert rows == [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return rows


@pytest.mark.parametrize("stage", list(ADVICE))
def test_the_stage_of_training_that_is_slow_is_named(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmstream.timing.MIN_SECONDS", 0.1)
    monkeypatch.setattr(source, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(ranges, "LOCAL_BLOCK_BYTES", 16 << 10)
    if stage == "tar":
        read = source.read_chunks

        def slowly(*arguments: Any, **named: Any) -> Iterator[Any]:
            for chunk in read(*arguments, **named):
                time.sleep(SLEEP)
                yield chunk

        monkeypatch.setattr(source, "read_chunks", slowly)
    else:
        place, name = FAULTS[stage]
        monkeypatch.setattr(place, name, after_a_sleep(getattr(place, name)))
    found = diagnosed(seconds_by_stage(ran(tmp_path)))
    assert found is not None
    assert found.stage == stage
    assert found.waited < 0.5 if stage == "model" else found.waited > 0.5


def test_the_work_of_the_feed_accounts_for_no_more_than_was_waited() -> None:
    row = {"seconds": 10.0, "waited_seconds": 4.0, "write_seconds": 1.0}
    fed = {"store_seconds": 6.0, "tar_seconds": 0.0, "decode_seconds": 2.0}
    expected = {"store": 3.0, "tar": 0.0, "decode": 1.0, "transfer": 0.0, "model": 5.0, "write": 1.0}
    assert seconds_by_stage([{**row, **fed}]) == pytest.approx(expected)
    assert seconds_by_stage([row, {"step": 20}])["transfer"] == 4.0
    assert diagnosed(seconds_by_stage([])) is None
