"""What a person who waits is told."""

from __future__ import annotations

import time

import pytest

from mmstream.telemetry import Progress, Report, counted, say, set_quiet, short_hashes, to_look_at


def test_the_time_left_counts_neither_the_start_nor_what_an_earlier_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with Progress("embed", 1_000, "shards") as progress:
        now = 60.0  # Ray starts
        progress.update(900)  # done by an earlier run
        assert "left" not in progress.line()
        now = 70.0
        progress.update(910)
        assert progress.line().endswith("left about 1:30")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    say("starting a local Ray …")
    set_quiet(True)
    try:
        say("starting a local Ray …")
    finally:
        set_quiet(False)
    assert capsys.readouterr().err == "starting a local Ray …\n"


def test_one_is_no_plural_and_a_page_is_opened_as_its_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [counted(n, "shard") for n in (0, 1, 2, 1_000)] == ["0 shards", "1 shard", "2 shards", "1,000 shards"]
    for system, opener in (("linux", "xdg-open"), ("darwin", "open")):
        monkeypatch.setattr("sys.platform", system)
        assert to_look_at("my hits.html") == [f"{opener} 'my hits.html'"]
    assert to_look_at("s3://bucket/hits.html") == []


def test_a_person_sees_the_first_digits_of_a_hash_and_a_program_all_of_them() -> None:
    digest = 8 * "0123abcd"

    class Seen(Report):
        sha256: str = digest

    seen = Seen(next=[f"mmstream audit {digest}"])
    assert "sha256  0123abcd0123…\n" in str(seen)
    assert str(seen).endswith(f"mmstream audit {digest}"), "a command is to be typed as it is"
    assert seen.to_json()["sha256"] == digest
    assert short_hashes(f"begun with sha256:{digest} (fake:8).") == "begun with sha256:0123abcd0123… (fake:8)."
    for kept in (f"/models/{digest}/config.json", f"{digest}.parquet", f"s3://b/{digest}", digest[1:]):
        assert short_hashes(kept) == kept
