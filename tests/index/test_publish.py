"""Files first, the record last: whoever reads sees a whole version, whoever writes gets a number of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmstream.index.publish import publish
from mmstream.index.store import IndexVersion, highest_number, open_version
from mmstream.schema import IndexManifest, StoredObject


def manifest(files: dict[str, StoredObject]) -> IndexManifest:
    return IndexManifest(
        factory="f", metric="m", dimension=1, num_vectors=0, of="image", encoder="e", fingerprint="p",
        normalized=True, embeddings="x", embeddings_manifest_sha256="y", files=files, libraries={},
    )  # fmt: skip


def test_what_was_published_is_read_back(tmp_path: Path) -> None:
    made = publish(str(tmp_path), {"a": b"1", "b": b"22"}, manifest)
    opened = open_version(str(tmp_path))
    assert opened == made
    assert (opened.read("a"), opened.read("b")) == (b"1", b"22")
    assert [f.bytes for f in opened.manifest.files.values()] == [1, 2]


def test_builders_at_once_get_a_number_each(tmp_path: Path) -> None:
    def one(i: int) -> IndexVersion:
        return publish(str(tmp_path), {"a": str(i).encode()}, manifest)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(one, range(16)))
    assert sorted(v.record.version for v in versions) == list(range(1, 17))
    assert highest_number(str(tmp_path)) == 16
    for i, version in enumerate(versions):
        assert open_version(str(tmp_path), version.record.version).read("a") == str(i).encode()


def test_files_without_a_record_are_not_seen(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a": b"first"}, manifest)
    made = publish(str(tmp_path), {"a": b"second"}, manifest)
    (tmp_path / "versions" / f"{made.record.version:06}.json").unlink()  # as a kill before the record leaves it
    assert open_version(str(tmp_path)).read("a") == b"first"
