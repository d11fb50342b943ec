"""The scripts of jobs/ are the commands: same arguments, same exit codes, with plain python and as Ray jobs."""

from __future__ import annotations

import json
import os
import re
import runpy
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import free_port
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "jobs"


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(JOBS / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def write_shards(folder: Path) -> list[str]:
    """Two tars of three text–image pairs; `fake:` encoders take any bytes that decode."""
    folder.mkdir()
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
        "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
    for shard in range(2):
        files = [f for i in range(3) for f in ((f"{shard}{i}.png", pixel), (f"{shard}{i}.txt", b"caption %d" % i))]
        (folder / f"{shard}.tar").write_bytes(make_tar(files))
    return [str(folder / "0.tar"), str(folder / "1.tar")]


def test_every_script_is_short_enough_to_read_at_once() -> None:
    scripts = sorted(JOBS.glob("*.py"))
    assert [s.stem for s in scripts] == ["embed", "index", "pipeline", "stats", "train"]
    assert all(len(s.read_text().splitlines()) <= 40 for s in scripts)


@pytest.mark.parametrize("name", ["embed", "train", "index", "stats"])
def test_a_script_shares_its_help_with_the_command(name: str) -> None:
    command = [sys.executable, "-m", "mmstream", name, "--help"]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = run_script(name, "--help")
    assert ours.returncode == 0 and ours.stdout == theirs.stdout


def test_a_script_ends_with_the_commands_exit_code(tmp_path: Path) -> None:
    assert run_script("embed").returncode == 2
    missing = run_script("index", "build", str(tmp_path / "nothing"), str(tmp_path / "index"))
    assert missing.returncode == 2 and "Traceback" not in missing.stderr and str(tmp_path) in missing.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["src", "emb"],
        ["src", "emb", "index", "--run", "r"],
        ["src", "emb", "index", "--model", "m", "--recipe", "x", "--run", "r"],
    ],
)
def test_the_pipeline_refuses_what_it_cannot_mean(arguments: list[str]) -> None:
    done = run_script("pipeline", *arguments)
    assert done.returncode == 2 and "either --model or both" in done.stderr


def test_the_pipeline_goes_from_shards_to_an_index_and_stops_at_the_first_failure(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, emb, index = write_shards(tmp_path / "shards"), str(tmp_path / "emb"), str(tmp_path / "index")
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *shards, emb, index, "--model", "fake:32", "--limit", "5"])
    runpy.run_path(str(JOBS / "pipeline.py"), run_name="__main__")
    hits = mm.open_index(index).search("a caption", k=9)
    assert {hit.key for hit in hits} == {"00", "01", "02", "10", "11"}
    nowhere = str(tmp_path / "nowhere")
    monkeypatch.setattr(sys, "argv", ["pipeline.py", f"{nowhere}/*.tar", f"{nowhere}/emb", f"{nowhere}/index"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(JOBS / "pipeline.py"), run_name="__main__")
    assert end.value.code == 2 and not Path(nowhere).exists()


@dataclass(frozen=True)
class Head:
    """A Ray head of its own, with token authentication; `env` is what a person at its keyboard has."""

    dashboard: str
    env: dict[str, str]


# The head's Python may see mmstream through an editable installation: its workers must get it from the job alone.
HIDE_MMSTREAM = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable___mmstream")]
"""


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / "hide").mkdir()
    (home / "hide" / "sitecustomize.py").write_text(HIDE_MMSTREAM)
    token = home / ".ray" / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**kept, "HOME": str(home), "PATH": path, "PYTHONPATH": str(home / "hide")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    dashboard = free_port()
    ports = ["port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"]
    options = [f"--{name}={free_port()}" for name in ports] + [f"--dashboard-port={dashboard}"]
    with tempfile.TemporaryDirectory(prefix="mm-", dir="/tmp") as temp:  # the paths of Ray's sockets must be short
        command = ["ray", "start", "--head", "--block", *options, "--dashboard-host=127.0.0.1", "--num-cpus=4"]
        command += ["--object-store-memory=200000000", f"--temp-dir={temp}", "--disable-usage-stats"]
        with (tmp_path / "head.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for_dashboard(dashboard, process, tmp_path / "head.log")
            yield Head(f"http://127.0.0.1:{dashboard}", env)
        finally:
            process.terminate()
            process.wait(90)


def wait_for_dashboard(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/gcs_healthz", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no dashboard on port {port}: {log.read_text()[-2000:]}")


def readme_line(head: Head, *arguments: str) -> list[str]:
    """README's `ray job submit`, with this head's address and other arguments for the script."""
    block = re.search(r"```bash\n(ray job submit .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block
    words = block[1].replace("\\\n", " ").split()
    script = words.index("jobs/embed.py")
    words[words.index("--address") + 1] = head.dashboard
    return [*words[: script + 1], *arguments]


@pytest.mark.cluster
def test_readmes_line_runs_on_a_head_with_a_token_and_ships_the_package_itself(head: Head, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in ("mmstream", "jobs"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shards, emb = write_shards(tmp_path / "shards"), tmp_path / "emb"

    line = readme_line(head, *shards, str(emb), "--model", "fake:32", "--json")
    done = subprocess.run(line, cwd=clone, env=head.env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads(re.search(r"^\{$.*?^\}$", done.stdout, re.DOTALL | re.MULTILINE)[0])  # ty: ignore
    assert (report["shards"], report["rows"], report["rejects"]) == (2, 6, {})
    assert EmbeddingSet.open(str(emb)).manifest.finished

    missing = readme_line(head, str(tmp_path / "none.tar"), str(tmp_path / "other"), "--model", "fake:32")
    refused = subprocess.run(missing, cwd=clone, env=head.env, capture_output=True, text=True, timeout=240)
    assert refused.returncode == 1 and "none.tar" in refused.stdout

    stranger = {**head.env, "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path)}
    turned_away = subprocess.run(line, cwd=clone, env=stranger, capture_output=True, text=True, timeout=240)
    assert turned_away.returncode == 1 and "oken authentication" in turned_away.stderr
