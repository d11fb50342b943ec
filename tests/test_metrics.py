"""Recall@k against hand-made matrices and against a slow twin that knows no blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmstream import metrics
from mmstream.errors import UsageError
from mmstream.metrics import partner_ranks, recall_at, retrieval, wilson


def slow_ranks(queries: np.ndarray, candidates: np.ndarray) -> list[int]:
    ranks = []
    for i, q in enumerate(queries):
        own = sum(float(a) * float(b) for a, b in zip(q, candidates[i], strict=True))
        if not np.isfinite(own):
            ranks.append(len(queries))
            continue
        others = [float(np.dot(q.astype(float), c.astype(float))) for j, c in enumerate(candidates) if j != i]
        ranks.append(sum(s >= own for s in others if np.isfinite(s)))
    return ranks


def whole(seed: int, n: int, d: int = 4) -> np.ndarray:
    """Small whole numbers: every product is exact, and ties are frequent."""
    return np.random.default_rng(seed).integers(-2, 3, (n, d)).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_ranks_equal_the_slow_twin_with_ties(seed: int, n: int) -> None:
    q, c = whole(seed, n), whole(seed + 1, n)
    assert partner_ranks(q, c).tolist() == slow_ranks(q, c)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, c = whole(1, 101), whole(2, 101)
    expected = partner_ranks(q, c)
    monkeypatch.setattr(metrics, "SCORES_PER_BLOCK", 700)
    assert (partner_ranks(q, c) == expected).all()


def test_a_matrix_by_hand() -> None:
    # Scores are the rows of the texts themselves, because the images are the axes.
    texts = np.array([[3, 2, 1], [5, 4, 0], [0, 1, 2]], np.float32)
    out = retrieval(np.eye(3, dtype=np.float32), texts, fits=np.array([1, 2, 4]))
    assert out["text_to_image"] == {"r@1": pytest.approx(2 / 3), "r@5": 1.0, "r@10": 1.0}
    assert out["image_to_text"] == {"r@1": pytest.approx(2 / 3), "r@5": 1.0, "r@10": 1.0}
    assert out["ceiling"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert out["chance"] == {"r@1": pytest.approx(1 / 3), "r@5": 1.0, "r@10": 1.0}
    assert out["n"] == 3


def test_the_answer_is_plain_json() -> None:
    out = retrieval(whole(3, 20), whole(4, 20))
    assert json.loads(json.dumps(out)) == out
    assert out["ceiling"] is None
    assert list(out) == ["n", "chance", "ceiling", "text_to_image", "image_to_text"]


@pytest.mark.parametrize(("n", "d"), [(11, 512), (101, 129), (997, 512), (2000, 64)])
def test_vectors_that_are_all_equal_find_nothing(n: int, d: int) -> None:
    same = np.tile(np.random.default_rng(n).standard_normal(d).astype(np.float32), (n, 1))
    out = retrieval(same, same)
    assert out["text_to_image"] == out["image_to_text"] == {"r@1": 0.0, "r@5": 0.0, "r@10": 0.0}


def test_the_order_of_the_pairs_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    images = rng.standard_normal((300, 16)).astype(np.float32)
    texts = images + 2 * rng.standard_normal((300, 16)).astype(np.float32)
    order = rng.permutation(300)
    assert retrieval(images[order], texts[order]) == retrieval(images, texts)
    assert 0 < retrieval(images, texts)["text_to_image"]["r@1"] < 1


def test_a_row_that_is_not_finite_is_a_miss_and_harms_nobody_else() -> None:
    images, texts = np.eye(20, dtype=np.float32), np.eye(20, dtype=np.float32)
    images[3], texts[7, 2] = np.nan, np.inf
    assert partner_ranks(texts, images).tolist() == [20 if i in (3, 7) else 0 for i in range(20)]
    assert partner_ranks(images, texts).tolist() == [20 if i in (3, 7) else 0 for i in range(20)]


def test_a_broken_candidate_is_found_by_nobody_not_even_where_all_scores_are_negative() -> None:
    images, texts = np.eye(3, dtype=np.float32), -np.eye(3, dtype=np.float32) - 1
    texts[0] = np.nan
    texts[1:, 0] = -5
    assert partner_ranks(images, texts).tolist() == [3, 1, 1]


def test_equal_halves_of_a_set_cost_each_other_the_first_place() -> None:
    images = np.repeat(np.eye(4, dtype=np.float32), 2, axis=0)
    assert recall_at(partner_ranks(images, images), (1, 2)) == {"r@1": 0.0, "r@2": 1.0}


def test_no_pair_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        retrieval(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32))


def test_shapes_and_fits_are_checked() -> None:
    with pytest.raises(ValueError, match="alike"):
        retrieval(whole(1, 3), whole(1, 4))
    with pytest.raises(ValueError, match="its own image"):
        retrieval(whole(1, 3), whole(1, 3), fits=np.array([1, 0, 1]))


def test_wilson_gives_the_interval_of_the_textbooks() -> None:
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(0.0, 10)[0] == 0.0
    assert 0.2 < wilson(0.0, 10)[1] < 0.3
