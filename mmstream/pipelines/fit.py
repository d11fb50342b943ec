"""A recipe becomes a run: Ray Data feeds, Ray Train places the ranks, `train.loop` does the learning.

`RUN/`: `recipe.yaml`, `survey.json` and `tokenizer.json` (what the captions of the shards gave), `checkpoints/`,
`metrics.jsonl`, `tensorboard/`, `rejects/`, and at the end `card/` and `figures/`. The same command on the same RUN
goes on from the highest valid checkpoint; a finished run says so and does nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train as ray_train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data import ExecutionOptions
from ray.experimental import internal_kv
from ray.train.torch import TorchTrainer, get_device

from mmstream.errors import MmstreamError, RefusedError, UsageError
from mmstream.figures import loss_curve
from mmstream.media.statistics_file import StatisticsFile, read_statistics
from mmstream.media.text import Tokenizer
from mmstream.models.card import save_card
from mmstream.models.dual import DualEncoder
from mmstream.pipelines.contain import containment
from mmstream.pipelines.evaluate import evaluate
from mmstream.pipelines.feed import WORKER_CPUS, Feed, batch_dataset, feed_shares
from mmstream.pipelines.fit_report import TrainReport, leftover_of, rejects_of, report_of, seconds_by_stage
from mmstream.pipelines.frozen import limited
from mmstream.pipelines.resources import cores, our_errors, start_ray, streaming_context
from mmstream.pipelines.survey import Survey, surveyed
from mmstream.shards.catalog import build_catalog
from mmstream.storage.commit import put_if_absent
from mmstream.storage.files import absolute, exists, is_local, join, open_fs, read_bytes, write_bytes
from mmstream.telemetry import Progress
from mmstream.timing import diagnosed
from mmstream.train.checkpoint import CheckpointRecord, finished_epochs, latest_record, load_latest
from mmstream.train.data import preprocessing_of
from mmstream.train.log import read_metrics
from mmstream.train.loop import Loop, train_loop
from mmstream.train.recipe import Recipe

POLL_SECONDS = 0.5
_STATISTICS = "statistics.json"
_GO_ON = "Run the same command again: it goes on from the last checkpoint."


def train(
    recipe: str,
    *,
    out: str,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    evaluated: bool = True,
    **keys: Any,
) -> TrainReport:
    """Trains the recipe into the run at `out`, or goes on with it.

    Args:
        recipe: path or URL of a YAML recipe.
        out: a folder or URL.
        overrides: `key=value` with dots, see `config.Config.from_yaml`.
        limit: train on at most this many samples, from the first shards on.
        evaluated: measure retrieval on the recipe's `data.eval` at the end, where it is given.
        keys: more overrides, as in `epochs=3` or `**{"optim.learning_rate": 1e-3}`.

    Raises:
        UsageError: a wrong recipe, missing shards, or too few samples for one batch.
        RefusedError: `out` holds a run of another recipe or of other shards.
        UnreachableError: a store does not answer.
    """
    run = absolute(out)
    overrides = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in keys.items())]
    wanted = Recipe.from_yaml(read_bytes(absolute(recipe)).decode(), overrides, where=recipe)
    catalog = limited(build_catalog(wanted.data.train), limit)
    statistics = _statistics(run, wanted)
    _claim(run, wanted)
    if statistics:
        put_if_absent(join(run, _STATISTICS), statistics.to_bytes())
    before = latest_record(run)
    if before and finished_epochs(run) >= wanted.epochs:
        if exists(join(run, "card", "config.json")):
            return report_of(run, wanted, before, Survey.read(run), already=True)
        # It was killed between the last step and the card.
        return _completed(run, wanted, Survey.read(run), statistics, evaluated, before)
    start_ray()
    with our_errors():
        survey = surveyed(run, catalog, wanted)
        steps = survey.num_samples * wanted.epochs // wanted.batch_size
        if not steps:
            raise UsageError(
                f"{wanted.data.train}: {survey.num_samples:,} usable samples x {wanted.epochs} epochs do not fill one "
                f"batch of {wanted.batch_size:,}. Give more shards or a smaller batch_size."
            )
        _fit(run, wanted, catalog, survey, statistics, steps, before)
    return _completed(run, wanted, survey, statistics, evaluated, before)


def _statistics(run: str, recipe: Recipe) -> StatisticsFile | None:
    """What the recipe names, as it was when the run was begun, of which a copy is kept there.

    Raises:
        UsageError: no such file, or it has no pictures.
    """
    if recipe.data.statistics is None:
        return None
    url = join(run, _STATISTICS)
    found = read_statistics(url if exists(url) else absolute(recipe.data.statistics))
    preprocessing_of(recipe, found)
    return found


def _completed(
    run: str,
    recipe: Recipe,
    survey: Survey,
    statistics: StatisticsFile | None,
    evaluated: bool,
    before: CheckpointRecord | None,
) -> TrainReport:
    """What is left to do when the last checkpoint is there: card, figures, and retrieval where the recipe asks."""
    record = latest_record(run)
    if record is None or finished_epochs(run) < recipe.epochs:
        raise MmstreamError(f"{run}: the ranks ended without a last checkpoint. {_GO_ON}")
    if (leftover := leftover_of(recipe, record, survey, rejects_of(run))) >= recipe.batch_size:
        raise MmstreamError(
            f"{run}: {leftover:,} usable samples never reached a step, more than the last batch lacks. No card is "
            "made of such a run; please report this with its folder."
        )
    _publish(run, recipe, survey.tokenizer, statistics)
    retrieval = None
    if recipe.data.eval and evaluated:
        retrieval = evaluate(f"run:{run}", recipe.data.eval).retrieval
    return report_of(run, recipe, record, survey, retrieval=retrieval, from_step=before.step if before else 0)


def _claim(run: str, recipe: Recipe) -> None:
    """Makes `run` the run of this recipe.

    Raises:
        RefusedError: it is the run of another one.
    """
    url = join(run, "recipe.yaml")
    if not exists(url):
        put_if_absent(url, recipe.to_yaml().encode())
    stored = Recipe.from_yaml(read_bytes(url).decode(), where=url)
    if difference := stored.first_difference(recipe):
        key, before, now = difference
        raise RefusedError(
            f"{run}: {key} differs: this run was begun with {before!r} and is asked for with {now!r}. Only workers "
            "and epochs may change; give --out another folder."
        )
    if stored != recipe:
        write_bytes(url, recipe.to_yaml().encode())


def _fit(
    run: str,
    recipe: Recipe,
    catalog: pa.Table,
    survey: Survey,
    statistics: StatisticsFile | None,
    total_steps: int,
    before: CheckpointRecord | None,
) -> None:
    done = before.step if before else 0
    shares = feed_shares(recipe.workers)
    gpus = ray.cluster_resources().get("GPU", 0) >= recipe.workers
    name = f"{recipe.identity()[:12]}-{secrets.token_hex(6)}"  # an old name would silently go on with Ray's old run
    with (
        streaming_context(),
        containment() as contained,
        _storage(run) as storage,
        _watched(name, recipe, total_steps),
    ):
        batches = batch_dataset(catalog, recipe, survey.tokenizer, run, shares, contained, skip_batches=done)
        # Any, since ray.train chooses between the classes of its two interfaces at run time.
        scaling: Any = ray_train.ScalingConfig(
            num_workers=recipe.workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": WORKER_CPUS, **({"GPU": 1} if gpus else {})},
        )
        failures: Any = ray_train.FailureConfig(max_failures=0)
        config: Any = ray_train.RunConfig(name=name, failure_config=failures, **storage)
        trainer = TorchTrainer(
            _rank,
            train_loop_config={
                "recipe": recipe,
                "run": run,
                "total_steps": total_steps,
                "preprocessing": preprocessing_of(recipe, statistics),
                "name": name,
                "decoders": shares.encoders,
            },
            scaling_config=scaling,
            run_config=config,
            datasets={"train": batches},
            dataset_config=ray_train.DataConfig(
                execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
            ),
        )
        try:
            trainer.fit()
        except ray_train.WorkerGroupError as e:
            raise first_of_ours(e.worker_failures.values()) or e from None


def _rank(settings: dict[str, Any]) -> None:
    """What Ray Train runs on each rank."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, cores() // settings["recipe"].workers))
    recipe, run, key = settings["recipe"], settings["run"], settings["name"].encode()

    rows: list[dict[str, Any]] = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        found = diagnosed(seconds_by_stage(rows))
        said = {**row, "most": found.most if found else None}
        internal_kv._internal_kv_put(key, json.dumps(said).encode(), overwrite=True)

    checkpoint = load_latest(run)
    parts = ray_train.get_dataset_shard("train").iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=2
    )
    first = checkpoint.record.step + 1 if checkpoint else 1
    feed = Feed(parts, first, settings["decoders"], otherwise=_GO_ON)
    device, preprocessing = get_device(), settings["preprocessing"]
    loop = Loop(recipe, run, settings["total_steps"], device, preprocessing, on_metrics=told, fed=feed.spent)
    train_loop(loop, feed, checkpoint)


