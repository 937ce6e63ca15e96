"""The playground's laws: splits never meet, the hidden truth is true, provenance gives none away."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections import Counter
from functools import cache

import pytest

from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.generation.playground import TRUTHS, WORLDS, PlaygroundGenerator
from evoselect_pipeline.playground import compose, lookup, stories
from evoselect_pipeline.playground.kinds import is_reserved, normalised
from evoselect_pipeline.playground.skills import SKILLS
from evoselect_pipeline.playground.tasks import BASE_MODEL_DIR, TASKS, task_rows

NUM = 3_000
EVERY_WORLD = [(task, world) for task in TASKS for world in WORLDS]


@cache
def rows_of(task):
    return task_rows(task)


@cache
def pool_of(task, world, seed=1):
    targets = rows_of(task).targets
    return PlaygroundGenerator(task, world).generate_with_truth(targets, NUM, seed)


def all_rows(rows):
    return [*rows.targets, *rows.validation, *rows.test]


def solve_story(prompt: str) -> str:
    """Decide by wording, not by template: which words mean that something goes away."""
    numbers = [int(number) for number in re.findall(r"\d+", prompt)]
    goes = r"drops|broke|fewer|taken|now has .* after finding|read \d+ of"
    total = numbers[0] - numbers[1] if re.search(goes, prompt) else sum(numbers)
    return str(abs(total))


def solve_compose(prompt: str) -> str:
    """Apply the two steps that the wording names, word by word."""
    items = re.search(r"(\w+(?:, \w+)+)", prompt.split(":")[-1])[1].split(", ")
    order = [
        ("Read .* backwards and skip one", lambda w: list(reversed(w))[1:]),
        ("both ends swapped", lambda w: [x[0] for x in [w[-1], *w[1:-1], w[0]]]),
        ("What is the last word of .* in capitals", lambda w: [w[-1].upper()]),
        ("Twice each but the last", lambda w: [x for y in w[:-1] for x in (y, y)]),
    ]
    for pattern, rule in order:
        if re.match(f"(Initials.*)?{pattern}", prompt):
            return ", ".join(rule(items))
    simple = {
        "reverse the list": lambda w: list(reversed(w)),
        "write in capitals": lambda w: [x.upper() for x in w],
        "give the initials": lambda w: [x[0] for x in w],
        "drop the first word": lambda w: w[1:],
        "drop the last word": lambda w: w[: len(w) - 1],
        "keep the first word": lambda w: [w[0]],
        "keep the last word": lambda w: [w[-1]],
        "swap the ends": lambda w: [w[-1], *w[1:-1], w[0]],
        "say each word twice": lambda w: [x for y in w for x in (y, y)],
    }
    for step in prompt.split(":")[0].lower().split(", then "):
        items = simple[step](items)
    return ", ".join(items)
