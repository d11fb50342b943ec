from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import tracemalloc
from collections.abc import Iterator
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
from mmstream.storage.files import write_bytes


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


def test_checksums_that_are_given_later_are_taken_up(folder: Path) -> None:
    stored = build_catalog(f"{folder}/b")
    (folder / "l.jsonl").write_text(
        '{"url": "b/00001.tar", "sha256": "' + "c" * 64 + '"}\n{"url": "b/00000.tar"}\n{"url": "a.tar"}\n'
    )
    grown = extend_catalog(stored, build_catalog(f"{folder}/l.jsonl"), "emb")
    assert grown["sha256"].to_pylist() == [None, "c" * 64, None]
    assert extend_catalog(grown, build_catalog(str(folder)), "emb").equals(grown), "and are kept"


def served(folder: Path) -> http.server.ThreadingHTTPServer:
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(params=["file", "s3", "http", "memory"])
def root(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The same files on each kind of store."""
    if request.param == "http":
        server = served(folder)
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        return
    if request.param == "file":
        yield str(folder)
        return
    root = request.getfixturevalue("s3").bucket("catalogs") if request.param == "s3" else "memory:///catalogs"
    for path in folder.rglob("*.*"):
        write_bytes(f"{root}/{path.relative_to(folder)}", path.read_bytes())
    yield root


def test_every_kind_of_source_names_the_same_shards_on_every_store(root: str, folder: Path) -> None:
    wanted = [("a.tar", 6), ("b/00000.tar", 12), ("b/00001.tar", 12)]
    lists = {
        "t.txt": "# all of them\n\nb/{00000..00001}.tar\n  a.tar  \n",
        "g.list": f"{root}/a.tar\n{root}/b/*.tar\n",
        "j.jsonl": '{"url": "a.tar"}\n{"url": "b/00001.tar", "bytes": 12}\n{"url": "b/00000.tar"}\n',
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
        if not root.startswith("http"):
            write_bytes(f"{root}/{name}", text.encode())
    sources: list[str | list[str]] = [[f"{root}/a.tar", f"{root}/b/*.tar"], [f"{root}/a.tar", f"{root}/b"]]
    sources += [[f"{root}/{{a,b/00001,b/00000}}.tar"], *(f"{root}/{name}" for name in lists)]
    for source in sources:
        catalog = build_catalog(source)
        urls = [url.removeprefix(f"{root}/") for url in catalog["url"].to_pylist()]
        assert list(zip(urls, catalog["bytes"].to_pylist(), strict=True)) == wanted, source
        assert all(catalog["etag"].to_pylist())


def test_a_stored_catalog_keeps_its_numbers_and_new_shards_come_after(folder: Path) -> None:
    stored = build_catalog(f"{folder}/b")
    write_bytes(f"{folder}/catalog/000000.parquet", to_parquet(stored))
    assert build_catalog(f"{folder}/catalog/000000.parquet").equals(stored)
    (folder / "b/00001.tar").unlink()  # frozen: what is there now is for the reader to say
    grown = build_catalog([f"{folder}/a.tar", f"{folder}/catalog/000000.parquet", f"{folder}/b/00000.tar"])
    assert grown.slice(0, 2).equals(stored)
    assert grown["url"].to_pylist()[2:] == [f"{folder}/a.tar"]
    with pytest.raises(UsageError, match="two catalogs"):
        build_catalog([f"{folder}/catalog/000000.parquet"] * 2)


def test_what_a_list_says_of_a_shard_is_frozen_and_nobody_is_asked(folder: Path) -> None:
    (folder / "l.jsonl").write_text(
        '{"url": "gone.tar", "bytes": 7, "etag": "x"}\n{"url": "a.tar", "bytes": 99, "sha256": "' + "AB" * 32 + '"}\n'
    )
    changed, gone = build_catalog(f"{folder}/l.jsonl").to_pylist()
    assert (gone["url"], gone["bytes"], gone["etag"]) == (f"{folder}/gone.tar", 7, "x")
    assert (changed["bytes"], changed["sha256"]) == (99, "ab" * 32)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.txt", "a.tar\npipe:cat a.tar\n", r"l\.txt, line 2: pipe:cat a.tar: such URLs are refused"),
        ("l.jsonl", '{"url": "simplecache::pipe:cat a.tar"}', "are refused"),
        ("l.txt", "l.txt", "line 1: names another list"),
        ("l.txt", "# nothing\n", "no shard matches"),
        ("l.txt", "a.tar\n\ngone.tar\n", r"l\.txt, line 3: .*/gone\.tar: nothing is there"),
        ("l.txt", "a.tar\nb/9*.tar\n", r"l\.txt, line 2: .*/b/9\*\.tar: no shard matches"),
        ("l.txt", "a.tar\nb/{1.tar", r"l\.txt, line 2: .*close them"),
        ("l.jsonl", '{"url": "a.tar", "sha265": "x"}', "line 1: sha265: Extra inputs are not permitted"),
        ("l.jsonl", '{"url": "a.tar", "sha256": "abc"}', "line 1: sha256: String should match"),
        ("l.jsonl", '\n["a.tar"]', "line 2: .* an object"),
        ("l.jsonl", '{"url": "b/*.tar", "bytes": 12}', r"l\.jsonl, line 1: .*names 2 shards"),
        ("l.jsonl", '{"url": "a.tar", "bytes": 6}\n{"url": "./a.tar", "bytes": 7}', "contradict"),
        ("l.txt", "a\xff", "is no UTF-8 from its byte 1"),
    ],
)
def test_a_bad_list_is_refused_with_the_line(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text, encoding="latin1")
    with pytest.raises(UsageError, match=said):
        build_catalog(f"{folder}/{name}")


@pytest.mark.parametrize("source", ["pipe:cat a.tar", "PIPE:cat a.tar", "shell://a", "simplecache::pipe:a.tar"])
def test_sources_that_run_commands_are_refused(source: str) -> None:
    with pytest.raises(UsageError, match="they run commands"):
        build_catalog(source)


def test_links_are_followed_and_one_that_points_to_nothing_is_said(folder: Path) -> None:
    (folder / "links").mkdir()
    (folder / "links/one.tar").symlink_to(folder / "a.tar")
    (folder / "links/b").symlink_to(folder / "b")
    (folder / "links/loop").symlink_to(folder / "links")
    for source in (f"{folder}/links", [f"{folder}/links/*.tar", f"{folder}/links/*/0*.tar"]):
        assert names(folder, source) == ["links/b/00000.tar", "links/b/00001.tar", "links/one.tar"]
    (folder / "links/two.tar").symlink_to(folder / "nothing.tar")
    for source in (f"{folder}/links", f"{folder}/links/*.tar", f"{folder}/links/two.tar"):
        with pytest.raises(UsageError, match=r"two\.tar: (links to nothing|nothing is there)"):
            build_catalog(source)


def test_checksums_are_made_where_they_are_not_known(folder: Path) -> None:
    (folder / "l.jsonl").write_text('{"url": "a.tar", "sha256": "' + "0" * 64 + '"}\n{"url": "b/00000.tar"}\n')
    catalog = build_catalog(f"{folder}/l.jsonl", checksums=True)
    assert catalog.schema == CATALOG
    assert catalog["sha256"].to_pylist() == ["0" * 64, hashlib.sha256(b"x" * 12).hexdigest()]
    both = build_catalog([f"{folder}/b", f"{folder}/l.jsonl"])
    assert both["sha256"].to_pylist() == ["0" * 64, None, None]


def test_a_shard_costs_less_than_a_kilobyte(tmp_path: Path) -> None:
    num_shards = 100_000
    line = '{"url": "s3://some-bucket/a/longer/prefix/part-%05d.tar", "bytes": 1073741824, "etag": "%032x-128"}\n'
    (tmp_path / "l.jsonl").write_text("".join(line % (i, i**5) for i in range(num_shards)))
    tracemalloc.start()
    catalog = build_catalog(f"{tmp_path}/l.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert catalog.num_rows == num_shards
    assert peak < 1_000 * num_shards and catalog.nbytes < 200 * num_shards
    assert len(to_parquet(catalog)) < 200 * num_shards
