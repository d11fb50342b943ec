"""One chunk of samples becomes rows with vectors and rejects: the pure middle of `embed` and `evaluate`.

No sample vanishes: each ends as one row or as one reject with its reason. A sample needs only what the encoder can
use: a picture, a caption, a sound; what is absent is null in the row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from mmstream.encoders.base import Encoder, video_vectors
from mmstream.encoders.pipelined import AHEAD, picture_vectors, prepared
from mmstream.errors import Reason, Rejected
from mmstream.media.audio import Sound
from mmstream.media.decoding import Decoder, Direct, T
from mmstream.media.duplicates import content_hash, perceptual_hash
from mmstream.media.filters import Filters
from mmstream.media.filters import check as check_wanted
from mmstream.media.image import Picture
from mmstream.media.text import caption_of, parse_object
from mmstream.media.video import pictures
from mmstream.pipelines.source import ChunkInfo
from mmstream.schema import REJECT, embedding_schema
from mmstream.timing import Stopwatch

_HERE = Direct()
_NO_FILTERS = Filters()
# Fields that are made of the picture, whatever its JSON may hold under these names.
COMPUTED = {
    "image_sha256": lambda picture: content_hash(picture.data),
    "image_phash": lambda picture: f"{perceptual_hash(picture.rgb):016x}",
}


def columns_of(encoder: Encoder) -> tuple[str, ...]:
    """The payloads that `encode_chunk` looks at, for this encoder: others need not be read. All texts are judged."""
    seen = {**dict.fromkeys(encoder.modalities, True), "video": encoder.num_frames > 0 or "audio" in encoder.modalities}
    return ("text", "json", "cls", *(m for m in ("image", "audio", "video") if seen.get(m)))


@dataclass(frozen=True)
class _Sample:
    """One sample that is ready for the encoder: `parts` are pixels, a caption, features of a sound and
    the pixels of a video's frames, by modality."""

    about: dict[str, Any]
    offset: int  # of its first header in the shard
    parts: dict[str, Any]


