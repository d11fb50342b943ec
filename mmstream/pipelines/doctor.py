"""What is on this machine and what to do about what is missing: a few seconds, before a job of hours.

Every check answers with what was found and, where something is wrong, one sentence of advice. Nothing is started:
Ray is asked only where RAY_ADDRESS names a cluster.
"""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

from pydantic import BaseModel

from mmstream.errors import ExitCode, MmstreamError
from mmstream.pipelines.resources import OBJECT_STORE_BYTES, cores
from mmstream.storage.commit import honours_put_if_absent
from mmstream.storage.files import absolute, glob_files, is_folder, is_local, list_files
from mmstream.telemetry import Report, counted


class Check(BaseModel):
    """`ok` is None where a thing is absent and need not be there."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""


class DoctorReport(Report):
    ok: bool
    checks: list[Check]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.DONE if self.ok else ExitCode.USAGE

    def title(self) -> str:
        return "all well" if self.ok else "something is missing"

    def lines(self) -> list[tuple[str, str]]:
        sign = {True: "ok", False: "NO", None: "–"}
        return [(c.name, f"{sign[c.ok]:<3} {c.found}{f'. {c.advice}' if c.advice else ''}") for c in self.checks]


def doctor(url: str | None = None) -> DoctorReport:
    """All checks of this machine; with `url` also whether it can be read, written, and honours put-if-absent.

    The latter two are tried with an object that is removed again, and so is a folder that was made for it.
    """
    checks = [_python(), _cores(), _memory(), _shared_memory(), _disk(), _torch(), _faiss(), _gpu(), _ray()]
    if url is not None:
        checks += _url_checks(absolute(url))
    ok = all(c.ok is not False for c in checks)
    return DoctorReport(ok=ok, checks=checks, next=["mmstream demo"] if ok else [])


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    return Check(name="python", ok=ok, found=found, advice="" if ok else "mmstream needs Python 3.11 or newer.")


def _cores() -> Check:
    return Check(name="cores", ok=True, found=f"{cores()} usable")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    ok = total >= 6 << 30
    advice = "" if ok else "The demo wants 6 GiB; `--limit` keeps jobs smaller."
    return Check(name="memory", ok=ok, found=f"{total / 2**30:.1f} GiB", advice=advice)


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Check(name="/dev/shm", ok=None, found="absent", advice="Ray will keep its objects in /tmp, slower.")
    ok = free >= OBJECT_STORE_BYTES
    advice = "" if ok else "Ray's object store wants 1 GiB; in a container, give --shm-size=4g."
    return Check(name="/dev/shm", ok=ok, found=f"{free / 2**30:.1f} GiB free", advice=advice)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    ok = free >= 2 << 30
    return Check(name="disk here", ok=ok, found=f"{free / 2**30:.0f} GiB free", advice="" if ok else "Free some space.")


def _version(module: str) -> str:
    return str(importlib.import_module(module).__version__)


def _torch() -> Check:
    return _package("torch", "pip install -c constraints.txt -e '.[cpu]'")


def _faiss() -> Check:
    return _package("faiss", "install exactly one of the extras cpu (faiss-cpu) and gpu (faiss-gpu).")


def _package(name: str, advice: str) -> Check:
    try:
        return Check(name=name, ok=True, found=_version(name))
    except Exception as e:  # a broken binary raises anything
        return Check(name=name, ok=False, found=f"does not load ({type(e).__name__}: {e})", advice=advice)


def _gpu() -> Check:
    try:
        import torch

        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            return Check(name="gpu", ok=True, found=", ".join(names))
        built = torch.version.cuda
    except Exception as e:
        return Check(name="gpu", ok=None, found=f"unknown ({e})")
    if shutil.which("nvidia-smi") and built is None:
        advice = "nvidia-smi is here but this torch is a CPU build: install one with CUDA."
        return Check(name="gpu", ok=False, found="torch has no CUDA", advice=advice)
    return Check(name="gpu", ok=None, found="none; everything runs on the CPU")


def _ray() -> Check:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check(name="ray", ok=True, found=f"{_version('ray')}, started on this machine by each command")
    parsed = urlparse(address if "://" in address else f"ray://{address}")
    try:
        socket.create_connection((parsed.hostname or "", parsed.port or 10001), timeout=3).close()
    except OSError as e:
        advice = "Check RAY_ADDRESS and the tunnel, or unset it to run on this machine."
        return Check(name="ray", ok=False, found=f"{address}: {e}", advice=advice)
    return Check(name="ray", ok=True, found=f"{address} answers")


def _url_checks(url: str) -> list[Check]:
    return [
        _tried(f"read {url}", lambda: _readable(url), "Check the URL and the credentials in the environment."),
        _tried(f"write {url}", lambda: _writable(url), "Fine for a source; a destination must be writable."),
    ]


def _tried(name: str, attempt: Callable[[], Check], advice: str) -> Check:
    try:
        return attempt()
    except MmstreamError as e:
        return Check(name=name, ok=False, found=str(e), advice=advice)


def _readable(url: str) -> Check:
    if any(c in url for c in "*?["):
        files = glob_files(url)
        return Check(name=f"read {url}", ok=bool(files), found=f"matches {counted(len(files), 'file')}")
    if not is_folder(url):
        return Check(name=f"read {url}", ok=None, found="nothing there yet", advice="Fine for a destination.")
    files = list_files(url)
    return Check(
        name=f"read {url}", ok=True, found=f"{counted(len(files), 'file')}, {sum(f.bytes for f in files) / 1e6:,.1f} MB"
    )


def _writable(url: str) -> Check:
    folder = url.rsplit("/", 1)[0] if any(c in url for c in "*?[") else url
    missing = [p for p in (Path(folder), *Path(folder).parents) if not p.exists()] if is_local(folder) else []
    honoured = honours_put_if_absent(folder)
    for made in missing:
        made.rmdir()
    if honoured:
        return Check(name=f"write {folder}", ok=True, found="writable, honours put-if-absent")
    advice = "Conditional writes are ignored here: run one job at a time on one destination."
    return Check(name=f"write {folder}", ok=True, found="writable, without put-if-absent", advice=advice)
