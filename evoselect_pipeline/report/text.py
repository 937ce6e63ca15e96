"""Anybody's text inside Markdown, so that nothing in it takes effect; numbers for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_CHARS = 160
# By name, not by backslash: a pipe splits a table's cell even behind one.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
MARKS = re.compile(r"[\\`*_\[\]~!#$]")
# Some readers make links of bare addresses after the escapes are gone: a word joiner, which is
# invisible, makes no address of them.
ADDRESSES = re.compile(r"(https?:|ftp:|mailto:|xmpp:|www(?=\.)|@)", re.IGNORECASE)
WORD_JOINER = "\u2060"
# What hides text or turns its direction round.
UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
REPLACEMENT = "\ufffd"


def plain(text: str, most: int = MOST_CHARS) -> str:
    """Text as one line of Markdown that shows it letter by letter, cut where it is long."""
    line = " ".join(text.split())
    if len(line) > most:
        line = line[: most - 1].rstrip() + "…"
    seen = MARKS.sub(r"\\\g<0>", UNSEEN.sub(REPLACEMENT, line))
    seen = "".join(ENTITIES.get(character, character) for character in seen)
    return ADDRESSES.sub(lambda found: found[0] + WORD_JOINER, seen)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A Markdown table of cells that are Markdown already; `align` has an l or r a column."""
    rules = ["---:" if side == "r" else "---" for side in align.ljust(len(columns), "l")]
    lines = [columns, rules, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{share:.1%}".replace("%", " %")


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    rounded = round(100 * difference, 1)
    if rounded == 0:
        return "0.0"
    return f"{rounded:+.1f}".replace("-", "−")


def number(value: float) -> str:
    """A count with its thousands set apart."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A time that a person can read at a glance."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
