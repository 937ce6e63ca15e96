"""Failed runs that Dagster meant to try again, and did not.

Its daemon looks at a failure once. It misses one whose event it reads before the run's status is
written, and gives up one whose code server is away at that moment, as after a power cut.
"""

import time
from collections.abc import Iterable, Sequence

import dagster as dg

from evoselect_pipeline.components.automation import PARTITION_TAG, lines_of

RETRIED_AS = "dagster/auto_retry_run_id"
BACKFILL = "dagster/backfill"
GAVE_UP = "Failed to retry run"  # what Dagster writes in the log of the run
AFTER_S = 60.0  # its daemon looks every five seconds
WITHIN_S = 3600.0  # after that a person has seen to it
MOST_FAILURES = 5  # told of one run: its own, and each time that its retry was asked for again
MOST_RUNS = 50  # looked at, the newest first


@dg.sensor(
    name="asks_again_for_lost_retries",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Shows Dagster's daemon a failed run anew whose retry never came.",
)
def asks_again_for_lost_retries(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Report the failure once more: the daemon tries again what it has not yet tried again."""
    instance = context.instance
    newest = instance.get_runs(limit=MOST_RUNS)
    lost = [run for i, run in enumerate(newest) if _is_lost(instance, run, newest[:i])]
    for run in lost:
        cause = _failures(instance, run)[0].get_dagster_event().message or "It failed."
        instance.report_run_failed(run, f"{cause} Its retry never came.")
    names = ", ".join(run.run_id[:8] for run in lost)
    return dg.SkipReason(f"asked again for the retries of: {names or 'none, no retry was lost'}")


def was_given_up(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether Dagster could not place the retry of a failed run, and it will be asked for again."""
    if run.status != dg.DagsterRunStatus.FAILURE or RETRIED_AS in run.tags:
        return False
    notes = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    given_up = any(note.get_dagster_event().message == GAVE_UP for note in notes)
    return given_up and len(_failures(instance, run)) < MOST_FAILURES


def is_asked_for_again(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a failure was reported anew, and not for the last time."""
    return 1 < len(_failures(instance, run)) < MOST_FAILURES


def _is_lost(
    instance: dg.DagsterInstance, run: dg.DagsterRun, later: Iterable[dg.DagsterRun]
) -> bool:
    """Whether a run is to be tried again, and nobody has: not Dagster, nor a person."""
    if run.status != dg.DagsterRunStatus.FAILURE or run.remote_job_origin is None:
        return False  # a run of the command line is nobody's to try again
    given_up = was_given_up(instance, run)
    if not (given_up or run.is_complete_and_waiting_to_retry):
        return False
    told = _failures(instance, run)
    age_s = time.time() - told[-1].timestamp if told else 0.0
    is_late = given_up or age_s >= AFTER_S
    is_old = len(told) >= MOST_FAILURES or age_s > WITHIN_S
    is_wanted = not any(_same_work(run, other) for other in later)
    return is_late and not is_old and is_wanted and not _backfill_has_ended(instance, run)


def _failures(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Sequence[dg.EventLogEntry]:
    return instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)


def _same_work(run: dg.DagsterRun, other: dg.DagsterRun) -> bool:
    """Whether two runs make the same round of the same line, however they were started."""
    of_one_round = run.tags.get(PARTITION_TAG) == other.tags.get(PARTITION_TAG)
    return of_one_round and not lines_of(run).isdisjoint(lines_of(other))


def _backfill_has_ended(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run belongs to a backfill that is ending, over or gone."""
    if BACKFILL not in run.tags:
        return False
    backfill = instance.get_backfill(run.tags[BACKFILL])
    return backfill is None or backfill.status.value != "REQUESTED"
