"""Where a job's shards and its set lie: a local folder, or a bucket of a real S3 server that honours conditions."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import boto3
from conftest import aws_variables, free_port, wait_for_port
from faults.job import Job
from faults.judge import Objects, objects_at

BUCKET = "faults"


@dataclass(frozen=True)
class Place:
    """`root` is a folder or an S3 URL; `logs` is always local. `endpoint` is None for a folder."""

    name: str
    root: str
    logs: Path
    endpoint: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def put(self, path: str, data: bytes) -> None:
        if self.endpoint:
            boto3.client("s3", endpoint_url=self.endpoint).put_object(Bucket=BUCKET, Key=path, Body=data)
            return
        target = Path(self.root) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def put_source(self, shards: dict[str, bytes]) -> None:
        for name, data in shards.items():
            self.put(f"shards/{name}", data)

    def job(self, name: str) -> Job:
        """The job that embeds `shards` into a set of that name."""
        return Job(f"{self.root}/shards", f"{self.root}/{name}", str(self.logs / f"{name}.log"), self.environment)

    def objects(self, job: Job) -> Objects:
        return objects_at(job.dest, self.endpoint)


@contextmanager
def local(folder: Path) -> Generator[Place]:
    yield Place("local files", str(folder), folder)


@contextmanager
def s3(folder: Path) -> Generator[Place]:
    """moto in a process of its own: it refuses the second of two conditional creates, as S3 does."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_for_port(port)
        with mock.patch.dict(os.environ, aws_variables(endpoint)):
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
            yield Place("S3 (moto)", f"s3://{BUCKET}", folder, endpoint, aws_variables(endpoint))
    finally:
        server.terminate()
        server.wait(10)


PLACES = {"local": local, "s3": s3}


@contextmanager
def place(name: str) -> Generator[Place]:
    """A place of that kind with an empty folder, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, PLACES[name](Path(folder)) as made:
        yield made
