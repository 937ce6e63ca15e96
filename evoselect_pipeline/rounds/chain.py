"""When to stop chaining one round after the other: a pure decision over what the rounds came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evoselect_pipeline.config import ChainSettings
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.costs import hours_spent
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts


@dataclass(frozen=True)
class Progress:
    """What a line has come to: its rounds' promotions in order, its champion and its cost."""

    promoted: Sequence[bool]
    champion_accuracy: float | None  # on the validation rows; None before the first round
    hours: float


def progress_of(line: Line) -> Progress:
    """Read a line's progress from its artifacts."""
    num_rounds = line.next_round()
    promoted = [read_facts(line.artifact(n, PROMOTED))["promoted"] for n in range(num_rounds)]
    return Progress(promoted, _champion_accuracy(line, num_rounds), hours_spent(line))


def reason_to_stop(progress: Progress, settings: ChainSettings) -> str | None:
    """Why no further round should start, in a sentence; None if one should."""
    num_rounds, accuracy = len(progress.promoted), progress.champion_accuracy
    if settings.target is not None and accuracy is not None and accuracy >= settings.target:
        return (
            f"target reached: the champion answers {accuracy:.1%} of the validation rows,"
            f" chain.target is {settings.target:.1%}"
        )
    if num_rounds >= settings.max_rounds:
        return f"budget of rounds spent: {num_rounds} are done, chain.max_rounds allows no more"
    if settings.max_hours is not None and progress.hours >= settings.max_hours:
        return (
            f"budget of time spent: the rounds took {progress.hours:.1f} hours, chain.max_hours is"
            f" {settings.max_hours:g}"
        )
    barren = _barren_rounds(progress.promoted)
    if settings.patience is not None and barren >= settings.patience:
        return (
            f"patience at its end: the last {barren} rounds promoted no adapter, chain.patience is"
            f" {settings.patience}"
        )
    return None


def _barren_rounds(promoted: Sequence[bool]) -> int:
    """How many rounds at the end promoted nothing."""
    return next((n for n, was in enumerate(reversed(promoted)) if was), len(promoted))


def _champion_accuracy(line: Line, num_rounds: int) -> float | None:
    if num_rounds == 0:
        return None
    trained_in = champion(line).trained_in
    if trained_in is None:
        return read_facts(line.artifact(num_rounds - 1, "evaluation"))["base_validation"]
    return read_facts(line.artifact(trained_in, "evaluation"))["after_validation"]
