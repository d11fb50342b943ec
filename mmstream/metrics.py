"""Retrieval quality, defined once for training, index and report: vectors of pairs go in, recall@k comes out.

Row i of the images and row i of the texts are a pair, and the only hit of a query is its own partner: where samples
share an image or a caption, the others count as misses, and the ceiling says what that costs. Ties count against
you, a row that is not finite is a miss, and chance and ceiling stand beside every score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmstream.errors import UsageError

RECALL_AT = (1, 5, 10)
SCORES_PER_BLOCK = 1 << 24  # 64 MiB of float32 at a time, however many pairs there are
TIE = 2.0**-20  # float32 products of equal vectors differ by less, relative to their norms


def retrieval(z_image: np.ndarray, z_text: np.ndarray, *, fits: np.ndarray | None = None) -> dict[str, Any]:
    """Recall@1, 5 and 10 in both directions among all n pairs, by exact inner products.

    Args:
        z_image: float [n, d], a vector per image; rows that are missing are NaN.
        z_text: float [n, d], the vector of the text that belongs to the image of the same row.
        fits: int [n], how many of the n images each text is true of (at least 1: its own), or None if unknown.

    Returns:
        `{"n", "chance": {"r@1", "r@5", "r@10"}, "ceiling", "text_to_image": {…}, "image_to_text": {…}}`, plain
        numbers. `ceiling` is text→image R@1 of a perfect model, the mean of 1/fits; None where `fits` is None.

    Raises:
        UsageError: there is no pair.
        ValueError: the shapes do not agree, or a text fits less than its own image.
    """
    if z_image.ndim != 2 or z_image.shape != z_text.shape:
        raise ValueError(f"images and texts must be [n, d] alike, not {z_image.shape} and {z_text.shape}")
    n = len(z_image)
    if n == 0:
        raise UsageError("No pair has both an image and a text vector, so there is nothing to measure.")
    return {
        "n": n,
        "chance": {f"r@{k}": min(k, n) / n for k in RECALL_AT},
        "ceiling": None if fits is None else _ceiling(np.asarray(fits), n),
        "text_to_image": recall_at(partner_ranks(z_text, z_image)),
        "image_to_text": recall_at(partner_ranks(z_image, z_text)),
    }


def _ceiling(fits: np.ndarray, n: int) -> float:
    if fits.shape != (n,) or fits.min() < 1:
        raise ValueError(f"fits must be [{n}] with every text true of its own image, not {fits.shape}")
    return float(np.mean(1.0 / fits))


def partner_ranks(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """int64 [n]: how many candidates stand before the query's own partner; n where either of the two is not finite.

    A candidate as near as the partner stands before it. What is not finite can be found by nobody else either.
    """
    q, c = (np.ascontiguousarray(z, np.float32) for z in (queries, candidates))
    q_good, c_good = np.all(np.isfinite(q), axis=1), np.all(np.isfinite(c), axis=1)
    q, c = np.where(q_good[:, None], q, 0), np.where(c_good[:, None], c, 0)
    n = len(q)
    own = np.einsum("nd,nd->n", q, c)
    # BLAS sums in an order that depends on a row's place, so equal vectors need not give equal products.
    tolerance = TIE * np.linalg.norm(q, axis=1) * np.linalg.norm(c, axis=1).max()
    ranks = np.empty(n, np.int64)
    step = max(1, SCORES_PER_BLOCK // n)
    for start in range(0, n, step):
        block = slice(start, start + step)
        scores = q[block] @ c.T
        scores[:, ~c_good] = -np.inf
        ranks[block] = (scores >= (own - tolerance)[block, None]).sum(1) - 1
    ranks[~(q_good & c_good)] = n
    return ranks


def recall_at(ranks: np.ndarray, at: Sequence[int] = RECALL_AT) -> dict[str, float]:
    """Share of the ranks [n] (0 = first) that are below each k, as `{"r@<k>": share}`."""
    return {f"r@{k}": float(np.mean(ranks < k)) for k in at}


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds a share measured on n independent trials, 95 % with the default z.

    Wilson (1927), J. Am. Stat. Assoc. 22:209. Unlike mean ± z·s/√n it stays in [0, 1] and is not empty at 0 and 1.
    """
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
