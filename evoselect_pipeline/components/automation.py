"""What starts rounds by itself: the nightly schedule, and sensors that open and chain rounds."""

from datetime import timedelta

import dagster as dg

from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.generation.base import DroppedFiles
from evoselect_pipeline.rounds.chain import progress_of, reason_to_stop
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import round_key

LINE_TAG = "evoselect/line"
PARTITION_TAG = "dagster/partition"
RUN_KEY_TAG = "dagster/run_key"
MAX_RUNTIME = "dagster/max_runtime"  # seconds; 0 is no limit
MAX_RETRIES = "dagster/max_retries"
ENDED_TAG = "evoselect/ended_run"  # the run that was ended; whoever goes on with it inherits it
HOLDER_TAG = "evoselect/holder"  # what the lease of a run on the command line says
GPU_POOL = "evoselect_gpu"
STORE_POOL = "evoselect_store"
IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def rounds_of(line: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of a line: its rounds that exist."""
    return dg.DynamicPartitionsDefinition(name=f"{line}_rounds")


def pool_of(line: str) -> str:
    """The pool that keeps a line's rounds from overlapping."""
    return f"evoselect_line_{line}"


def register(instance: dg.DagsterInstance, line: str, key: str) -> None:
    """Make a round one of the line's partitions, behind limits that hold."""
    limit_pools(instance, line)
    instance.add_dynamic_partitions(rounds_of(line).name or "", [key])


def limit_pools(instance: dg.DagsterInstance, line: str) -> None:
    """Let Dagster know the pools of a line.

    It learns of a pool when a step first asks for it, and until then lets any number of runs start.
    """
    known = instance.event_log_storage.get_concurrency_keys()
    for pool in {pool_of(line), GPU_POOL, STORE_POOL} - known:
        instance.event_log_storage.initialize_concurrency_limit_to_default(pool)


def run_tags(config: LineConfig) -> dict[str, str]:
    """Tags of every run that is started for a line: whose it is, and how long it may take."""
    seconds = timedelta(hours=config.schedule.max_hours).total_seconds()
    return {LINE_TAG: config.line, MAX_RUNTIME: f"{seconds:.0f}"}


def nightly(config: LineConfig, job_name: str) -> dg.ScheduleDefinition:
    """Ask for one new round a night, or say what is in the way."""

    @dg.schedule(
        name=f"{config.line}_nightly",
        job_name=job_name,
        cron_schedule=config.schedule.cron,
        execution_timezone=config.schedule.timezone,
        description=f"One new round of line {config.line} a night.",
    )
    def schedule(context: dg.ScheduleEvaluationContext, home: HomeResource):
        if busy := in_flight(context.instance, config.line):
            return dg.SkipReason(f"run {busy.run_id} of this line has not ended")
        night = f"{context.scheduled_execution_time:%Y-%m-%d}"
        return _next_round(context.instance, Line(config, home.home()), suffix=f"-{night}")

    return schedule


def chain(config: LineConfig, job_name: str) -> dg.SensorDefinition:
    """Ask for one round after the other until the target, the patience or the budget is reached.

    It looks at what the line has come to, not at events: materializing an old round again starts
    no second chain. A round that was begun and not finished is left to a person.
    """

    @dg.sensor(
        name=f"{config.line}_chain",
        job_name=job_name,
        minimum_interval_seconds=30,
        description=f"Rounds of line {config.line} one after the other, until {_until(config)}.",
    )
    def sensor(context: dg.SensorEvaluationContext, home: HomeResource):
        line = Line(config, home.home())
        if busy := in_flight(context.instance, config.line):
            return dg.SkipReason(f"run {busy.run_id} of this line has not ended")
        try:
            reason = reason_to_stop(progress_of(line), config.chain)
        except EvoselectError as error:
            return dg.SkipReason(str(error))
        if reason:
            return dg.SkipReason(reason)
        key = round_key(line.next_round())
        if last := _last_run(context.instance, config.line, key):
            return dg.SkipReason(
                f"round {key} was begun in run {last.run_id}, which ended as {last.status.value},"
                " and is not finished: see why, mend it and materialize the round; the chain goes"
                " on after it"
            )
        return _next_round(context.instance, line)

    return sensor


def takes_files(config: LineConfig, files: DroppedFiles, job_name: str) -> dg.SensorDefinition:
    """Ask for the next round as soon as its file of candidates is there and whole.

    A file counts as whole when two ticks find it the same: whoever still copies it changes its size
    or its time. A round that failed is asked for again when its file has changed.
    """

    @dg.sensor(
        name=f"{config.line}_files",
        job_name=job_name,
        minimum_interval_seconds=30,
        description=f"The next round of line {config.line}, when {files.source.pattern} is there.",
    )
    def sensor(context: dg.SensorEvaluationContext, home: HomeResource):
        if busy := in_flight(context.instance, config.line):
            return dg.SkipReason(f"run {busy.run_id} of this line has not ended")
        line = Line(config, home.home())
        file = files.path(line.next_round())
        try:
            found = file.stat()
        except OSError as error:
            return dg.SkipReason(f"waits for {file}: {error.strerror}")
        seen = f"{file} {found.st_size} {found.st_mtime_ns}"
        if context.cursor != seen:
            context.update_cursor(seen)
            return dg.SkipReason(
                f"{file} is new or has changed: taken if the next tick finds it so"
            )
        request = _next_round(context.instance, line, f"-{found.st_size}-{found.st_mtime_ns}")
        tried = dg.RunsFilter(tags={RUN_KEY_TAG: request.run_key or ""})
        if runs := context.instance.get_runs(tried, limit=1):
            return dg.SkipReason(
                f"round {request.partition_key} was begun with this very {file} in run"
                f" {runs[0].run_id}, which ended as {runs[0].status.value}, and is not finished:"
                " mend the file and the round starts again, or materialize it"
            )
        return request

    return sensor


def opens_its_next_round(config: LineConfig) -> dg.SensorDefinition:
    """Register the round that may be materialized next, so that the UI offers it."""
    partitions = rounds_of(config.line)

    @dg.sensor(
        name=f"{config.line}_opens_its_next_round",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Registers the round that may be materialized next, the first one included.",
    )
    def sensor(context: dg.SensorEvaluationContext, home: HomeResource) -> dg.SensorResult:
        limit_pools(context.instance, config.line)
        key = round_key(Line(config, home.home()).next_round())
        if context.instance.has_dynamic_partition(partitions.name or "", key):
            return dg.SensorResult(skip_reason=f"round {key} is registered")
        return dg.SensorResult(dynamic_partitions_requests=[partitions.build_add_request([key])])

    return sensor


def _next_round(instance: dg.DagsterInstance, line: Line, suffix: str = "") -> dg.RunRequest:
    """Register the next round and ask for it; the same run key is not heeded twice."""
    key = round_key(line.next_round())
    register(instance, line.name, key)
    return dg.RunRequest(
        partition_key=key, run_key=f"{line.name}-{key}{suffix}", tags=run_tags(line.config)
    )


def in_flight(instance: dg.DagsterInstance, line: str) -> dg.DagsterRun | None:
    """A run of the line that has not ended, however it was started."""
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_FLIGHT))
    return next((run for run in runs if is_of(run, line)), None)


def _last_run(instance: dg.DagsterInstance, line: str, key: str) -> dg.DagsterRun | None:
    """The newest run of a round."""
    runs = instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: key}), limit=100)
    return next((run for run in runs if is_of(run, line)), None)


def is_of(run: dg.DagsterRun, line: str) -> bool:
    """Whether a run works on a line, however it was started."""
    return line in lines_of(run)


def lines_of(run: dg.DagsterRun) -> set[str]:
    """The lines that a run works on, however it was started."""
    # A run that was launched from the asset graph carries no tag of ours.
    named = {run.tags[LINE_TAG]} if LINE_TAG in run.tags else set()
    return named | {key.path[0] for key in run.asset_selection or ()}


def _until(config: LineConfig) -> str:
    limits = config.chain
    ends = [f"round {limits.max_rounds} is done"]
    if limits.target is not None:
        ends.append(f"the champion answers {limits.target:.0%} of the validation rows")
    if limits.patience is not None:
        ends.append(f"{limits.patience} rounds in a row promote nothing")
    if limits.max_hours is not None:
        ends.append(f"{limits.max_hours:g} hours are spent")
    return " or ".join(ends)
