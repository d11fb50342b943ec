"""Errors of file systems and stores become ours where they enter: what, where, and what to do."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import fsspec

from mmstream.errors import MmstreamError, Rejected, UnreachableError, UsageError

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}  # of mmstream, by scheme


def scheme(url: str) -> str:
    return url.split("://", 1)[0] if "://" in url else "file"


def not_opened(url: str, e: ImportError | ValueError | OSError) -> MmstreamError:
    """Why fsspec made no file system of `url`."""
    protocol = scheme(url).split("::")[-1]
    if isinstance(e, ImportError):
        missing = f"pip install 'mmstream[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else str(e).rstrip(".")
        return UsageError(f"{url}: the package that reads {protocol}:// is not installed: {missing}.")
    if "Protocol not known" in str(e):
        return UsageError(
            f"{url}: {protocol}:// is no protocol that is known here. Give a path, a URL of file, s3, gs, az, http or "
            "https, or install the fsspec package of that store."
        )
    if isinstance(e, ValueError):
        return UsageError(f"{url}: {e}.")
    if e.errno is None:  # a library that the package needs, such as Java's, does not load
        return UsageError(f"{url}: {protocol}:// does not work on this machine: {str(e).splitlines()[0]}.")
    return UnreachableError(f"{url}: the store does not answer ({e}). Check its name and the network.")


@contextmanager
def mapped(url: str) -> Generator[None]:
    """Foreign errors of a store become `UsageError` (not there) or `UnreachableError` (no answer, not allowed)."""
    try:
        yield
    except (MmstreamError, Rejected, FileExistsError):
        raise
    except FileNotFoundError as e:
        if bucket := _missing_bucket(url, e):
            raise UsageError(f"{url}: there is no bucket {bucket}. Check its name and the endpoint, or make it.") from e
        raise UsageError(f"{url}: nothing is there. Check the path or URL.") from e
    except IsADirectoryError as e:
        raise UsageError(f"{url}: is a folder where a file is needed. Check the path.") from e
    except PermissionError as e:
        raise denied(url, e) from e
    except Exception as e:
        if not is_store_error(e):
            raise
        detail = f"{type(e).__name__}: {str(e)[:200]}"
        raise UnreachableError(
            f"{url}: the store does not answer ({detail}). Check endpoint, network and credentials."
        ) from e


def check_bucket(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Asks S3 for the bucket of `path`, whose own error says so where there is none: of it s3fs finds no file, which
    looks like an empty one."""
    s3: Any = fs
    s3.call_s3("list_objects_v2", Bucket=path.split("/")[0], MaxKeys=1)


def _missing_bucket(url: str, e: FileNotFoundError) -> str | None:
    """The bucket, where S3 says that there is none; of a bucket alone it only says 404."""
    bucket, _, key = url.rsplit("://", 1)[-1].partition("/")
    code = getattr(e.__cause__, "response", {}).get("Error", {}).get("Code")
    return bucket if code == "NoSuchBucket" or (code == "404" and not key) else None


def denied(url: str, e: PermissionError) -> UnreachableError:
    return UnreachableError(f"{url}: access denied ({e}). Check the credentials in the environment.")


def is_store_error(e: BaseException) -> bool:
    module = type(e).__module__.split(".")[0]
    return isinstance(e, OSError) or module in (
        "botocore",
        "aiobotocore",
        "aiohttp",
        "gcsfs",
        "azure",
        "fsspec",
    )
