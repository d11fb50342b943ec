"""The main job, as its users run it: real pairs on S3 → embed → audit → index build → search, by the command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import mmstream

import mmstream as mm
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.encoders.build import load_encoder
from mmstream.index.exact import exact_search

QUERIES = ["a map of the world", "two people talk", "a graph with a curve", "brain"]


@pytest.fixture(scope="module")
def bucket(s3, shared: Path) -> str:
    url = s3.bucket("main-job")
    for tar in sorted((shared / "data" / "pairs").glob("*.tar")):
        shutil.copy(tar, s3.root / "main-job" / tar.name)
    return url


def test_pairs_through_s3_become_answers_that_equal_brute_force(bucket: str) -> None:
    embedded = mmstream("embed", f"{bucket}/*.tar", f"{bucket}/emb", "--model", "fake:64")
    assert (embedded["rows"], embedded["shards"], embedded["rejects"]) == (887, 7, {})
    audited = mmstream("audit", f"{bucket}/emb")
    assert audited["ok"]
    assert audited["rows"] == 887
    assert mmstream("index", "build", f"{bucket}/emb", f"{bucket}/index")["num_vectors"] == 887

    emb, index = EmbeddingSet.open(f"{bucket}/emb"), mm.open_index(f"{bucket}/index")
    captions = {i: c for t in emb.tables(["id", "caption"]) for i, c in zip(*map(list, columns(t)), strict=True)}
    vectors = load_encoder("fake:64").encode_text(QUERIES)
    scores, ids = exact_search(emb, "image", vectors, 10)
    for query, expected_scores, expected_ids in zip(QUERIES, scores, ids, strict=True):
        hits = index.search(query, k=10)
        assert [h.id for h in hits] == expected_ids.tolist()
        assert np.allclose([h.score for h in hits], expected_scores, atol=1e-6)
        assert all(h.caption == captions[h.id] for h in hits)

    asked = mmstream("search", f"{bucket}/index", QUERIES[0], "-k", "5")
    assert [h["id"] for h in asked["hits"]] == ids[0][:5].tolist()
    assert asked["version"] == 1


def columns(table) -> list[list[Any]]:
    return [table[name].to_pylist() for name in table.column_names]
