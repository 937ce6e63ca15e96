"""What a page about a round is made of.

Shapes: c candidates, s chosen rows and t targets that are drawn on the map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evoselect_pipeline.core.selection import SourceShare


@dataclass(frozen=True)
class Outcome:
    """What one round came to, in mean scores of the test rows."""

    number: int
    base: float
    before: float
    after: float
    low: float
    high: float
    promoted: bool


@dataclass(frozen=True)
class Change:
    """A change of accuracy with its interval."""

    mean: float
    low: float
    high: float
    confidence: float
    num_rows: int


@dataclass(frozen=True)
class Promotion:
    """The promotion test: what it measured and what followed."""

    promoted: bool
    change: Change
    tolerance: float
    champion: str
    drifts: bool = False  # answers have grown too long or do not end


@dataclass(frozen=True)
class Funnel:
    """Where the generated rows went: `rejected` counts them by reason, `repeated` word for word."""

    generated: int
    repeated: int
    rejected: Mapping[str, int]
    selected: int
    short: int
    scarce: bool = False  # far fewer were chosen than there was room for


@dataclass(frozen=True)
class Cloud:
    """Rows on the plane of the first two principal directions of the gradients."""

    candidates: np.ndarray  # [c, 2]
    chosen: np.ndarray  # [s, 2]
    targets: np.ndarray  # [t, 2]
    explained: tuple[float, float]
    num_candidates: int
    num_chosen: int
    num_targets: int


@dataclass(frozen=True)
class TargetShare:
    """How well the chosen rows serve one target; `covered` is None without a transport plan."""

    sample_id: str
    prompt: str
    num_rows: int
    covered: float | None
    reached: bool


@dataclass(frozen=True)
class Comparison:
    """A figure of the chosen rows beside those of random choices of the same size."""

    chosen: float
    random: tuple[float, ...]


@dataclass(frozen=True)
class Spread:
    """Diversity and distance to the targets, measured on `num_rows` of the chosen rows."""

    num_rows: int
    num_targets: int
    vendi: Comparison
    distance: Comparison


@dataclass(frozen=True)
class Example:
    """A row for reading; `verdict` is its rank or the reason's slug."""

    verdict: str
    sample_id: str
    prompt: str
    answer: str
    reason: str


@dataclass(frozen=True)
class Bill:
    """What a generator's server was asked for, and the limit that ended it, if one did."""

    num_requests: int
    num_tokens: int
    cost: float
    stopped_by: str | None


@dataclass(frozen=True)
class Training:
    """What the adapter was trained on; `num_tokens` are those of the rows' answers."""

    num_rows: int
    num_steps: int
    rows_per_step: int
    num_tokens: int
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class Lengths:
    """The answers' mean number of tokens, and the share that was cut off."""

    tokens: float
    truncated: float


@dataclass(frozen=True)
class ChangedAnswer:
    """A canary prompt that is answered otherwise than before the round."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Canaries:
    """How many prompts were asked whose answers are watched, and those answered otherwise."""

    num_asked: int
    changed: tuple[ChangedAnswer, ...]


@dataclass(frozen=True)
class Round:
    """All that a page tells but the seconds. `outcomes` ends with this round."""

    line: str
    method: str
    outcomes: tuple[Outcome, ...]
    test: Change
    promotion: Promotion
    funnel: Funnel
    cloud: Cloud
    targets: tuple[TargetShare, ...]
    spread: Spread | None
    chosen: tuple[Example, ...]
    rejected: tuple[Example, ...]
    training: Training
    lengths: tuple[Lengths, Lengths] | None = None  # before and after; None if not measured
    canaries: Canaries | None = None  # None if none are asked
    sources: tuple[SourceShare, ...] = ()  # the most influential first
    num_sources: int = 1

    @property
    def number(self) -> int:
        """The round's number."""
        return self.outcomes[-1].number
