"""The EvolutionLine component: one `defs.yaml`, one line of assets, a job, a schedule."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import dagster as dg

from evoselect_pipeline.components.automation import (
    ENDED_TAG,
    GPU_POOL,
    MAX_RETRIES,
    MAX_RUNTIME,
    STORE_POOL,
    chain,
    nightly,
    opens_its_next_round,
    pool_of,
    rounds_of,
    run_tags,
    takes_files,
)
from evoselect_pipeline.components.checks import line_checks
from evoselect_pipeline.components.desk import explain_row, promote
from evoselect_pipeline.components.feedback import open_next_round
from evoselect_pipeline.components.metadata import metadata_of
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.components.scaffold import LineScaffolder
from evoselect_pipeline.components.shown import shown
from evoselect_pipeline.components.turns import leave_if_finished, take_turn
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.config_rows import FileSource
from evoselect_pipeline.errors import EvoselectError, RoundHeldError
from evoselect_pipeline.generation.base import DroppedFiles
from evoselect_pipeline.rounds.data import target_set
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts
from evoselect_pipeline.rounds.record import record
from evoselect_pipeline.rounds.report import REPORT
from evoselect_pipeline.rounds.stages import STAGES, Stage
from evoselect_pipeline.stores.artifacts import Artifact
from evoselect_pipeline.stores.home import round_of

RETRIES = 3
RETRY_AFTER_S = 30
KNOCK_AGAIN_S = 5


@dg.scaffold_with(LineScaffolder)
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


def line_definitions(config: LineConfig) -> dg.Definitions:
    """Assets, checks, jobs, nightly schedule and sensors of one line."""
    partitions = rounds_of(config.line)
    assets = [_target_set_asset(config), *(_stage_asset(config, s, partitions) for s in STAGES)]
    job = dg.define_asset_job(
        f"{config.line}_round",
        selection=dg.AssetSelection.assets(*assets),
        tags=run_tags(config),
        description=f"One whole round of line {config.line}.",
    )
    return dg.Definitions(
        assets=assets,
        asset_checks=line_checks(config, partitions),
        jobs=[job, explain_row(config), promote(config)],
        schedules=[nightly(config, job.name)],
        sensors=[
            opens_its_next_round(config),
            chain(config, job.name),
            *_of_files(config, job.name),
        ],
    )


def _of_files(config: LineConfig, job_name: str) -> list[dg.SensorDefinition]:
    """The sensor that waits for the rounds' files, where each round has one of its own."""
    source = config.generator
    if not isinstance(source, FileSource) or "{round}" not in source.pattern:
        return []
    return [takes_files(config, DroppedFiles(source), job_name)]


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
        freshness_policy=_freshness(config, stage),
    )
    def body(context: dg.AssetExecutionContext, home: HomeResource) -> dg.MaterializeResult:
        started = time.monotonic()
        round_number = round_of(context.partition_key)
        with _working(config, home, context) as line:
            if stage.name not in (PROMOTED, REPORT):
                leave_if_finished(context, line, round_number)
            if stage.name == "incoming_adapter":
                take_turn(context, line, round_number)
            artifact = stage.materialize(line, round_number)
            record(line, round_number, stage.name)
            if stage.name == PROMOTED:
                open_next_round(context, line, round_number)
            metadata = shown(line, round_number, stage)
        return _result(artifact, started, metadata)

    return body


def _pool(config: LineConfig, stage: Stage) -> str | None:
    """A run holds its pools until it ends: rounds of a line never overlap, whoever starts them."""
    # The last stages too: a run that goes on where another died has no first one.
    if stage.name in ("incoming_adapter", PROMOTED, REPORT):
        return pool_of(config.line)
    if stage.uses_model or (stage.name == "candidates" and config.generator.kind == "model"):
        return GPU_POOL
    return STORE_POOL if "lancedb" in stage.kinds else None


def _freshness(config: LineConfig, stage: Stage) -> dg.FreshnessPolicy | None:
    """How old the champion may grow, where a line has said so."""
    hours = config.schedule.fresh_hours
    if stage.name != PROMOTED or hours is None:
        return None
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours))


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
        with _working(config, home, context) as line:
            artifact = target_set(line)
        return _result(artifact, started, {})

    return body


@contextmanager
def _working(
    config: LineConfig,
    home: HomeResource,
    context: dg.AssetExecutionContext,
) -> Iterator[Line]:
    """Be the line's only worker; tell failures that may pass from those that would come again."""
    try:
        _tag(context, config)
        line = Line(config, home.home())
        with _leased(line, context):
            yield line
    except EvoselectError as error:
        # The message says what is wrong, and the same input would fail again.
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except Exception as error:
        if not _may_pass(error):
            raise
        context.log.warning(f"tried again in {RETRY_AFTER_S} s: {error}")
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=RETRY_AFTER_S) from error


def _tag(context: dg.AssetExecutionContext, config: LineConfig) -> None:
    """Give a run that was launched from the asset graph what the line's jobs carry."""
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is None:
        return
    wanted = run_tags(config)
    if run.remote_job_origin is None:
        wanted[MAX_RUNTIME] = "0"  # no daemon started it, and none could end it
    missing = {name: value for name, value in wanted.items() if name not in run.tags}
    if run.tags.get(ENDED_TAG, run.run_id) != run.run_id:  # it goes on where a person ended another
        retries = str(context.instance.run_retries_max_retries)
        missing |= {MAX_RETRIES: retries, ENDED_TAG: run.run_id}
    if missing:
        context.instance.add_run_tags(run.run_id, missing)


@contextmanager
def _leased(line: Line, context: dg.AssetExecutionContext) -> Iterator[None]:
    """Wait until nobody works on the line; the pools hold back runs, but no command."""
    waits = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(line.home.lease(line.name, f"run {context.run.run_id}"))
                break
            except RoundHeldError as error:
                if not waits:
                    context.log.info(f"this run waits: {error}")
                waits = True
                time.sleep(KNOCK_AGAIN_S)
        yield


def _may_pass(error: BaseException) -> bool:
    """Whether it is a network's or a database's trouble, which may be over in a while."""
    if isinstance(error, EvoselectError):  # whatever led to it, it was raised on purpose
        return False
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    passing = (ConnectionError, TimeoutError, RequestException, OperationalError)
    seen: BaseException | None = error
    while seen is not None:  # MLflow wraps what its client met
        if isinstance(seen, passing):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _result(artifact: Artifact, started: float, more: dict[str, Any]) -> dg.MaterializeResult:
    """Describe a stage's artifact to Dagster."""
    facts = read_facts(artifact)
    # The event that opens a round names the adapter; the round's own event must agree with it.
    version = dg.DataVersion(facts.get("adapter_digest", artifact.digest))
    metadata = (
        metadata_of(facts)
        | {
            "seconds": round(time.monotonic() - started, 2),
            "artifact": dg.MetadataValue.path(str(artifact.path)),
        }
        | more
    )
    return dg.MaterializeResult(metadata=metadata, data_version=version)
