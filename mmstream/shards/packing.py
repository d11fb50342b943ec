"""Rows of a table, or files of a folder, become samples: which column is which part, what it is called, how it is told.

    drafts (a row, nothing read yet) → `sample_of` (its files are read) → `cut` (shards by samples and bytes)

Equal input gives equal samples. A row that cannot be used is a `Rejected`, never a gap: its number stays its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.shards.group import COLUMN_OF
from mmstream.shards.tables import Row

MEDIA = ("image", "audio", "video")
_FILES = ("file_name", "filename", "file", "path", "filepath", "url")  # what they are their suffixes tell
_KNOWN = {
    "image": ("image", "img", "picture", "photo", "image_path", "image_file", "image_url"),
    "audio": ("audio", "sound", "audio_path", "audio_file", "audio_url"),
    "video": ("video", "clip", "video_path", "video_file", "video_url"),
    "text": ("text", "caption", "txt", "sentence", "transcript", "transcription", "description"),
    "label": ("label", "class", "cls", "category"),
    "key": ("key", "__key__"),
}
_MAGIC = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (8, b"WAVE", "wav"),
    (0, b"BM", "bmp"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (4, b"ftyp", "mp4"),
    (0, b"\x1aE\xdf\xa3", "webm"),
)
_LONGEST_KEY = 200
MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Roles:
    """Which column of a table is which part of a sample. `numbers` have to be numbers; what has no role goes to the
    JSON as it is. `file` is a column whose values' suffixes tell whether they are pictures, sounds or videos."""

    image: str | None = None
    audio: str | None = None
    video: str | None = None
    file: str | None = None
    text: str | None = None
    label: str | None = None
    key: str | None = None
    numbers: tuple[str, ...] = ()

    @classmethod
    def among(
        cls, columns: Sequence[str], asked: Mapping[str, str | None], numbers: Sequence[str], where: str
    ) -> Roles:
        """Those that were asked for, and for the others the columns with a name that says it.

        Raises:
            UsageError: there is no such column, one has two roles, or nothing would make a sample.
        """
        named = {role: name for role, name in asked.items() if name}
        if unknown := [n for n in (*named.values(), *numbers) if n not in columns]:
            raise UsageError(f"{where}: has no column {unknown[0]!r}. It has {', '.join(columns[:20])}.")
        if twice := [n for n in named.values() if [*named.values(), *numbers].count(n) > 1]:
            raise UsageError(f"{where}: column {twice[0]!r} is asked for twice.")
        free = {name.lower(): name for name in reversed(columns) if name not in (*named.values(), *numbers)}
        for role, known in _KNOWN.items():
            if role not in named and (found := next((free.pop(k) for k in known if k in free), None)):
                named[role] = found
        if not any(role in named for role in MEDIA) and (found := next((free[k] for k in _FILES if k in free), None)):
            named["file"] = found
        if not any(role in named for role in (*MEDIA, "file", "text")) and not numbers:
            what = "none of its columns is a picture, sound, video or text by its name"
            raise UsageError(f"{where}: {what} ({', '.join(columns[:20])}). Say which, as --image COLUMN.")
        return cls(**named, numbers=tuple(numbers))

    @property
    def columns(self) -> dict[str, str]:
        return {role: name for role in (*MEDIA, "file", "text", "label", "key") if (name := getattr(self, role))}


@dataclass(frozen=True)
class Part:
    """A file of a sample: its bytes, or the URL where they are. `column` is null where the suffix has to tell."""

    source: bytes | str
    suffix: str
    column: str | None


