"""Answers equal brute force over the stored vectors, and come from the right encoder or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_sets import tied_vectors, write_set

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import load_encoder
from mmstream.errors import RefusedError, UsageError
from mmstream.index.build import build_index
from mmstream.index.exact import exact_search
from mmstream.schema import sample_id
from mmstream.search.searcher import Index, open_index


def picture_path(index: Index, i: int) -> tuple[str, int, int]:
    row = index.search(id=sample_id(i // 6, i % 6), k=1)[0]
    assert row.image_offset is not None and row.image_bytes is not None
    return f"{Path(index.url).parent}/{i // 6:05}.tar", row.image_offset, row.image_bytes


@pytest.mark.parametrize("i", [0, 5, 6, 11])
def test_a_picture_finds_itself_and_says_where_it_lies(index: Index, i: int) -> None:
    path, offset, size = picture_path(index, i)
    data = Path(path).read_bytes()[offset : offset + size]
    hit = index.search(image=data, k=1)[0]
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert (hit.id, hit.shard, hit.row, hit.key) == (sample_id(i // 6, i % 6), i // 6, i % 6, f"{i // 6}{i % 6}")
    assert (hit.caption, hit.width, hit.height) == (f"picture <number> {i} & more", 400, 300 + i)
    assert (hit.image_offset, hit.image_bytes) == (offset, size)


def test_a_caption_finds_its_sample_in_an_index_of_texts(index: Index) -> None:
    url = f"{index.url}-text"
    build_index(index.info.embeddings, url, of="text")
    hits = open_index(url).search("picture <number> 7 & more", k=3)
    assert (hits[0].key, len(hits)) == ("11", 3)
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_an_image_may_be_given_by_its_path(index: Index, tmp_path: Path) -> None:
    path, offset, size = picture_path(index, 8)
    data = Path(path).read_bytes()[offset : offset + size]
    (tmp_path / "query.jpg").write_bytes(data)
    assert index.search(image=tmp_path / "query.jpg") == index.search(image=data)


def test_an_id_finds_itself_first(index: Index) -> None:
    hit = index.search(id=sample_id(1, 2))[0]
    assert hit.id == sample_id(1, 2)
    assert hit.score == pytest.approx(1, abs=1e-3)


def test_an_index_says_how_it_can_be_asked(index_url: str) -> None:
    encoder = load_encoder("fake:16")
    encoder.modalities = ("text",)
    with pytest.raises(UsageError, match=r"made with fake:16, which takes no image. Ask with words."):
        open_index(index_url, encoder=encoder).search(image=b"anything")
    encoder.modalities = ("image",)
    with pytest.raises(UsageError, match=r"takes no text\. Ask with a picture \(--image FILE\)"):
        open_index(index_url, encoder=encoder).search("anything")
    encoder.modalities = ("audio",)
    with pytest.raises(UsageError, match=r"takes no text\. Ask from Python, with a vector or an id"):
        open_index(index_url, encoder=encoder).search("anything")


def test_a_vector_of_any_length_gives_cosines(index: Index) -> None:
    vector = load_encoder("fake:16").encode_text(["anything"])[0]
    hits, expected = index.search(vector=1000 * vector), index.search("anything")
    assert [h.id for h in hits] == [h.id for h in expected]
    assert [h.score for h in hits] == pytest.approx([h.score for h in expected], abs=1e-6)


def test_chosen_fields_stand_beside_the_others_in_json(index: Index) -> None:
    hits = index.search("anything", k=100)
    assert len(hits) == 12
    plain = json.loads(json.dumps([h.to_json() for h in hits]))
    assert {p["licence"] for p in plain} == {None, *(f"CC-{i}" for i in range(12) if i != 3)}
    assert list(plain[0])[:4] == ["id", "score", "key", "caption"]


@pytest.mark.parametrize("k", [1, 10, 500])
def test_answers_equal_brute_force_over_the_stored_vectors_ties_included(tmp_path: Path, k: int) -> None:
    z = tied_vectors(2000, 24)
    rows = [{"shard": i // 900, "row": i % 900, "caption": str(i), "image_embedding": z[i]} for i in range(2000)]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=24)
    build_index(emb, str(tmp_path / "index"))
    index = open_index(str(tmp_path / "index"))
    for i in (0, 77, 1999):
        query = z[i].astype(np.float64) / np.linalg.norm(z[i].astype(np.float64))
        scores, ids = exact_search(EmbeddingSet.open(emb), "image", query[None], k)
        hits = index.search(vector=z[i], k=k)
        assert [h.score for h in hits] == pytest.approx(scores[0].tolist(), rel=1e-5, abs=1e-5)
        assert all(h.caption == str(900 * h.shard + h.row) for h in hits)
        assert same_but_for_rounding([h.id for h in hits], ids[0].tolist(), scores[0])


def same_but_for_rounding(found: list[int], expected: list[int], scores: np.ndarray) -> bool:
    """Equal ids wherever float32 can tell the scores apart; the last, open group of a cut list is left out."""
    edges = np.flatnonzero(np.diff(scores) < -1e-5) + 1
    groups = zip([0, *edges[:-1]], edges, strict=True) if len(edges) else []
    return all(sorted(found[a:b]) == sorted(expected[a:b]) for a, b in groups)


def test_another_encoder_is_refused_with_both_names_and_fingerprints(index_url: str) -> None:
    with pytest.raises(RefusedError, match="fingerprint differs") as e:
        open_index(index_url, encoder="fake:17").search("anything")
    for named in ("fake:16", "fake:17", load_encoder("fake:16").fingerprint, load_encoder("fake:17").fingerprint):
        assert named in str(e.value)


def test_an_encoder_that_changed_behind_its_spec_is_refused(tmp_path: Path) -> None:
    rows = [{"shard": 0, "row": 0, "image_embedding": np.ones(8, np.float16)}]
    build_index(write_set(str(tmp_path / "emb"), rows, dimension=8), str(tmp_path / "index"))
    with pytest.raises(RefusedError, match="sha256:made-by-hand"):
        open_index(str(tmp_path / "index")).search("anything")


def test_the_same_model_under_another_name_is_welcome(index_url: str) -> None:
    encoder = load_encoder("fake:16")
    encoder.spec = "fake:elsewhere"
    assert open_index(index_url, encoder=encoder).search("anything") == open_index(index_url).search("anything")


def test_a_model_that_is_gone_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    rows = [{"shard": 0, "row": 0, "image_embedding": np.ones(8, np.float16)}]
    emb = write_set(str(tmp_path / "emb"), rows, dimension=8, encoder="gone:model")
    build_index(emb, str(tmp_path / "index"))
    index = open_index(str(tmp_path / "index"))
    with pytest.raises(UsageError, match=r"made with gone:model.*--model SPEC"):
        index.search("anything")
    assert len(index.search(id=0)) == 1  # needs no encoder


def test_questions_that_make_no_sense_are_usage_errors(index: Index) -> None:
    asked: list[tuple[dict[str, Any], str]] = [
        ({}, "exactly one"),
        ({"text": "a", "id": 1}, "exactly one"),
        ({"text": "a", "k": 0}, "at least one hit"),
        ({"text": "  "}, "empty"),
        ({"id": 99}, "no id 99"),
        ({"id": 1 << 70}, "no id"),
        ({"id": -1}, "no id -1"),
        ({"vector": np.ones(5)}, r"\(5,\)"),
        ({"vector": np.zeros(16)}, "no direction"),
        ({"vector": np.full(16, np.nan)}, "no direction"),
        ({"image": b"no picture"}, "cannot be read as a picture"),
        ({"image": "/nowhere/at/all.jpg"}, "nothing is there"),
    ]
    for ask, what in asked:
        with pytest.raises(UsageError, match=what):
            index.search(**ask)


def test_a_tampered_file_is_refused_before_it_is_used(index_url: str) -> None:
    vectors = next(Path(index_url).glob("v=*/vectors.f16"))
    vectors.write_bytes(vectors.read_bytes()[::-1])
    with pytest.raises(RefusedError, match=r"vectors\.f16: SHA-256 is"):
        open_index(index_url)


def test_tampered_metadata_is_refused_when_it_is_read(index_url: str) -> None:
    metadata = next(Path(index_url).glob("v=*/metadata.parquet"))
    metadata.write_bytes(metadata.read_bytes().replace(b"PAR1", b"PAR2", 1))
    index = open_index(index_url)
    with pytest.raises(RefusedError, match=r"metadata\.parquet: SHA-256 is"):
        index.search("anything")


def test_an_older_version_can_still_be_asked(index_url: str, tmp_path: Path) -> None:
    build_index(str(tmp_path / "emb"), index_url, of="text")
    assert (open_index(index_url).info.of, open_index(index_url, version=1).info.of) == ("text", "image")
    assert (open_index(index_url).version, open_index(index_url, version=1).version) == (2, 1)


def test_on_a_real_store_that_ignores_conditions_versions_still_follow_each_other(s3) -> None:
    bucket = s3.bucket("search")
    emb = write_set(
        f"{bucket}/emb",
        [{"shard": 0, "row": i, "caption": f"row {i}", "image_embedding": np.eye(8)[i]} for i in range(8)],
        dimension=8,
        fingerprint=load_encoder("fake:8").fingerprint,
    )
    url = f"{bucket}/index"
    build_index(emb, url)
    before = open_index(url).search("anything")
    assert build_index(emb, url).version == 2
    assert open_index(url).search("anything") == before
    assert open_index(url).search(id=5, k=1)[0].caption == "row 5"
