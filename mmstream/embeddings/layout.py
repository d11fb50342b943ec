"""Where everything of an embedding set lies, and how its records are read back.

    DEST/catalog/<n>.parquet                     the frozen shards
    DEST/manifest/<n>.json                       what the set is; the highest counts
    DEST/data/<shard>-<chunk>-<attempt>.parquet  rows, written once
    DEST/rejects/<shard>-<chunk>-<attempt>.parquet
    DEST/commits/<shard>/<chunk>.<g>.json        one record per chunk, written last
    DEST/commits/<shard>.<g>.json                the records of a finished shard, folded

Names are made and taken apart here only. Of several generations g of a record the highest valid one counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from mmstream.errors import RefusedError
from mmstream.schema import FORMAT, ChunkRecord, Manifest, ShardRecord
from mmstream.storage.files import join, list_files, read_bytes

READ_THREADS = 16

_CHUNK = re.compile(r"/(\d+)/(\d+)\.(\d+)\.json$")
_SHARD = re.compile(r"/(\d+)\.(\d+)\.json$")
R = TypeVar("R", bound=BaseModel)


def catalog_path(n: int) -> str:
    return f"catalog/{n:06}.parquet"


def manifest_path(n: int) -> str:
    return f"manifest/{n:06}.json"


def object_path(kind: str, shard: int, chunk: int, attempt: str) -> str:
    """`kind` is `data` or `rejects`; the attempt keeps two writers of one chunk apart."""
    return f"{kind}/{shard:06}-{chunk:06}-{attempt}.parquet"


def chunk_record_path(shard: int, chunk: int, generation: int = 0) -> str:
    return f"commits/{shard:06}/{chunk:06}.{generation}.json"


def shard_record_path(shard: int, generation: int = 0) -> str:
    return f"commits/{shard:06}.{generation}.json"


def parse(record: type[R], data: bytes, url: str) -> R:
    """A stored record, checked.

    Raises:
        RefusedError: it is not a record of this format.
    """
    try:
        parsed = record.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise RefusedError(
            f"{url}: not a {record.__name__} ({'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}). "
            "It was damaged or written by another version; `mmstream audit` names what is affected."
        ) from e
    written = getattr(parsed, "format", FORMAT)
    if written != FORMAT:
        raise RefusedError(f"{url}: format is {written}, this version reads {FORMAT}.")
    return parsed


def latest_manifest(root: str) -> tuple[int, Manifest, bytes] | None:
    """Number, manifest and its bytes as stored, of the highest generation; None where there is none."""
    found = [f.url for f in list_files(join(root, "manifest")) if f.url.endswith(".json")]
    if not found:
        return None
    url = max(found, key=_number)
    data = read_bytes(url)
    return _number(url), parse(Manifest, data, url), data


def _number(url: str) -> int:
    return int(url.rsplit("/", 1)[1].split(".")[0])


def read_records(root: str) -> tuple[dict[int, ShardRecord], dict[int, dict[int, ChunkRecord]]]:
    """Folded records by shard, and chunk records by shard and chunk of the shards that are not folded."""
    folded: dict[int, tuple[int, str]] = {}
    chunks: dict[tuple[int, int], tuple[int, str]] = {}
    for file in list_files(join(root, "commits")):
        if match := _CHUNK.search(file.url):
            shard, chunk, g = map(int, match.groups())
            chunks[shard, chunk] = max(chunks.get((shard, chunk), (-1, "")), (g, file.url))
        elif match := _SHARD.search(file.url):
            shard, g = map(int, match.groups())
            folded[shard] = max(folded.get(shard, (-1, "")), (g, file.url))
    shards = {r.shard: r for r in _read_all(ShardRecord, (url for _, url in folded.values()))}
    open_chunks: dict[int, dict[int, ChunkRecord]] = {}
    wanted = (url for (shard, _), (_, url) in chunks.items() if shard not in shards)
    for record in _read_all(ChunkRecord, wanted):
        open_chunks.setdefault(record.shard, {})[record.chunk] = record
    return shards, open_chunks


def _read_all(record: type[R], urls: Iterable[str]) -> list[R]:
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda url: parse(record, read_bytes(url), url), urls))


def fold(chunks: dict[int, ChunkRecord]) -> ShardRecord | None:
    """The record of a shard whose chunks are all there, from 0 to the one with `end`; None where some are missing.

    Raises:
        RefusedError: the chunks do not adjoin.
    """
    ordered = [chunks[n] for n in sorted(chunks)]
    if not ordered or not ordered[-1].end or len(ordered) != ordered[-1].chunk + 1:
        return None
    next_row = 0
    for record in ordered:
        if record.first_row != next_row or (record.end and record is not ordered[-1]):
            raise RefusedError(
                f"shard {record.shard} chunk {record.chunk}: begins at row {record.first_row}, the chunk before ends "
                f"at {next_row}: two attempts saw different bytes. Embed into a new folder."
            )
        next_row += record.num_samples
    rejects: dict[str, int] = {}
    for record in ordered:
        for reason, n in record.num_rejects.items():
            rejects[reason] = rejects.get(reason, 0) + n
    return ShardRecord(
        shard=ordered[0].shard,
        num_samples=sum(r.num_samples for r in ordered),
        num_rows=sum(r.num_rows for r in ordered),
        num_rejects=dict(sorted(rejects.items())),
        damage=ordered[-1].damage,
        chunks=ordered,
    )
