"""Resources and executor of every line."""

import os

import dagster as dg

from evoselect_pipeline.components.resources import HomeResource


@dg.definitions
def resources() -> dg.Definitions:
    """The home, and how a run's steps are executed.

    A round is a strict chain of steps that need the same heavy imports, so by default a run
    executes them in its own process, which ends, and frees the GPU, with the run. Set
    EVOSELECT_EXECUTOR=multiprocess to give each step a process.
    """
    separate = os.environ.get("EVOSELECT_EXECUTOR") == "multiprocess"
    return dg.Definitions(
        resources={"home": HomeResource()},
        executor=dg.multiprocess_executor if separate else dg.in_process_executor,
    )
