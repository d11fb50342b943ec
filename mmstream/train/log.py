"""Metrics of a run, one row at a time: `RUN/metrics.jsonl` for programs, `RUN/tensorboard/` for TensorBoard.

On a local disk rows are appended as they come; on an object store both are rewritten whole at each `flush`. A run that
goes on keeps the rows up to the step it goes on from.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from mmstream.storage.files import exists, is_local, join, read_bytes, write_bytes


class MetricsLog:
    def __init__(self, run: str, *, from_step: int = 0) -> None:
        self._url = join(run, "metrics.jsonl")
        self._rows = [row for row in read_metrics(run) if row["step"] <= from_step]
        self._remote = None if is_local(run) else join(run, "tensorboard")
        self._folder = Path(run.removeprefix("file://"), "tensorboard")
        self._temporary = tempfile.TemporaryDirectory() if self._remote else None
        if self._temporary:
            self._folder = Path(self._temporary.name)
        self._board = SummaryWriter(str(self._folder), purge_step=from_step + 1 if from_step else None)
        self._write()

    def add(self, row: dict[str, Any]) -> None:
        """One row of plain numbers, `step` among them."""
        self._rows.append(row)
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, row["step"])
        if not self._remote:
            with Path(self._url.removeprefix("file://")).open("a") as f:
                f.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        self._board.flush()
        if self._remote:
            self._write()
            for file in self._folder.iterdir():
                write_bytes(join(self._remote, file.name), file.read_bytes())

    def close(self) -> None:
        self.flush()
        self._board.close()
        if self._temporary:
            self._temporary.cleanup()

    def _write(self) -> None:
        write_bytes(self._url, "".join(json.dumps(row) + "\n" for row in self._rows).encode())


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The rows of a run's metrics, oldest first; none where there are none."""
    url = join(run, "metrics.jsonl")
    if not exists(url):
        return []
    return [json.loads(line) for line in read_bytes(url).splitlines() if line.endswith(b"}")]
