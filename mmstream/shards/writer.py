"""Samples become a WebDataset shard: dictionaries go in, one tar stands at a URL, whole or not at all.

The tar is written by the `webdataset` package, so that every WebDataset reader understands it, with fixed owner and
time: equal samples give equal bytes. A shard is put together in memory before it is published, so its writer needs
about the shard's size of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

from webdataset.writer import TarWriter

from mmstream.errors import UsageError
from mmstream.storage.files import write_bytes

MTIME = 1_000_000_000.0


def write_shard(url: str, samples: Iterable[Mapping[str, bytes | str]]) -> int:
    """Writes one tar of `samples` to `url` and returns how many there were; see `tar_of`."""
    kept = list(samples)
    write_bytes(url, tar_of(kept, url))
    return len(kept)


def tar_of(samples: Iterable[Mapping[str, bytes | str]], where: str) -> bytes:
    """One tar of `samples`, that is to stand at `where`.

    A sample is `{"__key__": key, suffix: content, …}`: contents are bytes, or text that is stored as UTF-8. The key
    has no dot in its last part, since a reader takes everything after the first dot for the suffix.

    Raises:
        UsageError: a key is missing, has a dot, or stands for two samples.
    """
    tar, keys = io.BytesIO(), set()
    with TarWriter(tar, user="", group="", mtime=MTIME, encoder=False) as writer:
        for sample in samples:
            key = sample.get("__key__")
            if not isinstance(key, str) or not key or "." in key.rsplit("/", 1)[-1] or key in keys:
                raise UsageError(
                    f"{where}: {key!r} cannot be the key of a sample; keys are unique in a shard and have no dot."
                )
            keys.add(key)
            members = {k: v.encode() if isinstance(v, str) else v for k, v in sample.items() if k != "__key__"}
            writer.write({"__key__": key, **members})
    return tar.getvalue()
