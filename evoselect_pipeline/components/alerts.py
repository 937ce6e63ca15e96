"""Word of a run that failed or was ended: in the log, in MLflow, and to a webhook if one is set."""

import json
import os
import urllib.request
from urllib.parse import urlsplit

import dagster as dg

from evoselect_pipeline.components.automation import IN_FLIGHT, LINE_TAG, PARTITION_TAG, last_run
from evoselect_pipeline.components.resources import HomeResource
from evoselect_pipeline.rounds.record import record_failure
from evoselect_pipeline.stores.home import round_of

WEBHOOK = "EVOSELECT_WEBHOOK"
TIMEOUT_S = 10
WILL_RETRY = "dagster/will_retry"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dg.run_failure_sensor(
    name="tells_of_failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Logs every failed run, posts it as JSON to ${WEBHOOK} if that is set, and lets"
    " the round's MLflow run end as failed.",
)
def tells_of_failed_runs(context: dg.RunFailureSensorContext, home: HomeResource) -> None:
    """Log what failed, post it and tell MLflow; whoever does not answer fails nothing else."""
    if context.dagster_run.tags.get(WILL_RETRY) == "true":
        return  # a round that stepped aside, or a worker that died: only the last attempt is news
    reasons = [why_it_failed(event) for event in context.get_step_failure_events()]
    message = "; ".join(reasons) or context.failure_event.message or "see its log"
    told = failure_told(context.dagster_run, message)
    context.log.error(told["text"])
    if address := os.environ.get(WEBHOOK):
        try:
            post(address, told)
        except (OSError, ValueError) as error:
            # The address may hold a secret: it is not repeated.
            context.log.error(f"the webhook in ${WEBHOOK} was not told: {type(error).__name__}")
    _fail_in_mlflow(context, home)


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    name="closes_canceled_rounds",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Lets the MLflow run of a round that a person has ended end as failed.",
)
def closes_canceled_rounds(context: dg.RunStatusSensorContext, home: HomeResource) -> None:
    """Tell MLflow of a round that was ended."""
    _fail_in_mlflow(context, home)


def _fail_in_mlflow(context: dg.RunStatusSensorContext, home: HomeResource) -> None:
    """Mark the round as failed, unless another attempt is at it already.

    The run itself could not: it may have been killed, or MLflow be what it failed of.
    """
    tags = context.dagster_run.tags
    line, key = tags.get(LINE_TAG), tags.get(PARTITION_TAG)
    if line is None or key is None:
        return
    newest = last_run(context.instance, line, key)
    if newest is None or newest.status not in IN_FLIGHT:
        record_failure(home.home(), line, round_of(key))


def why_it_failed(event: dg.DagsterEvent) -> str:
    """Name the step that failed and why: in our own words where we have raised it on purpose."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return f"{event.step_key}: {data.user_failure_data.description}"
    error = data.error and (data.error.cause or data.error)
    return f"{event.step_key}: {error.message.strip() if error else 'it gave no reason'}"


def failure_told(run: dg.DagsterRun, message: str) -> dict[str, str]:
    """A failed run as a message: `text` for people, as chat services take it, and its parts."""
    partition = run.tags.get("dagster/partition", "")
    of_round = f", round {partition}" if partition else ""
    return {
        "text": f"Run {run.run_id[:8]} of {run.job_name}{of_round} failed: {message}",
        "run_id": run.run_id,
        "job": run.job_name,
        "round": partition,
        "message": message,
    }


def post(address: str, told: dict[str, str]) -> None:
    """Send a message as JSON; over https, or in the clear to this machine alone."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"${WEBHOOK}: expected https://..., or http:// to this machine")
    request = urllib.request.Request(
        address, json.dumps(told).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S):
        pass
