"""Starts runs on code servers as Dagster's own launcher does, and notices those that were lost.

A code server reports a worker of its that dies. When the code server dies with its workers, as a
container does, nobody is left to report anything: Dagster's own launcher would call the run
started until its maximum runtime is over.
"""

import json
import socket
import time
from functools import cached_property
from typing import Any

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value

from evoselect_pipeline.components.automation import ENDED_TAG, HOLDER_TAG, MAX_RETRIES
from evoselect_pipeline.stores.home import Home

# Longer than a worker needs between two stages, and than the daemon to find a restarted code
# server: a retry that cannot be placed at once is dropped.
LOST_AFTER_S = 30.0


class WatchfulRunLauncher(DefaultRunLauncher):
    """Calls a run lost when its code server knows nothing of it and no process works for it."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Makes run monitoring ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Say whether a run's worker lives; one that nobody has seen for a while does not."""
        now = time.monotonic()
        if self._may_live(run):
            self._seen[run.run_id] = now
        unseen = now - self._seen.setdefault(run.run_id, now)
        if unseen < LOST_AFTER_S:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        del self._seen[run.run_id]
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            f"its code server knows nothing of it, and for {unseen:.0f} s no process has worked"
            " for it: the server and the run's worker have died",
        )

    def terminate(self, run_id: str) -> bool:
        """End a run for good: one that took too long fails, and failed runs may be tried again."""
        try:
            self._instance.add_run_tags(run_id, {MAX_RETRIES: "0", ENDED_TAG: run_id})
        finally:  # a mark that cannot be set must not keep the run alive
            ended = super().terminate(run_id)
        return ended

    @cached_property
    def _seen(self) -> dict[str, float]:
        return {}

    def _may_live(self, run: DagsterRun) -> bool:
        address = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if address and _is_known(run.run_id, address):
            return True
        # The server may have been replaced under a worker that goes on; and a run that was started
        # on the command line has none.
        holder = run.tags.get(HOLDER_TAG, f"run {run.run_id}")
        return Home.from_env().is_held_for(holder)


def _is_known(run_id: str, address: dict[str, Any]) -> bool:
    """Whether a run's code server has it, or cannot be asked now."""
    from dagster._grpc.client import DagsterGrpcClient

    if "socket" in address and not _listens(address["socket"]):
        return False  # such a server was a child of the daemon, and comes back on another socket
    try:
        answer = DagsterGrpcClient(**address).can_cancel_execution(
            CanCancelExecutionRequest(run_id=run_id), timeout=10
        )
    except DagsterUserCodeUnreachableError:
        return True
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
