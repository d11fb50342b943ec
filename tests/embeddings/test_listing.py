"""The names of records, from one listing: which count, in which order, and what a driver holds of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from conftest import S3

from mmstream.embeddings.listing import Generations, Listing, chunk_record_path, list_records, shard_record_path
from mmstream.storage.files import each_url, list_files, write_bytes


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_names_come_by_shard_the_newest_generation_of_each_record_first(tmp_path: Path) -> None:
    put(tmp_path, *(shard_record_path(7, g) for g in (2, 0, 10)), chunk_record_path(7, 1_000_000, 3))
    put(tmp_path, *(chunk_record_path(3, 1, g) for g in (0, 1)), chunk_record_path(3, 0), shard_record_path(1_234_567))
    listed = list_records(str(tmp_path))

    def at(g: int, path: str) -> tuple[int, str]:
        return g, f"{tmp_path}/{path}"

    assert dict(listed) == {
        3: Generations(
            [],
            {
                0: [at(0, "commits/000003/000000.0.json")],
                1: [at(1, "commits/000003/000001.1.json"), at(0, "commits/000003/000001.0.json")],
            },
        ),
        7: Generations(
            [at(10, "commits/000007.10.json"), at(2, "commits/000007.2.json"), at(0, "commits/000007.0.json")],
            {1_000_000: [at(3, "commits/000007/1000000.3.json")]},
        ),
        1_234_567: Generations([at(0, "commits/1234567.0.json")]),
    }
    assert list(listed) == [3, 7, 1_234_567]
    assert (7 in listed, 4 in listed, -1 in listed, len(listed)) == (True, False, False, 3)
    with pytest.raises(KeyError):
        listed[4]


@pytest.mark.parametrize(
    "name", ["7.0.json", "000007.json", "000007.00.json", "0000007.0.json", "000007/0.0.json", "000007.0.json.part"]
)
def test_what_is_not_named_as_records_are_is_none(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"commits/{name}")
    assert len(list_records(str(tmp_path))) == 0


def test_a_number_that_no_machine_word_holds_is_no_record(tmp_path: Path) -> None:
    put(tmp_path, f"commits/{10**19}.0.json", f"commits/000001/{10**30}.0.json", f"commits/000001.{10**20}.json")
    assert len(list_records(str(tmp_path))) == 0


def test_where_nothing_was_committed_nothing_is_listed(tmp_path: Path) -> None:
    assert len(list_records(str(tmp_path / "nowhere"))) == 0


def test_urls_one_by_one_are_those_of_the_listing(tmp_path: Path, s3: S3) -> None:
    for root in (str(tmp_path), f"{s3.bucket('one-by-one')}/set"):
        for name in ("a", "b/c", "b/d/e"):
            if root == str(tmp_path):
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(f"{root}/{name}", b"x")
        assert sorted(each_url(root)) == [f.url for f in list_files(root)]


def test_a_name_costs_the_driver_a_few_bytes_however_many_chunks_a_shard_has(tmp_path: Path) -> None:
    chunks = 4_000
    put(tmp_path, *(chunk_record_path(0, n) for n in range(chunks)))
    tracemalloc.start()
    try:
        listed = list_records(str(tmp_path))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(listed, Listing) and len(listed[0].chunks) == chunks
    assert held / chunks < 40
