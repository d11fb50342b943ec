"""Commit protocols with a hole, to test the tests: installed in the process of a job, in place of the real one."""

from __future__ import annotations

from typing import Any


def record_before_data() -> None:
    """The record is put first and the objects that it vouches for are written afterwards."""
    from mmstream.embeddings import writer

    write, put = writer.write_bytes, writer.put_if_absent
    waiting: list[tuple[str, bytes]] = []

    def put_then_write(url: str, data: bytes) -> Any:
        ours = put(url, data)
        while waiting:
            write(*waiting.pop())
        return ours

    writer.write_bytes = lambda url, data: waiting.append((url, data))
    writer.put_if_absent = put_then_write


def renamed_after_record() -> None:
    """Two phases: objects are written under a pending name and renamed once the record is there."""
    from mmstream.embeddings import writer
    from mmstream.storage.files import open_fs

    write, put = writer.write_bytes, writer.put_if_absent
    pending: list[str] = []

    def write_pending(url: str, data: bytes) -> None:
        write(url + ".pending", data)
        pending.append(url)

    def put_then_rename(url: str, data: bytes) -> Any:
        ours = put(url, data)
        while pending:
            fs, path = open_fs(pending.pop())
            fs.mv(path + ".pending", path)
        return ours

    writer.write_bytes = write_pending
    writer.put_if_absent = put_then_rename
