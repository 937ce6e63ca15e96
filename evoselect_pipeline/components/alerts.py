"""Word of a failed run: in the log always, and to a webhook where one is named."""

import json
import os
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from evoselect_pipeline.addresses import is_in_the_clear, is_metadata_service
from evoselect_pipeline.components.lost_retries import is_asked_for_again
from evoselect_pipeline.report.text import WORD_JOINER, one_line

WEBHOOK = "EVOSELECT_WEBHOOK"
TIMEOUT_S = 10
MOST_CHARS = 1_000
# A failure may quote a server or a row: in a chat that must neither call people nor make links.
INERT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": f"@{WORD_JOINER}"})
WILL_RETRY = "dagster/will_retry"


@dg.run_failure_sensor(
    name="tells_of_failed_runs",
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Logs every failed run, and posts it as JSON to ${WEBHOOK} if that is set.",
)
def tells_of_failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Log what failed and post it; a webhook that does not answer fails nothing else."""
    run = context.dagster_run
    if run.tags.get(WILL_RETRY) == "true" or is_asked_for_again(context.instance, run):
        return  # a round that stepped aside, or a worker that died: only the last attempt is news
    records = context.instance.all_logs(
        context.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
    )
    checks = [record.get_dagster_event().event_specific_data for record in records]
    reasons = failed_checks(checks) or [
        why_it_failed(event) for event in context.get_step_failure_events()
    ]
    found = "; ".join(reasons) or context.failure_event.message or "see its log"
    message = one_line(found, MOST_CHARS)
    told = failure_told(context.dagster_run, message)
    context.log.error(told["text"])
    if address := os.environ.get(WEBHOOK):
        try:
            post(address, told)
        except (OSError, ValueError) as error:
            # The address may hold a secret: it is not repeated.
            context.log.error(f"the webhook in ${WEBHOOK} was not told: {type(error).__name__}")


def failed_checks(evaluations: Iterable[Any]) -> list[str]:
    """What the checks said that stopped a run; its failed step names them alone."""
    return [
        f"{found.asset_key.to_user_string()}, check {found.check_name}: {found.description}"
        for found in evaluations
        if not found.passed and found.severity == dg.AssetCheckSeverity.ERROR
    ]


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
    is_odd = parts.scheme not in ("http", "https") or is_metadata_service(parts.hostname or "")
    if is_odd or is_in_the_clear(parts):
        raise ValueError(f"${WEBHOOK}: expected https://..., or http:// to this machine")
    body = told | {"text": told["text"].translate(INERT)}
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(_NowhereElse).open(request, timeout=TIMEOUT_S):
        pass


class _NowhereElse(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirection: it could lead to where the address may not."""

    def redirect_request(self, *_: Any) -> None:
        return None
