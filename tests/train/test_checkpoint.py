"""A run goes on from the highest checkpoint that is whole; what is torn or tampered with does not count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmstream.errors import UsageError
from mmstream.train.checkpoint import (
    Checkpoint,
    finished_epochs,
    folder,
    latest_record,
    load_latest,
    mark_finished,
    save_checkpoint,
)


def save(run: str, step: int) -> None:
    save_checkpoint(
        run,
        step=step,
        samples=step * 8,
        recipe="r",
        model={"w": torch.full((2, 3), float(step)), "n": torch.tensor(step)},
        optim={"0.1.exp_avg": torch.ones(2) * step},
    )


def loaded(run: str) -> Checkpoint:
    found = load_latest(run)
    assert found is not None and latest_record(run) == found.record
    return found


@pytest.fixture
def run(tmp_path: Path) -> str:
    for step in (5, 10):
        save(str(tmp_path), step)
    return str(tmp_path)


def test_the_highest_checkpoint_gives_back_all_tensors(run: str):
    found = load_latest(run)
    assert found and (found.record.step, found.record.samples) == (10, 80)
    assert torch.equal(found.model["w"], torch.full((2, 3), 10.0)) and found.model["n"].dtype == torch.int64
    assert found.optim["0.1.exp_avg"].tolist() == [10.0, 10.0]


def test_a_run_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path):
    assert load_latest(str(tmp_path)) is None and latest_record(str(tmp_path)) is None


def test_a_kill_before_the_record_leaves_the_checkpoint_before(run: str):
    Path(folder(run, 10), "record.json").unlink()
    assert loaded(run).record.step == 5


@pytest.mark.parametrize("name", ["model.safetensors", "optim.safetensors"])
def test_a_file_that_is_missing_or_changed_leaves_the_checkpoint_before(run: str, name: str):
    path = Path(folder(run, 10), name)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert loaded(run).record.step == 5
    path.unlink()
    assert loaded(run).record.step == 5


def test_what_is_published_is_never_written_over(run: str):
    before = Path(folder(run, 10), "model.safetensors").read_bytes()
    save_checkpoint(run, step=10, samples=0, recipe="other", model={"w": torch.zeros(1)}, optim={})
    assert Path(folder(run, 10), "model.safetensors").read_bytes() == before
    assert loaded(run).record.recipe == "r"


def test_a_broken_record_is_named(run: str):
    Path(folder(run, 10), "record.json").write_text("{}")
    with pytest.raises(UsageError, match=r"record\.json: not the record of a checkpoint"):
        latest_record(run)


def test_checkpoints_lie_in_object_stores_too(s3):
    run = s3.bucket("runs") + "/one"
    save(run, 3)
    mark_finished(run, 2)
    assert (loaded(run).record.step, finished_epochs(run)) == (3, 2)


def test_a_run_is_finished_when_it_says_so_whatever_checkpoint_its_last_step_had(run: str):
    assert finished_epochs(run) == 0
    for epochs in (2, 10, 2):
        mark_finished(run, epochs)
    assert finished_epochs(run) == 10
