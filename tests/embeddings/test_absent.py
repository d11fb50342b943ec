"""What is said where an embedding set was expected and something else lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from tars import make_tar

from mmstream.embeddings.audit import audit
from mmstream.embeddings.reader import EmbeddingSet
from mmstream.errors import UsageError


def said_of(url: str) -> str:
    said = []
    for opened in (EmbeddingSet.open, audit):
        with pytest.raises(UsageError) as e:
            opened(url)
        said.append(str(e.value))
    assert said[0] == said[1]
    return said[0]


def test_an_index_shards_and_nothing_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "index" / "versions").mkdir(parents=True)
    (tmp_path / "index" / "versions" / "000001.json").write_text("{}")
    assert "an index, and no embedding set" in said_of(str(tmp_path / "index"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(make_tar([("a.txt", b"words")]))
    assert "shards, and no embedding set" in said_of(str(tmp_path / "shards"))
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "nothing"):
        assert f"Make one with `mmstream embed SRC {tmp_path / nothing}`" in said_of(str(tmp_path / nothing))
