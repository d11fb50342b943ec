"""Who gets what share of the machine."""

from __future__ import annotations

import pytest

from mmstream.errors import UsageError
from mmstream.pipelines.resources import shares_of


@pytest.mark.parametrize(
    ("cpus", "gpus", "tasks", "encoders", "encoder_gpus"),
    [
        (4, 1, 100, 1, 1.0),
        (16, 1, 100, 3, 1 / 3),
        (16, 1, 2, 2, 1 / 3),  # no more than there is to do
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
