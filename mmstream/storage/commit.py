"""Publishing: one small object appears under a name at most once, whole or not at all.

Data objects are written first under names that no other writer uses; the record that vouches for them comes last, by
`put_if_absent`. Nothing is renamed and nothing is deleted on the way, so a kill at any moment leaves either no record
or a true one. An exclusive create would leave a torn record for ever after a kill: locally we write beside, sync, and
link to the name.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from mmstream.errors import UnreachableError
from mmstream.storage.files import join, open_fs, read_bytes, sync_folder, write_temporary
from mmstream.storage.foreign import mapped

ATTEMPTS = 5


def put_if_absent(url: str, data: bytes) -> bool:
    """Writes `data` to `url` unless something is there. True if it is ours, False if another was first.

    A request without a clear answer (time-out, reset, 409, 5xx) may have been applied all the same: it is repeated,
    and where something is there by then, that is read back and compared. Whoever races must therefore write bytes of
    its own. Stores that ignore the condition (see `honours_put_if_absent`) overwrite and answer True.

    Raises:
        UnreachableError: the store did not answer any attempt, or refused.
    """
    fs, path = open_fs(url)
    if isinstance(fs, LocalFileSystem):
        with mapped(url):
            return _link_new(Path(path), data)
    for attempt in range(ATTEMPTS):
        try:
            with mapped(url):
                fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return read_bytes(url) == data
        except UnreachableError as e:
            if attempt == ATTEMPTS - 1 or isinstance(e.__cause__, PermissionError):
                raise
            time.sleep(random.uniform(0, 0.2 * 2**attempt))
    raise AssertionError("unreachable")


def _link_new(target: Path, data: bytes) -> bool:
    temporary = write_temporary(target, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return target.read_bytes() == data
    finally:
        temporary.unlink()
    sync_folder(target.parent)
    return True


def honours_put_if_absent(folder: str) -> bool:
    """Asks the store by trying: does a second create of one name fail? Leaves nothing behind.

    Raises:
        UnreachableError: the store does not answer, or `folder` may not be written to.
    """
    probe = join(folder, f".probe-{secrets.token_hex(8)}")
    put_if_absent(probe, b"first")
    honoured = not put_if_absent(probe, b"second")
    fs, path = open_fs(probe)
    with mapped(probe):
        fs.rm_file(path)
    return honoured
