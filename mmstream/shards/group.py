"""Members in, chunks of raw samples out: the unit of work and of commit.

A sample is a run of adjacent members of one key, the key being the path up to the first dot of the file's name. Each
gives one row, bad ones too (`reason`, `detail`, payload null), so that a shard's rows count everything in it. A key
that comes again later in the shard, and a second member for one column, are rejected as `duplicate_key`, never merged
and never chosen from. A picture whose SHA-256 is not that of its JSON is `checksum` (`shards.vouched`; the JSON is read
for it whether it is selected or not, and what is not selected vouches for nothing). Text that is no UTF-8 is `caption`,
or `metadata` in `.json` and `.cls`. Suffixes that no column knows are passed over but make a sample exist; so does a
name without a dot. A file that is too large for its column, or makes its sample too large, is `member_too_large` and
not read, nor is what comes after it in the sample. What macOS leaves in archives (`__MACOSX/…`, `._…`, `.DS_Store`) is
no sample.

A chunk ends with the sample that fills it: boundaries depend on rows and bytes of the shard alone, not on what is
wanted or skipped, and memory is one chunk and one sample. Where the shard breaks, complete samples are rows, and no
exception leaves: the last chunk says where and why in `damage`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import pyarrow as pa

from mmstream.errors import Reason, Rejected
from mmstream.schema import MAX_JSON_BYTES, SAMPLE, Damage, sample_id
from mmstream.shards.tar import MEMBER_LIMIT, ByteSource, Member, TarDamage, members
from mmstream.shards.vouched import HEAD_ROWS, Verdict, verdict

SAMPLE_LIMIT = 256 << 20  # bytes of all files of a sample that have a column: a reader holds them twice
TEXT_LIMIT = MAX_JSON_BYTES  # of one file for `text`, `json` or `cls`

CHUNK = SAMPLE.append(pa.field("image_offset", pa.int64()))  # of the image member's payload; null without one

_SUFFIXES = {
    # The second line is never decoded, but has to reach the decoder, which says what it is.
    "image": "jpg jpeg jpe jfif png webp gif bmp tif tiff bin "
    "ico heic heif avif jp2 j2k jxl ppm pgm pbm pnm psd svg pdf eps tga",
    "audio": "wav flac ogg mp3 m4a opus",
    "video": "mp4 webm mov mkv avi",
    "text": "txt caption",
    "json": "json",
    "cls": "cls",
}
COLUMN_OF = {suffix: column for column, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
PAYLOADS = tuple(_SUFFIXES)
_TEXTS = {"text": Reason.CAPTION, "json": Reason.METADATA, "cls": Reason.METADATA}


@dataclass(frozen=True)
class Chunk:
    """Rows `first_row .. first_row + num_samples - 1` of a shard, in `table` with the columns of `CHUNK`.

    `bytes_read` is how much of the shard lies between this chunk's first byte and the next one's. The last chunk of a
    shard has `end` (and may have no rows), and `damage` where the shard broke. `store_seconds` is how long whoever read
    it waited for the store.
    """

    shard: int
    number: int
    first_row: int
    num_samples: int
    table: pa.Table
    end: bool
    damage: Damage | None
    bytes_read: int
    store_seconds: float = field(default=0.0, compare=False)


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-cased suffix: `a/b.c/000.JPG` is `a/b.c/000` and `jpg`; without a stem or a dot all is key."""
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot <= start:
        return name, ""
    return name[:dot], name[dot + 1 :].lower()


