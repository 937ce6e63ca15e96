"""Whoever waits is told what is worked on, how far it is, and how long it takes still."""

import time
from io import StringIO

import pytest

from evoselect_pipeline.commands import console
from evoselect_pipeline.commands.console import live_progress
from evoselect_pipeline.progress import progress, working_on


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_without_a_terminal_lines_tell_how_far_and_how_long_still(clock, capsys):
    with live_progress():
        progress("rows", 0, 100)
        for done in (5, 10, 15):
            clock(6.0)
            progress("rows", done, 100)
        clock(102.0)
        progress("rows", 100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "  rows: 10 of 100, 12.0 s, about 1 min 48 s left",
        "  rows: 100 in 2 min 0 s",
    ]


def test_work_that_goes_on_where_it_was_left_is_timed_by_what_is_done_now(clock, capsys):
    with live_progress():
        progress("requests", 80, 100)
        clock(10.0)
        progress("requests", 90, 100)
    assert "90 of 100, 10.0 s, about 10.0 s left" in capsys.readouterr().err


def test_work_that_nobody_counts_is_told_when_it_begins_and_if_it_was_long(clock, capsys):
    with live_progress():
        for seconds in (4.9, 5.0):
            with working_on(f"{seconds} [seconds]"):
                clock(seconds)
    assert capsys.readouterr().err.splitlines() == [
        "  4.9 [seconds]",
        "  5.0 [seconds]",
        "  5.0 [seconds] in 5.0 s",
    ]


def test_work_that_is_heard_of_at_its_end_took_nobody_knows_how_long(clock, capsys):
    with live_progress():
        progress("rows", 7, 7)
    assert capsys.readouterr().err == "  rows: 7\n"


def test_a_terminal_shows_bars_with_totals_and_keeps_what_has_ended(monkeypatch):
    shown = StringIO()
    terminal = console.Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "stderr", terminal)
    with live_progress():
        with working_on("stage 3 of 10: projected_gradients"):
            progress("gradients", 0, 200)
            progress("gradients", 50, 200)
            time.sleep(0.5)  # bars are drawn ten times a second
        progress("gradients", 200, 200)
    drawn = shown.getvalue()
    bars = {line.split("\x1b")[0] for line in drawn.splitlines() if "50 of 200" in line}
    assert bars, drawn
    assert "stage 3 of 10: projected_gradients" in drawn
    assert "  gradients: 200 in 0." in drawn
