"""Two list skills in a row: pairs the base model has seen, and the task's new pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from evoselect_pipeline.playground.kinds import Draft, Kind, words
from evoselect_pipeline.playground.words import SHORT_WORDS

Step = Callable[[list[str]], list[str]]

STEPS: dict[str, Step] = {
    "reverse": lambda items: items[::-1],
    "capitals": lambda items: [item.upper() for item in items],
    "first": lambda items: items[:1],
    "last": lambda items: items[-1:],
    "drop first": lambda items: items[1:],
    "drop last": lambda items: items[:-1],
    "initials": lambda items: [item[0] for item in items],
    "swap ends": lambda items: [items[-1], *items[1:-1], items[0]],
    "double": lambda items: [item for item in items for _ in range(2)],
}
# How the base model has been asked for a single step, and for each step of a seen pair.
WORDING = {
    "reverse": "reverse the list",
    "capitals": "write in capitals",
    "first": "keep the first word",
    "last": "keep the last word",
    "drop first": "drop the first word",
    "drop last": "drop the last word",
    "initials": "give the initials",
    "swap ends": "swap the ends",
    "double": "say each word twice",
}
SEEN_PAIRS = (
    ("reverse", "first"),
    ("reverse", "capitals"),
    ("drop first", "capitals"),
    ("drop last", "reverse"),
    ("first", "capitals"),
    ("drop last", "initials"),
    ("drop first", "last"),
    ("swap ends", "first"),
    ("swap ends", "drop last"),
    ("first", "double"),
    ("initials", "capitals"),
)
# The last entry is how the task asks; None is the seen wording "..., then ...: list".
NEW = (
    ("reverse", "initials", None),
    ("drop last", "capitals", None),
    ("drop first", "reverse", None),
    ("last", "double", None),
    ("last", "capitals", "What is the last word of {items}, in capitals?"),
    ("drop first", "initials", None),
    ("reverse", "drop first", "Read {items} backwards and skip one."),
    ("swap ends", "capitals", None),
    ("swap ends", "initials", "Initials of {items} with both ends swapped?"),
    ("drop first", "swap ends", None),
    ("drop last", "double", "Twice each but the last: {items}"),
    ("reverse", "double", None),
)


def draw_single(step: str, rng: Random) -> Draft:
    """Ask for one step on a list of words."""
    items = words(rng, SHORT_WORDS, 2, 4)
    wording = WORDING[step]
    text = rng.choice((f"{wording.capitalize()}: ", f"{wording.capitalize()} of this: "))
    return Draft(text + ", ".join(items), ", ".join(STEPS[step](items)))


def draw_pair(first: str, second: str, text: str | None, rng: Random) -> Draft:
    """Ask for two steps; the slips do only one of them."""
    items = words(rng, SHORT_WORDS, 3, 4)
    listed = ", ".join(items)
    if text is None:
        prompt = f"{WORDING[first].capitalize()}, then {WORDING[second]}: {listed}"
    else:
        prompt = text.format(items=listed)
    answer = ", ".join(STEPS[second](STEPS[first](items)))
    slips = (STEPS[first](items), STEPS[second](items), items)
    return Draft(prompt, answer, tuple(slip for s in slips if (slip := ", ".join(s)) != answer))


SINGLE_STEPS = tuple(Kind(f"list {step}", partial(draw_single, step)) for step in STEPS)
SEEN_COMPOSE = tuple(
    Kind(f"{first} then {second}", partial(draw_pair, first, second, None))
    for first, second in SEEN_PAIRS
)
NEW_COMPOSE = tuple(
    Kind(f"{first} then {second}".replace(" ", "_"), partial(draw_pair, first, second, text))
    for first, second, text in NEW
)
