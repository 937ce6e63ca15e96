"""Tiny rounds in Dagster, in this process: materialize, and tick schedules and sensors."""

from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context

from evoselect_pipeline.commands.context import read_line_config
from evoselect_pipeline.components.evolution_line import line_definitions
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline_tests.integration.process import TINY

NIGHT = datetime(2026, 11, 24, 2, tzinfo=UTC)


def tiny(**changes: object) -> LineConfig:
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return read_line_config(None, [f"{key}={value}" for key, value in settings.items()])


def at_home(config: LineConfig, root: object = "") -> dg.Definitions:
    """A line's definitions in a home."""
    home = HomeResource(root=str(root))
    return dg.Definitions.merge(line_definitions(config), dg.Definitions(resources={"home": home}))


def materialize(instance, home, config, key="0000", selection=None, tags=None):
    """Materialize a round, or some of its assets, as the UI does: with the checks of each asset."""
    definitions = line_definitions(config)
    instance.add_dynamic_partitions("playground_rounds", [key])
    chosen = selection and dg.AssetSelection.assets(*(["playground", name] for name in selection))
    # An instance of its own for each run, as `evoselect run` has: after a run in this process,
    # Dagster's notion of the current instance may name one that the run opened and has dropped.
    with dg.DagsterInstance.from_ref(instance.get_ref()) as opened:
        return dg.materialize(
            [*(definitions.assets or ()), *(definitions.asset_checks or ())],  # type: ignore[list-item]
            partition_key=key,
            selection=chosen,
            instance=opened,
            resources={"home": HomeResource(root=str(home.root))},
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )


def steps(result) -> list[str]:
    events = [*result.get_asset_materialization_events()]
    return [event.asset_key.path[-1] for event in events]


def tick(home, instance, what, config=None):
    """Evaluate a sensor, or the line's schedule or sensor of this name."""
    resources = {"home": HomeResource(root=str(home.root))}
    if isinstance(what, dg.SensorDefinition):
        return what.evaluate_tick(dg.build_sensor_context(instance, resources=resources))
    # The repository binds the job and the resources that a tick of the daemon would find.
    repository = at_home(config or LineConfig(), home.root).get_repository_def()
    if repository.has_schedule_def(what):
        context = dg.build_schedule_context(
            instance, NIGHT, repository_def=repository, resources=resources
        )
        return repository.get_schedule_def(what).evaluate_tick(context)
    context = dg.build_sensor_context(
        instance, repository_def=repository, resources=resources, sensor_name=what
    )
    # As the daemon's ticks have it: the keys of dynamic partitions are looked up in the instance.
    with partition_loading_context(dynamic_partitions_store=instance):
        return repository.get_sensor_def(what).evaluate_tick(context)
