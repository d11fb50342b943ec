"""Rows of metrics are whole lines wherever the run lies, and a run that goes on keeps what was before."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmstream.train.log import MetricsLog, read_metrics


def rows(*steps: int) -> list[dict]:
    return [{"step": s, "loss": 1 / s} for s in steps]


def test_rows_are_there_as_they_come_and_tensorboard_has_them_too(tmp_path: Path):
    log = MetricsLog(str(tmp_path))
    for row in rows(10, 20):
        log.add(row)
        assert read_metrics(str(tmp_path))[-1] == row
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, round(e.value, 4)) for e in events.Scalars("loss")] == [(10, 0.1), (20, 0.05)]


def test_a_run_that_goes_on_drops_the_rows_behind_its_checkpoint(tmp_path: Path):
    for from_step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        log = MetricsLog(str(tmp_path), from_step=from_step)
        for row in rows(*steps):
            log.add(row)
        log.close()
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [10, 20, 30, 40]


def test_a_line_that_was_torn_by_a_kill_is_passed_over(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 1}\n{"step": 20, "lo')
    assert [row["step"] for row in read_metrics(str(tmp_path))] == [10]


def test_on_an_object_store_both_are_written_at_each_flush(s3):
    run = s3.bucket("logs") + "/run"
    log = MetricsLog(run)
    log.add({"step": 10, "loss": 0.5})
    assert read_metrics(run) == []
    log.flush()
    assert read_metrics(run) == [{"step": 10, "loss": 0.5}]
    log.close()
    assert list((s3.root / "logs" / "run" / "tensorboard").iterdir())
