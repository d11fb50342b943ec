"""One error tree, the closed list of reject reasons, and the exit codes.

Every error that mmstream raises on purpose is an `MmstreamError` whose message says what, where, why and what to
do; its `exit_code` is what the command line ends with. Foreign errors (fsspec, botocore, Arrow) are mapped to this
tree where they enter (`storage.files`), so that nothing above has to know them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    REFUSED = 3
    TOO_MANY_REJECTS = 4
    UNREACHABLE = 5
    DIFFERENCES = 6
    INTERRUPTED = 130


class MmstreamError(Exception):
    """Base of all errors raised on purpose. The message is one or two sentences for a person."""

    exit_code = ExitCode.UNEXPECTED


class UsageError(MmstreamError):
    """The request cannot be carried out as written: a wrong path, key, spec or recipe."""

    exit_code = ExitCode.USAGE


class RefusedError(MmstreamError):
    """Carrying on would mix things that do not belong together: fingerprint, catalog, format or recipe differ."""

    exit_code = ExitCode.REFUSED


class TooManyRejectsError(MmstreamError):
    """The error budget is spent. What was committed stays."""

    exit_code = ExitCode.TOO_MANY_REJECTS


class UnreachableError(MmstreamError):
    """A source or store did not answer, or refused the credentials."""

    exit_code = ExitCode.UNREACHABLE


class DifferencesError(MmstreamError):
    """A check (audit, verify-grads) found differences."""

    exit_code = ExitCode.DIFFERENCES


class Reason(StrEnum):
    """Why a sample, or the unknown rest of a damaged shard, was set aside. A closed list: see the README's table."""

    NOT_TAR = "not_tar"
    TAR_HEADER = "tar_header"
    TAR_TRUNCATED = "tar_truncated"
    TAR_TRAILING = "tar_trailing"
    COMPRESSION = "compression"
    UNREADABLE = "unreadable"
    SOURCE_CHANGED = "source_changed"
    CHECKSUM = "checksum"
    MEMBER_TOO_LARGE = "member_too_large"
    UNSAFE_MEMBER = "unsafe_member"
    MISSING_MEMBER = "missing_member"
    DUPLICATE_KEY = "duplicate_key"
    NOT_IMAGE = "not_image"
    IMAGE_BROKEN = "image_broken"
    IMAGE_TRUNCATED = "image_truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    FORMAT = "format"
    DECODE_TIMEOUT = "decode_timeout"
    DECODER_CRASH = "decoder_crash"
    AUDIO = "audio"
    VIDEO = "video"
    CAPTION = "caption"
    METADATA = "metadata"
    FILTERED = "filtered"
    BAD_EMBEDDING = "bad_embedding"


class Rejected(Exception):
    """One sample cannot be used. Not an error of the run: whoever catches it writes one reject row.

    `reason` is one of `Reason`; `detail` is one sentence for a person (what, where, how far).
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Rejected], tuple[Reason, str]]:
        return Rejected, (self.reason, self.detail)
