"""Rounds that MLflow calls running and nobody works on any more."""

import dagster as dg

from evoselect_pipeline.components.automation import in_flight
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.errors import RoundHeldError
from evoselect_pipeline.rounds.report import REPORT
from evoselect_pipeline.stores.artifacts import is_published
from evoselect_pipeline.stores.home import round_key
from evoselect_pipeline.stores.tracking import Tracking


@dg.sensor(
    name="closes_ended_rounds",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Lets the MLflow run of a round end as failed when its last attempt is over.",
)
def closes_ended_rounds(context: dg.SensorEvaluationContext, home: HomeResource) -> dg.SkipReason:
    """Close what was left open.

    It looks at how things are, not at events: an attempt may have been killed, have failed because
    MLflow was down, or have been no run of the daemon's. Another attempt opens the round again.
    """
    opened = home.home()
    tracking = Tracking(opened)
    closed = []
    for line, number in tracking.open_rounds():
        if in_flight(context.instance, line):
            continue
        try:
            with opened.lease(line, "closing an ended round"):
                is_whole = is_published(opened.round_dir(line, number) / REPORT)
                tracking.finish_round(line, number, "FINISHED" if is_whole else "FAILED")
        except RoundHeldError:
            continue  # somebody has begun to work on it
        closed.append(f"{line} {round_key(number)}")
    return dg.SkipReason(f"closed in MLflow: {', '.join(closed) or 'none, no round was left open'}")