def is_macos_leftover(name: str) -> bool:
    base = name[name.rfind("/") + 1 :]
    return base.startswith("._") or base == ".DS_Store" or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def read_chunks(
    reader: ByteSource,
    shard: int,
    *,
    chunk_rows: int = 512,
    chunk_bytes: int = 32 << 20,
    max_rows: int | None = None,
    skip: frozenset[int] = frozenset(),
    member_limit: int = MEMBER_LIMIT,
    sample_limit: int = SAMPLE_LIMIT,
    columns: Collection[str] = PAYLOADS,
    keys: Collection[str] | None = None,
) -> Iterator[Chunk]:
    """The chunks of one shard in order. A chunk is full at `chunk_rows` rows or `chunk_bytes` bytes of the shard.

    Payloads that are not in `columns`, or belong to none of `keys`, are walked over and null. Chunks whose numbers are
    in `skip` are walked over: their payloads are not read, the boundaries and duplicates of the others stay what they
    are. `max_rows` ends the shard after that many rows, undamaged. Damage of the shard, the reader's `Rejected`
    included, ends it with `Chunk.damage`; `UnreachableError` is for the caller.
    """
    grouping = _Grouping(shard, chunk_rows, chunk_bytes, max_rows, skip, columns, keys, sample_limit)
    damage: TarDamage | None = None
    walk = members(reader, member_limit=member_limit, want=grouping.wants)
    while True:
        try:
            member = next(walk, None)
        except TarDamage as e:
            damage = e
            break
        except Rejected as e:
            damage = TarDamage(e.reason, reader.tell(), e.detail)
            break
        if member is None or grouping.is_beyond(member.name):
            break
        if chunk := grouping.add(member):
            yield chunk
    if last := grouping.close(damage, reader.tell()):
        yield last


def count_rows(reader: ByteSource, max_rows: int | None = None) -> int:
    """How many rows `read_chunks` gives of a shard, at most `max_rows`; no payload is read for it."""
    num_rows, key = 0, None
    try:
        for member in members(reader, want=lambda name, size: False):
            if not is_macos_leftover(member.name) and split_name(member.name)[0] != key:
                if num_rows == max_rows:
                    break
                num_rows, key = num_rows + 1, split_name(member.name)[0]
    except (TarDamage, Rejected):
        return num_rows  # what is damaged is for those to say who read
    return num_rows


@dataclass(slots=True)
class _Sample:
    key: str
    offset: int
    num_bytes: int = 0  # of the shard, headers included
    payload_bytes: int = 0  # of the files that have a column, whether they are wanted or not
    suffixes: set[str] = field(default_factory=set)
    columns: set[str] = field(default_factory=set)  # of those suffixes that have one
    values: dict[str, bytes] = field(default_factory=dict)  # by column, of what was wanted
    image_offset: int | None = None
    verdict: Verdict | None = None
    reason: Reason | None = None
    detail: str | None = None

    def kinds(self) -> set[str]:
        """What the sample has, with .jpg and .png being the same thing."""
        return {COLUMN_OF.get(s, s) for s in self.suffixes}

    def reject(self, reason: Reason, detail: str) -> None:
        if self.reason is None:
            self.reason, self.detail = reason, detail
            self.values = {}  # they may be large, and no row will have them


