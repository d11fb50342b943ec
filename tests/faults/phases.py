"""A process tells what it is doing: one byte per change of phase, to a pipe or file that the killer reads.

The wrappers stand around functions of mmstream from outside, in the process that is to be killed; the package knows
nothing of them. The last byte told before a kill is the phase the kill hit.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from types import ModuleType
from typing import Any

import wrapt


class Phase(IntEnum):
    """The value is the byte that is told."""

    STARTING = 0  # loading the encoder, freezing the catalog, reading records, planning
    READING = 1  # bytes of a shard become a chunk
    ENCODING = 2  # decode, clean, encode
    WRITING = 3  # the data object is being written
    BETWEEN = 4  # the data object is there, the record that vouches for it is not
    FOLDING = 5  # all records of a shard are there and become one
    FINISHING = 6  # totals and the closing manifest
    ELSEWHERE = 7  # between two of the above


WORK = (Phase.READING, Phase.ENCODING, Phase.BETWEEN, Phase.FOLDING)  # where a kill proves something

_fd: int | None = None
_now = Phase.STARTING


def tell_to(fd: int) -> None:
    """From now on the phases of this process are written to `fd`."""
    global _fd
    _fd = fd
    _enter(Phase.STARTING)


def _enter(phase: Phase) -> None:
    global _now
    _now = phase
    if _fd is not None:
        os.write(_fd, bytes([phase]))


def install() -> None:
    """Wraps what stands for each phase, now or when its module is imported; call it before mmstream is imported."""
    for module, name, wrapper in (
        ("mmstream.pipelines.source", "chunks_of", _around_each(Phase.READING)),
        ("mmstream.pipelines.encode", "encode_chunk", _around(Phase.ENCODING)),
        ("mmstream.embeddings.writer", "commit_chunk", _around(Phase.WRITING)),
        ("mmstream.storage.files", "write_bytes", _after_data),
        ("mmstream.embeddings.layout", "fold", _folding),
        ("mmstream.storage.commit", "put_if_absent", _after_fold),
        ("mmstream.pipelines.ledger", "Ledger.finish", _finishing),
    ):
        wrapt.register_post_import_hook(functools.partial(_replace, name, wrapper), module)


def _replace(name: str, wrapper: Callable, module: ModuleType) -> None:
    *owners, last = name.split(".")
    owner: Any = functools.reduce(getattr, owners, module)
    original = getattr(owner, last)
    setattr(owner, last, functools.wraps(original)(wrapper(original)))


def _around(phase: Phase) -> Callable:
    def wrapper(original: Callable) -> Callable:
        def told(*args: Any, **kwargs: Any) -> Any:
            _enter(phase)
            result = original(*args, **kwargs)
            _enter(Phase.ELSEWHERE)
            return result

        return told

    return wrapper


def _around_each(phase: Phase) -> Callable:
    def wrapper(original: Callable) -> Callable:
        def told(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = original(*args, **kwargs)
            _enter(phase)
            for item in items:
                _enter(Phase.ELSEWHERE)
                yield item
                _enter(phase)
            _enter(Phase.ELSEWHERE)

        return told

    return wrapper


def _after_data(original: Callable) -> Callable:
    def told(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if _now is Phase.WRITING:
            _enter(Phase.BETWEEN)

    return told


def _folding(original: Callable) -> Callable:
    def told(*args: Any, **kwargs: Any) -> Any:
        record = original(*args, **kwargs)
        if record is not None:
            _enter(Phase.FOLDING)
        return record

    return told


def _after_fold(original: Callable) -> Callable:
    def told(*args: Any, **kwargs: Any) -> bool:
        ours = original(*args, **kwargs)
        if _now is Phase.FOLDING:
            _enter(Phase.ELSEWHERE)
        return ours

    return told


def _finishing(original: Callable) -> Callable:
    def told(*args: Any, **kwargs: Any) -> Any:
        _enter(Phase.FINISHING)
        return original(*args, **kwargs)

    return told
