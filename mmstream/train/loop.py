"""The training loop of one rank: batches in, a trained model, checkpoints and metrics out. torch.distributed, no Ray.

Every rank gets the same number of batches with the same number of rows. One step is one batch of all ranks: the loss
sees all its rows as negatives, gradients are averaged by DistributedDataParallel, and after the step all ranks hold the
same weights. Rank 0 writes.

Legend: B rows of this rank, S pixels of a side, L tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmstream.errors import MmstreamError, UsageError
from mmstream.models.card import Preprocessing
from mmstream.models.dual import DualEncoder
from mmstream.train.checkpoint import Checkpoint, mark_finished, save_checkpoint
from mmstream.train.data import Batch
from mmstream.train.gather import check_equal_rows
from mmstream.train.log import MetricsLog
from mmstream.train.losses import info_nce
from mmstream.train.optim import Optim
from mmstream.train.recipe import Recipe

LOG_EVERY_STEPS = 10
CHECKPOINT_EVERY_STEPS = 500
_DIVERGED = "Lower optim.learning_rate or raise optim.warmup and start again in a new folder."


@dataclass(frozen=True)
class Loop:
    """What a run needs beside its batches. `total_steps` is where the schedule ends; `device` is this rank's.
    `preprocessing` scales the pixels; by default as `Preprocessing` does. `fed` gives the seconds by stage that the
    batches since it was last asked have cost; they go into the metrics."""

    recipe: Recipe
    run: str
    total_steps: int
    device: torch.device
    preprocessing: Preprocessing | None = None
    on_metrics: Callable[[dict[str, Any]], None] | None = None
    fed: Callable[[], dict[str, float]] = dict
    log_every: int = LOG_EVERY_STEPS
    checkpoint_every: int = CHECKPOINT_EVERY_STEPS


@dataclass(frozen=True)
class Trained:
    """The model on this rank's device, and how far it came; `step` and `samples` include what was resumed from."""

    model: DualEncoder
    step: int
    samples: int


def train_loop(loop: Loop, batches: Iterable[Batch], resumed: Checkpoint | None) -> Trained:
    """Trains on `batches`, which begin behind the step that was `resumed`, to their end, and publishes the last state.

    Raises:
        MmstreamError: the loss is not finite; the last checkpoint stays.
    """
    recipe = loop.recipe
    torch.manual_seed(recipe.seed)
    model = DualEncoder(recipe.model).to(loop.device)
    optim = Optim.of(model, recipe.optim, loop.total_steps)
    step = samples = 0
    if resumed:
        model.load_state_dict(resumed.model)
        optim.load_state(resumed.optim)
        step, samples = resumed.record.step, resumed.record.samples
    preprocessing = loop.preprocessing or Preprocessing(size=recipe.model.image.size)
    train_step = _Step(recipe, _distributed(model, loop.device), preprocessing, optim, loop.device)
    log = MetricsLog(loop.run, from_step=step) if _rank() == 0 else None
    meter = _Meter()
    last: tuple[Tensor, float] | None = None
    for batch in meter.timed(batches):
        last = loss, rate = train_step(batch, step)
        step, samples = step + 1, samples + len(batch) * _world_size()
        meter.add(len(batch) * _world_size())
        if step % loop.log_every == 0:
            _report(loop, log, meter, step, samples, loss, rate, model)
        if step % loop.checkpoint_every == 0 and log:
            with meter.writing():
                _save(loop, model, optim, step, samples)
                log.flush()
    if step == 0:
        raise UsageError(f"{loop.run}: no usable samples filled a single batch of {recipe.batch_size:,}; see rejects/.")
    if last is not None and step % loop.log_every:
        _report(loop, log, meter, step, samples, *last, model)
    if log:
        _save(loop, model, optim, step, samples)
        mark_finished(loop.run, recipe.epochs)
        log.close()
    return Trained(model, step, samples)


@dataclass(frozen=True)
class _Step:
    recipe: Recipe
    model: nn.Module
    preprocessing: Preprocessing
    optim: Optim
    device: torch.device

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, float]:
        """(loss of this rank's rows, learning rate)."""
        pixels_BSSC = torch.tensor(batch.pixels).to(self.device, non_blocking=True)
        tokens_BL = torch.tensor(batch.tokens).to(self.device, non_blocking=True)
        check_equal_rows(len(batch), self.device)
        dtype = getattr(torch, self.recipe.optim.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            image_BD, text_BD, scale = self.model(self.preprocessing.normalized(pixels_BSSC), tokens_BL)
        loss = info_nce(image_BD, text_BD, scale)
        loss.backward()
        rate = self.optim.step(step)
        _unwrapped(self.model).clamp_scale()
        return loss.detach(), rate


class _Meter:
    """Since the last reading: samples per second, the share of time in which this rank waited for data, and the seconds
    in all, of waiting, and of writing checkpoints."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited, self._written, self._samples = time.perf_counter(), 0.0, 0.0, 0

    def timed(self, batches: Iterable[Batch]) -> Iterable[Batch]:
        iterator = iter(batches)
        with suppress(StopIteration):
            first = next(iterator)
            self._reset()  # the time until the first batch is start-up, not waiting
            yield first
            while True:
                start = time.perf_counter()
                batch = next(iterator)
                self._waited += time.perf_counter() - start
                yield batch

    @contextmanager
    def writing(self) -> Generator[None]:
        start = time.perf_counter()
        yield
        self._written += time.perf_counter() - start

    def add(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {"samples_per_second": self._samples / seconds, "waited_for_data": self._waited / seconds}
        values |= {"seconds": seconds, "waited_seconds": self._waited, "write_seconds": self._written}
        self._reset()
        return values


def _report(
    loop: Loop,
    log: MetricsLog | None,
    meter: _Meter,
    step: int,
    samples: int,
    loss: Tensor,
    rate: float,
    model: DualEncoder,
) -> None:
    mean = loss.clone()
    if _world_size() > 1:
        dist.all_reduce(mean)
    value = mean.item() / _world_size()
    if not math.isfinite(value):
        raise MmstreamError(f"{loop.run}: the loss is {value} at step {step}. {_DIVERGED}")
    row = {"step": step, "samples": samples, "loss": value, "lr": rate, "logit_scale": model.log_scale.exp().item()}
    row |= meter.read() | {f"{stage}_seconds": spent for stage, spent in loop.fed().items()}
    if log:
        log.add(row)
        if loop.on_metrics:
            loop.on_metrics(row)


def _save(loop: Loop, model: DualEncoder, optim: Optim, step: int, samples: int) -> None:
    if not all(p.isfinite().all() for p in model.parameters()):
        raise MmstreamError(f"{loop.run}: weights are not finite at step {step}. {_DIVERGED}")
    save_checkpoint(
        loop.run,
        step=step,
        samples=samples,
        recipe=loop.recipe.identity(),
        model=model.state_dict(),
        optim=optim.state(),
    )


def _distributed(model: DualEncoder, device: torch.device) -> nn.Module:
    if _world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _unwrapped(model: nn.Module) -> DualEncoder:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, DualEncoder)
    return inner


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1
