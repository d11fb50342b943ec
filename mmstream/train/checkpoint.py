"""Checkpoints of a run: weights and optimizers as safetensors, one record last; a run goes on from the highest valid.

`RUN/checkpoints/<step>/`: `model.safetensors`, `optim.safetensors`, `record.json`. The record names both files with
their SHA-256 and is published by put-if-absent when they are there. A folder without a record, or whose files are not
what the record says, does not count. A record says how many steps were taken; the stream of batches is a function of
the recipe, so that is the position in it. `RUN/finished/<epochs>.json` says that so many epochs were done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from mmstream.errors import UsageError
from mmstream.schema import Record, StoredObject
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import exists, join, list_files, read_bytes, write_bytes

FORMAT = "mmstream-checkpoint/1"


class CheckpointRecord(Record):
    """`recipe` is the recipe's identity."""

    format: str = FORMAT
    step: int
    samples: int
    recipe: str
    files: dict[str, StoredObject]


@dataclass(frozen=True)
class Checkpoint:
    record: CheckpointRecord
    model: dict[str, Tensor]
    optim: dict[str, Tensor]


def folder(run: str, step: int) -> str:
    return join(run, "checkpoints", f"{step:08d}")


def save_checkpoint(
    run: str,
    *,
    step: int,
    samples: int,
    recipe: str,
    model: dict[str, Tensor],
    optim: dict[str, Tensor],
) -> None:
    """Publishes the state after `step` steps. To be called by one rank; nothing happens where it is published."""
    where = folder(run, step)
    if exists(join(where, "record.json")):
        return
    files = {}
    for name, tensors in (("model", model), ("optim", optim)):
        data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        path = f"{name}.safetensors"
        write_bytes(join(where, path), data)
        files[name] = StoredObject(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    record = CheckpointRecord(step=step, samples=samples, recipe=recipe, files=files)
    put_if_absent(join(where, "record.json"), record.to_bytes())


def mark_finished(run: str, epochs: int) -> None:
    """To be called by one rank when the last checkpoint is published."""
    put_if_absent(join(run, "finished", f"{epochs}.json"), b"{}\n")


def finished_epochs(run: str) -> int:
    """How many epochs the run has done to their end; 0 where none were."""
    names = [f.url.rsplit("/", 1)[1] for f in list_files(join(run, "finished"))]
    return max((int(n.removesuffix(".json")) for n in names if n.removesuffix(".json").isdecimal()), default=0)


def latest_record(run: str) -> CheckpointRecord | None:
    """The record of the highest checkpoint whose files are there with the right hashes; None where there is none."""
    found = _latest(run)
    return found[0] if found else None


def load_latest(run: str) -> Checkpoint | None:
    """The highest valid checkpoint of `run`, or None."""
    found = _latest(run)
    if found is None:
        return None
    record, data = found
    return Checkpoint(record, safetensors.torch.load(data["model"]), safetensors.torch.load(data["optim"]))


def _latest(run: str) -> tuple[CheckpointRecord, dict[str, bytes]] | None:
    records = [f.url for f in list_files(join(run, "checkpoints")) if f.url.endswith("/record.json")]
    for url in sorted(records, reverse=True):
        if found := _valid(url):
            return found
    return None


def _valid(url: str) -> tuple[CheckpointRecord, dict[str, bytes]] | None:
    try:
        record = CheckpointRecord.model_validate_json(read_bytes(url))
    except ValidationError as e:
        raise UsageError(f"{url}: not the record of a checkpoint ({' '.join(str(e).split())[:160]}).") from e
    where = url.rsplit("/", 1)[0]
    data = {}
    for name, file in record.files.items():
        path = join(where, file.path)
        data[name] = read_bytes(path) if exists(path) else b""
        if hashlib.sha256(data[name]).hexdigest() != file.sha256:
            return None
    return record, data