class _Grouping:
    """The open sample, the samples of the open chunk, and the keys of the whole shard."""

    def __init__(
        self,
        shard: int,
        chunk_rows: int,
        chunk_bytes: int,
        max_rows: int | None,
        skip: frozenset[int],
        columns: Collection[str],
        keys: Collection[str] | None,
        sample_limit: int,
    ) -> None:
        self._sample_limit = sample_limit
        self._shard, self._chunk_rows, self._chunk_bytes = shard, chunk_rows, chunk_bytes
        self._max_rows, self._skip, self._columns, self._keys = max_rows, skip, columns, keys
        self._number = 0
        self._first_row = 0
        self._start = 0
        self._samples: list[_Sample] = []  # closed ones of the open chunk, without payload if it is skipped
        self._num_bytes = 0
        self._open: _Sample | None = None
        self._kinds: set[str] = set()  # of all samples that are closed
        self._digests_are_ours = False  # known from the shard's first rows
        self._seen: set[int] = set()  # 8 bytes of BLAKE2b: two of a million keys collide once in 10⁷ shards

    def wants(self, name: str, size: int) -> bool:
        """Whether the payload of the next member will be in a row of a chunk that is yielded, or vouches for one."""
        key, suffix = split_name(name)
        column = COLUMN_OF.get(suffix)
        judges = column in ("image", "json") and "image" in self._columns
        if not (judges or column in self._columns) or is_macos_leftover(name) or self.is_beyond(name):
            return False
        if self._keys is not None and key not in self._keys:
            return False
        is_new = self._open is None or self._open.key != key
        sample = None if is_new else self._open
        if sample and (sample.reason or self._has_column(COLUMN_OF[suffix])):
            return False
        if self._oversize(sample, name, size):
            return False
        number = self._number + (is_new and self._is_full_with_open())
        row = self._first_row + len(self._samples) + (is_new and self._open is not None)
        return number not in self._skip or (judges and row < HEAD_ROWS)

    def is_beyond(self, name: str) -> bool:
        """Whether the member begins a row after the last one to be taken."""
        if self._max_rows is None or is_macos_leftover(name):
            return False
        num_rows = self._first_row + len(self._samples)
        if self._open is None:
            return num_rows >= self._max_rows
        return num_rows + 1 >= self._max_rows and self._open.key != split_name(name)[0]

    def add(self, member: Member) -> Chunk | None:
        """Takes the next member; gives the chunk that ended before it, if one did and is not skipped."""
        if is_macos_leftover(member.name):
            return None
        key, suffix = split_name(member.name)
        chunk = None
        if self._open is None or self._open.key != key:
            is_full = self._is_full_with_open()
            self._close_sample()
            if is_full:
                chunk = self._close_chunk(member.offset)
            self._open_sample(key, member.offset)
        self._take(member, suffix)
        return chunk

    def close(self, damage: TarDamage | None, position: int) -> Chunk | None:
        """The last chunk. A sample that is open when the shard breaks is rejected unless it is known to be whole."""
        is_whole = damage is None or self._open is None or self._is_whole(self._open, damage)
        if self._open and damage and not is_whole:
            where = f"the shard breaks at byte {damage.offset:,} before this sample is whole"
            self._open.reject(damage.reason, where)
        self._close_sample()
        record = None
        if damage and not (is_whole and self._first_row + len(self._samples) == self._max_rows):
            record = Damage(reason=damage.reason, offset=damage.offset, detail=damage.detail)
        return self._close_chunk(position, end=True, damage=record)

    def _is_whole(self, sample: _Sample, damage: TarDamage) -> bool:
        """Known where the end mark or the name of the cut member was seen; else whole if it has all that any sample
        before it had. The first one has none to compare with."""
        if damage.reason is Reason.TAR_TRAILING:
            return True
        if damage.member is not None and not is_macos_leftover(damage.member):
            return split_name(damage.member)[0] != sample.key
        return bool(self._kinds) and sample.kinds() >= self._kinds

    def _open_sample(self, key: str, offset: int) -> None:
        self._open = _Sample(key, offset)
        digest = int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
        if digest in self._seen:
            self._open.reject(Reason.DUPLICATE_KEY, f"{key} came before in this shard")
        self._seen.add(digest)

    def _take(self, member: Member, suffix: str) -> None:
        sample = self._open
        assert sample is not None
        sample.num_bytes += member.data_offset + member.size - member.offset
        column = COLUMN_OF.get(suffix)
        if suffix in sample.suffixes or (column and self._has_column(column)):
            sample.reject(Reason.DUPLICATE_KEY, f"{member.name} is a second {column or suffix or 'file'} of its key")
        elif member.problem:
            sample.reject(member.problem, member.detail)
        elif too_large := self._oversize(sample, member.name, member.size):
            sample.reject(Reason.MEMBER_TOO_LARGE, too_large)
        elif column and member.data is not None:
            sample.values[column] = member.data
        if column == "image":
            sample.image_offset = member.data_offset
        sample.suffixes.add(suffix)
        if column:
            sample.columns.add(column)
            sample.payload_bytes += member.size

    def _oversize(self, sample: _Sample | None, name: str, size: int) -> str | None:
        """What is too large about the next member of `sample`, the first one where that is None: by sizes alone, so
        that no row depends on what is read."""
        column = COLUMN_OF.get(split_name(name)[1])
        if column in _TEXTS and size > TEXT_LIMIT:
            return f"{name} has {size:,} bytes, the limit of a text is {TEXT_LIMIT:,}"
        together = size + (sample.payload_bytes if sample else 0)
        if column and together > self._sample_limit:
            return f"{name} makes {together:,} bytes of its sample, the limit is {self._sample_limit:,}"
        return None

    def _has_column(self, column: str) -> bool:
        return self._open is not None and column in self._open.columns

    def _is_full_with_open(self) -> bool:
        if self._open is None:
            return False
        return len(self._samples) + 1 >= self._chunk_rows or self._num_bytes + self._open.num_bytes >= self._chunk_bytes

    def _close_sample(self) -> None:
        if self._open is None:
            return
        self._judge(self._open)
        self._samples.append(self._open)
        self._num_bytes += self._open.num_bytes
        self._kinds |= self._open.kinds()
        self._open = None

    def _judge(self, sample: _Sample) -> None:
        if sample.reason is None and "json" in sample.values and "image" in sample.values:
            sample.verdict = verdict(sample.values["json"], sample.values["image"])
            is_head = self._first_row + len(self._samples) < HEAD_ROWS
            self._digests_are_ours |= is_head and sample.verdict is not None and sample.verdict.fits
        if "json" not in self._columns:
            sample.values.pop("json", None)
        if self._number in self._skip:
            sample.values = {}

    def _close_chunk(self, position: int, *, end: bool = False, damage: Damage | None = None) -> Chunk | None:
        chunk = None
        if self._number not in self._skip:
            _reject_foreign_images(self._samples, self._digests_are_ours)
            table = _table(self._shard, self._first_row, self._samples)
            read = position - self._start
            num_samples = len(self._samples)
            chunk = Chunk(self._shard, self._number, self._first_row, num_samples, table, end, damage, read)
        self._number += 1
        self._first_row += len(self._samples)
        self._start = position
        self._samples = []
        self._num_bytes = 0
        return chunk


