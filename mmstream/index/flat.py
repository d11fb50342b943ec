"""Exact search: FAISS compares a query with every stored vector. No training, no approximation, recall 1.

The fp16 values are FAISS's codes byte for byte, so nothing is rounded twice; products are summed in float32. Answers
are in one order whatever FAISS's heaps do: by score, and by id where scores are equal, also at the last place.
"""

from __future__ import annotations

import faiss
import numpy as np

FACTORY = "IDMap2,SQfp16"
METRIC = "inner_product"


class FlatIndex:
    """
    Args:
        ids: int64 [n], ascending.
        vectors: float16 [n, d]; copied.
    """

    def __init__(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        num, dimension = vectors.shape
        self.ids = ids
        self._vectors = vectors
        codec = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index = faiss.IndexIDMap2(codec)
        self._index.add_sa_codes(np.ascontiguousarray(vectors).view(np.uint8).reshape(num, -1), ids)

    def __len__(self) -> int:
        return len(self.ids)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best min(k, n) of all vectors for a query float32 [d]: scores float32 [·] and ids int64 [·]."""
        wanted = min(k, len(self))
        fetch = min(wanted + 1, len(self))
        while True:
            found, labels = self._index.search(np.ascontiguousarray(query[None], np.float32), fetch)
            scores, ids = found[0], labels[0]
            # Which of several equals FAISS keeps is chance: widen until the last place is decided.
            if fetch == len(self) or scores[wanted - 1] > scores[-1]:
                break
            fetch = min(2 * fetch, len(self))
        order = np.lexsort((ids, -scores))[:wanted]
        return scores[order], ids[order]

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """The rows of some ids, int64 of the same shape; -1 where an id is not in the index."""
        at = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        return np.where(self.ids[at] == ids, at, -1)

    def vector(self, position: int) -> np.ndarray:
        """The stored vector of a row, as float32 [d]."""
        return self._vectors[position].astype(np.float32)
