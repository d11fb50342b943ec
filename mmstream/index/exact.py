"""The truth: brute force in NumPy over the vectors of an embedding set, in constant memory, without FAISS.

Slow and plain on purpose. Every index, exact or approximate, is measured against this.
"""

from __future__ import annotations

import numpy as np

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.index.encode import vectors_of


def exact_search(emb: EmbeddingSet, of: str, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of `emb` by inner product with its stored `of` vectors, for each query.

    Args:
        queries: float [q, d].

    Returns:
        scores float64 [q, min(k, n)], descending, and ids int64 of the same shape; equal scores by ascending id.
    """
    scores = np.empty((len(queries), 0))
    ids = np.empty((len(queries), 0), np.int64)
    for table in emb.tables(["id", f"{of}_embedding"]):
        has, vectors = vectors_of(table, of)
        block = queries.astype(np.float64) @ vectors.astype(np.float64).T
        block_ids = np.broadcast_to(table["id"].to_numpy()[has], block.shape)
        scores, ids = _best(np.hstack([scores, block]), np.hstack([ids, block_ids]), k)
    return scores, ids


def _best(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
