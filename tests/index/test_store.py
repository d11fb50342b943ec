"""Opening a version: the highest valid record counts, and nothing is used that nobody vouched for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from embedding_sets import write_set

from mmstream.errors import RefusedError, UsageError
from mmstream.index.build import build_index
from mmstream.index.store import METADATA, open_version


@pytest.fixture
def index(tmp_path: Path) -> Path:
    rows = [{"shard": 0, "row": i, "image_embedding": np.full(8, i, np.float16)} for i in range(5)]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8)
    build_index(emb, str(tmp_path / "index"))
    return tmp_path / "index"


def test_no_index_is_a_sentence_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mmstream index build"):
        open_version(str(tmp_path / "nothing"))


def test_an_embedding_set_is_not_told_to_hold_its_own_index(tmp_path: Path) -> None:
    (tmp_path / "commits").mkdir()
    with pytest.raises(UsageError, match=r"an embedding set, and no index.*index build .* INDEX`"):
        open_version(str(tmp_path))


def test_a_version_that_is_not_there_names_those_that_are(index: Path) -> None:
    with pytest.raises(UsageError, match="no version 7; it has 1"):
        open_version(str(index), 7)


@pytest.mark.parametrize("name", ["vectors.f16", "ids.i64", "metadata.parquet", "catalog.parquet", "manifest.json"])
def test_one_flipped_bit_in_any_file_is_refused_and_named(index: Path, name: str) -> None:
    file = next(index.glob(f"v=*/{name}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(RefusedError, match=f"{name}: SHA-256 is"):
        version = open_version(str(index))
        version.read(name)


def test_a_file_that_is_gone_is_named(index: Path) -> None:
    next(index.glob("v=*/metadata.parquet")).unlink()
    with pytest.raises(UsageError, match=r"metadata\.parquet: nothing is there"):
        open_version(str(index)).read(METADATA)


def test_a_record_that_is_torn_gives_way_to_the_version_before_it(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (index / "versions" / "000002.json").write_bytes(b'{"format": "mmst')
    assert open_version(str(index)).record.version == 1
    assert "000002.json" in caplog.text
    build_index(str(index.parent / "emb"), str(index))
    assert open_version(str(index)).record.version == 3


def test_another_format_is_refused_by_name(index: Path) -> None:
    record = index / "versions" / "000001.json"
    record.write_text(record.read_text().replace("mmstream/1", "mmstream/9"))
    with pytest.raises(RefusedError, match="format is mmstream/9"):
        open_version(str(index))


def test_arrays_of_another_length_than_the_manifest_says_are_refused(index: Path) -> None:
    version = open_version(str(index))
    manifest = version.manifest.model_copy(update={"num_vectors": 6})
    with pytest.raises(RefusedError, match=r"80 bytes, its manifest needs 96"):
        type(version)(version.url, version.record, manifest).vectors()


def test_info_says_what_is_there(index: Path) -> None:
    info = open_version(str(index)).info()
    assert info.to_json() | {"next": []} == {
        "next": [],
        "index": str(index),
        "version": 1,
        "versions": [1],
        "of": "image",
        "num_vectors": 5,
        "dimension": 8,
        "factory": "IDMap2,SQfp16",
        "metric": "inner_product",
        "encoder": "fake:8",
        "fingerprint": "sha256:made-by-hand",
        "embeddings": str(index.parent / "emb"),
        "bytes": sum(f.stat().st_size for f in index.glob("v=*/*") if f.name != "manifest.json"),
    }