def encode_chunk(
    info: ChunkInfo,
    samples: pa.Table,
    encoder: Encoder,
    fields: Sequence[str],
    *,
    pool: Executor,
    watch: Stopwatch,
    decoder: Decoder = _HERE,
    filters: Filters = _NO_FILTERS,
) -> tuple[pa.Table, pa.Table]:
    """(rows in `embedding_schema`, rejects in schema.REJECT) of a chunk.

    Decoding (by way of `decoder`) and preprocessing run on `pool`, while the model is at work on the pictures that came
    before. The reject row of a damaged shard's unknown rest is among the rejects.
    """
    columns, n = {name: samples[name].combine_chunks() for name in samples.column_names}, samples.num_rows

    def prepare(group: range) -> list[_Sample | dict[str, Any]]:
        # Here and not before: only the bytes of samples at work are held as Python objects.
        samples = [{name: column[row].as_py() for name, column in columns.items()} for row in group]
        ahead = _decoded_ahead(samples, encoder, decoder) if encoder.group > 1 else {}
        return [_ready(sample, ahead.get(i, decoder)) for i, sample in enumerate(samples)]

    def _ready(sample: dict[str, Any], decoder: Decoder) -> _Sample | dict[str, Any]:
        try:
            return _prepare(sample, encoder, fields, decoder, filters)
        except Rejected as e:
            return _reject(sample["shard"], sample["row"], sample["key"], sample["offset"], e.reason, e.detail)

    ready: list[_Sample] = []
    rejects: list[dict[str, Any]] = []

    def pixels() -> Iterator[np.ndarray]:
        ahead = max(2, AHEAD * encoder.micro_batch // max(1, encoder.num_frames) // encoder.group)
        groups = (range(i, min(i + encoder.group, n)) for i in range(0, n, encoder.group))
        for result in chain.from_iterable(prepared(groups, prepare, pool, ahead)):
            if not isinstance(result, _Sample):
                rejects.append(result)
                continue
            ready.append(result)
            if "image" in result.parts:
                yield result.parts["image"]
                result.parts["image"] = None  # the model has them
            if "video" in result.parts:
                yield from result.parts["video"]
                result.parts["video"] = None

    of_pictures = list(picture_vectors(pixels(), encoder, watch))
    vectors = _vectors(ready, of_pictures, encoder, watch)
    rows, bad = _rows(ready, vectors, encoder, fields)
    if info.damage:
        rest = info.first_row + info.num_samples
        rejects.append(_reject(info.shard, rest, None, info.damage.offset, info.damage.reason, info.damage.detail))
    rejects = sorted([*rejects, *bad], key=lambda r: r["row"])
    return rows, pa.Table.from_pylist(rejects, schema=REJECT)


@dataclass(frozen=True)
class _DecodedAhead:
    """A decoder, one of whose pictures is there already."""

    ready: Picture
    other: Decoder

    def picture(self, data: bytes) -> AbstractContextManager[Picture]:
        return nullcontext(self.ready)

    def sound(self, data: bytes) -> AbstractContextManager[Sound]:
        return self.other.sound(data)

    def track(self, data: bytes) -> AbstractContextManager[Sound | None]:
        return self.other.track(data)

    def frames(self, data: bytes, num_frames: int) -> AbstractContextManager[tuple[np.ndarray, float]]:
        return self.other.frames(data, num_frames)

    def together(self, decode: Callable[[], T], num: int) -> T | None:
        return self.other.together(decode, num)


def _decoded_ahead(samples: list[dict[str, Any]], encoder: Encoder, decoder: Decoder) -> dict[int, Decoder]:
    """By position in `samples`, the decoders of those whose picture the device has decoded."""
    has = [i for i, s in enumerate(samples) if s["image"] is not None and s["reason"] is None]
    found = decoder.together(lambda: encoder.decode_ahead([samples[i]["image"] for i in has]), len(has))
    if found is None:
        return {}
    return {i: _DecodedAhead(p, decoder) for i, p in zip(has, found, strict=True) if p is not None}


def _prepare(
    sample: dict[str, Any], encoder: Encoder, fields: Sequence[str], decoder: Decoder, filters: Filters
) -> _Sample:
    if sample["reason"] is not None:
        raise Rejected(Reason(sample["reason"]), sample["detail"] or "")
    metadata = parse_object(sample["json"])
    caption = caption_of(sample["text"], metadata, filters)
    about = {
        "id": sample["id"],
        "shard": sample["shard"],
        "row": sample["row"],
        "key": sample["key"],
        "caption": caption,
        "url": _as_text(metadata.get("url")),
        **dict.fromkeys(("width", "height", "image_offset", "image_bytes")),
        **{field: None if field in COMPUTED else _as_text(metadata.get(field)) for field in fields},
    }
    parts: dict[str, Any] = {"text": caption} if caption is not None and "text" in encoder.modalities else {}
    if "image" in encoder.modalities and sample["image"] is not None:
        with decoder.picture(sample["image"]) as picture:
            check_wanted(filters.picture(picture.width, picture.height))
            about["width"], about["height"] = picture.width, picture.height
            about.update({field: COMPUTED[field](picture) for field in fields if field in COMPUTED})
            about["image_offset"], about["image_bytes"] = sample["image_offset"], len(sample["image"])
            parts["image"] = encoder.preprocess(picture)
    if "audio" in encoder.modalities and (heard := _heard(sample, decoder)) is not None:
        with heard as sound:
            if sound is not None:
                check_wanted(filters.length(sound.seconds))
                parts["audio"] = encoder.listen(sound)
    if encoder.num_frames and sample["video"] is not None:
        with decoder.frames(sample["video"], encoder.num_frames) as (frames, seconds):
            height, width = frames.shape[1:3]
            check_wanted(filters.length(seconds) or filters.picture(width, height))
            parts["video"] = [encoder.preprocess(picture) for picture in pictures(frames)]
            if "image" not in parts:
                about["width"], about["height"] = width, height
    if not parts:
        wanted = " or ".join(encoder.modalities)
        raise Rejected(Reason.MISSING_MEMBER, f"the sample has no {wanted}, which is what the encoder takes")
    return _Sample(about, sample["offset"], parts)


def _heard(sample: dict[str, Any], decoder: Decoder) -> AbstractContextManager[Sound | None] | None:
    """The sample's sound, or else the sound track of its video."""
    if sample["audio"] is not None:
        return decoder.sound(sample["audio"])
    return None if sample["video"] is None else decoder.track(sample["video"])


def _as_text(value: Any) -> str | None:
    """A JSON value as it is stored beside a vector.

    Raises:
        Rejected: `metadata`, it holds lone surrogates, which JSON can write and no text can hold.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise Rejected(Reason.METADATA, f"a JSON value with lone surrogates: {e.reason}") from e
    return text


def _reject(shard: int, row: int, key: str | None, offset: int, reason: str, detail: str) -> dict[str, Any]:
    return {
        "shard": shard,
        "row": row,
        "key": key,
        "member": None,
        "offset": offset,
        "reason": str(reason),
        "detail": detail,
    }


def _vectors(
    ready: list[_Sample], of_pictures: list[np.ndarray], encoder: Encoder, watch: Stopwatch
) -> dict[str, np.ndarray]:
    """float32 [n, d] per modality; NaN where a sample lacks it. Those of pictures and frames are there already."""
    vectors, seen = {}, _seen(ready, of_pictures, encoder)
    for modality in encoder.modalities:
        table = np.full((len(ready), encoder.dimension), np.nan, np.float32)
        parts = {i: s.parts[modality] for i, s in enumerate(ready) if modality in s.parts}
        if parts:
            has = list(parts.values())
            table[list(parts)] = seen[modality] if modality in seen else _embedded(modality, has, encoder, watch)
        vectors[modality] = table
    return vectors


def _seen(ready: list[_Sample], of_pictures: list[np.ndarray], encoder: Encoder) -> dict[str, np.ndarray]:
    """The vectors of pictures and frames, in the order in which the model had them, → those of images and videos."""
    if not of_pictures:
        return {}
    frames_of = {"image": 1, "video": encoder.num_frames}
    owners = [m for s in ready for m in frames_of if m in s.parts for _ in range(frames_of[m])]
    vectors, is_frame = np.concatenate(of_pictures), np.array(owners) == "video"
    frames = vectors[is_frame].reshape(-1, max(1, encoder.num_frames), encoder.dimension)
    return {"image": vectors[~is_frame], "video": video_vectors(frames)}


def _embedded(modality: str, parts: list[Any], encoder: Encoder, watch: Stopwatch) -> np.ndarray:
    """float32 [n, d]"""
    match modality:
        case "text":
            with watch("decode"):
                tokens = encoder.tokenize(parts)
            with watch("model"):
                return encoder.embed_tokens(tokens)
        case "audio":
            with watch("model"):
                return encoder.embed_sounds(parts)
    raise ValueError(modality)


def _rows(
    ready: list[_Sample], vectors: dict[str, np.ndarray], encoder: Encoder, fields: Sequence[str]
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The rows whose vectors are finite, and rejects for the others."""
    present = {m: np.array([m in s.parts for s in ready], bool) for m in vectors}
    finite: dict[str, np.ndarray] = {m: np.asarray(np.isfinite(v).all(axis=1)) for m, v in vectors.items()}
    good = np.ones(len(ready), bool)
    for m in vectors:
        good &= finite[m] | ~present[m]
    bad = [_bad_embedding(ready[i]) for i in np.flatnonzero(~good)]
    keep = np.flatnonzero(good)
    schema = embedding_schema(list(encoder.modalities), encoder.dimension, list(fields))
    about = (
        {n: pa.array([ready[i].about[n] for i in keep], schema.field(n).type) for n in ready[0].about} if ready else {}
    )
    columns = []
    for name in schema.names:
        if name in about:
            columns.append(about[name])
        elif name.endswith("_embedding"):
            m = name.removesuffix("_embedding")
            columns.append(_embedding(vectors[m][keep], present[m][keep] & finite[m][keep], encoder.dimension))
        elif name == "similarity":
            both = present["image"][keep] & present["text"][keep]
            cosine = np.einsum("nd,nd->n", vectors["image"][keep], vectors["text"][keep])
            columns.append(pa.array(cosine.astype(np.float32), mask=~both))
        else:
            columns.append(pa.nulls(0, schema.field(name).type))
    return pa.table(columns, schema=schema), bad


def _embedding(vectors: np.ndarray, valid: np.ndarray, dimension: int) -> pa.Array:
    flat = pa.array(np.where(valid[:, None], vectors, 0).astype(np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, dimension, mask=pa.array(~valid))


def _bad_embedding(sample: _Sample) -> dict[str, Any]:
    about = sample.about
    detail = "the encoder gave a vector that is not finite"
    return _reject(about["shard"], about["row"], about["key"], sample.offset, Reason.BAD_EMBEDDING, detail)
