"""An embedding set leaves in the form of another tool: rows of the set go in, files of that tool stand at a URL.

`clip-retrieval` is what autofaiss, clip-retrieval and embedding_reader take:

    OUT/img_emb/img_emb_<n>.npy          float16 [rows, d]
    OUT/text_emb/text_emb_<n>.npy        float16 [rows, d]
    OUT/metadata/metadata_<n>.parquet    everything else of the same rows
    OUT/export.json                      written last: without it the export is not finished

Row i of part n is the same sample in all of them, in the order of ids; a row that lacks one of the exported vectors is
left out of all and counted. Numbers are padded with zeros, since those tools sort names as text. One part at a time is
put together on disk, so memory is a few chunks whatever the set's size.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import operator
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import RefusedError, Rejected, UsageError
from mmstream.schema import ExportRecord, StoredObject
from mmstream.storage.files import absolute, exists, is_local, join, list_files, read_bytes, upload, write_bytes
from mmstream.storage.ranges import RangeReader
from mmstream.telemetry import Progress, Report, counted, warn

FORMATS = ("clip-retrieval",)
ROWS_PER_FILE = 1_000_000
RECORD = "export.json"

_FOLDERS = {"image": "img_emb", "text": "text_emb"}
_PART = re.compile(r"/((img_emb|text_emb|metadata)/\2_[0-9]+\.(npy|parquet))$")
_WORK = ".export-"  # folders in which parts are put together
_GROUP_ROWS = 1 << 16  # of one Parquet row group
_HEADER_BYTES = 128  # of a .npy file of two dimensions


class ExportReport(Report):
    dest: str
    out: str
    format: str
    rows: int
    left_out: int
    parts: int
    already_finished: bool = False

    def lines(self) -> list[tuple[str, str]]:
        shown = [("rows", f"{self.rows:,} in {counted(self.parts, 'part')}"), ("where", self.out)]
        if self.left_out:
            shown.append(("left out", f"{counted(self.left_out, 'row')} without one of the vectors"))
        return shown

    def title(self) -> str:
        return "nothing to do: this export is finished" if self.already_finished else "exported"


def export(
    dest: str, out: str, *, format: str = FORMATS[0], of: str | None = None, rows_per_file: int = ROWS_PER_FILE
) -> ExportReport:
    """Writes the embedding set at `dest` to the folder or URL `out`.

    Args:
        of: `image` or `text`, to export these vectors only; both, where the set has both, otherwise.
        rows_per_file: at most so many rows in one part.

    Raises:
        UsageError: there is no embedding set, or it has no such vectors, or the format is unknown.
        RefusedError: the set is unfinished, or something else lies at `out`.
        DifferencesError: an object of the set is not what its record says.
    """
    if format not in FORMATS or rows_per_file < 1:
        formats = ", ".join(FORMATS)
        raise UsageError(f"--format {format} --rows-per-file {rows_per_file}: give {formats} and at least one row.")
    emb, out = EmbeddingSet.open(dest), absolute(out)
    modalities = _modalities(emb, of)
    wanted = ExportRecord(
        dest=emb.url, manifest_sha256=emb.manifest_sha256, export_format=format, modalities=modalities,
        rows_per_file=rows_per_file, rows=0, left_out=0, files=[],
    )  # fmt: skip
    if finished := _finished(out, wanted, emb):
        return _report(finished, out, already=True)
    digits = len(str(max(0, emb.num_rows - 1) // rows_per_file))
    with (
        _work_folder(out) as folder,
        _Parts(out, folder, modalities, emb.manifest.dimension, rows_per_file, digits) as parts,
        Progress("export", emb.num_rows, "rows") as progress,
    ):
        for table in emb.tables():
            parts.add(table)
            progress.update(progress.done + table.num_rows, files=len(parts.files))
        parts.finish()
    _refuse_others(out, {f.path for f in parts.files})
    record = wanted.model_copy(update={"rows": parts.num_rows, "left_out": parts.left_out, "files": parts.files})
    write_bytes(join(out, RECORD), record.to_bytes())
    return _report(record, out)


@contextmanager
def _work_folder(out: str) -> Generator[Path]:
    """On the disk of `out` where that is one, so that a part that is whole is moved there and not copied.

    It is locked as long as its export lives; folders that no export holds any more are those of killed ones, and go.
    """
    where = Path(out) if is_local(out) else Path(tempfile.gettempdir())
    where.mkdir(parents=True, exist_ok=True)
    for left in where.glob(f"{_WORK}*"):
        _remove_unless_held(left)
    while True:
        with tempfile.TemporaryDirectory(prefix=_WORK, dir=where) as folder, ExitStack() as stack:
            if _hold(Path(folder), stack) is not False:
                yield Path(folder)
                return


def _remove_unless_held(folder: Path) -> None:
    with ExitStack() as stack:
        if _hold(folder, stack):
            shutil.rmtree(folder, ignore_errors=True)


def _hold(folder: Path, stack: ExitStack) -> bool | None:
    """Holds the folder until the stack or the process ends. False where another does, or it is gone or a stranger's;
    None where its file system knows no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return folder.exists()  # whoever held it before may have removed it


