"""Reports on stdout, progress on stderr."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from evoselect_pipeline.progress import listening
from evoselect_pipeline.report.text import UNSEEN, duration

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True)

WHOLE_NAME = 20  # characters of a name that a table does not break
LINE_EVERY_S = 10.0  # where stderr is no terminal; less often when work takes hours
WORTH_A_LINE_S = 5.0  # work that took less, and that nobody counted, is not told of when it ends


def print_json(value: Any) -> None:
    """Write JSON, and nothing else, to stdout; what steers a terminal stands in it as escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print("\n".join(UNSEEN.sub(_escaped, line) for line in text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table to stdout."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for place, column in enumerate(columns):
        values = [row[place] for row in rows]
        numeric = bool(values) and all(isinstance(value, (int, float)) for value in values)
        # What a row is known by stays whole while other columns can give way.
        is_name = place == 0 and all(len(str(value)) <= WHOLE_NAME for value in values)
        justify = "right" if numeric else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=is_name)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    stdout.print(table)


def print_failure(what: str, why: str) -> None:
    """Say on stderr what failed, and why: it may quote a server or a row, as plain text."""
    stderr.print(f"[red]{what}[/red]: {escape(visible_lines(why))}", soft_wrap=True)


def visible(text: str) -> str:
    """Text on one line: line breaks, control characters and invisible ones as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def visible_lines(text: str) -> str:
    """The same of a text that keeps its lines."""
    return "\n".join(map(visible, text.split("\n")))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    # Samples are the user's data: no markup of ours, and nothing that steers the terminal.
    return escape(visible_lines(str(value)))


@contextmanager
def live_progress() -> Iterator[None]:
    """Say what is worked on, how far it is, how long it took and how long it will take still.

    A bar each while it goes on; lines now and then where stderr is no terminal.
    """
    if not stderr.is_terminal:
        with _telling_warnings(), listening(_Lines()):
            yield
        return
    columns = (
        TextColumn("  {task.description:<34}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[count]:>14}"),
        TimeElapsedColumn(),
        _TimeLeft(),
    )
    with (
        Progress(*columns, console=stderr, transient=True) as bars,
        _telling_warnings(),
        listening(_Bars(bars)),
    ):
        yield


@contextmanager
def _telling_warnings() -> Iterator[None]:
    """Say what our own log warns of: Dagster's event log would keep it to itself."""
    log, teller = logging.getLogger("evoselect_pipeline"), _Warnings(logging.WARNING)
    log.addHandler(teller)
    try:
        yield
    finally:
        log.removeHandler(teller)


class _Warnings(logging.Handler):
    """A line for a warning."""

    def emit(self, record: logging.LogRecord) -> None:
        text = f"  [yellow]{escape(visible_lines(record.getMessage()))}[/yellow]"
        stderr.print(text, highlight=False, soft_wrap=True)


class _Lines:
    """A line for work that begins or ends, and now and then for work that goes on."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[float, int]] = {}  # when we heard of it, how far it was then
        self._told: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        is_new = what not in self._begun
        began, first = self._begun.setdefault(what, (now, done))
        if done >= total:
            del self._begun[what]
            self._told.pop(what, None)
            _tell_end(what, total, None if is_new else now - began)
        elif is_new and total == 1:
            stderr.print(f"  {escape(what)}", highlight=False, soft_wrap=True)
        elif now - self._told.setdefault(what, began) >= max(LINE_EVERY_S, (now - began) / 20):
            self._told[what] = now
            left = (now - began) * (total - done) / (done - first) if done > first else None
            still = f", about {duration(left)} left" if left is not None else ""
            text = f"  {escape(what)}: {done} of {total}, {duration(now - began)}{still}"
            stderr.print(text, highlight=False, soft_wrap=True)


class _Bars:
    """A bar for work that goes on, a line for work that has ended."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._shown: dict[str, Any] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        counted = total if total != 1 else None  # the bar of what nobody counts moves all the same
        count = f"{done} of {total}" if counted else ""
        is_new = what not in self._shown
        if is_new:
            self._shown[what] = self._bars.add_task(what, total=counted, count=count)
        self._bars.update(self._shown[what], completed=done, total=counted, count=count)
        if done >= total:
            task = self._shown.pop(what)
            [elapsed] = [bar.elapsed or 0.0 for bar in self._bars.tasks if bar.id == task]
            self._bars.remove_task(task)
            _tell_end(what, total, None if is_new else elapsed)


class _TimeLeft(ProgressColumn):
    """How long work will take still, where that can be told."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left")


def _tell_end(what: str, total: int, seconds: float | None) -> None:
    """Say that work is done; `seconds` is None where it was not heard of before it was."""
    if total == 1 and (seconds or 0.0) < WORTH_A_LINE_S:
        return
    count = f": {total}" if total != 1 else ""
    took = f" in {duration(seconds)}" if seconds is not None else ""
    stderr.print(f"  {escape(what)}{count}{took}", highlight=False, soft_wrap=True)
