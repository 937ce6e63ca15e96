"""From a row to every adapter it reached, and from an adapter to every row that trained it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from evoselect_pipeline.core.private_text import without_secrets
from evoselect_pipeline.errors import DataError
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts, read_json
from evoselect_pipeline.stores.home import round_key

if TYPE_CHECKING:
    import polars as pl

_OF_PICK = ("rank", "sample_id", "target_id", "reason")


def story(line: Line, prefix: str) -> dict[str, Any]:
    """Everything known about a row, from all rounds of all lines of the home; secrets are named.

    Parameters
    ----------
    prefix : str
        The row's id or its first digits.
    """
    sample_id = line.store.find_sample(prefix)
    row = line.store.sample_row(sample_id)
    decisions = line.store.decisions_of(sample_id).to_dicts()
    scores = line.store.scores_of(sample_id).to_dicts()
    chosen = {d["round"] for d in decisions if d["selected"] and d["line"] == line.name}
    turns = [turn | {"content": without_secrets(turn["content"])} for turn in row["messages"]]
    return {
        **row,
        "messages": turns,
        "decisions": [known(decision) for decision in decisions],
        "scores": [known(score) for score in scores],
        "gradients": [found for number in _rounds_of(line, [*decisions, *scores])
                      if (found := _gradient(line, sample_id, number))],
        "adapters": _adapters_with(line, chosen),
    }  # fmt: skip


def rows_behind(line: Line, round_number: int) -> pl.DataFrame:
    """Every row that an adapter was trained on, through all rounds it builds on.

    Returns
    -------
    polars.DataFrame
        Oldest round first, then by rank: the round, the pick, and where the row came from.

    Raises
    ------
    DataError
        If the round has trained no adapter.
    """
    if not line.has(round_number, "lora_checkpoint"):
        raise DataError(
            f"round {round_number} of line {line.name!r} has trained no adapter; finished are"
            f" rounds 0 to {line.next_round() - 1}"
        )
    import polars as pl

    rows = [
        (number, *(pick[name] for name in _OF_PICK))
        for number in reversed(ancestry(line, round_number))
        for pick in read_json(line.artifact(number, "selected_subset").path / "picks.json")
    ]
    types = {"round": pl.Int32, "rank": pl.Int32} | dict.fromkeys(_OF_PICK[1:], pl.String)
    picks = pl.DataFrame(rows, schema=types, orient="row")
    origins = line.store.origins(picks["sample_id"].to_list())
    return picks.join(origins, on="sample_id", how="left", maintain_order="left")


def decisions_of(line: Line, round_number: int) -> list[dict[str, Any]]:
    """What was decided about every row of a round, without the fields that say nothing.

    Raises
    ------
    DataError
        If the round has not chosen yet.
    """
    frame = line.store.read_decisions(line.name, round_number)
    if frame.is_empty():
        raise DataError(f"round {round_number} of line {line.name!r} has no decisions yet")
    return [known(decision) for decision in frame.to_dicts()]


def with_texts(line: Line, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are named by `sample_id`, with question and answer, in which secrets are named."""
    samples = line.store.get_samples([row["sample_id"] for row in rows])
    return [
        row
        | {
            "prompt": without_secrets(sample.prompt),
            "completion": without_secrets(sample.completion),
        }
        for row, sample in zip(rows, samples, strict=True)
    ]


def ancestry(line: Line, round_number: int) -> list[int]:
    """The rounds whose training an adapter carries: its own, then those it started from."""
    rounds = [round_number]
    while (before := _started_from(line, rounds[-1])) is not None:
        rounds.append(before)
    return rounds


def known(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the fields that nothing was said about."""
    return {name: value for name, value in record.items() if value is not None}


def _started_from(line: Line, round_number: int) -> int | None:
    return read_facts(line.artifact(round_number, "incoming_adapter"))["trained_in_round"]


def _rounds_of(line: Line, found: list[dict[str, Any]]) -> list[int]:
    """The line's rounds with features among those of some decisions and scores."""
    rounds = {row["round"] for row in found if row["line"] == line.name}
    return sorted(number for number in rounds if line.has(number, "projected_gradients"))


def _gradient(line: Line, sample_id: str, round_number: int) -> dict[str, Any] | None:
    """What a round's features say of a row; None if the round was made again without it."""
    artifact = line.artifact(round_number, "projected_gradients")
    if sample_id not in read_json(artifact.path / "ids.json"):
        return None
    facts = read_facts(artifact)
    stored = line.store.read_gradients([sample_id], facts["fingerprint"], facts["dim"])
    return {
        "round": round_number,
        "norm": float(stored.norms[0]),
        "loss": float(stored.losses[0]),
        "num_tokens": int(stored.num_tokens[0]),
    }


def _adapters_with(line: Line, chosen: set[int]) -> list[dict[str, Any]]:
    """The finished rounds' adapters that carry what was learned from a row, with their scores."""
    found = []
    learned: list[set[int]] = []  # by round: the rounds of its ancestry that trained on the row
    for number in range(line.next_round()):
        before = _started_from(line, number)
        learned.append((chosen & {number}) | (learned[before] if before is not None else set()))
        if not learned[number]:
            continue
        scores = read_facts(line.artifact(number, "evaluation"))
        found.append(
            {
                "round": number,
                "learned_in": [round_key(earlier) for earlier in sorted(learned[number])],
                "adapter": str(line.stage_dir(number, "lora_checkpoint") / "adapter"),
                "validation": scores["after_validation"],
                "test": scores["after_test"],
                "promoted": read_facts(line.artifact(number, PROMOTED))["promoted"],
            }
        )
    return found