def _modalities(emb: EmbeddingSet, of: str | None) -> list[str]:
    there = [m for m in _FOLDERS if m in emb.manifest.modalities]
    if of is not None and of not in there:
        raise UsageError(
            f"{emb.url}: has no {of} vectors to export in this format; it has {', '.join(there) or 'none'}."
        )
    if not there:
        raise UsageError(f"{emb.url}: has neither image nor text vectors, which is what this format takes.")
    return [of] if of else there


def _finished(out: str, wanted: ExportRecord, emb: EmbeddingSet) -> ExportRecord | None:
    """The record at `out`, if it is of just this export and all its parts are sound."""
    url = join(out, RECORD)
    if not exists(url):
        return None
    try:
        found = ExportRecord.model_validate_json(read_bytes(url))
    except ValidationError as e:
        raise RefusedError(f"{url}: is no record of an export ({e.errors()[0]['msg']}). Choose another folder.") from e
    if found.dest == wanted.dest and found.manifest_sha256 != wanted.manifest_sha256:
        before, now = found.rows + found.left_out, emb.num_rows
        raise RefusedError(
            f"{out}: the embedding set {found.dest} has {'grown' if now > before else 'changed'} since it was "
            f"exported there: it had {counted(before, 'row')} then and has {now:,} now. Export it into another "
            "folder, or remove this one and run the same command again."
        )
    for name in ("dest", "export_format", "modalities", "rows_per_file"):
        before, now = getattr(found, name), getattr(wanted, name)
        if before != now:
            raise RefusedError(f"{out}: {name} of the export there is {before}, not {now}. Choose another folder.")
    lost = [f.path for f in found.files if not _is_sound(out, f)]
    if lost:
        warn(f"{out}: lost or damaged since: {counted(len(lost), 'part')}, first {lost[0]}. All are written again.")
    return None if lost else found


def _is_sound(out: str, part: StoredObject) -> bool:
    try:
        with RangeReader(join(out, part.path), bytes=part.bytes) as reader:
            return reader.sha256() == part.sha256
    except Rejected:  # gone, or of another size
        return False


def _refuse_others(out: str, written: set[str]) -> None:
    """Parts that this export did not write would be read as if they belonged to it."""
    found = (m[1] for f in list_files(out) if (m := _PART.search(f.url)))
    if others := sorted(set(found) - written):
        raise RefusedError(
            f"{out}: holds {counted(len(others), 'part')} of another export, first {others[0]}. Remove them, or choose "
            "another folder, and run the same command again."
        )


