from __future__ import annotations

from pathlib import Path

import pytest

from mmstream.errors import RefusedError, UsageError
from mmstream.shards.catalog import build_catalog, check_same, known_successes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/00001.tar", "b/00000.tar", "a.tar", "b/00000_stats.json", "b/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (len(name) + 1))
    (tmp_path / "b/00000_stats.json").write_text('{"count": 5, "successes": 4}')
    return tmp_path


def names(folder: Path, source: str | list[str]) -> list[str]:
    return [url.removeprefix(str(folder) + "/") for url in build_catalog(source)["url"].to_pylist()]


def test_globs_braces_folders_and_paths_name_the_same_sorted_shards(folder: Path) -> None:
    both = ["b/00000.tar", "b/00001.tar"]
    assert names(folder, f"{folder}/b/*.tar") == both
    assert names(folder, f"{folder}/b/{{00001,00000}}.tar") == both
    assert names(folder, f"{folder}/b/{{00000..00001}}.tar") == both
    assert names(folder, f"{folder}/b") == both
    assert names(folder, [f"{folder}/b/00001.tar", f"{folder}/b/00000.tar", f"{folder}/b"]) == both
    assert names(folder, str(folder)) == ["a.tar", *both]


def test_shards_are_numbered_with_size_and_etag(folder: Path) -> None:
    catalog = build_catalog(f"{folder}/b")
    assert catalog["shard"].to_pylist() == [0, 1]
    assert catalog["bytes"].to_pylist() == [12, 12]
    assert all(catalog["etag"].to_pylist())


@pytest.mark.parametrize("pattern", ["none.tar", "b/*.tgz", "b/{00000..00002}.tar", "empty"])
def test_what_matches_nothing_is_an_error_that_names_it(folder: Path, pattern: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UsageError, match=r"none\.tar|tgz|00002\.tar|empty"):
        build_catalog(f"{folder}/{pattern}")


def test_other_shards_or_contents_are_refused_and_the_field_is_named(folder: Path) -> None:
    before = build_catalog(str(folder))
    check_same(before, build_catalog(str(folder)), "emb")
    (folder / "a.tar").write_bytes(b"longer than before")
    with pytest.raises(RefusedError, match="bytes of shard 0 was 6 and is 18"):
        check_same(before, build_catalog(str(folder)), "emb")
    (folder / "c.tar").write_bytes(b"")
    with pytest.raises(RefusedError, match="url of shard 3 was nothing"):
        check_same(before, build_catalog(str(folder)), "emb")


def test_the_stats_beside_a_shard_are_read(folder: Path) -> None:
    assert known_successes(f"{folder}/b/00000.tar") == 4
    assert known_successes(f"{folder}/b/00001.tar") is None


def test_odd_names_are_names(tmp_path: Path) -> None:
    odd = tmp_path / "ü [x] y"
    (odd / "folder.tar").mkdir(parents=True)
    for name in ("a.tar", "._a.tar", "folder.tar/b.tar"):
        (odd / name).write_bytes(b"x")
    assert names(odd, str(odd)) == ["a.tar", "folder.tar/b.tar"]
    assert names(odd, str(odd / "folder.tar")) == ["folder.tar/b.tar"]
    assert names(odd, [str(odd / "a.tar"), f"file://{odd}/folder.tar/../a.tar"]) == ["a.tar"]
