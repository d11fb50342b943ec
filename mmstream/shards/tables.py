"""A table at a URL becomes rows: CSV and TSV with a header, JSON lines, Parquet; read as a stream, in their order.

A row that cannot be read is a `Rejected` in its place, so that rows keep their numbers. What is missing (an empty field
of a CSV, a null) is left out of a row. A CSV has no types: a value that JSON would read as a number is that number.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.schema import MAX_JSON_BYTES
from mmstream.storage.files import open_fs
from mmstream.storage.foreign import mapped
from mmstream.storage.ranges import RangeReader

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_FIRST = 1000  # lines of JSON whose keys are taken for the columns
_BATCH_ROWS = 64  # of Parquet, whose cells may hold pictures
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 40

Row = dict[str, Any] | Rejected


@dataclass(frozen=True)
class Table:
    """`columns` are in their order; those of JSON lines are what the first thousand lines have. Some of Parquet's are
    `binary`, bytes or structures with bytes in them."""

    url: str
    columns: list[str]
    binary: frozenset[str] = frozenset()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows. Of Parquet only `columns` are read, where they are given.

        Raises:
            UsageError: the table went away or breaks, so that the number of rows behind is not known.
            UnreachableError: the store does not answer.
        """
        if self.url.endswith(".parquet"):
            yield from _parquet_rows(self.url, columns)
        elif self.url.endswith((".csv", ".tsv")):
            yield from _csv_rows(self.url, self.columns)
        else:
            yield from _json_rows(self.url)


def is_table(url: str) -> bool:
    return url.lower().endswith(SUFFIXES)


def open_table(url: str) -> Table:
    """
    Raises:
        UsageError: there is no table at `url`, or it has no columns, or one twice.
        UnreachableError: the store does not answer.
    """
    binary: list[str] = []
    if url.endswith(".parquet"):
        with _parquet(url) as file:
            columns = list(file.schema_arrow.names)
            binary = [f.name for f in file.schema_arrow if "binary" in str(f.type)]
    elif url.endswith((".csv", ".tsv")):
        columns = [name or f"column{i}" for i, name in enumerate(next(_csv_records(url), []), 1)]
    else:
        rows = islice(_json_rows(url), _FIRST)
        columns = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    if not columns:
        raise UsageError(f"{url}: has no columns. A CSV begins with a line of their names; JSON lines are objects.")
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise UsageError(f"{url}: has more than one column {twice[0]!r}. Give each its own name.")
    return Table(url, columns, frozenset(binary))


class _Stream(io.RawIOBase):
    """A file to Python's readers of text, over ranged reads that are repeated where they fail."""

    def __init__(self, url: str) -> None:
        try:
            self._reader = RangeReader(url)
        except Rejected as e:
            raise UsageError(f"{url}: {e.detail}. Check the path or URL.") from e

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._reader.read(len(buffer))
        except Rejected as e:
            raise UsageError(f"{self._reader.url}: {e.detail}, while it was read. Run the command again.") from e
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_reader"):
            self._reader.__exit__()
        super().close()


def _csv_records(url: str) -> Iterator[list[str]]:
    """Fields of each record. One that cannot be read is a list of one field that tells why, after a NUL."""
    with io.TextIOWrapper(io.BufferedReader(_Stream(url)), "utf-8-sig", "surrogateescape", newline="") as text:
        records = csv.reader(text, delimiter="\t" if url.endswith(".tsv") else ",")
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as e:  # a field without end: it goes on with the next line
                record = [f"\0line {records.line_num:,}: {e}"]
            if record:
                yield record


def _csv_rows(url: str, columns: list[str]) -> Iterator[Row]:
    for record in islice(_csv_records(url), 1, None):
        if len(record) == 1 and record[0].startswith("\0line "):
            yield Rejected(Reason.METADATA, record[0][1:])
        elif len(record) != len(columns):
            what = f"the row has {len(record)} values, and the header {len(columns)} columns"
            yield Rejected(Reason.METADATA, what)
        elif wrong := next((n for n, v in zip(columns, record, strict=True) if not _is_text(v)), None):
            yield Rejected(Reason.METADATA, f"column {wrong!r} is no UTF-8")
        else:
            yield {name: _typed(value) for name, value in zip(columns, record, strict=True) if value != ""}


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _typed(value: str) -> Any:
    if len(value) <= _LONGEST_NUMBER and _NUMBER.fullmatch(value):
        number = json.loads(value)
        return number if abs(number) < float("inf") else value
    return value


def _json_rows(url: str) -> Iterator[Row]:
    with io.BufferedReader(_Stream(url)) as lines:
        while line := lines.readline(MAX_JSON_BYTES + 1):
            if len(line) > MAX_JSON_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(MAX_JSON_BYTES)
                yield Rejected(Reason.METADATA, f"the line is longer than {MAX_JSON_BYTES:,} bytes")
            elif line.strip():
                yield _json_row(line)


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        return Rejected(Reason.METADATA, f"the line is no JSON ({type(e).__name__}: {str(e)[:100]})")
    if not isinstance(row, dict):
        return Rejected(Reason.METADATA, f"the line is a {type(row).__name__}, where an object is needed")
    return {name: value for name, value in row.items() if value is not None}


def _parquet(url: str) -> pq.ParquetFile:
    fs, path = open_fs(url)
    with mapped(url):
        source = fs.open(path, "rb")
        try:
            return pq.ParquetFile(source, pre_buffer=False)
        except pa.ArrowException as e:
            source.close()
            raise UsageError(f"{url}: is no Parquet file ({str(e).splitlines()[0][:200]}).") from e


def _parquet_rows(url: str, columns: Sequence[str] | None) -> Iterator[Row]:
    seen = 0
    with _parquet(url) as file:
        batches = file.iter_batches(_BATCH_ROWS, columns=None if columns is None else list(columns))
        while True:
            try:
                batch = _next(batches, url)
            except pa.ArrowException as e:
                what = f"breaks after {seen:,} rows ({str(e).splitlines()[0][:200]})"
                raise UsageError(f"{url}: {what}. Mend the file, or take --limit {seen}.") from e
            if batch is None:
                return
            seen += batch.num_rows
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value is not None and value == value}


def _next(batches: Iterator[pa.RecordBatch], url: str) -> pa.RecordBatch | None:
    with mapped(url):
        try:
            return next(batches, None)
        except OSError as e:
            if type(e) is OSError and e.errno is None:  # Arrow's own, of a page that is broken
                raise pa.ArrowInvalid(str(e)) from e
            raise
