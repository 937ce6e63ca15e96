"""What every playground row is drawn from: a kind, which draws drafts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from evoselect_pipeline.core.records import digest

# One prompt in this many is set aside for target, validation and test rows, whatever the seed.
RESERVED_ONE_IN = 3


@dataclass(frozen=True)
class Draft:
    """A prompt, its right answer, and answers that a careless author would give instead."""

    prompt: str
    answer: str
    slips: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A named way of asking; `draw` fills it with fresh words and numbers."""

    name: str
    draw: Callable[[Random], Draft]


def seeded(*parts: object) -> Random:
    """Make a random stream that depends on the parts alone, not on the process."""
    return Random(int(digest(*parts)[:16], 16))


def normalised(prompt: str) -> str:
    """Reduce a prompt to what counts as the same text: no case, punctuation or spacing."""
    return " ".join(re.findall(r"\w+|[^\w\s.,;:!?]", prompt.lower()))


def is_reserved(prompt: str) -> bool:
    """Tell whether a prompt belongs to evaluation; generators must never write it.

    The prompt alone decides, so generated rows and evaluation rows stay apart for every seed and
    size without either side knowing the other's rows.
    """
    return int(digest("reserved", normalised(prompt))[:8], 16) % RESERVED_ONE_IN == 0


def words(rng: Random, pool: Sequence[str], low: int, high: int) -> list[str]:
    """Draw between `low` and `high` different words."""
    return rng.sample(pool, rng.randint(low, high))
