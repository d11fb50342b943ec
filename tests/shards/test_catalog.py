from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from mmstream.errors import RefusedError, UsageError
from mmstream.schema import CATALOG
from mmstream.shards.catalog import (
    build_catalog,
    check_same,
    extend_catalog,
    from_parquet,
    known_successes,
    to_parquet,
)


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


def test_new_shards_come_after_the_old_ones_wherever_they_sort(folder: Path) -> None:
    stored = build_catalog(f"{folder}/b")
    now = build_catalog(str(folder))  # a.tar sorts before b/
    assert now["url"].to_pylist()[0].endswith("a.tar")
    grown = extend_catalog(stored, now, "emb")
    assert grown.schema == CATALOG
    assert grown.slice(0, 2).equals(stored)
    assert [u.rsplit("/", 1)[1] for u in grown["url"].to_pylist()] == ["00000.tar", "00001.tar", "a.tar"]
    assert grown["shard"].to_pylist() == [0, 1, 2]
    assert extend_catalog(grown, now, "emb").equals(grown)


def test_an_old_shard_that_vanished_or_changed_is_refused_by_name(folder: Path) -> None:
    stored = build_catalog(str(folder))
    with pytest.raises(RefusedError, match=r"shard 0, .*a\.tar, is not among"):
        extend_catalog(stored, build_catalog(f"{folder}/b"), "emb")
    (folder / "0.tar").write_bytes(b"new")
    (folder / "b/00001.tar").write_bytes(b"of another size")
    with pytest.raises(RefusedError, match="bytes of shard 2 was 12 and is 15"):
        extend_catalog(stored, build_catalog(str(folder)), "emb")


def test_a_stored_catalog_reads_back_and_an_older_one_has_no_checksums(folder: Path) -> None:
    catalog = build_catalog(str(folder))
    assert from_parquet(to_parquet(catalog), "emb").equals(catalog)
    assert from_parquet(to_parquet(catalog.drop_columns("sha256")), "emb").equals(catalog)
    for bad in (b"PAR1", to_parquet(catalog.slice(1)), to_parquet(catalog.drop_columns("url"))):
        with pytest.raises(RefusedError, match="emb: is no catalog"):
            from_parquet(bad, "emb")


def test_a_checksum_is_compared_where_both_know_it(folder: Path) -> None:
    catalog = build_catalog(str(folder))
    known, other = (
        catalog.set_column(5, CATALOG.field("sha256"), pa.array([digit * 64] * 3, pa.string())) for digit in "ab"
    )
    check_same(catalog, known, "emb")
    check_same(known, catalog, "emb")
    with pytest.raises(RefusedError, match="sha256 of shard 0"):
        check_same(known, other, "emb")
