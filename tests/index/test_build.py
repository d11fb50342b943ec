"""From an embedding set to a published version, and what is refused on the way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding_sets import tied_vectors, write_set

from mmstream.errors import DifferencesError, RefusedError, UsageError
from mmstream.index.build import build_index
from mmstream.index.store import CATALOG, METADATA, open_version


def three_shards(root: Path, **settings) -> str:
    """30 rows; every fifth has no picture, every seventh no caption."""
    z = tied_vectors(60, 8)
    rows = [
        {
            "shard": i // 10,
            "row": i % 10 * 2,  # rows between were rejected
            "caption": f"caption {i}",
            "image_embedding": None if i % 5 == 0 else z[i],
            "text_embedding": None if i % 7 == 0 else z[30 + i],
            "licence": f"CC-{i}",
        }
        for i in range(30)
    ]
    return write_set(str(root / "emb"), rows, dimension=8, fields=["licence"], chunk_rows=4, **settings)


def test_vectors_ids_and_metadata_keep_together(tmp_path: Path) -> None:
    emb = three_shards(tmp_path)
    seen: list[tuple[int, int]] = []
    report = build_index(emb, str(tmp_path / "index"), on_progress=lambda done, total: seen.append((done, total)))
    assert (report.of, report.num_vectors, report.num_left_out, report.version) == ("image", 24, 6, 1)
    assert seen[-1] == (30, 30)

    version = open_version(str(tmp_path / "index"))
    z, ids = tied_vectors(60, 8), version.ids()
    kept = [i for i in range(30) if i % 5]
    assert ids.tolist() == [(i // 10 << 32) + i % 10 * 2 for i in kept]
    assert version.vectors().tobytes() == z[kept].tobytes()
    about = pq.read_table(io.BytesIO(version.read(METADATA)))
    assert about["id"].to_pylist() == ids.tolist()
    assert about["caption"].to_pylist() == [f"caption {i}" for i in kept]
    assert about["licence"].to_pylist() == [f"CC-{i}" for i in kept]
    assert pq.read_table(io.BytesIO(version.read(CATALOG)))["url"].to_pylist() == [
        f"/nowhere/{i:05}.tar" for i in range(3)
    ]


def test_the_other_modality_is_a_choice(tmp_path: Path) -> None:
    report = build_index(three_shards(tmp_path), str(tmp_path / "index"), of="text")
    assert (report.of, report.num_vectors, report.num_left_out) == ("text", 25, 5)
    assert open_version(str(tmp_path / "index")).manifest.of == "text"


def test_the_report_prints_and_names_the_next_command(tmp_path: Path) -> None:
    report = build_index(three_shards(tmp_path), str(tmp_path / "index"))
    assert f"mmstream search {tmp_path / 'index'}" in str(report)
    assert report.to_json()["num_vectors"] == 24


def test_building_again_publishes_the_next_version_and_keeps_the_first(tmp_path: Path) -> None:
    emb, url = three_shards(tmp_path), str(tmp_path / "index")
    build_index(emb, url, of="text")
    assert build_index(emb, url).version == 2
    assert open_version(url).manifest.of == "image"
    assert open_version(url, 1).manifest.of == "text"
    assert open_version(url).info().versions == [1, 2]


def test_an_index_of_another_encoder_is_not_built_over(tmp_path: Path) -> None:
    url = str(tmp_path / "index")
    build_index(three_shards(tmp_path), url)
    with pytest.raises(RefusedError, match="fingerprint differs: this index holds vectors of"):
        build_index(three_shards(tmp_path / "other", fingerprint="f" * 64), url)
    assert open_version(url).info().versions == [1]


def test_an_unfinished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="finished is false"):
        build_index(three_shards(tmp_path, finished=False), str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


def test_a_modality_that_the_set_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no audio vectors, but image and text"):
        build_index(three_shards(tmp_path), str(tmp_path / "index"), of="audio")


def test_a_set_in_which_nothing_has_such_a_vector_is_no_index(tmp_path: Path) -> None:
    rows = [{"shard": 0, "row": 0, "text_embedding": np.ones(8, np.float16)}]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8)
    with pytest.raises(UsageError, match="no image vector is in its 1 row, so"):
        build_index(emb, str(tmp_path / "index"))


def test_a_vector_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    z = np.ones((3, 8), np.float16)
    z[1, 4] = np.inf
    rows = [{"shard": 0, "row": i, "image_embedding": z[i]} for i in range(3)]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8)
    with pytest.raises(RefusedError, match="000000001"):
        build_index(emb, str(tmp_path / "index"))


def test_ids_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    rows = [{"shard": 0, "row": r, "image_embedding": np.ones(8, np.float16)} for r in (0, 2, 2)]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8)
    with pytest.raises(RefusedError, match="id 2 comes after 2"):
        build_index(emb, str(tmp_path / "index"))


def test_a_damaged_embedding_object_stops_the_build(tmp_path: Path) -> None:
    emb = three_shards(tmp_path)
    victim = sorted((tmp_path / "emb" / "data").iterdir())[3]
    victim.write_bytes(victim.read_bytes().replace(b"PAR1", b"PAR2", 1))
    with pytest.raises(DifferencesError, match=victim.name):
        build_index(emb, str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()
