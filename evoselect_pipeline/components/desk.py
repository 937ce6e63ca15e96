"""Jobs for a person at the UI's Launchpad: ask about one row, appoint a champion."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from evoselect_pipeline.components.automation import LINE_TAG, pool_of, register
from evoselect_pipeline.components.feedback import appointment_events
from evoselect_pipeline.components.metadata import table
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.rounds.champion import appoint, round_named
from evoselect_pipeline.rounds.line import Line, adapter_named
from evoselect_pipeline.rounds.lineage import story
from evoselect_pipeline.stores.home import round_key


class RowToExplain(dg.Config):
    """Which row is asked about; the empty default makes the Launchpad show what is to be given."""

    row: str = Field(default="", description="Id of a row, or its first digits (4 at least).")


class Appointment(dg.Config):
    """Which adapter is to be champion."""

    round: str = Field(default="", description="A finished round's number, or `base`.")
    why: str = Field(default="", description="The reason, for the record.")


def explain_row(line_config: LineConfig) -> dg.JobDefinition:
    """Tell a row's whole story in the run's log: why it was chosen or not, and what it trained."""

    @dg.op(name=f"{line_config.line}_story", description=explain_row.__doc__)
    def tell(context: dg.OpExecutionContext, config: RowToExplain, home: HomeResource) -> None:
        line = Line(line_config, home.home())
        with _refusals_in_words():
            told_ = story(line, config.row)
        context.log_event(
            dg.AssetObservation(
                asset_key=dg.AssetKey([line.name, "selected_subset"]),
                description=f"The story of row {told_['sample_id']}.",
                metadata=_story_tables(told_),
            )
        )

    @dg.job(name=f"{line_config.line}_explain_row", description=explain_row.__doc__)
    def job() -> None:
        tell()

    return job


def promote(line_config: LineConfig) -> dg.JobDefinition:
    """Make an earlier adapter champion again: the next round starts from it."""

    # Holding the line's pool it waits for a round that is at work, however that was started.
    @dg.op(
        name=f"{line_config.line}_appointment",
        description=promote.__doc__,
        pool=pool_of(line_config.line),
    )
    def make_champion(
        context: dg.OpExecutionContext, config: Appointment, home: HomeResource
    ) -> None:
        line = Line(line_config, home.home())
        with _refusals_in_words():
            adapter = appoint(line, round_named(config.round), config.why)
        register(context.instance, line.name, round_key(line.next_round()))
        for event in appointment_events(line):
            context.log_event(event)
        named = adapter_named(adapter.trained_in)
        context.log.info(f"round {round_key(line.next_round())} starts from {named}")

    @dg.job(
        name=f"{line_config.line}_promote",
        description=promote.__doc__,
        tags={LINE_TAG: line_config.line},
    )
    def job() -> None:
        make_champion()

    return job


@contextmanager
def _refusals_in_words() -> Iterator[None]:
    """Fail with what is wrong with the request alone, for good."""
    try:
        yield
    except EvoselectError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _story_tables(told: dict[str, Any]) -> dict[str, Any]:
    """A row's story as tables, which show a sample's text as it is, whatever marks it holds."""
    about = [
        *((turn["role"], turn["content"]) for turn in told["messages"]),
        *(("written by", told["source"]), ("from prompt", told["prompt_id"])),
        ("grown from", ", ".join(told["parents"])),
        ("first seen", f"line {told['first_line']}, round {round_key(told['first_round'])}"),
    ]
    tables = {
        "the_row": table(
            {"what": "string", "it": "string"}, [(name, value) for name, value in about if value]
        ),
        "decisions": _records(told["decisions"], ("line", "round", "stage", "rank", "reason")),
        "scores": _records(
            told["scores"], ("line", "round", "nearest_cosine", "transport_mass", "prior", "weight")
        ),
        "adapters_that_learned_from_it": _records(
            told["adapters"], ("round", "validation", "test", "promoted")
        ),
    }
    return {name: found for name, found in tables.items() if found}


def _records(records: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    """Some fields of the records as a table; None of no records, which Dagster cannot show."""
    rows = [tuple(_text(record.get(name, "")) for name in columns) for record in records]
    return table(dict.fromkeys(columns, "string"), rows) if rows else None


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
