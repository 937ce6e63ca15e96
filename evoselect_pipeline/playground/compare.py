"""Comparing two numbers: a skill the base model is taught, in a few wordings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

from evoselect_pipeline.playground.kinds import Draft, Kind
from evoselect_pipeline.playground.words import CITIES, NAMES, THINGS

LARGEST = 50

RULES: dict[str, Callable[[int, int], str]] = {
    "larger": lambda a, b: str(max(a, b)),
    "smaller": lambda a, b: str(min(a, b)),
    "more": lambda a, b: "yes" if a > b else "no",
    "fewer": lambda a, b: "yes" if a < b else "no",
}
SEEN = (
    ("larger", "Which is larger, {a} or {b}?"),
    ("larger", "Name the bigger number: {a} or {b}"),
    ("larger", "{name} has {a} {things}, {other} has {b}. What is the larger number?"),
    ("smaller", "Which is smaller, {a} or {b}?"),
    ("smaller", "Name the lesser number: {a} or {b}"),
    ("smaller", "{name} has {a} {things}, {other} has {b}. What is the smaller number?"),
    ("more", "Is {a} more than {b}?"),
    ("more", "{name} has {a} {things}. Is that more than {b}?"),
    ("fewer", "Is {a} less than {b}?"),
)


def draw_comparison(rule: str, text: str, rng: Random) -> Draft:
    """Fill a text about two different numbers."""
    a, b = rng.sample(range(1, LARGEST + 1), 2)
    name, other = rng.sample(NAMES, 2)
    prompt = text.format(
        a=a, b=b, name=name, other=other, city=rng.choice(CITIES), things=rng.choice(THINGS)
    )
    return Draft(prompt, RULES[rule](a, b))


SEEN_COMPARE = tuple(
    Kind(f"seen_compare_{number}", partial(draw_comparison, rule, text))
    for number, (rule, text) in enumerate(SEEN)
)
