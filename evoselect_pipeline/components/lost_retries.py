"""Failed runs that Dagster meant to try again, and did not.

Its daemon looks at a failure once. It misses one whose event it reads before the run's status is
written, and gives up one whose code server is away at that moment, as after a power cut.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg

from evoselect_pipeline.components.alerts import WILL_RETRY

PARENT = "dagster/parent_run_id"
GAVE_UP = "Failed to retry run"  # what Dagster writes in the log of the run
AFTER = timedelta(minutes=1)  # its daemon looks every five seconds
WITHIN = timedelta(hours=1)  # after that a person has seen to it
MOST_FAILURES = 5  # of one run: its own, and each time that a retry was asked for again


@dg.sensor(
    name="asks_again_for_lost_retries",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Shows Dagster's daemon a failed run anew whose retry never came.",
)
def asks_again_for_lost_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Report the failure once more: the daemon tries again what it has not yet tried again."""
    now = datetime.now(UTC)
    recent = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        updated_after=now - WITHIN,
        updated_before=now - AFTER,
    )
    lost = [run for run in context.instance.get_runs(recent) if _is_lost(context.instance, run)]
    for run in lost:
        context.instance.report_run_failed(run, "Its retry never came: asked for again.")
    names = ", ".join(run.run_id[:8] for run in lost)
    return dg.SkipReason(f"asked again for the retries of: {names or 'none, no retry was lost'}")


def _is_lost(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run is to be tried again, and neither Dagster nor a person has done so."""
    if instance.get_run_ids(dg.RunsFilter(tags={PARENT: run.run_id}), limit=1):
        return False
    failures = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    if len(failures) >= MOST_FAILURES:
        return False
    return run.tags.get(WILL_RETRY) == "true" or _was_given_up(instance, run)


def _was_given_up(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    notes = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    return any(note.get_dagster_event().message == GAVE_UP for note in notes)
