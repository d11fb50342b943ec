"""`embed` as its users run it, disturbed: killed in the middle and run again, and two of them at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import mmstream
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.layout import read_records
from mmstream.embeddings.listing import list_records
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.schema import ChunkRecord

pytestmark = pytest.mark.slow
SHARDS, ROWS = 6, 2_000


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(SHARDS):
        captions = [(f"{i:06}.txt", b"shard %d caption %d" % (shard, i)) for i in range(ROWS)]
        (folder / f"{shard}.tar").write_bytes(make_tar(captions))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("undisturbed") / "emb"
    assert mmstream("embed", str(tars), str(dest), "--model", "fake:64")["rows"] == SHARDS * ROWS
    return dest


def chunks_of(emb: Path) -> dict[tuple[int, int], ChunkRecord]:
    catalog = EmbeddingSet.open(str(emb), finished=False).catalog
    records = read_records(str(emb), catalog).by_chunk()
    return {(shard, n): c for shard, chunks in records.items() for n, c in chunks.items()}


def hashes(emb: Path) -> dict[tuple[int, int], str | None]:
    return {place: c.data.sha256 if c.data else None for place, c in chunks_of(emb).items()}


def begin(tars: Path, dest: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmstream", "embed", str(tars), str(dest), "--model", "fake:64", "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ.copy())


def wait_for_a_record(dest: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and not any(names.chunks for names in list_records(str(dest)).values()):
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    """The processes under `pid`, theirs too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *children_of(child)]
    return found


def is_at_work(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_says_so_and_leaves_no_process(
    tars: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    driver = begin(tars, tmp_path / "emb")
    wait_for_a_record(tmp_path / "emb")
    children = children_of(driver.pid)
    driver.send_signal(sent)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 130
    lines = [line for line in stderr.decode().splitlines() if line.strip()]
    assert lines == ["mmstream: interrupted; what was committed stays, the same command goes on"]
    until = time.monotonic() + 20
    while time.monotonic() < until and any(map(is_at_work, children)):
        time.sleep(0.2)
    assert len(children) > 3 and not [pid for pid in children if is_at_work(pid)]


def test_a_killed_run_goes_on_without_redoing_a_chunk_and_gives_the_same_bytes(
    tars: Path, undisturbed: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "emb"
    driver = begin(tars, dest)
    wait_for_a_record(dest)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    time.sleep(3)  # Ray's workers notice that their driver is gone
    before = chunks_of(dest)
    assert 0 < len(before) < len(hashes(undisturbed)), "it was killed in the middle"
    assert mmstream("embed", str(tars), str(dest), "--model", "fake:64")["rows"] == SHARDS * ROWS
    after = chunks_of(dest)
    assert {place: after[place].attempt for place in before} == {p: c.attempt for p, c in before.items()}
    assert hashes(dest) == hashes(undisturbed)
    assert mm.audit(str(dest)).differences == []


def test_two_runs_at_once_on_one_folder_make_one_set(tars: Path, undisturbed: Path, tmp_path: Path) -> None:
    drivers = [begin(tars, tmp_path / "emb") for _ in range(2)]
    assert [driver.wait(300) for driver in drivers] == [0, 0]
    assert hashes(tmp_path / "emb") == hashes(undisturbed)
    assert mm.audit(str(tmp_path / "emb")).differences == []
