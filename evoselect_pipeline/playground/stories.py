"""Arithmetic in small stories: ways of telling the base model has seen, and the task's new ones."""

from __future__ import annotations

from functools import partial
from random import Random

from evoselect_pipeline.playground.kinds import Draft, Kind
from evoselect_pipeline.playground.words import CITIES, DAYS, NAMES, THINGS

LARGEST = 20

SEEN = (
    ("+", "{name} has {a} {things} and buys {b} more. How many {things} does {name} have?"),
    ("+", "There are {a} {things} in a box and {b} in a bag. How many {things} are there?"),
    ("+", "{name} found {a} {things}. {other} found {b} {things}. How many in all?"),
    ("+", "A shop sold {a} {things} on {day} and {b} the next day. How many were sold?"),
    ("+", "{name} had {a} {things}. {other} gave {name} {b} {things}. How many are there now?"),
    ("+", "First {a} {things} came, then {b} more came. What is the total?"),
    ("+", "{name} made {a} {things} in {city} and {b} at home. What is the total?"),
    ("+", "If you put {a} {things} and {b} {things} together, how many do you have?"),
    ("-", "{name} has {a} {things} and eats {b}. How many {things} does {name} have?"),
    ("-", "There were {a} {things} in a box. {name} took {b}. How many are left?"),
    ("-", "{name} had {a} {things} and gave {b} to {other}. How many are left?"),
    ("-", "A shop had {a} {things} and sold {b} of them. How many remain?"),
    ("-", "{name} has {a} {things}. {other} has {b}. How many more does {name} have?"),
    ("-", "Of {a} {things}, {b} are old. How many are new?"),
    ("-", "{name} needs {a} {things} and has {b}. How many are missing?"),
    ("-", "From {a} {things}, {b} were sent to {city}. How many stayed?"),
)

NEW = (
    ("+", "gets_more", "{name} has {a} {things}. {name} gets {b} more. How many {things} now?"),
    ("+", "post", "The post brought {name} {a} {things}, and {b} after lunch. Sum up the day."),
    ("+", "older", "{other} owns {a} {things}, {name} owns {b} beyond that. What does {name} own?"),
    ("+", "before", "After losing {b} {things}, {name} kept {a}. How many did {name} start with?"),
    ("-", "drops", "{name} carries {a} {things} and drops {b}. How many {things} now?"),
    ("-", "broken", "{b} of the {a} {things} broke on {day}. How many are whole?"),
    ("-", "younger", "{name} owns {a} {things}, {other} owns {b} fewer. What does {other} own?"),
    ("+", "finds", "{name} has {a} {things} and finds {b}. How many does {name} have now?"),
    ("+", "shelf", "There are {a} {things} on a shelf and {b} in a bag. How many in total?"),
    ("-", "lost", "{name} had {a} {things}. {name} lost {b}. How many are left?"),
    ("-", "farm", "A farm had {a} {things} and gave away {b}. How many does it still have?"),
    ("-", "goal", "{name} wants {a} {things} and owns {b}. How many more are needed?"),
)


def draw_story(op: str, text: str, rng: Random) -> Draft:
    """Fill a story; its slip is the other operation."""
    a, b = rng.randint(2, LARGEST), rng.randint(2, LARGEST)
    if op == "-" and a < b:
        a, b = b, a
    name, other = rng.sample(NAMES, 2)
    prompt = text.format(
        a=a,
        b=b,
        name=name,
        other=other,
        things=rng.choice(THINGS),
        city=rng.choice(CITIES),
        day=rng.choice(DAYS),
    )
    total, difference = str(a + b), str(abs(a - b))
    answer, slip = (total, difference) if op == "+" else (difference, total)
    near = str(int(answer) + rng.choice((-10, -1, 1, 10)) if int(answer) > 10 else int(answer) + 1)
    return Draft(prompt, answer, (slip, near))


SEEN_STORIES = tuple(
    Kind(f"seen_story_{number}", partial(draw_story, op, text))
    for number, (op, text) in enumerate(SEEN)
)
NEW_STORIES = tuple(Kind(name, partial(draw_story, op, text)) for op, name, text in NEW)
