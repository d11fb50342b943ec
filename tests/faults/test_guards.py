"""The list of guards fits the code: what it removes is there, once, and what is left is Python. That tests notice takes
minutes and is for `python -m faults.guards`."""

from __future__ import annotations

import ast

import pytest
from faults.guards import ROOT, Guard, guards


@pytest.mark.parametrize("guard", guards([]), ids=lambda g: g.name)
def test_a_guard_can_be_removed(guard: Guard) -> None:
    text = (ROOT / "mmstream" / guard.file).read_text()
    assert guard.without(text) != text
    ast.parse(guard.without(text))
    assert all(list(ROOT.glob(pattern)) for pattern in guard.tests.split())
