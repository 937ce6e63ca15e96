"""The EvolutionLine component: one `defs.yaml`, one line of assets, a job, a schedule."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from evoselect_pipeline.components.checks import line_checks
from evoselect_pipeline.components.metadata import metadata_of, quantile_table, subset_table
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import PROMOTED, Line, entering, read_facts, read_json
from evoselect_pipeline.rounds.record import record
from evoselect_pipeline.rounds.stages import STAGES, Stage
from evoselect_pipeline.stores.artifacts import Artifact
from evoselect_pipeline.stores.home import round_key, round_of

LINE_TAG = "evoselect/line"


class EvolutionLine(dg.Component):
    """All rounds of one task under one configuration.

    The attributes are those of `LineConfig`. Rounds are dynamic partitions `<line>_rounds`; the
    feedback from one round to the next is not an edge of the graph, because Dagster's asset keys
    must be acyclic: `promoted_adapter` reports the next round's `incoming_adapter` instead.
    """

    def __init__(self, config: LineConfig):
        self.config = config

    @classmethod
    def get_model_cls(cls) -> type[LineConfig]:
        """The schema of `attributes` in a `defs.yaml`."""
        return LineConfig

    @classmethod
    def load(cls, attributes: LineConfig | None, context: dg.ComponentLoadContext):
        """Make the component of checked attributes."""
        return cls(attributes or LineConfig())

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build the line's definitions."""
        return line_definitions(self.config)


def rounds_of(line: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a line: its rounds that exist."""
    return dg.DynamicPartitionsDefinition(name=f"{line}_rounds")


def line_definitions(config: LineConfig) -> dg.Definitions:
    """Assets, checks, job, nightly schedule and first-round sensor of one line."""
    partitions = rounds_of(config.line)
    assets = [_target_set_asset(config), *(_stage_asset(config, s, partitions) for s in STAGES)]
    job = dg.define_asset_job(
        f"{config.line}_round",
        selection=dg.AssetSelection.assets(*assets),
        tags={LINE_TAG: config.line},
        description=f"One whole round of line {config.line}.",
    )
    return dg.Definitions(
        assets=assets,
        asset_checks=line_checks(config, partitions),
        jobs=[job],
        schedules=[_nightly(config, job.name)],
        sensors=[_first_round(config, partitions)],
    )


def _stage_asset(
    config: LineConfig, stage: Stage, partitions: dg.DynamicPartitionsDefinition
) -> dg.AssetsDefinition:
    @dg.asset(
        name=stage.name,
        key_prefix=[config.line],
        deps=[dg.AssetKey([config.line, name]) for name in stage.reads],
        partitions_def=partitions,
        group_name=config.line,
        kinds=set(stage.kinds),
        description=stage.run.__doc__,
        pool=_pool(config, stage),
    )
    def body(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult:
        started = time.monotonic()
        line = Line(config, home.home())
        with _working(line, context):
            round_number = round_of(context.partition_key)
            artifact = stage.run(line, round_number)
            record(line, round_number, stage.name)
            if stage.name == PROMOTED:
                _open_next_round(context, line, round_number)
        return _result(artifact, started)

    return body


def _pool(config: LineConfig, stage: Stage) -> str | None:
    """A run holds its pools until it ends: rounds of a line never overlap, whoever starts them."""
    if stage.name == "incoming_adapter":
        return f"evoselect_line_{config.line}"
    return "evoselect_gpu" if stage.uses_model else None


def _target_set_asset(config: LineConfig) -> dg.AssetsDefinition:
    @dg.asset(
        name="target_set",
        key_prefix=[config.line],
        group_name=config.line,
        kinds={"json"},
        description=target_set.__doc__,
    )
    def body(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult:
        started = time.monotonic()
        line = Line(config, home.home())
        with _working(line, context):
            artifact = target_set(line)
        return _result(artifact, started)

    return body


@contextmanager
def _working(line: Line, context: dg.AssetExecutionContext) -> Iterator[None]:
    """Be the line's only worker; what is wrong with the input fails the step for good."""
    try:
        with line.home.lease(line.name, f"run {context.run.run_id}"):
            yield
    except EvoselectError as error:
        # The message says what is wrong, and the same input would fail again.
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _result(artifact: Artifact, started: float) -> dg.MaterializeResult:
    """Describe a stage's artifact to Dagster."""
    facts = read_facts(artifact)
    # The event that opens a round names the adapter; the round's own event must agree with it.
    version = dg.DataVersion(facts.get("adapter_digest", artifact.digest))
    metadata = metadata_of(facts) | {
        "seconds": round(time.monotonic() - started, 2),
        "artifact": dg.MetadataValue.path(str(artifact.path)),
    }
    if (picks := artifact.path / "picks.json").is_file():
        metadata["rows"] = subset_table(read_json(picks))
    if "quantiles" in facts:
        metadata["quantiles"] = quantile_table(facts["quantiles"])
    return dg.MaterializeResult(metadata=metadata, data_version=version)


def _open_next_round(context: dg.AssetExecutionContext, line: Line, round_number: int) -> None:
    """Register the next round and report the adapter that enters it, linked to this round."""
    key = round_key(round_number + 1)
    context.instance.add_dynamic_partitions(f"{line.name}_rounds", [key])
    adapter = entering(line, round_number + 1)
    source = dg.AssetKey([line.name, PROMOTED])
    context.log_event(
        dg.AssetMaterialization(
            asset_key=dg.AssetKey([line.name, "incoming_adapter"]),
            partition=key,
            description=f"Opened by round {round_key(round_number)}.",
            metadata={
                "from_round": round_key(round_number),
                "adapter": "the base model" if adapter.path is None else str(adapter.path),
                "source": dg.MetadataValue.asset(source),
                "source_run": dg.MetadataValue.dagster_run(context.run.run_id),
            },
            tags={"dagster/data_version": adapter.digest},
        )
    )


def _nightly(config: LineConfig, job_name: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{config.line}_nightly",
        job_name=job_name,
        cron_schedule=config.schedule.cron,
        execution_timezone=config.schedule.timezone,
        description=f"One new round of line {config.line} a night.",
    )
    def nightly(context: dg.ScheduleEvaluationContext, home: HomeResource):
        in_flight = context.instance.get_runs(
            dg.RunsFilter(tags={LINE_TAG: config.line}, statuses=_IN_FLIGHT), limit=1
        )
        if in_flight:
            return dg.SkipReason(f"run {in_flight[0].run_id} of this line has not ended")
        key = round_key(Line(config, home.home()).next_round())
        context.instance.add_dynamic_partitions(f"{config.line}_rounds", [key])
        return dg.RunRequest(
            partition_key=key,
            run_key=f"{config.line}-{key}-{context.scheduled_execution_time:%Y-%m-%d}",
            tags={LINE_TAG: config.line},
        )

    return nightly


_IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def _first_round(
    config: LineConfig, partitions: dg.DynamicPartitionsDefinition
) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{config.line}_opens_its_next_round",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Registers the round that may be materialized next, the first one included.",
    )
    def opens(context: dg.SensorEvaluationContext, home: HomeResource) -> dg.SensorResult:
        key = round_key(Line(config, home.home()).next_round())
        if context.instance.has_dynamic_partition(f"{config.line}_rounds", key):
            return dg.SensorResult(skip_reason=f"round {key} is registered")
        return dg.SensorResult(dynamic_partitions_requests=[partitions.build_add_request([key])])

    return opens
