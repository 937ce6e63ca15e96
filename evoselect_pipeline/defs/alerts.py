"""Who hears of runs that failed or ended, whatever line they belong to."""

import dagster as dg

from evoselect_pipeline.components.alerts import tells_of_failed_runs
from evoselect_pipeline.components.ended_rounds import closes_ended_rounds
from evoselect_pipeline.components.lost_retries import asks_again_for_lost_retries


@dg.definitions
def alerts() -> dg.Definitions:
    """Three sensors for all lines."""
    return dg.Definitions(
        sensors=[tells_of_failed_runs, closes_ended_rounds, asks_again_for_lost_retries]
    )
