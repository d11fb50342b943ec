"""Sets to audit: one to look at, a copy of it, and one whose shards may be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from audited_sets import made_in


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_in(tmp_path_factory.mktemp("made")).parent


@pytest.fixture
def emb(made: Path, tmp_path: Path) -> Path:
    """A copy of the set; its shards are the module's."""
    return Path(shutil.copytree(made / "emb", tmp_path / "emb"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A set whose shards may be changed."""
    return made_in(tmp_path)
