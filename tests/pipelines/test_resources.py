"""Who gets what share of the machine."""

from __future__ import annotations

import pyarrow as pa
import pytest
import ray
from ray.data import ActorPoolStrategy, DataContext

from mmstream.errors import UnreachableError, UsageError
from mmstream.pipelines.resources import our_errors, shares_of, streaming_context


@pytest.mark.parametrize(
    ("cpus", "gpus", "tasks", "encoders", "encoder_gpus"),
    [
        (4, 1, 100, 1, 1.0),
        (16, 1, 100, 3, 1 / 3),
        (16, 1, 2, 2, 1 / 2),  # no more than there is to do
        (128, 8, 8, 8, 1.0),  # and no GPU without one, while there is another with two
        (128, 8, 10, 8, 1.0),
        (128, 8, 20, 16, 1 / 2),
        (32, 2, 2, 2, 1.0),
        (64, 8, 1000, 8, 1.0),
        (128, 8, 1000, 24, 1 / 3),
    ],
)
def test_gpus_of_many_cores_are_fed_by_several_encoders(
    cpus: int, gpus: int, tasks: int, encoders: int, encoder_gpus: float
) -> None:
    shares = shares_of(tasks, None, cpus=cpus, physical=cpus, gpus=gpus)
    assert (shares.encoders, shares.encoder_gpus) == (encoders, pytest.approx(encoder_gpus))
    assert shares.encoders * shares.encoder_gpus <= gpus + 1e-9
    assert shares.cpus <= cpus


def test_a_cpu_is_filled_and_a_cluster_that_is_too_small_is_refused() -> None:
    shares = shares_of(100, None, cpus=4, physical=2, gpus=0)
    assert (shares.encoders, shares.encoder_threads, shares.readers, shares.encoder_gpus) == (2, 1, 1, 0.0)
    with pytest.raises(UsageError, match=r"needs 1\.5 CPUs \(1 reader, 1 encoder\) and Ray has 1"):
        shares_of(1, None, cpus=1, physical=1, gpus=0)


class Unreachable:
    def __call__(self, table: pa.Table) -> pa.Table:
        raise UnreachableError("the store is away")


@pytest.mark.usefixtures("ray_local")
def test_an_error_of_ours_in_a_worker_comes_out_as_itself() -> None:
    """Its class is the exit code, and what it says is what a person reads."""
    before = DataContext.get_current().raise_original_map_exception
    with streaming_context(), our_errors(), pytest.raises(UnreachableError, match="the store is away"):
        options = {"batch_format": "pyarrow", "num_cpus": 1, "compute": ActorPoolStrategy(size=1)}
        list(ray.data.range(4).map_batches(Unreachable, **options).iter_batches(batch_format="pyarrow"))
    assert DataContext.get_current().raise_original_map_exception == before