def _table(shard: int, first_row: int, samples: list[_Sample]) -> pa.Table:
    texts = [_decoded_texts(s) for s in samples]
    rows = range(first_row, first_row + len(samples))
    columns = {
        "id": [sample_id(shard, row) for row in rows],
        "shard": [shard] * len(samples),
        "row": list(rows),
        "key": [s.key for s in samples],
        "offset": [s.offset for s in samples],
        **{c: [s.values.get(c) if s.reason is None else None for s in samples] for c in ("image", "audio", "video")},
        **{c: [t.get(c) if s.reason is None else None for s, t in zip(samples, texts, strict=True)] for c in _TEXTS},
        "reason": [s.reason for s in samples],
        "detail": [s.detail for s in samples],
        "image_offset": [s.image_offset for s in samples],
    }
    return pa.Table.from_pydict(columns, schema=CHUNK)


def _reject_foreign_images(samples: list[_Sample], digests_are_ours: bool) -> None:
    digests_are_ours = digests_are_ours or any(s.verdict and s.verdict.fits for s in samples)
    for sample in samples:
        if sample.verdict and not sample.verdict.fits and (digests_are_ours or sample.verdict.is_certain):
            sample.reject(Reason.CHECKSUM, f"{sample.key}: the SHA-256 of the image is not that of its JSON")


def _decoded_texts(sample: _Sample) -> dict[str, str]:
    texts: dict[str, str] = {}
    for column, reason in _TEXTS.items():
        if (raw := sample.values.get(column)) is not None:
            try:
                texts[column] = raw.decode()
            except UnicodeDecodeError as e:
                sample.reject(reason, f"{sample.key}: the {column} is no UTF-8 from its byte {e.start} on")
    return texts
