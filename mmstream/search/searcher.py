"""An index is opened and asked: a text, a picture, a vector or an id goes in, the nearest samples come out.

Answers are sorted by score, equal scores by id, and say where the picture of each lies. A query is encoded by the
very encoder that made the stored vectors: the index knows its spec and its fingerprint, and refuses any other.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from mmstream.encoders.base import Encoder
from mmstream.encoders.build import load_encoder
from mmstream.errors import RefusedError, UnreachableError, UsageError
from mmstream.index.flat import FlatIndex
from mmstream.index.store import CATALOG, METADATA, IndexInfo, IndexVersion, open_version
from mmstream.schema import IndexManifest
from mmstream.search.metadata import Metadata
from mmstream.search.query import image_query, text_query, vector_query
from mmstream.storage.files import join


@dataclass(frozen=True)
class Hit:
    """One sample of the answer. `score` is the inner product with the query: the cosine for normalised vectors.

    `image_offset` and `image_bytes` say where in the shard the picture's bytes are; what is not known is None.
    `extra` holds the JSON fields that were chosen when the set was embedded.
    """

    id: int
    score: float
    key: str | None
    caption: str | None
    shard: int
    row: int
    url: str | None
    width: int | None
    height: int | None
    image_offset: int | None
    image_bytes: int | None
    extra: dict[str, str | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the extra fields stand beside the others, which win where names are equal."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        return own | {k: v for k, v in self.extra.items() if k not in own}


_KNOWN = {f.name for f in dataclasses.fields(Hit)} - {"extra"}


def open_index(url: str, *, version: int | None = None, encoder: str | Encoder | None = None) -> Index:
    """Opens the current version of an index, or the one of that number; vectors are read and checked here.

    Args:
        encoder: what to encode queries with, a model spec or an encoder. By default what the index was made with;
            give it where the same model lies elsewhere, since its fingerprint must be the same.

    Raises:
        UsageError: no index is there, or no such version.
        RefusedError: a file is not the one that the version vouches for.
        UnreachableError: the store does not answer.
    """
    return Index(open_version(url, version), encoder)


class Index:
    """One version of an index, loaded. The encoder is loaded when the first query needs it."""

    def __init__(self, version: IndexVersion, encoder: str | Encoder | None = None) -> None:
        self._version = version
        self._asked = version.manifest.encoder if encoder is None else encoder
        self._flat = FlatIndex(version.ids(), version.vectors())

    @property
    def url(self) -> str:
        return self._version.url

    @property
    def version(self) -> int:
        return self._version.record.version

    @property
    def manifest(self) -> IndexManifest:
        return self._version.manifest

    @property
    def info(self) -> IndexInfo:
        return self._version.info()

    def __len__(self) -> int:
        return len(self._flat)

    def __repr__(self) -> str:
        m = self.manifest
        return f"<Index {self.url} version {self.version}: {len(self):,} {m.of} vectors of {m.encoder}>"

    @property
    def ids(self) -> np.ndarray:
        """int64 [n], of the samples that it holds, rising."""
        return self._flat.ids

    @cached_property
    def catalog(self) -> pa.Table:
        """The shards that hold the pictures, schema.CATALOG."""
        return pq.read_table(pa.BufferReader(self._version.read(CATALOG)))

    @cached_property
    def encoder(self) -> Encoder:
        """What queries are encoded with.

        Raises:
            UsageError, UnreachableError: it cannot be loaded from where the index says it lies.
            RefusedError: its vectors are not of the kind that the index holds.
        """
        encoder = self._load(self._asked) if isinstance(self._asked, str) else self._asked
        m = self.manifest
        if encoder.fingerprint != m.fingerprint:
            raise RefusedError(
                f"{self.url}: fingerprint differs: the index holds vectors of {m.encoder} ({m.fingerprint}), "
                f"the query would be encoded by {encoder.spec} ({encoder.fingerprint}). Their vectors cannot be "
                f"compared: ask with the model of the index, or embed and index again with {encoder.spec}."
            )
        return encoder

    def _load(self, spec: str) -> Encoder:
        try:
            return load_encoder(spec)
        except (UsageError, UnreachableError) as e:
            if spec != self.manifest.encoder:
                raise
            hint = "Where the same model lies elsewhere, say so with --model SPEC; its fingerprint is checked."
            raise type(e)(f"{self.url}: the index was made with {spec}, which cannot be loaded: {e} {hint}") from e

    def search(
        self,
        text: str | None = None,
        *,
        image: bytes | str | Path | None = None,
        vector: ArrayLike | None = None,
        id: int | None = None,
        k: int = 10,
    ) -> list[Hit]:
        """The k nearest samples, fewer where the index is smaller.

        Args:
            text: words.
            image: an encoded picture, or the path or URL of one.
            vector: float [d].
            id: of a sample in the index, which finds itself first.

        Raises:
            UsageError: not exactly one question, a k below 1, or a question that cannot be encoded.
            RefusedError: the encoder is another than that of the index.
        """
        asked = [q for q in (text, image, vector, id) if q is not None]
        if len(asked) != 1:
            raise UsageError(f"Ask with exactly one of text, image, vector and id; {len(asked)} were given.")
        if k < 1:
            raise UsageError(f"k is {k}: ask for at least one hit.")
        scores, ids = self._flat.search(self._query(text, image, vector, id), k)
        return self._hits(scores, ids)

    def _query(
        self, text: str | None, image: bytes | str | Path | None, vector: ArrayLike | None, id: int | None
    ) -> np.ndarray:
        dimension = self.manifest.dimension
        if text is not None:
            self._check_asked("text")
            return text_query(self.encoder, text)
        if image is not None:
            self._check_asked("image")
            return image_query(self.encoder, image)
        if vector is not None:
            return vector_query(vector, dimension)
        position = int(self._flat.positions(np.array(id)))
        if position < 0:
            raise UsageError(f"{self.url}: there is no id {id} in this index.")
        return vector_query(self._flat.vector(position), dimension)

    def _check_asked(self, modality: str) -> None:
        takes = [m for m in ("text", "image") if m in self.encoder.modalities]
        if modality not in takes:
            how = {"text": "with words", "image": "with a picture (--image FILE)"}
            ask = " or ".join(how[m] for m in takes) or "from Python, with a vector or an id"
            raise UsageError(f"{self.url}: made with {self.encoder.spec}, which takes no {modality}. Ask {ask}.")

    def _hits(self, scores: np.ndarray, ids: np.ndarray) -> list[Hit]:
        rows = self._metadata.rows(self._flat.positions(ids).tolist(), ids.tolist())
        return [
            Hit(
                score=score,
                extra={k: v for k, v in row.items() if k not in _KNOWN},
                **{k: v for k, v in row.items() if k in _KNOWN},
            )
            for score, row in zip(scores.tolist(), rows, strict=True)
        ]

    @cached_property
    def _metadata(self) -> Metadata:
        return Metadata(self._version.read(METADATA), join(self.url, self._version.record.path, METADATA))
