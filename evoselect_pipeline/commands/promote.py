"""`evoselect promote`: make an earlier adapter champion again, and let Dagster and MLflow know."""

from __future__ import annotations

from evoselect_pipeline.commands.console import stderr
from evoselect_pipeline.commands.context import open_home
from evoselect_pipeline.rounds.champion import appoint, round_named
from evoselect_pipeline.rounds.line import Line, adapter_named
from evoselect_pipeline.stores.home import round_key


def promote_round(line: Line, wanted: str, why: str) -> None:
    """Appoint the adapter of a round, or the base model, and report it to Dagster."""
    adapter = appoint(line, round_named(wanted), why)
    home = open_home(line.home.root)
    import dagster as dg

    from evoselect_pipeline.components.automation import register
    from evoselect_pipeline.components.feedback import appointment_events

    with dg.DagsterInstance.from_config(str(home.dagster_dir)) as instance:
        register(instance, line.name, round_key(line.next_round()))
        for event in appointment_events(line):
            instance.report_runless_asset_event(event)
    stderr.print(
        f"{adapter_named(adapter.trained_in)} is the champion of line {line.name} now; round"
        f" {round_key(line.next_round())} starts from it".capitalize()
    )
