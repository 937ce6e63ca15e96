"""Whose turn it is: a round that the queue started too early lets the one before it pass.

The queue knows no order but that of submission. When the worker of round r is killed, its retry
is submitted last, behind the rounds that need it.
"""

import dagster as dg

from evoselect_pipeline.components.automation import IN_FLIGHT, MAX_RETRIES, PARTITION_TAG, is_of
from evoselect_pipeline.components.lost_retries import was_given_up
from evoselect_pipeline.errors import RoundOrderError
from evoselect_pipeline.rounds.line import PROMOTED, Line
from evoselect_pipeline.stores.artifacts import MANIFEST
from evoselect_pipeline.stores.home import round_key

PRIORITY = "dagster/priority"  # the queue takes the highest first; a retry inherits its run's tags
RETRY_NUMBER = "dagster/retry_number"
RETRY_FAILED_STEP = "dagster/retry_on_asset_or_op_failure"
# A run that died may be marked for a retry that never comes, as after its backfill was ended.
MOST_STEPS_ASIDE = 20


def take_turn(context: dg.AssetExecutionContext, line: Line, round_number: int) -> None:
    """Begin a round, or step aside if a run that has not ended makes the one before it.

    Raises
    ------
    Failure
        If the round steps aside; the run is then tried again by itself, after the other one.
    """
    retries = int(context.run.tags.get(RETRY_NUMBER, 0))
    too_early = line.next_round() < round_number and retries < MOST_STEPS_ASIDE
    if too_early and (before := _pending(context.instance, line.name, round_number - 1)):
        _go_first(context.instance, before)
        again = {PRIORITY: "1", MAX_RETRIES: str(retries + 1), RETRY_FAILED_STEP: "true"}
        context.instance.add_run_tags(context.run.run_id, again)
        raise dg.Failure(
            f"round {round_key(round_number)} steps aside: run {before.run_id} still has to make"
            f" round {round_key(round_number - 1)}. This run is tried again after it.",
            allow_retries=False,
        )
    begun = {PRIORITY: "2"}
    if RETRY_FAILED_STEP in context.run.tags:
        allowed = retries + context.instance.run_retries_max_retries
        begun |= {MAX_RETRIES: str(allowed), RETRY_FAILED_STEP: "false"}
    context.instance.add_run_tags(context.run.run_id, begun)


def leave_if_finished(context: dg.AssetExecutionContext, line: Line, round_number: int) -> None:
    """Refuse a stage of a round that was finished since this run was launched.

    A command passes the queue by, and may have had other settings: what this run would make anew
    under its own, the rounds after it do not build on.

    Raises
    ------
    RoundOrderError
        If the round was finished meanwhile.
    """
    if not line.has(round_number, PROMOTED):
        return
    finished = (line.stage_dir(round_number, PROMOTED) / MANIFEST).stat().st_mtime
    launched = context.instance.get_run_record_by_id(context.run.run_id)
    if launched and finished > launched.create_timestamp.timestamp():
        raise RoundOrderError(
            f"round {round_key(round_number)} of line {line.name!r} was finished after this run was"
            " launched, by `evoselect run` or another run: nothing is left to do. To make the round"
            " again all the same, materialize it anew."
        )


def _pending(instance: dg.DagsterInstance, line: str, round_number: int) -> dg.DagsterRun | None:
    """A run that makes a round, or one that died and is about to be tried again."""
    tags = {PARTITION_TAG: round_key(round_number)}
    runs = instance.get_runs(dg.RunsFilter(tags=tags), limit=100)
    return next(
        (
            run
            for run in runs
            if is_of(run, line)
            and (
                run.status in IN_FLIGHT
                or run.is_complete_and_waiting_to_retry
                or was_given_up(instance, run)
            )
        ),
        None,
    )


def _go_first(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    instance.add_run_tags(run.run_id, {PRIORITY: "2"})
