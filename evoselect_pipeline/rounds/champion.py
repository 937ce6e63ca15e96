"""The line's champion, and a person's way to make an earlier adapter champion again."""

from __future__ import annotations

from typing import Any

from evoselect_pipeline.errors import ConfigError, DataError
from evoselect_pipeline.rounds.line import (
    APPOINTED,
    FACTS,
    PROMOTED,
    Entering,
    Line,
    adapter_named,
    decision_after,
    entering,
    made_from,
    read_facts,
    write_json,
)
from evoselect_pipeline.stores.artifacts import publish

BASE = "base"


def champion(line: Line) -> Entering:
    """The adapter that serves: what would enter the next round."""
    return entering(line, line.next_round())


def round_named(text: str) -> int | None:
    """The round that a person means: a number, or None for `base`, the bare model."""
    if text != BASE and not text.isdecimal():
        raise ConfigError(f"round {text!r}: expected a finished round's number, or `{BASE}`")
    return None if text == BASE else int(text)


def appoint(line: Line, round_number: int | None, why: str) -> Entering:
    """Make the adapter of a finished round champion; the bare base model if it is None.

    The decision is published beside the promotion that it overrules, with the appointments before
    it, and the alias in MLflow's registry follows. The next round starts from this adapter. To ask
    again for what was asked before tells MLflow and Dagster once more.

    Raises
    ------
    DataError
        If the line or the round has no finished evaluation, or the adapter was promoted already.
    RoundHeldError
        If a stage of a round is at work; between two stages of a round, the rest of it refuses.
    """
    with line.home.lease(line.name, "evoselect promote"):
        last = line.next_round() - 1
        _check(line, round_number, last)
        adapter = _adapter(line, round_number)
        before = decision_after(line, last)
        if before["champion_digest"] == adapter.digest:
            if "why" in before:  # appointed already, and perhaps not everybody was told
                say(line)
                return adapter
            raise DataError(
                f"line {line.name!r}: {adapter_named(round_number)} is the champion already"
            )
        promotion = line.artifact(last, PROMOTED)
        facts = {
            "champion_round": adapter.trained_in,
            "champion_digest": adapter.digest,
            "instead_of_round": before["champion_round"],
            "why": why,
            "earlier_appointments": _earlier(line, last),
        }
        inputs = made_from(line, facts, overrules=promotion.digest)
        with publish(line.stage_dir(last, APPOINTED), inputs=inputs) as folder:
            write_json(folder / FACTS, facts)
        say(line)
        return adapter


def say(line: Line) -> None:
    """Let MLflow's alias name the champion, whichever decision made it so."""
    adapter = champion(line)
    if adapter.trained_in is None:
        line.tracking.retire_champion(line.name)
        return
    register(line, adapter.trained_in, promoted=True)


def register(line: Line, round_number: int, *, promoted: bool) -> None:
    """Make a round's adapter a version in MLflow's registry; with the alias, if it is champion."""
    trained = line.artifact(round_number, "lora_checkpoint")
    scores = read_facts(line.artifact(round_number, "evaluation"))
    line.tracking.register_adapter(
        line.name,
        round_number,
        trained.path / "adapter",
        trained.digest,
        {"test": scores["after_test"], "validation": scores["after_validation"]},
        promoted=promoted,
    )


def _check(line: Line, round_number: int | None, last: int) -> None:
    if last < 0:
        raise DataError(f"line {line.name!r} has no finished round, so nothing can be promoted yet")
    if round_number is not None and not 0 <= round_number <= last:
        raise DataError(
            f"round {round_number} of line {line.name!r} is not finished: give one of 0 to {last},"
            f" or `{BASE}` for the bare model"
        )


def _adapter(line: Line, round_number: int | None) -> Entering:
    if round_number is None:
        return Entering(None, "base", None)
    trained = line.artifact(round_number, "lora_checkpoint")
    return Entering(trained.path / "adapter", trained.digest, round_number)


def _earlier(line: Line, last: int) -> list[dict[str, Any]]:
    """Appointments after the same round, oldest first, so that the newest one hides none."""
    if not line.has(last, APPOINTED):
        return []
    held = line.artifact(last, APPOINTED)
    facts = read_facts(held)
    earlier = facts.pop("earlier_appointments")
    return [*earlier, facts | {"at": held.manifest["created"]}]
