"""Captions become tokens: decode (bytes → text) → clean → transform (→ tokens) → collate.

`clean` gives NFC text in one line without control characters, or rejects the caption. A tokenizer is trained from
captions and kept beside the weights: `train_tokenizer` learns a byte-level BPE, so that no text whatever is unknown to
it; a `Tokenizer` turns texts into int32 [n, length]: a start token, the text, padding. What is longer is cut.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mmstream.errors import Reason, Rejected, UsageError
from mmstream.media.filters import Filters, check
from mmstream.schema import MAX_JSON_BYTES

MAX_CHARACTERS = 65_536
PAD, START = 0, 1
_SPECIAL = ["<pad>", "<start>"]
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_SPACE = re.compile(r"\s+")


def decode(data: bytes) -> str:
    """UTF-8, its byte order mark taken away.

    Raises:
        Rejected: `caption`, where it is something else.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        detail = f"caption of {len(data):,} bytes that is no UTF-8: {e.reason} at byte {e.start:,}"
        raise Rejected(Reason.CAPTION, detail) from e


def clean(text: str, *, max_characters: int = MAX_CHARACTERS, filters: Filters | None = None) -> str:
    """NFC, control characters (NUL too) taken out, runs of white space folded to one space.

    Raises:
        Rejected: `caption`, where nothing is left or the text has more than `max_characters`; `filtered`, where its
            length or language is not wanted.
    """
    if not _encodable(text):
        raise Rejected(Reason.CAPTION, "caption with lone surrogates, which are no text")
    if len(text) > max_characters:
        raise Rejected(Reason.CAPTION, f"caption of {len(text):,} characters, the limit is {max_characters:,}")
    cleaned = _SPACE.sub(" ", _CONTROL.sub("", unicodedata.normalize("NFC", text))).strip()
    if not cleaned:
        raise Rejected(Reason.CAPTION, "empty caption" if not text.strip() else "caption of control characters only")
    if filters is not None:
        check(filters.caption(cleaned))
    return cleaned


def transform(text: str, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """int32 [length], the tokens of one text. Of many, `Tokenizer.tokenize` is faster."""
    return tokenizer.tokenize([text], length)[0]


def collate(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """int32 [length] each → int32 [n, length] and bool [n, length]: True where a token is no padding."""
    batch = np.stack(tokens)
    return batch, batch != PAD


def parse_object(text: str | None) -> dict[str, Any]:
    """What a sample's JSON member says; nothing where it is absent or blank.

    Raises:
        Rejected: `metadata`, it does not parse, is no object, or longer than `MAX_JSON_BYTES`.
    """
    if text is None or not text.strip():
        return {}
    if len(text) > MAX_JSON_BYTES:
        what = f"the JSON member has {len(text):,} characters, the limit is {MAX_JSON_BYTES:,}"
        raise Rejected(Reason.METADATA, what)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise Rejected(Reason.METADATA, f"the JSON member cannot be read: {e}") from e
    if not isinstance(parsed, dict):
        raise Rejected(Reason.METADATA, f"the JSON member is a {type(parsed).__name__}, not an object")
    return parsed


def caption_of(text: str | None, metadata: Mapping[str, Any], filters: Filters | None = None) -> str | None:
    """The sample's text member, else the caption of its JSON; None where both are absent or blank.

    Raises:
        Rejected: `caption`, what is there is too long or nothing but control characters; `filtered`, as in `clean`.
    """
    for candidate in (text, metadata.get("caption")):
        if isinstance(candidate, str) and candidate.strip():
            return clean(candidate, filters=filters)
    return None


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Tokenizer:
    """Texts in, int32 [n, length] out: `START`, at most length - 1 tokens of the text in lower case, `PAD`."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        self._inner = inner
        self._inner.no_padding()
        self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # a caption that says "<pad>" means the word

    @classmethod
    def from_json(cls, data: bytes, where: str = "tokenizer.json") -> Tokenizer:
        """
        Raises:
            UsageError: `data`, read from `where`, is not what `to_json` gives.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as e:  # the package raises bare Exception
            raise UsageError(f"{where}: not a tokenizer ({str(e)[:120]}). The card is broken: train it again.") from e
        if [inner.token_to_id(t) for t in _SPECIAL] != [PAD, START]:
            raise UsageError(
                f"{where}: not a tokenizer of mmstream: {_SPECIAL[0]} and {_SPECIAL[1]} are not its first."
            )
        return cls(inner)

    def to_json(self) -> bytes:
        return self._inner.to_str().encode()

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size()

    def tokenize(self, texts: list[str], length: int) -> np.ndarray:
        """int32 [n, length]. Any text will do, an empty one too: it is `START` alone."""
        tokens = np.full((len(texts), length), PAD, np.int32)
        tokens[:, 0] = START
        for row, encoded in zip(tokens, self._inner.encode_batch(texts, add_special_tokens=False), strict=True):
            ids = encoded.ids[: length - 1]
            row[1 : 1 + len(ids)] = ids
        return tokens


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens (258 are bytes and special) learned from `captions`.

    Fewer where the captions have no more pairs to merge. The same captions give the same tokenizer.
    """
    inner = tokenizers.Tokenizer(models.BPE())
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    inner.train_from_iterator(captions, trainer)
    return Tokenizer(inner)
