"""How hard the machine works meanwhile, sampled by MLflow into a round's run as `system/...`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from evoselect_pipeline.stores.tracking import Tracking


@contextmanager
def watched(tracking: Tracking, line: str, round: int) -> Iterator[None]:
    """Sample the load while the block works.

    A round without a run is not watched: what is refused must not create one. A run that was closed
    is open for as long, since MLflow samples for open runs alone.
    """
    status = tracking.status(line, round)
    if status is None:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        tracking.round_run(line, round),
        resume_logging=True,
        tracking_uri=tracking.home.mlflow_uri,
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
        if status != "RUNNING":
            tracking.finish_round(line, round, status)