@dataclass(frozen=True)
class Draft:
    """A sample to be, of which nothing was read yet."""

    key: str
    parts: tuple[Part, ...] = ()
    text: str | None = None
    label: str | int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def draft_of(row: Row, number: int, roles: Roles, find: Callable[[str], str]) -> Draft:
    """`find` makes a URL of what a cell holds as a path.

    Raises:
        Rejected: the row, as it came; or a cell holds what its role does not take.
    """
    if isinstance(row, Rejected):
        raise row
    rest = {name: value for name, value in row.items() if name not in roles.columns.values()}
    parts = [
        _part(row[name], role, find) for role, name in roles.columns.items() if role in (*MEDIA, "file") and name in row
    ]
    text = row.get(roles.text) if roles.text else None
    if text is not None and not isinstance(text, str):
        text = str(text) if isinstance(text, (int, float)) else _no("text", text)
    return Draft(
        key=key_of(str(row[roles.key])) if roles.key and roles.key in row else f"{number:09}",
        parts=tuple(parts),
        text=text,
        label=_label(row.get(roles.label) if roles.label else None),
        about={n: number_of(v, n) if n in roles.numbers else v for n, v in rest.items()},
    )


def _no(what: str, value: Any) -> Any:
    raise Rejected(Reason.METADATA, f"the {what} is a {type(value).__name__}")


def _part(value: Any, role: str, find: Callable[[str], str]) -> Part:
    column = role if role in MEDIA else None
    if isinstance(value, dict):  # as the Hugging Face libraries keep pictures and sounds in Parquet
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Part(value, "", column)
    if not isinstance(value, str):
        _no(role, value)
    return Part(find(value), suffix_of(value), column)


def suffix_of(path: str) -> str:
    """The lower-cased suffix of a path or URL if it is one of those that shards have, else nothing."""
    name = path.split("?", 1)[0].rsplit("/", 1)[-1]
    suffix = name.rsplit(".", 1)[-1].lower() if "." in name else ""
    return suffix if suffix in COLUMN_OF else ""


def key_of(text: str) -> str:
    """A key that every reader of shards takes: without dots in its last part, since what follows one is the suffix.

    Raises:
        Rejected: `unsafe_member`, no file in a tar should be called so.
    """
    folder, slash, name = text.rpartition("/")
    key = f"{folder}{slash}{name.replace('.', '_')}"
    if not name or len(key) > _LONGEST_KEY or not key.isprintable() or set(text.split("/")) & {"", ".", ".."}:
        raise Rejected(Reason.UNSAFE_MEMBER, f"{text[:60]!r} cannot be the key of a sample")
    return key


def _label(value: Any) -> str | int | None:
    if value is None or isinstance(value, str):
        return value
    return (
        int(value)
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        else _no("label", value)
    )


def number_of(value: Any, name: str) -> float | int:
    """
    Raises:
        Rejected: `metadata`, it is none.
    """
    if isinstance(value, (int, float)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError) as e:
        held = repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"
        raise Rejected(Reason.METADATA, f"column {name!r} holds {held}, which is no number") from e
    if number - number != 0:
        raise Rejected(Reason.METADATA, f"column {name!r} holds {value!r}, which JSON cannot say")
    return number


def class_names(drafts: Iterable[Draft | Rejected]) -> list[str] | None:
    """The names of all classes, sorted: a sample's `cls` is the place of its own. None where there are no labels, or
    where all are numbers already.

    Raises:
        UsageError: there are too many for a class to be meant.
    """
    names: set[str | int] = set()
    for draft in drafts:
        if isinstance(draft, Draft) and draft.label is not None:
            names.add(draft.label)
        if len(names) > MAX_CLASSES:
            raise UsageError(f"there are over {MAX_CLASSES:,} different labels. Is that column a label? Name another.")
    return sorted({str(name) for name in names}) if any(isinstance(name, str) for name in names) else None


