"""A recipe becomes a run: every rank gets its part of every batch, bad samples are counted, the same RUN goes on."""

from __future__ import annotations

import io
import json
import shutil
from importlib.resources import files
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

import mmstream as mm
from mmstream.encoders.build import load_encoder
from mmstream.errors import MmstreamError, RefusedError, Rejected, UsageError
from mmstream.media.statistics_file import read_statistics
from mmstream.media.text import train_tokenizer
from mmstream.pipelines.contain import containment
from mmstream.pipelines.feed import _Cut, _Decode, _shuffled, batch_dataset, feed_shares, part_of, to_part
from mmstream.pipelines.fit import first_of_ours, train
from mmstream.pipelines.resources import streaming_context
from mmstream.pipelines.source import read_rows
from mmstream.shards.catalog import build_catalog
from mmstream.shards.writer import write_shard
from mmstream.train.data import Batch
from mmstream.train.recipe import Recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
NUM_GOOD, NUM_BAD = 90, 3


def picture(colour: tuple[int, int, int], row: int) -> bytes:
    out = io.BytesIO()
    pixels = np.full((32, 32, 3), colour, np.uint8)
    pixels[row % 32] = 128
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """93 samples in three shards, three of them broken."""
    folder = tmp_path_factory.mktemp("data")
    names = list(COLOURS)
    samples = [
        {"__key__": f"{n:03d}", "png": picture(COLOURS[names[n % 4]], n), "txt": f"a {names[n % 4]} picture number {n}"}
        for n in range(NUM_GOOD + NUM_BAD)
    ]
    samples[10]["png"] = b"no picture"
    samples[40]["txt"] = " "
    del samples[70]["png"]
    for shard in range(3):
        write_shard(str(folder / f"{shard}.tar"), samples[shard * 31 : (shard + 1) * 31])
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, data: Path) -> str:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    model = {
        "dimension": 16,
        "image": {"size": 32, "widths": [16, 16, 16], "hidden": 16},
        "text": {"length": 8, "vocab_size": 400, "width": 16, "layers": 1, "heads": 2},
    }
    values = {"data": {"train": str(data), "shuffle_rows": 32}, "epochs": 3, "batch_size": 24, "model": model}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def streamed(recipe: str, run: Path, *overrides: str, skip_batches: int = 0) -> list[list[Batch]]:
    """The dataset that feeds the ranks, without them: for each batch its parts."""
    wanted = Recipe.from_yaml(Path(recipe).read_text(), overrides)
    tokenizer = train_tokenizer(["a red picture"], 400)
    with streaming_context(), containment() as contained:
        dataset = batch_dataset(
            build_catalog(wanted.data.train),
            wanted,
            tokenizer,
            str(run),
            feed_shares(wanted.workers),
            contained,
            skip_batches=skip_batches,
        )
        dataset.context.execution_options.preserve_order = True
        rows = [part_of(table) for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow")]
    return [rows[n : n + wanted.workers] for n in range(0, len(rows), wanted.workers)]


def test_a_batch_as_a_row_of_arrow_reads_back_equal():
    batch = Batch(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.eye(2, 5, dtype=np.int32), np.array([7, 9]))
    again = part_of(to_part(batch, epoch=1))
    assert all((getattr(again, n) == getattr(batch, n)).all() for n in ("pixels", "tokens", "ids"))
    assert again.pixels.dtype == np.uint8 and again.tokens.dtype == np.int32


def test_the_first_error_of_ours_is_found_however_deep_it_is_wrapped():
    ours = UsageError("the reason")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ValueError("middle")
    wrapped.__cause__.__cause__ = ours
    assert first_of_ours([ValueError("other"), wrapped]) is ours
    assert first_of_ours([ValueError("other"), Rejected("caption", "x")]) is None  # ty: ignore[invalid-argument-type]


@pytest.mark.usefixtures("ray_local")
def test_batches_do_not_depend_on_the_order_in_which_chunks_arrive(recipe: str, data: Path, tmp_path: Path):
    wanted = Recipe.from_yaml(Path(recipe).read_text())
    catalog = build_catalog(str(data))
    tasks = [task for epoch in range(wanted.epochs) for task in _shuffled(catalog, wanted.seed, epoch)]
    with containment() as contained:
        decode = _Decode(wanted, train_tokenizer(["a red picture"], 400).to_json(), str(tmp_path), contained)
        chunks = [decode(row) for task in tasks for row in read_rows(task)]

    def cut(chunks: list[pa.Table]) -> list[tuple[int, list[int]]]:
        stage = _Cut(wanted, [0, 1, 2], skip_batches=0)
        parts = [part for chunk in chunks for part in stage(chunk)]
        return [(part["number"][0].as_py(), part_of(part).ids.tolist()) for part in parts]

    expected = cut(chunks)
    assert len(expected) == NUM_GOOD * 3 // 24 * 2
    for seed in range(5):
        assert cut(Random(seed).sample(chunks, len(chunks))) == expected


@pytest.mark.usefixtures("ray_local")
def test_every_good_sample_reaches_the_ranks_once_an_epoch_and_every_part_has_the_same_rows(
    recipe: str, tmp_path: Path
):
    batches = streamed(recipe, tmp_path)
    assert len(batches) == NUM_GOOD * 3 // 24
    assert all(len(part) == 12 for batch in batches for part in batch)
    used = np.unique(np.concatenate([part.ids for batch in batches for part in batch]), return_counts=True)[1]
    assert len(used) == NUM_GOOD and used.max() == 3 and 3 * NUM_GOOD - used.sum() == NUM_GOOD * 3 % 24


@pytest.mark.usefixtures("ray_local")
def test_batches_are_the_same_for_another_number_of_workers_and_for_a_run_that_goes_on(recipe: str, tmp_path: Path):
    def ids(batches: list[list[Batch]]) -> list[list[int]]:
        return [np.concatenate([part.ids for part in batch]).tolist() for batch in batches]

    whole = ids(streamed(recipe, tmp_path))
    assert ids(streamed(recipe, tmp_path, "workers=3", skip_batches=4)) == whole[4:]


def test_shards_that_are_not_there_leave_no_run_behind(recipe: str, tmp_path: Path):
    with pytest.raises(UsageError, match="nothing is there"):
        train(recipe, out=str(tmp_path / "run"), overrides=["data.train=/nowhere/0.tar"])
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_local")
def test_a_run_has_its_card_checkpoint_recipe_metrics_rejects_and_refuses_what_is_not_its_own(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    monkeypatch.setattr("mmstream.timing.MIN_SECONDS", 1e-6)
    report = train(recipe, out=str(run))
    assert report.waited_for and report.advice and 0 <= (report.workers_waited or 0) <= 1
    assert ("would help", report.advice) in report.lines()
    assert (report.steps, report.samples, report.leftover) == (11, 264, 270 - 264)
    assert report.rejects == {"missing_member": 2, "not_image": 1} and report.retrieval is None
    assert {"run", "card", "steps", "samples", "rejects", "next"} <= set(
        report.to_json()
    ) and "retrieval" not in report.to_json()
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml",
        "card",
        "checkpoints",
        "metrics.jsonl",
        "rejects",
        "tensorboard",
    }
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [10, 11]
    encoder = load_encoder(f"run:{run}")
    assert encoder.encode_text(["a red picture"]).shape == (1, 16)

    again = train(recipe, out=str(run))
    assert again.already_finished and (again.steps, again.rejects) == (11, report.rejects)
    assert again.waited_for is None
    shutil.rmtree(run / "card")  # as a kill between the last step and the card leaves it
    mended = train(recipe, out=str(run))
    assert not mended.already_finished and load_encoder(f"run:{run}").fingerprint
    assert mended.waited_for is None  # it trained nothing
    with pytest.raises(RefusedError, match=r"run: optim\.warmup differs: this run was begun with 0\.04 and .* 0\.5"):
        train(recipe, out=str(run), overrides=["optim.warmup=0.5"])
    with pytest.raises(RefusedError, match=r"the shards of .* are not those that this run was begun with"):
        train(recipe, out=str(run), overrides=["epochs=4"], limit=60)


@pytest.mark.usefixtures("ray_local")
def test_a_run_keeps_the_statistics_that_it_was_begun_with(recipe: str, data: Path, tmp_path: Path):
    where = tmp_path / "statistics.json"
    report = mm.stats(str(data), str(where), of=["image"])
    overrides = ["epochs=1", f"data.statistics={where}", "data.augment.image.flip=0.5", "data.augment.text.drop=0.2"]
    for wrong in ("data.statistics=/nowhere.json", f"data.statistics={data}/0.tar"):
        with pytest.raises(UsageError, match=wrong.split("=")[1]):
            train(recipe, out=str(tmp_path / "run"), overrides=[*overrides, wrong])
    assert not (tmp_path / "run").exists()
    train(recipe, out=str(tmp_path / "run"), overrides=overrides)
    kept = where.read_bytes()
    where.unlink()
    run = tmp_path / "run"
    assert (run / "statistics.json").read_bytes() == (run / "card/statistics.json").read_bytes() == kept
    red = read_statistics(str(run / "statistics.json")).kind("image", "").select(["red"])[0]
    stored = json.loads((run / "card/config.json").read_text())["preprocessing"]
    assert report.used == NUM_GOOD + 1 and stored["mean"][0] == pytest.approx(red.mean / 255)
    assert stored["std"][0] == pytest.approx(red.std / 255)
    shutil.rmtree(run / "card")  # as a kill before the card leaves it
    train(recipe, out=str(run), overrides=overrides)
    assert json.loads((run / "card/config.json").read_text())["preprocessing"] == stored


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_finished_run_goes_on_when_it_is_given_more_epochs(recipe: str, tmp_path: Path):
    train(recipe, out=str(tmp_path), overrides=["epochs=2"])
    first = load_encoder(f"run:{tmp_path}").fingerprint
    longer = train(recipe, out=str(tmp_path), overrides=["epochs=4", "workers=3"])
    assert (longer.steps, longer.samples) == (15, 360) and not longer.already_finished
    assert load_encoder(f"run:{tmp_path}").fingerprint != first


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["batch_size=1024", "epochs=2"], "usable samples x 2 epochs do not fill one batch of 1,024"),
        (["workers=24"], "24 workers and what feeds them need .* CPUs and Ray has"),
        (["data.train=/nowhere/*.tar"], "/nowhere"),
        (["epoch=3"], "unknown key 'epoch'; the nearest valid key is 'epochs'"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(recipe: str, tmp_path: Path, overrides: list[str], said: str):
    with pytest.raises(UsageError, match=said):
        train(recipe, out=str(tmp_path), overrides=overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_an_error_of_ours_on_a_rank_comes_out_as_itself(recipe: str, tmp_path: Path):
    overrides = ["optim.learning_rate=1e30", "optim.matrix_learning_rate=null", "epochs=4"]
    with pytest.raises(MmstreamError, match=r"the loss is .* at step"):
        train(recipe, out=str(tmp_path), overrides=overrides)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_the_recipe_of_the_demo_reaches_its_numbers(tmp_path: Path):
    from mmstream.demo.scene_shards import write_scenes

    write_scenes(str(tmp_path))
    data = [f"data.train={tmp_path}/train", f"data.eval={tmp_path}/test"]
    report = train(str(files("mmstream.demo") / "recipes" / "scenes.yaml"), out=str(tmp_path / "run"), overrides=data)
    assert report.retrieval is not None
    scores = report.retrieval["text_to_image"]
    assert scores["r@1"] >= 0.8 * report.retrieval["ceiling"] and scores["r@10"] >= 0.98
