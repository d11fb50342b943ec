"""An embedding set against a small model of it, through every command in any order, with kills and damage between.

The commands are the real ones with a loop in Ray's place (`without_ray`); the model knows which samples there are, and
which of them cannot be used. Whatever happened, a reader gives exactly the set's rows or says what is wrong,
and `repair` after any damage, then `embed`, give a set in which each sample is once, as a row or as a reject.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tars import make_tar
from without_ray import without_ray

import mmstream as mm
from mmstream.embeddings.gc import gc
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import MmstreamError
from mmstream.pipelines.embed import EmbedReport
from mmstream.pipelines.repair import repair, replay

ROWS, CHUNK = 7, 3
COMMITS = st.integers(1, 8)


class Killed(BaseException):
    """The process is gone: nothing catches it."""


class EmbeddingSetMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.tars, self.emb = Path(self.folder.name, "tars"), Path(self.folder.name, "emb")
        self.tars.mkdir()
        self.bad: dict[int, set[int]] = {}  # shard → rows that are no text now
        self.was_bad: dict[int, set[int]] = {}  # … or were once: may stand as a reject until they are replayed
        self.given: set[str] = set()  # rows that a replay took in: never to be uncovered again
        self.taken = 0  # shards of the set
        self.is_damaged = False

    def teardown(self) -> None:
        self.folder.cleanup()

    # What happens to the source

    @initialize(bad=st.sets(st.integers(0, ROWS - 1), min_size=1, max_size=3))
    def two_shards(self, bad: set[int]) -> None:
        for rows in (bad, set()):
            self._add(rows)

    def _add(self, bad: set[int]) -> None:
        shard = len(self.bad)
        self.bad[shard], self.was_bad[shard] = set(bad), set(bad)
        self._write(shard)

    def _write(self, shard: int) -> None:
        path = self.tars / f"{shard}.tar"
        stat = path.stat() if path.exists() else None
        path.write_bytes(
            make_tar((key(shard, i), b"\xff" * 9 if i in self.bad[shard] else b"words %03d" % i) for i in range(ROWS))
        )
        if stat:  # mended in place: the same size and time
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    @precondition(lambda self: len(self.bad) < 4)
    @rule(bad=st.sets(st.integers(0, ROWS - 1), max_size=1))
    def a_shard_is_added(self, bad: set[int]) -> None:
        self._add(bad)

    @precondition(lambda self: any(self.bad.values()))
    @rule()
    def a_bad_sample_is_mended(self) -> None:
        shard = next(s for s, rows in self.bad.items() if rows)
        self.bad[shard].pop()
        self._write(shard)

    # What people run, undisturbed, killed after so many commits, or with another's run in the middle

    @rule(append=st.booleans())
    def embed(self, append: bool) -> None:
        with without_ray(CHUNK):
            self._embed(append)

    @rule(append=st.booleans(), after=COMMITS)
    def embed_is_killed(self, append: bool, after: int) -> None:
        with suppress(Killed), without_ray(CHUNK, killed(after)):
            self._embed(append)

    @rule(after=COMMITS, command=st.sampled_from([lambda m: m._embed(False), lambda m: repair(str(m.emb))]))
    def two_run_at_once(self, after: int, command) -> None:
        def meanwhile() -> None:
            with without_ray(CHUNK), suppress(MmstreamError):
                command(self)

        with without_ray(CHUNK, once(after, meanwhile)), suppress(MmstreamError):
            self._embed(False)

    def _embed(self, append: bool) -> EmbedReport | None:
        begun = (self.emb / "manifest").exists()
        shards = len(self.bad)
        try:
            report = mm.embed(str(self.tars), str(self.emb), model="fake:4", max_rejects=1.0, append=append)
        except MmstreamError:
            grown = begun and not append and shards > self.taken
            assert self.is_damaged or grown, "nothing but damage, or shards that came since, make embed refuse"
            return None
        finally:
            self.taken = self._num_taken()
        assert report.shards == self.taken
        return report

    def _num_taken(self) -> int:
        with suppress(MmstreamError):
            return EmbeddingSet.open(str(self.emb), finished=False).catalog.num_rows
        return self.taken

    @precondition(lambda self: self.taken)
    @rule()
    def repair(self) -> None:
        with without_ray(CHUNK):
            self._repair()

    @precondition(lambda self: self.taken)
    @rule(after=COMMITS)
    def repair_is_killed(self, after: int) -> None:
        with suppress(Killed), without_ray(CHUNK, killed(after)):
            self._repair()

    def _repair(self) -> None:
        repair(str(self.emb), [str(self.tars / f"{n}.tar") for n in range(self.taken)])
        assert mm.audit(str(self.emb)).differences == []
        self.is_damaged = False

    @precondition(lambda self: self.taken and not self.is_damaged)
    @rule()
    def replay(self) -> None:
        with without_ray(CHUNK):
            replay(str(self.emb))
        rows = {k for t in EmbeddingSet.open(str(self.emb)).tables(["key"]) for k in t["key"].to_pylist()}
        for shard in range(self.taken):
            mended = self.was_bad[shard] - self.bad[shard]
            self.was_bad[shard] = set(self.bad[shard])
            self.given |= {stem(shard, i) for i in mended}
        assert self.given <= rows

    @precondition(lambda self: self.taken and not self.is_damaged and any(self.bad.values()))
    @rule()
    def a_bad_sample_is_mended_and_replayed(self) -> None:
        self.a_bad_sample_is_mended()
        self.replay()

    @precondition(lambda self: self.taken and not self.is_damaged)
    @rule(after=COMMITS)
    def replay_is_killed(self, after: int) -> None:
        with suppress(Killed), without_ray(CHUNK, killed(after)):
            replay(str(self.emb))

    @precondition(lambda self: self.taken)
    @rule(days=st.sampled_from([0, 2]))
    def gc(self, days: int) -> None:
        for file in self._files():
            os.utime(file, (time.time() - 86_400 * days,) * 2)
        gc(str(self.emb))

    # What happens to what is stored

    @precondition(lambda self: self.taken)
    @rule(number=st.integers(0, 1 << 16), bit=st.none() | st.integers(0, 1 << 16))
    def something_is_lost(self, number: int, bit: int | None) -> None:
        self._lose([f for f in self._files() if f.parent.name not in ("manifest", "catalog")], number, bit)

    @precondition(lambda self: self.taken)
    @rule(number=st.integers(0, 1), bit=st.none() | st.integers(0, 1 << 16))
    def a_newest_record_is_lost(self, number: int, bit: int | None) -> None:
        """One of the two of the highest generation: where a set was replayed, of a shard and of its chunk."""
        records = self.emb.rglob("commits/**/*.json")
        self._lose(sorted(records, key=lambda f: (-int(f.stem.split(".")[1]), f))[:2], number, bit)

    def _lose(self, files: list[Path], number: int, bit: int | None) -> None:
        if not files:
            return
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        if bit is None:
            file.unlink()
        else:
            data[bit // 8 % len(data)] ^= 1 << bit % 8
            file.write_bytes(data)
        self.is_damaged = True

    def _files(self) -> list[Path]:
        return sorted(f for f in self.emb.rglob("*") if f.is_file())

    # What must always hold

    @invariant()
    def a_reader_gives_the_set_or_says_what_is_wrong(self) -> None:
        try:
            emb = EmbeddingSet.open(str(self.emb))
            rows = [r for t in emb.tables(["key", "caption"]) for r in t.to_pylist()]
            rejects = [r["key"] for t in emb.rejects() for r in t.to_pylist()]
        except MmstreamError:
            return
        keys = [r["key"] for r in rows]
        assert sorted([*keys, *rejects]) == [stem(s, i) for s in range(self.taken) for i in range(ROWS)]
        assert all(r["caption"] == f"words {int(r['key'][1:]):03}" for r in rows)
        assert set(rejects) <= {stem(s, i) for s, bad in self.was_bad.items() for i in bad}
        assert self.given <= set(keys), "what a replay gave is not taken away"

    @invariant()
    def audit_finds_nothing_where_nothing_was_damaged(self) -> None:
        if self.taken and not self.is_damaged:
            found = mm.audit(str(self.emb))
            assert [d for d in found.differences if d.what != "manifest"] == [] or not found.finished


def key(shard: int, row: int) -> str:
    return f"{stem(shard, row)}.txt"


def stem(shard: int, row: int) -> str:
    return f"{shard}{row:03}"


def killed(after: int):
    def die() -> None:
        raise Killed

    return once(after, die)


def once(after: int, act):
    """Does it when the chunk of this number is committed, and the driver does not know of it yet."""
    seen = 0

    def committed(_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            act()

    return committed


QUIET = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
TestEmbeddingSet = EmbeddingSetMachine.TestCase
TestEmbeddingSet.settings = settings(max_examples=20, stateful_step_count=20, **QUIET)


@pytest.mark.faults
class TestEmbeddingSetForLong(EmbeddingSetMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=25, **{**QUIET, "derandomize": False})
