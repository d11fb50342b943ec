"""What a part of the campaign found: a table for people, and the violations that make it fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """`rows` are as long as `columns`; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    violations: Sequence[str]
    seconds: float

    def markdown(self) -> str:
        cells = [[f"{c:,}" if isinstance(c, int) else str(c) for c in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in [list(self.columns), ["---"] * len(self.columns), *cells]]
        verdict = "no violation" if not self.violations else f"**{len(self.violations)} violations**"
        return "\n".join([f"### {self.title} ({self.seconds:.0f} s, {verdict})", "", *lines])
