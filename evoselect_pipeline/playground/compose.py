"""Two list skills in a row: pairs the base model has seen, and the task's new pairs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from evoselect_pipeline.playground.kinds import Draft, Kind
from evoselect_pipeline.playground.words import SHORT_WORDS

LIST_LENGTH = 3

Step = Callable[[list[str]], list[str]]

STEPS: dict[str, Step] = {
    "reverse": lambda items: items[::-1],
    "rotate": lambda items: [*items[1:], *items[:1]],
    "first": lambda items: items[:1],
    "last": lambda items: items[-1:],
    "drop first": lambda items: items[1:],
    "drop last": lambda items: items[:-1],
    "double": lambda items: [item for item in items for _ in range(2)],
}
# How the base model has been asked for a single step, and for each step of a seen pair.
WORDING = {
    "reverse": "reverse the list",
    "rotate": "move the first word to the end",
    "first": "keep the first word",
    "last": "keep the last word",
    "drop first": "drop the first word",
    "drop last": "drop the last word",
    "double": "say each word twice",
}
SEEN_PAIRS = (
    ("reverse", "first"),
    ("reverse", "rotate"),
    ("reverse", "drop last"),
    ("rotate", "last"),
    ("rotate", "drop first"),
    ("drop first", "last"),
    ("drop first", "reverse"),
    ("drop last", "first"),
    ("drop last", "double"),
    ("first", "double"),
    ("double", "first"),
    ("double", "last"),
)
# The last entry is how the task asks; None is the seen wording "..., then ...: list".
NEW = (
    ("reverse", "last", None),
    ("reverse", "drop first", None),
    ("rotate", "first", None),
    ("rotate", "drop last", None),
    ("drop first", "first", None),
    ("drop last", "reverse", None),
    ("drop last", "last", None),
    ("reverse", "drop last", "Reverse {items} and drop the last word."),
    ("drop first", "last", "Drop the first word and then keep the last word: {items}"),
    ("rotate", "last", "Move the first word to the end and keep the last word: {items}"),
    ("first", "double", "Say the first word of {items} twice."),
    ("drop last", "double", "Drop the last word and say each word twice: {items}"),
)


def draw_single(step: str, rng: Random) -> Draft:
    """Ask for one step on a list of words."""
    items = rng.sample(SHORT_WORDS, LIST_LENGTH)
    wording = WORDING[step]
    text = rng.choice((f"{wording.capitalize()}: ", f"Please {wording}: "))
    return Draft(text + ", ".join(items), ", ".join(STEPS[step](items)))


def draw_pair(first: str, second: str, text: str | None, rng: Random) -> Draft:
    """Ask for two steps; the slips do only one of them."""
    items = rng.sample(SHORT_WORDS, LIST_LENGTH)
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
    Kind(
        f"{first} {second}{'' if text is None else ' reworded'}".replace(" ", "_"),
        partial(draw_pair, first, second, text),
    )
    for first, second, text in NEW
)