def first_of_ours(failures: Iterable[BaseException]) -> MmstreamError | None:
    """The error of mmstream among what ranks failed with, however often Ray wrapped it."""
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, MmstreamError):
                return cause
            cause = getattr(cause, "cause", None) or getattr(cause, "_base_exc", None) or cause.__cause__
    return None


@contextmanager
def _watched(name: str, recipe: Recipe, total_steps: int) -> Generator[None]:
    """Shows on the driver what rank 0 tells, while the ranks work."""
    over = threading.Event()

    def show(progress: Progress) -> None:
        while not over.wait(POLL_SECONDS):
            told = internal_kv._internal_kv_get(name.encode())
            if told:
                row = json.loads(told)
                waits = f"{100 * row['waited_for_data']:.0f} %" + (f", most: {row['most']}" if row["most"] else "")
                progress.update(row["step"], loss=row["loss"], samples=row["samples"], waited_for_data=waits)

    with Progress("train", total_steps, "steps", rate_of="samples") as progress:
        watcher = threading.Thread(target=show, args=(progress,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            internal_kv._internal_kv_del(name.encode())


@contextmanager
def _storage(run: str) -> Generator[dict[str, Any]]:
    """Where Ray Train keeps its own state: nothing of ours is in it. On a cluster all nodes must see the place."""
    if not os.environ.get("RAY_ADDRESS"):
        with tempfile.TemporaryDirectory(prefix="mmstream-train-") as folder:
            yield {"storage_path": folder}
    elif is_local(run):
        yield {"storage_path": join(run, "ray")}
    else:
        fs, path = open_fs(join(run, "ray"))
        yield {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _publish(run: str, recipe: Recipe, tokenizer: Tokenizer, statistics: StatisticsFile | None) -> None:
    """Card and figures, from the last checkpoint."""
    checkpoint = load_latest(run)
    assert checkpoint is not None
    model = DualEncoder(recipe.model)
    model.load_state_dict(checkpoint.model)
    if statistics:
        write_bytes(join(run, "card", _STATISTICS), statistics.to_bytes())
    save_card(join(run, "card"), model, preprocessing_of(recipe, statistics), tokenizer)
    rows = read_metrics(run)
    if len(rows) > 1:
        step, loss, rate = (np.array([row[k] for row in rows]) for k in ("step", "loss", "samples_per_second"))
        figure = loss_curve(step, loss, beside=("samples per second", rate), chance=float(np.log(recipe.batch_size)))
        write_bytes(join(run, "figures", "loss.png"), figure)
