"""The command line: answers at once, one JSON document, one sentence and an exit code for what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from embedding_sets import embed_here
from tars import make_tar

from mmstream.cli import _run
from mmstream.encoders.build import DEFAULT_SPEC
from mmstream.errors import ExitCode
from mmstream.media.filters import Filters
from mmstream.pipelines.inspect import inspect
from mmstream.schema import Manifest

VERBS = ["demo", "doctor", "inspect", "embed", "audit", "repair", "gc", "rejects", "export", "train", "eval", "search"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mmstream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_help_answers_at_once_and_names_every_verb() -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = run("--help")
        best = min(best, time.perf_counter() - start)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in [*VERBS, "index", "synth", "bench"])
    assert "Example: mmstream demo" in done.stdout
    assert best <= 0.5


@pytest.mark.parametrize("verb", [*VERBS, "index build", "index info", "synth scenes", "pack", "stats", "bench encode"])
def test_every_verb_has_an_example_and_the_common_options(verb: str) -> None:
    done = run(*verb.split(), "--help", COLUMNS="200")
    assert done.returncode == 0
    assert f"Example: mmstream {verb}" in done.stdout
    assert all(option in done.stdout for option in ("--json", "--debug", "--quiet"))


def test_importing_mmstream_imports_neither_torch_nor_ray() -> None:
    code = "import sys, mmstream as mm; dir(mm); print([m for m in ('torch', 'ray', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_what_it_says_whatever_was_imported_before() -> None:
    code = (
        "import mmstream.train.losses, mmstream.pipelines.fit, mmstream as mm;"
        "print([n for n in mm.__all__ if not callable(getattr(mm, n))], mmstream.train.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["[]", "train"], done.stderr


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar([("a.txt", b"words"), ("b.txt", b"more words")]))
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["embed", "{tmp}/none.tar", "{tmp}/emb", "--model", "fake:8"], 2, "none.tar: nothing is there"),
        (["embed", "{tmp}/none/*.tar", "{tmp}/emb", "--model", "fake:8"], 2, "no shard matches"),
        (["embed", "{tmp}/a.tar", "{tmp}/emb", "--model", "nonsense:8"], 2, "nonsense: is no family"),
        (["embed", "{tmp}/a.tar", "{tmp}/a.tar/emb", "--model", "fake:8"], 2, "is a file where a folder is needed"),
        (["embed", "{tmp}/a.tar", "{tmp}/emb", "--model", "fake:8", "--max-rejects", "x"], 2, "as 5% or 0.05"),
        (["embed", "{tmp}/a.tar", "{tmp}/emb", "--filter", "64"], 2, "--filter '64': write key=value, one of min_char"),
        (["embed", "{tmp}/a.tar"], 2, "at least one source and a destination"),
        (["embed", "pipe:cat a.tar", "{tmp}/emb", "--model", "fake:8"], 2, "are refused"),
        (["audit", "{tmp}/nothing"], 2, "no embedding set is there"),
        (["gc", "{tmp}/nothing"], 2, "no embedding set is there"),
        (["rejects", "{tmp}/nothing"], 2, "no embedding set is there"),
        (["rejects", "{tmp}/nothing", "--reason", "bad"], 2, "none of the reasons: not_tar"),
        (["export", "{tmp}/nothing", "{tmp}/out", "--format", "clip-retrieval"], 2, "no embedding set is there"),
        (["export", "{tmp}/nothing", "{tmp}/out", "--format", "hdf5"], 2, "give clip-retrieval"),
        (["index", "build", "{tmp}/nothing", "{tmp}/index"], 2, "no embedding set is there"),
        (["search", "{tmp}/nothing", "words"], 2, "no index is there"),
        (["search", "{tmp}/nothing"], 2, "Give words or --image"),
        (["eval", "fake:8"], 2, "give the shards"),
        (["eval", "run:{tmp}/nothing", "{tmp}/a.tar"], 2, "no card is there"),
        (["embed"], 2, "Missing argument"),
        (["embed", "--nonsense"], 2, "--nonsense"),
        (["train", "{tmp}/nothing.yaml", "--out", "{tmp}/run"], 2, "nothing.yaml"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_an_exit_code(
    tar: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    done = run(*(a.format(tmp=tmp_path) for a in arguments), "--json")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["exit_code"] == code


def test_a_refusal_shows_a_person_the_first_digits_of_a_fingerprint_and_a_program_all(
    tar: Path, tmp_path: Path
) -> None:
    emb = embed_here(tar, tmp_path / "emb")
    path = Path(emb) / "manifest/000001.json"
    manifest = Manifest.from_bytes(path.read_bytes())
    path.write_bytes(manifest.model_copy(update={"chunk_rows": 512, "chunk_bytes": 32 << 20}).to_bytes())
    done = run("embed", str(tar), emb, "--model", "fake:9", "--json")
    assert done.returncode == 3
    assert manifest.fingerprint in json.loads(done.stdout)["error"]
    assert f"fingerprint differs: the set was begun with {manifest.fingerprint[:19]}… (fake:8)" in done.stderr
    assert manifest.fingerprint not in done.stderr


def test_a_store_that_does_not_answer_is_exit_5(tmp_path: Path) -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = run("inspect", "s3://bucket/*.tar", AWS_MAX_ATTEMPTS="1", AWS_REGION="us-east-1", **environment)
    assert done.returncode == 5
    assert "s3://bucket/*.tar: the store does not answer" in done.stderr


def test_inspect_says_what_is_there(tar: Path) -> None:
    done = run("inspect", str(tar), "--json")
    report = json.loads(done.stdout)
    assert (report["shards"], report["samples_seen"], report["members"]) == (1, 2, {"text": 2})
    assert [s["key"] for s in report["samples"]] == ["a", "b"]
    assert report["next"][0].startswith(f"mmstream embed {tar}")


def test_inspect_advises_no_embed_where_it_saw_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    report = inspect(str(tmp_path / "a.tar"))
    assert (report.samples_seen, report.next) == (0, [])
    assert "none in these: are they WebDataset tars?" in str(report) and "members" not in str(report)


def test_the_help_of_embed_names_its_model_and_its_filters() -> None:
    shown = " ".join(run("embed", "--help", COLUMNS="400").stdout.split())
    assert f"[default: {DEFAULT_SPEC}]" in shown
    assert "SRC has to name the old ones, too" in shown and "languages=en,de" in shown
    for limit in set(Filters.model_fields) - {"languages"}:
        assert limit.partition("_")[2] in shown


def test_doctor_tries_a_folder_and_says_what_it_found(tmp_path: Path) -> None:
    done = run("doctor", str(tmp_path), "--json")
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert {"python", "cores", "memory", "torch", "faiss", "gpu", "ray"} <= set(checks)
    assert checks[f"write {tmp_path}"]["found"] == "writable, honours put-if-absent"
    assert list(tmp_path.iterdir()) == []


def test_doctor_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    done = run("doctor", str(tmp_path / "a" / "b"), "--json")
    assert done.returncode == 0
    assert any("honours put-if-absent" in check["found"] for check in json.loads(done.stdout)["checks"])
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_told() -> None:
    assert run("--version").stdout.startswith("mmstream 0.")


def test_a_foreign_error_says_its_cause_and_where_its_traceback_is(capsys: pytest.CaptureFixture[str]) -> None:
    def call() -> None:
        raise RuntimeError(
            "\x1b[36mray::Task()\x1b[39m\n  File 'a.py', line 1\n" + 900 * "noise\n" + "OSError: disk full\n"
        )

    assert _run(call, as_json=True, debug=False, quiet=True) == ExitCode.UNEXPECTED
    out, err = capsys.readouterr()
    message = json.loads(out)["error"]
    assert "OSError: disk full" in message
    assert "noise" not in message
    path = Path(message.removesuffix(")").rsplit(" ", 1)[1])
    assert "noise" in path.read_text()
    path.unlink()
    assert err.strip().splitlines()[-1] == f"mmstream: {message}"
