"""Samples that crash, hang or bomb their decoder, through a real `embed`: each costs itself and nothing else."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ray.experimental import internal_kv
from tars import make_tar

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import MmstreamError
from mmstream.pipelines.contain import MAX_DEATHS, containment
from mmstream.pipelines.source import ChunkInfo

HOSTILE = Path(__file__).parents[1] / "hostile" / "sitecustomize.py"
CULPRITS = {7: b"!sleep", 20: b"!crash", 33: b"!bomb"}
EXPECTED = {"000007": "decode_timeout", "000020": "decoder_crash", "000033": "decoder_crash"}


def sample(i: int) -> list[tuple[str, bytes]]:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), np.uint8)).save(out, "PNG")
    return [(f"{i:06}.png", out.getvalue()), (f"{i:06}.txt", b"picture number %d" % i)]


def rows(dest: Path) -> dict[str, dict]:
    return {r["key"]: r for t in EmbeddingSet.open(str(dest)).tables() for r in t.to_pylist()}


def ran(command: list[str], hooks: Path) -> subprocess.CompletedProcess[str]:
    """A command whose processes all load the `sitecustomize` in `hooks`."""
    path = os.pathsep.join([str(hooks), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "mmstream", *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.usefixtures("ray_local")
def test_culprits_cost_themselves_and_nothing_else(tmp_path: Path) -> None:
    files = [f for i in range(600) for f in sample(i)]
    for i, end in CULPRITS.items():
        name, data = files[2 * i]
        files[2 * i] = (name, data + end)
    (tmp_path / "a.tar").write_bytes(make_tar(files))
    (tmp_path / "hostile").mkdir()
    shutil.copy(HOSTILE, tmp_path / "hostile")

    dest = tmp_path / "emb"
    command = ["embed", str(tmp_path / "a.tar"), str(dest), "--model", "fake:16", "--max-rejects", "1", "--json"]
    ended = ran(command, tmp_path / "hostile")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["rows"], report["rejects"]) == (597, {"decode_timeout": 1, "decoder_crash": 2})
    rejected = {r["key"]: r for t in EmbeddingSet.open(str(dest)).rejects() for r in t.to_pylist()}
    assert {key: r["reason"] for key, r in rejected.items()} == EXPECTED
    assert "SIGSEGV" in rejected["000020"]["detail"]
    struck = Counter(line.split()[0] for line in (tmp_path / "hostile" / "struck").read_text().splitlines())
    assert struck.keys() == {"!sleep", "!crash", "!bomb"}
    assert max(struck.values()) <= 2, "at most one actor and one sandbox for each"
    assert mm.audit(str(dest)).ok

    undisturbed = tmp_path / "undisturbed"
    mm.embed(str(tmp_path / "a.tar"), str(undisturbed), model="fake:16")
    expected = rows(undisturbed)
    assert len(expected) == 600
    assert rows(dest) == {key: row for key, row in expected.items() if key not in EXPECTED}


@pytest.fixture(scope="module")
def hostile_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pairs in one shard, of which one crashes its decoder and one hangs in it, beside `hostile`."""
    folder = tmp_path_factory.mktemp("pairs")
    files = [f for i in range(100) for f in sample(i)]
    for i, end in {20: b"!crash", 40: b"!sleep"}.items():
        files[2 * i] = (files[2 * i][0], files[2 * i][1] + end)
    (folder / "a.tar").write_bytes(make_tar(files))
    (folder / "hostile").mkdir()
    shutil.copy(HOSTILE, folder / "hostile")
    return folder


@pytest.mark.slow
def test_an_evaluation_loses_a_crash_and_a_hang_and_measures_the_rest(hostile_pairs: Path) -> None:
    ended = ran(["eval", "fake:16", str(hostile_pairs / "a.tar"), "--json"], hostile_pairs / "hostile")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["retrieval"]["n"], report["rejects"]) == (98, {"decode_timeout": 1, "decoder_crash": 1})


@pytest.mark.slow
def test_training_sets_a_crash_and_a_hang_aside_and_uses_the_rest_in_every_epoch(hostile_pairs: Path) -> None:
    recipe, run = hostile_pairs / "recipe.yaml", hostile_pairs / "run"
    model = {
        "dimension": 16,
        "image": {"size": 32, "widths": [16, 16, 16], "hidden": 16},
        "text": {"length": 8, "vocab_size": 400, "width": 16, "layers": 1, "heads": 2},
    }
    data = {"train": str(hostile_pairs / "a.tar"), "shuffle_rows": 32}
    recipe.write_text(json.dumps({"data": data, "epochs": 2, "batch_size": 14, "model": model}))  # YAML, too
    ended = ran(["train", str(recipe), "--out", str(run), "--json"], hostile_pairs / "hostile")
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["rejects"] == {"decode_timeout": 1, "decoder_crash": 1}
    assert (report["steps"], report["samples"]) == (2 * 98 // 14, 2 * 98)


def chunk(epoch: int = 0) -> ChunkInfo:
    return ChunkInfo(3, 5, 2560, 512, False, None, "s3://bucket/00003.tar", 0, "", 0, 0.0, epoch)


@pytest.mark.usefixtures("ray_local")
def test_a_chunk_that_a_sandbox_does_not_help_ends_the_run_and_leaves_no_mark() -> None:
    with containment() as contained, ExitStack() as dead:
        for _ in range(MAX_DEATHS):
            dead.enter_context(contained.chunk(chunk()))  # which an actor that dies never leaves
        with pytest.raises(MmstreamError, match=r"00003.tar: 3 workers died of chunk 5 of shard 3 \(rows 2,560 to 3,0"):
            contained.chunk(chunk()).__enter__()
        assert len(internal_kv._internal_kv_list(contained.run)) == 2
    assert internal_kv._internal_kv_list(contained.run) == []


@pytest.mark.usefixtures("ray_local")
def test_a_commit_that_kills_its_worker_ends_the_run_and_no_chunk_beside_it_is_blamed() -> None:
    beside = replace(chunk(), chunk=9)
    with containment() as contained, ExitStack() as dead:
        with contained.writing(chunk()):
            pass
        for deaths in range(MAX_DEATHS):  # each time while another chunk is encoded
            dead.enter_context(contained.chunk(beside))
            dead.enter_context(contained.writing(chunk()))
            assert contained._is_another_to_blame() == (deaths > 0)
        dead.enter_context(contained.chunk(beside))
        with contained.chunk(chunk()):  # which is encoded without harm
            pass
        with pytest.raises(MmstreamError, match=r"3 workers died of chunk 5 of shard 3 .* as it was written"):
            contained.writing(chunk()).__enter__()
    assert internal_kv._internal_kv_list(contained.run) == []


@pytest.mark.usefixtures("ray_local")
def test_what_needed_a_sandbox_once_gets_one_in_later_epochs_without_another_death() -> None:
    def in_sandbox(epoch: int) -> bool:
        with contained.chunk(chunk(epoch)) as pictures:
            return "Sandbox" in str(pictures)

    with containment() as contained, ExitStack() as dead:
        assert [in_sandbox(0), in_sandbox(1)] == [False, False]
        dead.enter_context(contained.chunk(chunk(1)))
        assert [in_sandbox(1), in_sandbox(2)] == [True, True]


@pytest.mark.slow
def test_a_model_that_kills_its_worker_while_it_loads_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(make_tar([f for i in range(3) for f in sample(i)]))
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(
        "import os, sys\n"
        "from mmstream.encoders.fake import FakeEncoder\n"
        "if 'default_worker' in sys.argv[0]:\n"
        "    FakeEncoder.__init__ = lambda self, spec: os._exit(137)\n"
    )
    command = ["embed", str(tmp_path / "a.tar"), str(tmp_path / "emb"), "--model", "fake:4"]
    ended = ran(command, tmp_path / "hooks")
    assert ended.returncode == 1, ended.stderr
    assert f"a worker died {MAX_DEATHS} times while it loaded the model" in ended.stderr
