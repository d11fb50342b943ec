"""FAISS against brute force in NumPy, ties included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from embedding_sets import tied_vectors, write_set

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.index.encode import vectors_of
from mmstream.index.exact import exact_search
from mmstream.index.flat import FlatIndex

N, D = 2000, 33


@pytest.fixture(scope="module")
def emb(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSet:
    z = tied_vectors(N, D)
    rows = [{"shard": i // 700, "row": i % 700, "image_embedding": None if i % 11 == 0 else z[i]} for i in range(N)]
    return EmbeddingSet.open(write_set(str(tmp_path_factory.mktemp("set")), rows, dimension=D))


@pytest.fixture(scope="module")
def flat(emb: EmbeddingSet) -> FlatIndex:
    ids, vectors = [], []
    for table in emb.tables():
        has, found = vectors_of(table, "image")
        ids.append(table["id"].to_numpy()[has])
        vectors.append(found)
    return FlatIndex(np.concatenate(ids), np.concatenate(vectors))


def test_vectors_of_a_table_are_those_that_are_not_null(emb: EmbeddingSet) -> None:
    table = next(emb.tables())
    has, vectors = vectors_of(table.slice(7, 50), "image")
    slow = table.slice(7, 50)["image_embedding"].to_pylist()
    assert has.tolist() == [v is not None for v in slow]
    assert vectors.tolist() == [v for v in slow if v is not None]


@pytest.mark.parametrize("k", [1, 3, 10, 1000, N, 5 * N])
def test_answers_equal_brute_force_ids_and_order_of_ties_included(emb: EmbeddingSet, flat: FlatIndex, k: int) -> None:
    queries = tied_vectors(20, D, seed=9).astype(np.float32)
    scores, ids = exact_search(emb, "image", queries, k)
    assert scores.shape == (20, min(k, len(flat)))
    for q, s, i in zip(queries, scores, ids, strict=True):
        found_scores, found_ids = flat.search(q, k)
        assert found_scores.tolist() == s.tolist()
        assert found_ids.tolist() == i.tolist()


def test_brute_force_by_hand(tmp_path: Path) -> None:
    z = np.array([[1, 0], [0, 1], [1, 0], [-1, 0]], np.float16)
    rows = [{"shard": 0, "row": i, "image_embedding": z[i]} for i in range(4)]
    emb = EmbeddingSet.open(write_set(str(tmp_path), rows, dimension=2, chunk_rows=3))
    scores, ids = exact_search(emb, "image", np.array([[2.0, 1.0]]), 3)
    assert (scores.tolist(), ids.tolist()) == ([[2.0, 2.0, 1.0]], [[0, 2, 1]])


def test_random_vectors_score_as_brute_force_up_to_float32() -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((500, 64)).astype(np.float16)
    q = rng.standard_normal(64).astype(np.float32)
    scores, ids = FlatIndex(np.arange(500) * 7, z).search(q, 10)
    truth = z.astype(np.float64) @ q
    assert ids.tolist() == (np.argsort(-truth)[:10] * 7).tolist()
    assert np.allclose(scores, np.sort(truth)[::-1][:10], rtol=1e-5)


def test_an_id_gives_its_vector_and_one_that_is_not_there_is_told() -> None:
    z = tied_vectors(5, 3)
    flat = FlatIndex(np.array([2, 4, 1 << 40, 1 << 41, (1 << 41) + 1]), z)
    assert flat.positions(np.array([1 << 40, 2, 0, 3, 1 << 42])).tolist() == [2, 0, -1, -1, -1]
    assert flat.vector(2).tolist() == z[2].tolist()
