"""Ray is started or joined, and each stage gets its share of the machine, checked before anything waits for it.

Ray waits in silence for resources that will never come, so every job states what it needs first. A local Ray gets
more logical CPUs than there are cores where there are fewer than four: read, encode and train stages must fit beside
each other on the smallest laptop.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayError, RayTaskError

from mmstream.errors import MmstreamError, UnreachableError, UsageError
from mmstream.telemetry import counted, say

LOGICAL_CPUS = 4
OBJECT_STORE_BYTES = 1 << 30
MAX_CPU_ENCODERS = 8
MAX_ON_A_GPU = 3


@dataclass(frozen=True)
class Shares:
    """How a streamed job is laid out: read tasks at once, encoder actors, and what each of them holds."""

    readers: int
    reader_cpus: float
    encoders: int
    encoder_cpus: float
    encoder_gpus: float
    encoder_threads: int

    @property
    def cpus(self) -> float:
        return self.readers * self.reader_cpus + self.encoders * self.encoder_cpus


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def start_ray() -> None:
    """Joins the cluster that RAY_ADDRESS names (a Ray job sets it), or starts a local Ray; quiet, and at most once.

    Raises:
        UnreachableError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        return
    _hush()
    address = os.environ.get("RAY_ADDRESS")
    if address:
        try:
            with _own_sigterm():
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RayError, RuntimeError) as e:
            raise UnreachableError(
                f"the Ray cluster at RAY_ADDRESS={address} does not answer ({str(e).splitlines()[0]}). "
                "Check the address and RAY_AUTH_MODE=token, or unset RAY_ADDRESS to run on this machine."
            ) from e
        return
    say("starting a local Ray (a few seconds) …")
    with _held_back_stderr(), _own_sigterm():
        ray.init(
            address="local",
            num_cpus=max(LOGICAL_CPUS, cores()),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _own_sigterm() -> Generator[None]:
    """Ray's own handler, which it sets as it starts, would end the process with 15 and a stack."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _held_back_stderr() -> Generator[None]:
    """What Ray's native code writes while it starts is shown only if the start fails."""
    with tempfile.TemporaryFile() as held:
        before = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(before, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _hush() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else healthy runs print lines about actor restarts
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Else Ray prints on stdout, among our JSON, that small actors are many.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
    warnings.filterwarnings("ignore", module=r"ray\.")
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def encode_shares(num_tasks: int, threads: int | None = None, *, with_gpus: bool = True) -> Shares:
    """The layout of a job on the Ray that was started, see `shares_of`; without `with_gpus` as if there were none.

    Raises:
        UsageError: the cluster is too small for one reader beside one encoder.
    """
    total = ray.cluster_resources()
    cpus = total.get("CPU", 0.0)
    physical = int(cpus) if os.environ.get("RAY_ADDRESS") else min(int(cpus), cores())
    return shares_of(
        num_tasks, threads, cpus=cpus, physical=physical, gpus=int(total.get("GPU", 0)) if with_gpus else 0
    )


def shares_of(num_tasks: int, threads: int | None, *, cpus: float, physical: int, gpus: int) -> Shares:
    """Encoders that share each GPU where there are GPUs, else encoders that fill the cores.

    A process decodes no faster with more threads than about five, since Python's lock is held between the native
    codecs: a GPU of many cores is fed by up to `MAX_ON_A_GPU` processes, each with the model in memory and at most an
    eighth of the device for its batches. No more encoders than tasks: an actor without work costs seconds of start.

    Args:
        threads: of each encoder, where that is settled: another number can change the last bit of a vector.
        cpus, physical: logical CPUs of Ray, and the cores behind them.

    Raises:
        UsageError: `cpus` are too few for one reader beside one encoder.
    """
    if gpus:
        readers = max(2, min(3 * gpus, int(cpus) // 2))
        each = max(1, min(MAX_ON_A_GPU, physical // (gpus * 5)))
        encoders = min(gpus * each, num_tasks)
        shares = Shares(readers, 0.5, encoders, 1.0, 1.0, encoder_threads=threads or 4)
    else:
        encoders = max(1, min(physical // (threads or 1), MAX_CPU_ENCODERS, num_tasks))
        readers = max(1, encoders // 4)
        shares = Shares(readers, 0.5, encoders, 1.0, 0.0, encoder_threads=threads or max(1, physical // encoders))
    while shares.cpus > cpus and shares.encoders > max(1, gpus):
        readers = shares.readers if gpus else 1
        shares = replace(shares, readers=readers, encoders=shares.encoders - 1)
    if gpus:  # as many for each: Ray fills one GPU before it takes the next, and would leave the last ones idle
        each = max(1, shares.encoders // gpus)
        shares = replace(shares, encoders=min(shares.encoders, each * gpus), encoder_gpus=1.0 / each)
    if shares.cpus > cpus:
        actors = f"{counted(shares.readers, 'reader')}, {counted(shares.encoders, 'encoder')}"
        raise UsageError(
            f"the job needs {shares.cpus:g} CPUs ({actors}) and Ray has {cpus:g}: it would wait for ever. Start "
            "Ray with more --num-cpus (they are logical)."
        )
    return shares


@contextmanager
def streaming_context() -> Generator[None]:
    """Settings under which datasets of whole chunks are made: Ray neither merges nor slices rows that are chunks.

    A dataset keeps a copy of the settings it was made under; those of the caller come back afterwards.
    """
    context = ray.data.DataContext.get_current()
    names = ("target_max_block_size", "enable_progress_bars", "print_on_execution_start", "enable_auto_log_stats")
    names += ("raise_original_map_exception",)  # else a worker's error arrives as a name and a text: `our_errors`
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.raise_original_map_exception = True
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


@contextmanager
def our_errors() -> Generator[None]:
    """An error that one of our functions raised in a Ray worker comes out as itself, not wrapped in Ray's."""
    try:
        yield
    except RayTaskError as e:
        cause: BaseException | None = e
        while cause is not None:
            if isinstance(cause, MmstreamError) and not isinstance(cause, RayTaskError):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise
