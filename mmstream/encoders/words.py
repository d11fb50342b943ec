"""`words:<file, folder or URL>`: tables of word vectors; a text is the mean of the rows of its words.

    *.txt *.vec       GloVe, word2vec and fastText as text: a word and d numbers a line, counts perhaps first
    *.csv             the same with commas, perhaps a line of names first
    a folder          a table [rows, d] in *.safetensors, and the tokenizer.json whose numbers are its rows

Words of a text file are runs of letters and digits, and other signs one by one: looked up as they are written, else in
lower case, else passed over. A text of which no word is known has no vector: its row is NaN and ends as
`bad_embedding`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
import torch

from mmstream.encoders.base import Encoder, Tokens, fingerprint
from mmstream.encoders.folder import absolute_source, resolve, sha256, weight_files
from mmstream.errors import UsageError
from mmstream.storage.cache import local_folder

MAX_WORDS = 512
_NONE = -1
_WORD = re.compile(r"\w+|[^\w\s]")


class WordsEncoder(Encoder):
    modalities = ("text",)
    micro_batch = 256

    def __init__(self, spec: str) -> None:
        source = spec.removeprefix("words:")
        self.spec = f"words:{absolute_source(source)}"
        path = _local(source, spec)
        if path.is_dir():
            weights = weight_files(path, spec)[0]
            self._table = _safetensors_table(weights, spec)
            self._rows, self._inner = None, _tokenizer(path / "tokenizer.json", len(self._table), spec)
            hashes = [sha256(weights), sha256(path / "tokenizer.json")]
        else:
            words, self._table = _read_text(path, spec)
            self._rows, self._inner = {word: row for row, word in reversed(list(enumerate(words)))}, None
            hashes = [sha256(path)]
        self.dimension = int(self._table.shape[1])
        self.module = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(self._table), mode="mean")
        self.fingerprint = fingerprint(
            {"encoder": "words/1", "files": hashes, "dimension": self.dimension, "max_words": MAX_WORDS}
        )

    def tokenize(self, texts: list[str]) -> Tokens:
        """int32 [n, 512]: rows of the table, filled up with -1; what is longer is cut."""
        ids = np.full((len(texts), MAX_WORDS), _NONE, np.int32)
        for row, found in zip(ids, self._lookup(texts), strict=True):
            row[: len(found)] = found[:MAX_WORDS]
        return {"rows": ids}

    def _lookup(self, texts: list[str]) -> list[list[int]]:
        if self._inner is not None:
            return [encoded.ids for encoded in self._inner.encode_batch(texts, add_special_tokens=False)]
        rows = self._rows or {}
        found = ((rows.get(w, rows.get(w.lower(), _NONE)) for w in _WORD.findall(text)) for text in texts)
        return [[row for row in of_text if row != _NONE] for of_text in found]

    def _text_batch(self, tokens: Tokens) -> np.ndarray:
        vectors = np.full((len(tokens["rows"]), self.dimension), np.nan, np.float32)
        for vector, rows in zip(vectors, tokens["rows"], strict=True):
            known = rows[rows != _NONE]
            if len(known):
                vector[:] = self._table[known].mean(0)
        return vectors


def _local(source: str, spec: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path.absolute()
    if "://" in source and source.rsplit(".", 1)[-1].lower() in ("txt", "vec", "csv"):
        parent, name = source.rsplit("/", 1)
        return local_folder(parent, (name,)) / name
    return resolve(spec, source)


def _safetensors_table(file: Path, spec: str) -> np.ndarray:
    """float32 [rows, d] of the only matrix in the file."""
    try:
        matrices = [t for t in safetensors.numpy.load_file(file).values() if t.ndim == 2]
    except (safetensors.SafetensorError, OSError) as e:
        raise UsageError(f"{spec}: {file} is no safetensors file ({e}).") from e
    if len(matrices) != 1:
        raise UsageError(f"{spec}: {file} holds {len(matrices)} matrices; a table of word vectors is one.")
    return np.ascontiguousarray(matrices[0], np.float32)


def _tokenizer(file: Path, num_rows: int, spec: str) -> tokenizers.Tokenizer:
    if not file.exists():
        raise UsageError(f"{spec}: {file.name} is missing beside the table. It says which row is which word's.")
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the package raises bare Exception
        raise UsageError(f"{spec}: {file} is not a tokenizer ({str(e)[:120]}).") from e
    inner.no_padding()
    inner.no_truncation()
    if inner.get_vocab_size() > num_rows:
        raise UsageError(f"{spec}: the tokenizer has {inner.get_vocab_size():,} tokens, the table {num_rows:,} rows.")
    return inner


def _read_text(file: Path, spec: str) -> tuple[list[str], np.ndarray]:
    """(words, float32 [words, d]).

    The numbers of a line are its last d fields, so that a word may hold the separator.
    """
    separator = "," if file.suffix.lower() == ".csv" else None
    words: list[str] = []
    rows: list[np.ndarray] = []
    d = 0
    with file.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\r\n").rsplit(separator, d) if d else line.rstrip("\r\n").split(separator)
            if number <= 2 and not d and _is_header(fields):
                continue
            d = d or len(fields) - 1
            try:
                vector = np.array(fields[1:], np.float32)
            except ValueError:
                vector = np.zeros(0, np.float32)
            if d < 1 or len(vector) != d or not np.isfinite(vector).all():
                raise UsageError(f"{spec}: {file} line {number}: is not a word and {d or 'some'} numbers.")
            words.append(fields[0].strip('"') if separator else fields[0])
            rows.append(vector)
    if not rows:
        raise UsageError(f"{spec}: {file} holds no word vector.")
    return words, np.stack(rows)


def _is_header(fields: list[str]) -> bool:
    """Two counts (word2vec, fastText), or names of columns."""
    if len(fields) == 2 and all(f.isdigit() for f in fields):
        return True
    try:
        [float(f) for f in fields[1:]]
    except ValueError:
        return True
    return False
