"""The loop learns, writes what it did, and goes on where it stopped; ranks end with the same weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks

from mmstream.errors import MmstreamError, UsageError
from mmstream.train.checkpoint import finished_epochs, load_latest
from mmstream.train.data import Batch
from mmstream.train.loop import Loop, train_loop
from mmstream.train.recipe import Recipe

RECIPE = """
data: {train: x}
batch_size: 24
epochs: 4
model:
  dimension: 16
  image: {size: 32, widths: [16, 16, 16], hidden: 16}
  text: {length: 4, vocab_size: 300, width: 16, layers: 1, heads: 2}
optim: {precision: float32}
"""
NUM_STEPS = 24


def recipe(*overrides: str) -> Recipe:
    return Recipe.from_yaml(RECIPE, overrides)


def batches(rank: int = 0, world_size: int = 1, start: int = 0) -> Iterator[Batch]:
    """Pictures of one colour each, whose caption is that colour."""
    rows = 24 // world_size
    for step in range(start, NUM_STEPS):
        ids = np.random.default_rng(step).permutation(24)[rank * rows : (rank + 1) * rows]
        pixels = np.zeros((rows, 32, 32, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = (ids * 10)[:, None, None], (255 - ids * 10)[:, None, None]
        yield Batch(pixels, np.stack([np.full(rows, 1), ids + 270, ids + 270, np.zeros(rows, int)], 1), ids)


def loop(run: Path, *overrides: str, **settings) -> Loop:
    return Loop(recipe(*overrides), str(run), NUM_STEPS, torch.device("cpu"), log_every=2, **settings)


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_from_chance_and_every_row_of_metrics_says_how_far_it_is(tmp_path: Path):
    told: list[dict] = []
    trained = train_loop(loop(tmp_path, on_metrics=told.append), batches(), None)
    rows = metrics(tmp_path)
    assert (trained.step, trained.samples) == (NUM_STEPS, NUM_STEPS * 24)
    assert [row["step"] for row in rows] == list(range(2, 26, 2)) and told == rows
    times = {"seconds", "waited_seconds", "write_seconds"}
    rates = {"samples_per_second", "waited_for_data"}
    assert set(rows[0]) == {"step", "samples", "loss", "lr", "logit_scale", *rates, *times}
    assert rows[0]["loss"] > 0.8 * math.log(24) and rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert all(0 <= row["waited_for_data"] <= 1 for row in rows)


def test_the_last_checkpoint_holds_the_trained_model_and_says_that_all_epochs_are_done(tmp_path: Path):
    trained = train_loop(loop(tmp_path), batches(), None)
    found = load_latest(str(tmp_path))
    assert found and found.record.step == NUM_STEPS
    assert found.record.recipe == recipe().identity()
    assert finished_epochs(str(tmp_path)) == recipe().epochs
    assert all(torch.equal(found.model[name], value) for name, value in trained.model.state_dict().items())


def test_a_run_that_was_stopped_and_goes_on_has_the_weights_of_one_that_was_not(tmp_path: Path):
    whole = train_loop(loop(tmp_path / "whole"), batches(), None).model.state_dict()

    def killed() -> Iterator[Batch]:
        for step, batch in enumerate(batches()):
            if step == 7:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        train_loop(loop(tmp_path / "cut", checkpoint_every=5), killed(), None)
    resumed = load_latest(str(tmp_path / "cut"))
    assert resumed and resumed.record.step == 5
    again = train_loop(loop(tmp_path / "cut"), batches(start=5), resumed)
    assert again.step == NUM_STEPS
    assert all(torch.equal(whole[name], value) for name, value in again.model.state_dict().items())
    assert [row["step"] for row in metrics(tmp_path / "cut")] == list(range(2, 26, 2))


def test_a_run_whose_last_step_had_a_checkpoint_anyway_is_finished_all_the_same(tmp_path: Path):
    train_loop(loop(tmp_path, checkpoint_every=NUM_STEPS), batches(), None)
    assert finished_epochs(str(tmp_path)) == recipe().epochs


def test_the_last_step_is_in_the_metrics_however_few_there_were(tmp_path: Path):
    few = Loop(recipe(), str(tmp_path), NUM_STEPS, torch.device("cpu"), log_every=1000)
    train_loop(few, batches(), None)
    assert [row["step"] for row in metrics(tmp_path)] == [NUM_STEPS]


def test_a_run_without_a_single_batch_is_an_error_and_no_model(tmp_path: Path):
    with pytest.raises(UsageError, match="no usable samples filled a single batch"):
        train_loop(loop(tmp_path), iter(()), None)
    assert load_latest(str(tmp_path)) is None


def test_weights_that_are_not_finite_are_never_published(tmp_path: Path):
    wild = Loop(recipe("optim.learning_rate=1e38"), str(tmp_path), NUM_STEPS, torch.device("cpu"), log_every=1000)
    with pytest.raises(MmstreamError, match=r"not finite|the loss is"):
        train_loop(wild, batches(), None)
    assert load_latest(str(tmp_path)) is None


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path: Path):
    with pytest.raises(MmstreamError, match=r"the loss is .* at step .*Lower optim\.learning_rate"):
        train_loop(loop(tmp_path, "optim.learning_rate=1e30", "optim.matrix_learning_rate=null"), batches(), None)


def on_a_rank(rank: int, run: str) -> tuple[dict, int]:
    world_size = dist.get_world_size()
    trained = train_loop(loop(Path(run)), batches(rank, world_size), None)
    return {name: value.numpy() for name, value in trained.model.state_dict().items()}, trained.samples


def test_ranks_end_with_the_same_weights_and_learn_what_a_single_process_learns(tmp_path: Path):
    train_loop(loop(tmp_path / "one"), batches(), None)
    (tmp_path / "two").mkdir()
    (first, samples), (second, _) = run_on_ranks(on_a_rank, 2, str(tmp_path), str(tmp_path / "two"))
    assert samples == NUM_STEPS * 24
    assert all((first[name] == second[name]).all() for name in first)
    one, two = ([row["loss"] for row in metrics(tmp_path / run)] for run in ("one", "two"))
    # Only near: Muon multiplies the last bits of a gradient of low rank.
    assert one[0] == pytest.approx(two[0], abs=1e-3) and max(one[-1], two[-1]) < 0.7 * one[0]