def sample_of(
    draft: Draft, read: Callable[[str], bytes], *, classes: Mapping[str, int] | None, sha256: bool
) -> dict[str, bytes | str]:
    """Reads the files of a draft. `classes` are the places of class names; `sha256` puts the picture's into the JSON.

    Raises:
        Rejected: a file is missing or is not what its column says; two are of one kind; nothing is there.
    """
    parts = [_read(part, read) for part in draft.parts]
    columns = [COLUMN_OF[part.suffix] for part in parts]
    if twice := [c for c in columns if columns.count(c) > 1]:
        raise Rejected(Reason.DUPLICATE_KEY, f"there are two files for {twice[0]}")
    about = dict(draft.about)
    members: dict[str, bytes | str] = {}
    for part, column in zip(parts, columns, strict=True):
        if column == "json":
            about = {**_parsed(part.source), **about}
            continue
        members[part.suffix] = part.source
        if column == "image" and sha256:
            about["sha256"] = hashlib.sha256(_bytes(part.source)).hexdigest()
    if draft.text is not None and draft.text.strip():
        members.setdefault("txt", draft.text)
    if draft.label is not None:
        members["cls"] = str(draft.label if classes is None else classes[str(draft.label)])
        if classes is not None:
            about["label"] = str(draft.label)
    if about:
        members["json"] = _json(about)
    if not set(members) - {"cls"}:
        raise Rejected(Reason.MISSING_MEMBER, "there is no picture, sound, video, text or number")
    return {"__key__": draft.key, **members}


def _bytes(source: bytes | str) -> bytes:
    return source.encode() if isinstance(source, str) else source


def _read(part: Part, read: Callable[[str], bytes]) -> Part:
    data = part.source if isinstance(part.source, bytes) else read(part.source)
    suffix = part.suffix or next((s for at, magic, s in _MAGIC if data[at : at + len(magic)] == magic), "")
    found = COLUMN_OF.get(suffix)
    if found is None or (part.column and found != part.column):
        where = part.source if isinstance(part.source, str) else f"a cell of {len(data):,} bytes"
        what = f"is {found} by its suffix or first bytes" if found else "has no known suffix or first bytes"
        raise Rejected(Reason.FORMAT, f"{where}: {what}" + (f", and {part.column} is wanted" if part.column else ""))
    return replace(part, source=data, suffix=suffix)


def _parsed(data: bytes | str) -> dict[str, Any]:
    try:
        about = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise Rejected(Reason.METADATA, f"the JSON does not parse ({type(e).__name__})") from e
    return about if isinstance(about, dict) else _no("JSON", about)


def _json(about: Mapping[str, Any]) -> str:
    try:
        return json.dumps(about, ensure_ascii=False, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as e:
        raise Rejected(Reason.METADATA, f"its values cannot be told in JSON ({str(e)[:100]})") from e


def _plain(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, bytes):
        raise TypeError("bytes")
    return str(value)  # Decimal, UUID


@dataclass(frozen=True)
class Packed:
    """What became of row `number`. The key of a row that could not be read is null."""

    number: int
    key: str | None
    result: dict[str, bytes | str] | Rejected


@dataclass
class Cut:
    """What goes into one shard, and what was rejected among it."""

    samples: list[dict[str, bytes | str]] = field(default_factory=list)
    rejects: list[Packed] = field(default_factory=list)


def cut(found: Iterable[Packed], *, max_samples: int, max_bytes: int) -> Iterator[Cut]:
    """Shards of at most so many samples, and of at most so many bytes of members but for a lone larger sample.

    A key that came before in its shard is rejected as `duplicate_key`.
    """
    shard, keys, num_bytes = Cut(), set[str | None](), 0
    for packed in found:
        if isinstance(packed.result, Rejected):
            shard.rejects.append(packed)
            continue
        size = tar_bytes(packed.result)
        if shard.samples and (len(shard.samples) >= max_samples or num_bytes + size > max_bytes):
            yield shard
            shard, keys, num_bytes = Cut(), set(), 0
        if packed.key in keys:
            again = Rejected(Reason.DUPLICATE_KEY, f"the key {packed.key!r} came before in its shard")
            shard.rejects.append(replace(packed, result=again))
            continue
        keys.add(packed.key)
        shard.samples.append(packed.result)
        num_bytes += size
    if shard.samples or shard.rejects:
        yield shard


def tar_bytes(sample: Mapping[str, bytes | str]) -> int:
    """What the members of a sample take in a tar, headers and padding with them."""
    sizes = (len(_bytes(value)) for name, value in sample.items() if name != "__key__")
    return sum(512 + (size + 511) // 512 * 512 for size in sizes)
