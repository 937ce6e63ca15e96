"""Who hears of runs that failed or ended, whatever line they belong to."""

import dagster as dg

from evoselect_pipeline.components.alerts import tells_of_failed_runs
from evoselect_pipeline.components.ended_rounds import closes_ended_rounds


@dg.definitions
def alerts() -> dg.Definitions:
    """Two sensors for all lines."""
    return dg.Definitions(sensors=[tells_of_failed_runs, closes_ended_rounds])
