"""Anybody's text as it is shown: cut, without secrets, inert in Markdown; numbers for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from evoselect_pipeline.core.private_text import without_secrets

MOST_CHARS = 160
MOST_SHOWN = 500
# By name, not by backslash: a pipe splits a table's cell even behind one.
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;"}
MARKS = re.compile(r"[\\`*_\[\]~!#$]")
# Some readers make links of bare addresses after the escapes are gone: a word joiner, which is
# invisible, makes no address of them.
ADDRESSES = re.compile(r"(https?:|ftp:|mailto:|xmpp:|www(?=\.)|@)", re.IGNORECASE)
WORD_JOINER = "\u2060"
# What hides text, turns its direction round or steers a terminal. The joiners of scripts and emoji
# stay.
UNSEEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
REPLACEMENT = "\ufffd"


def one_line(text: str, most: int = MOST_SHOWN) -> str:
    """Text as one plain line: cut where it is long, nothing hidden in it, its secrets named."""
    line = " ".join(without_secrets(text).split())
    if len(line) > most:
        line = line[: most - 1].rstrip() + "…"
    return UNSEEN.sub(REPLACEMENT, line)


def plain(text: str, most: int = MOST_CHARS) -> str:
    """Text as one line of Markdown that shows it letter by letter, cut where it is long."""
    seen = MARKS.sub(r"\\\g<0>", one_line(text, most))
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