def _report(record: ExportRecord, out: str, *, already: bool = False) -> ExportReport:
    return ExportReport(
        dest=record.dest,
        out=out,
        format=record.export_format,
        rows=record.rows,
        left_out=record.left_out,
        parts=sum(f.path.startswith("metadata/") for f in record.files),
        already_finished=already,
        next=[_indexed_by_autofaiss(out, record.modalities[0])],
    )


def _indexed_by_autofaiss(out: str, modality: str) -> str:
    """What takes the files that were written: another tool, whose index and report go beside where one types."""
    index = ["--index_path", f"{modality}.index", "--index_infos_path", f"{modality}.json"]
    return shlex.join(["autofaiss", "build_index", "--embeddings", join(out, _FOLDERS[modality]), *index])


class _Parts:
    """Rows go in, parts come out at `out`, each when it is full, the last one by `finish`.

    A part is put together in `folder`, on disk; memory is `_GROUP_ROWS` rows of metadata. As a context manager it
    leaves no file open behind.
    """

    def __init__(
        self, out: str, folder: Path, modalities: list[str], dimension: int, rows_per_file: int, digits: int
    ) -> None:
        self.num_rows, self.left_out = 0, 0
        self.files: list[StoredObject] = []
        self._out, self._folder, self._dimension = out, folder, dimension
        self._rows_per_file, self._digits = rows_per_file, digits
        self._vectors = {f"{m}_embedding": _FOLDERS[m] for m in modalities}
        self._number, self._rows = 0, 0  # of the open part
        self._arrays: dict[str, BinaryIO] = {}
        self._parquet: pq.ParquetWriter | None = None
        self._metadata: list[pa.Table] = []

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def add(self, table: pa.Table) -> None:
        complete = functools.reduce(operator.and_, (pc.field(c).is_valid() for c in self._vectors))
        rows = table.filter(complete)
        self.left_out += table.num_rows - rows.num_rows
        self.num_rows += rows.num_rows
        while rows.num_rows:
            piece = rows.slice(0, self._rows_per_file - self._rows)
            self._add(piece)
            rows = rows.slice(piece.num_rows)
            if self._rows == self._rows_per_file:
                self.finish()

    def _add(self, rows: pa.Table) -> None:
        for column, name in self._vectors.items():
            vectors = rows[column].combine_chunks()
            if name not in self._arrays:
                self._arrays[name] = (self._folder / name).open("w+b")
                _write_header(self._arrays[name], 0, self._dimension)
            self._arrays[name].write(vectors.flatten().to_numpy().astype(np.float16, copy=False).data)
        metadata = rows.drop_columns([c for c in rows.column_names if c.endswith("_embedding")])
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._folder / "metadata", metadata.schema, compression="zstd")
        self._metadata.append(metadata)
        self._rows += rows.num_rows
        if sum(t.num_rows for t in self._metadata) >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if self._parquet and self._metadata:
            self._parquet.write_table(pa.concat_tables(self._metadata))
        self._metadata = []

    def finish(self) -> None:
        """Publishes the open part, if there is one."""
        if self._rows == 0:
            return
        self._write_group()
        for file in self._arrays.values():
            file.seek(0)
            _write_header(file, self._rows, self._dimension)
        names = {**dict.fromkeys(self._arrays, "npy"), "metadata": "parquet"}
        self._close()
        for name, suffix in names.items():
            path = f"{name}/{name}_{self._number:0{self._digits}}.{suffix}"
            local = self._folder / name
            with local.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.files.append(StoredObject(path=path, bytes=local.stat().st_size, sha256=digest))
            upload(local, join(self._out, path))
        self._number += 1

    def _close(self) -> None:
        for file in self._arrays.values():
            file.close()
        if self._parquet:
            self._parquet.close()
        self._arrays, self._parquet, self._rows, self._metadata = {}, None, 0, []


def _write_header(file: BinaryIO, rows: int, dimension: int) -> None:
    """NumPy pads the header so that the number of rows can grow in place."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (rows, dimension)})
    assert file.tell() == _HEADER_BYTES
