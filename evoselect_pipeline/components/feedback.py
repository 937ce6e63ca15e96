"""How one round feeds the next: the edge that Dagster's acyclic graph cannot hold, as events."""

import dagster as dg

from evoselect_pipeline.components.automation import register
from evoselect_pipeline.components.metadata import metadata_of
from evoselect_pipeline.errors import ArtifactError, RoundOrderError
from evoselect_pipeline.rounds.champion import champion
from evoselect_pipeline.rounds.line import (
    APPOINTED,
    PROMOTED,
    Line,
    adapter_named,
    entering,
    read_facts,
    stale_rounds,
)
from evoselect_pipeline.stores.home import round_key


def open_next_round(context: dg.AssetExecutionContext, line: Line, round_number: int) -> None:
    """Register the next round and report the adapter that enters it, linked to this round.

    Where later rounds are finished already, this one was made again, and they are told too: they
    are stale, or not any more.
    """
    register(context.instance, line.name, round_key(round_number + 1))
    run = dg.MetadataValue.dagster_run(context.run.run_id)
    opened = f"Opened by round {round_key(round_number)}."
    context.log_event(entering_event(line, round_number + 1, opened, source_run=run))
    if round_number + 1 == line.next_round():
        return
    stale = stale_rounds(line)
    settled = stale[0] if stale else line.next_round()
    for number in range(round_number + 2, line.next_round() + 1):
        told = entering_event if number <= settled else unsettled_event
        again = f"Round {round_key(round_number)} was made again."
        context.log_event(told(line, number, again, source_run=run))
    if stale:
        named = ", ".join(round_key(number) for number in stale)
        context.log.warning(
            f"stale: {named}. Round {round_key(stale[0])} was made from another adapter than enters"
            " it now, and the rounds after it build on it: materialize them again, in order, or"
            " leave them as they are"
        )


def entering_event(
    line: Line, round_number: int, description: str, **metadata: dg.MetadataValue
) -> dg.AssetMaterialization:
    """Say which adapter enters a round; its digest as data version makes what follows stale."""
    try:
        adapter = entering(line, round_number)
    except (RoundOrderError, ArtifactError):  # it names one that was trained again, or is damaged
        return unsettled_event(line, round_number, description, **metadata)
    return dg.AssetMaterialization(
        asset_key=dg.AssetKey([line.name, "incoming_adapter"]),
        partition=round_key(round_number),
        description=description,
        metadata={
            "from_round": round_key(round_number - 1),
            "adapter": adapter_named(adapter.trained_in),
            "source": dg.MetadataValue.asset(dg.AssetKey([line.name, PROMOTED])),
            **metadata,
        },
        tags={"dagster/data_version": adapter.digest},
    )


def unsettled_event(
    line: Line, round_number: int, description: str, **metadata: dg.MetadataValue
) -> dg.AssetMaterialization:
    """Say that an earlier round is stale: what enters this one is not known until it is remade."""
    return dg.AssetMaterialization(
        asset_key=dg.AssetKey([line.name, "incoming_adapter"]),
        partition=round_key(round_number),
        description=f"{description} What enters this round is settled when round"
        f" {round_key(round_number - 1)}, which is stale, is materialized again.",
        metadata=metadata,
        tags={"dagster/data_version": "unsettled"},
    )


def appointment_events(line: Line) -> tuple[dg.AssetObservation, dg.AssetMaterialization]:
    """What Dagster is told after a person has appointed a champion: who, and what enters next."""
    last = line.next_round() - 1
    facts = read_facts(line.artifact(last, APPOINTED))
    sentence = f"A person made {adapter_named(champion(line).trained_in)} champion"
    observed = dg.AssetObservation(
        asset_key=dg.AssetKey([line.name, PROMOTED]),
        partition=round_key(last),
        description=f"{sentence}: {facts['why']}" if facts["why"] else f"{sentence}.",
        metadata=metadata_of(facts),
    )
    return observed, entering_event(line, last + 1, f"{sentence} after round {round_key(last)}.")
