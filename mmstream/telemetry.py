"""What a person sees while they wait and when it is over: progress, who waits for whom, the closing report.

Progress goes to stderr: a live panel on a terminal, elsewhere one line every ten seconds. Reports are frozen models
that print well, convert to plain JSON and end with the next command to type.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

LINE_EVERY_SECONDS = 10.0

_SHA256 = re.compile(r"(?<![\w/.-])((?:sha256:)?[0-9a-f]{12})[0-9a-f]{52}(?![\w/.-]*\w)")  # but as a part of a path

_quiet = False


def set_quiet(quiet: bool) -> None:
    """No progress from now on in this process."""
    global _quiet
    _quiet = quiet


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Tells a person who waits what goes on, unless they asked for quiet."""
    if not _quiet:
        stderr().print(f"[dim]{text}[/]")


def warn(text: str) -> None:
    """Tells a person what they should know, quiet or not."""
    stderr().print(text, style="yellow", markup=False, soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """`"1 shard"`, `"2 shards"`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def to_look_at(page: str) -> list[str]:
    """The command that shows a page, as what to type next; none for a page in a store that no browser reads."""
    if "://" in page and not page.startswith(("file://", "http://", "https://")):
        return []
    return [shlex.join(["open" if sys.platform == "darwin" else "xdg-open", page])]


def short_hashes(text: str) -> str:
    """SHA-256 sums cut to their first 12 digits, for a person; JSON has the whole."""
    return _SHA256.sub(r"\1…", text)


class Progress:
    """One job's progress: `done` of `total` units, and named figures beside it.

    `rate_of` names the figure whose growth per second is shown, and from which the time left is told where `total`
    is not of that unit.
    """

    def __init__(self, title: str, total: int | None, unit: str, *, rate_of: str | None = None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self.figures: dict[str, Any] = {}
        self._rate_of = rate_of
        self._started = time.monotonic()
        self._last_line = self._started
        self._base: tuple[float, float] | None = None  # when the rate's figure was first seen, and what it was
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        console = stderr()
        if not _quiet and console.is_terminal:
            self._live = Live(self._panel(), console=console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, done: int | None = None, **figures: Any) -> None:
        if done is not None:
            self.done = done
        self.figures.update(figures)
        now = time.monotonic()
        if self._rate_of and self._base is None and self.figures.get(self._rate_of):
            self._base = (now, float(self.figures[self._rate_of]))
        if self._first is None and self.done:
            self._first = (now, self.done)
        if self._live:
            self._live.update(self._panel())
        elif not _quiet and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        parts = [f"{self.title}: {self._count()}", *(f"{k} {_plain(v)}" for k, v in self._shown().items())]
        return ", ".join(parts)

    def _count(self) -> str:
        return f"{self.done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"

    def _shown(self) -> dict[str, Any]:
        shown = {name.replace("_", " "): value for name, value in self.figures.items()}
        if rate := self._rate():
            shown[f"{self._rate_of} per second"] = rate
        shown["elapsed"] = _clock(time.monotonic() - self._started)
        if (left := self._left()) is not None:
            shown["left"] = f"about {_clock(left)}"
        return shown

    def _left(self) -> float | None:
        """By the pace since the first units: neither the start nor what an earlier run did tells how fast this goes."""
        if self._first is None or self.total is None or not self._first[1] < self.done < self.total:
            return None
        pace = (time.monotonic() - self._first[0]) / (self.done - self._first[1])
        return pace * (self.total - self.done)

    def _rate(self) -> float | None:
        """Growth of the figure since it was first seen: the time that everything took to start is left out."""
        if self._base is None or self._rate_of is None:
            return None
        seconds = time.monotonic() - self._base[0]
        return (float(self.figures[self._rate_of]) - self._base[1]) / seconds if seconds > 1 else None

    def _panel(self) -> Panel:
        body = Table.grid(padding=(0, 2))
        if self.total:
            body.add_row(ProgressBar(total=self.total, completed=self.done, width=40), self._count())
        else:
            body.add_row(self._count(), "")
        figures = Table.grid(padding=(0, 3))
        figures.add_row(*(f"[dim]{k}[/] {_plain(v)}" for k, v in self._shown().items()))
        outer = Table.grid()
        outer.add_row(body)
        outer.add_row(figures)
        return Panel(outer, title=self.title, title_align="left", border_style="cyan", expand=False)


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Report(BaseModel):
    """What a verb returns: prints as a short table that ends with the next command, converts to plain JSON."""

    model_config = ConfigDict(frozen=True)

    next: list[str] = []

    def to_json(self) -> dict[str, Any]:
        values = self.model_dump(mode="json")
        return {**{k: v for k, v in values.items() if k != "next"}, "next": self.next}

    def title(self) -> str:
        return type(self).__name__.removesuffix("Report").lower()

    def lines(self) -> list[tuple[str, str]]:
        """What is shown, as (name, value)."""
        fields = self.model_dump(exclude={"next"})
        return [(k.replace("_", " "), _plain(v)) for k, v in fields.items() if v not in (None, {}, [], "")]

    def __str__(self) -> str:
        width = max((len(k) for k, _ in self.lines()), default=0)
        body = [f"  {k:<{width}}  {short_hashes(v)}" for k, v in self.lines()]
        after = ["", "next:", *(f"  {command}" for command in self.next)] if self.next else []
        return "\n".join([self.title(), *body, *after])
