"""An embedding set goes in, the next version of an index comes out, published.

For now every index is Flat, which is exact: half a million vectors of 512 dimensions take 0.5 GB of memory and about
25 ms a query on one core.
"""

from __future__ import annotations

import io
import shlex
import time

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import RefusedError
from mmstream.index.encode import Encoded, OnProgress, chosen_modality, encode
from mmstream.index.flat import FACTORY, METRIC
from mmstream.index.publish import publish
from mmstream.index.store import CATALOG, IDS, METADATA, VECTORS, highest_number, open_version
from mmstream.schema import IndexManifest, StoredObject
from mmstream.storage.files import absolute
from mmstream.telemetry import Report

METADATA_GROUP_ROWS = 4096  # a hit costs the decoding of one such group


class IndexReport(Report):
    """What was built: `num_left_out` rows of the set have no vector of the modality `of`."""

    index: str
    version: int
    of: str
    num_vectors: int
    num_left_out: int
    dimension: int
    factory: str
    bytes: int
    seconds: float


def build_index(
    emb_url: str, index_url: str, *, of: str | None = None, on_progress: OnProgress | None = None
) -> IndexReport:
    """Indexes the vectors of one modality of a finished embedding set, and makes that the index's current version.

    Args:
        of: image, text, audio or video; by default image, else the set's first.
        on_progress: is told rows done and rows in all.

    Raises:
        UsageError: no embedding set is there, or it has no such vectors.
        RefusedError: the set is unfinished, its rows cannot be trusted, or the index at `index_url` holds vectors of
            another encoder.
        DifferencesError: an object of the set is not what its record says.
        UnreachableError: a store does not answer.
    """
    started = time.perf_counter()
    emb, index_url = EmbeddingSet.open(emb_url), absolute(index_url)
    of = chosen_modality(emb, of)
    _check_current(index_url, emb)
    encoded = encode(emb, of, on_progress)
    version = publish(index_url, _files(encoded, emb.catalog), lambda files: _manifest(emb, of, encoded, files))
    return IndexReport(
        index=index_url,
        version=version.record.version,
        of=of,
        num_vectors=len(encoded.ids),
        num_left_out=encoded.num_left_out,
        dimension=emb.manifest.dimension,
        factory=FACTORY,
        bytes=sum(f.bytes for f in version.manifest.files.values()),
        seconds=round(time.perf_counter() - started, 3),
        next=[shlex.join(["mmstream", "search", index_url, *_question(emb), "-k", "10", "--html", "hits.html"])],
    )


def _check_current(index_url: str, emb: EmbeddingSet) -> None:
    """All versions of an index answer to one encoder."""
    if not highest_number(index_url):
        return
    now = open_version(index_url).manifest
    if now.fingerprint != emb.manifest.fingerprint:
        raise RefusedError(
            f"{index_url}: fingerprint differs: this index holds vectors of {now.encoder}, {emb.url} of "
            f"{emb.manifest.encoder}. Build into another folder."
        )


def _files(encoded: Encoded, catalog: pa.Table) -> dict[str, bytes]:
    return {
        VECTORS: encoded.vectors.astype("<f2", copy=False).tobytes(),
        IDS: encoded.ids.astype("<i8", copy=False).tobytes(),
        METADATA: _parquet(encoded.metadata),
        CATALOG: _parquet(catalog),
    }


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd", row_group_size=METADATA_GROUP_ROWS)
    return out.getvalue()


def _question(emb: EmbeddingSet) -> list[str]:
    """What its encoder can be asked with: words where it takes any."""
    return ["a few words"] if "text" in emb.manifest.modalities else ["--image", "FILE"]


def _manifest(emb: EmbeddingSet, of: str, encoded: Encoded, files: dict[str, StoredObject]) -> IndexManifest:
    return IndexManifest(
        factory=FACTORY,
        metric=METRIC,
        dimension=emb.manifest.dimension,
        num_vectors=len(encoded.ids),
        of=of,
        encoder=emb.manifest.encoder,
        fingerprint=emb.manifest.fingerprint,
        normalized=emb.manifest.normalized,
        embeddings=emb.url,
        embeddings_manifest_sha256=emb.manifest_sha256,
        files=files,
        libraries={library.__name__: str(library.__version__) for library in (faiss, np, pa)},
    )
