"""Who hears of a run that failed or was ended, whatever line it belongs to."""

import dagster as dg

from evoselect_pipeline.components.alerts import closes_canceled_rounds, tells_of_failed_runs


@dg.definitions
def alerts() -> dg.Definitions:
    """Two sensors for all lines."""
    return dg.Definitions(sensors=[tells_of_failed_runs, closes_canceled_rounds])
