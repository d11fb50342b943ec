from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmstream.errors import UnreachableError, UsageError
from mmstream.storage.files import (
    absolute,
    glob_files,
    info,
    list_files,
    open_fs,
    read_bytes,
    write_bytes,
)


def test_whole_objects_are_replaced_and_listed(tmp_path: Path, s3) -> None:
    for root in (str(tmp_path / "folder"), s3.bucket("whole") + "/folder", "memory://whole/folder"):
        write_bytes(f"{root}/b/c.txt", b"first")
        write_bytes(f"{root}/b/c.txt", b"second")
        write_bytes(f"{root}/a.txt", b"a")
        assert read_bytes(f"{root}/b/c.txt") == b"second"
        names = [f.url.split("folder/")[1] for f in list_files(root)]
        assert names == ["a.txt", "b/c.txt"]
        assert [f.url for f in glob_files(f"{root}/*.txt")] == [f.url for f in list_files(root)][:1]
        assert info(f"{root}/a.txt").bytes == 1
        assert list_files(f"{root}/nothing") == []


def test_a_write_that_fails_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / "a"), b"old")
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); " + (
        "from mmstream.storage.files import write_bytes; write_bytes(sys.argv[1], bytes(200_000))"
    )
    failed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert "File too large" in failed.stderr
    assert read_bytes(str(tmp_path / "a")) == b"old"


def test_what_is_missing_is_a_usage_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.bin: nothing is there"):
        read_bytes(str(tmp_path / "nowhere.bin"))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("pipe:cat a.tar", "they run commands"),
        ("shell://ls", "they run commands"),
        ("nonsense://x", "nonsense:// is no protocol that is known here. Give a path"),
        ("sftp://host/x", "the package that reads sftp:// is not installed: .*paramiko"),
        ("gs://bucket/x", r"the package that reads gs:// is not installed: pip install 'mmstream\[gcs\]'"),
    ],
)
def test_schemes_that_run_commands_or_are_unknown_are_refused(url: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_fs(url)


def test_a_bucket_that_does_not_exist_is_named(s3) -> None:
    for ask in (read_bytes, list_files, glob_files, lambda url: write_bytes(url, b"")):
        with pytest.raises(UsageError, match=r"s3://missing/a\*: there is no bucket missing\."):
            ask("s3://missing/a*")
    with pytest.raises(UsageError, match=r"nothing is there"):
        read_bytes(f"{s3.bucket('there')}/a")


def test_a_store_that_does_not_answer_is_said_to_be_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a" * 20)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b" * 40)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(UnreachableError, match="s3://nowhere/a: the store does not answer"):
        read_bytes("s3://nowhere/a")


def test_local_paths_become_absolute_and_urls_stay() -> None:
    assert absolute("a/b/") == str(Path.cwd() / "a/b")
    assert absolute("file:///x/y") == "/x/y"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"


@pytest.mark.parametrize(
    "url",
    [
        "https://alice:s3cret@host.example/a.tar",
        "https://host.example/a.tar?X-Amz-Date=1&X-Amz-Signature=s3cret",
        "https://account.example/a.tar?sv=1&sig=s3cret",
    ],
)
def test_a_url_that_holds_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="by the environment") as refused:
        absolute(url)
    assert "s3cret" not in str(refused.value)
    assert ".example/a.tar" in str(refused.value)
