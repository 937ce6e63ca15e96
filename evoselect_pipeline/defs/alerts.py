"""Who hears of a failed run, whatever line it belongs to."""

import dagster as dg

from evoselect_pipeline.components.alerts import tells_of_failed_runs


@dg.definitions
def alerts() -> dg.Definitions:
    """One sensor for all lines."""
    return dg.Definitions(sensors=[tells_of_failed_runs])
