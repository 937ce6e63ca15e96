"""`evoselect run`: the next rounds of a line, through Dagster, in this process."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

from evoselect_pipeline.commands.check import refuse_bad_input
from evoselect_pipeline.commands.console import live_progress, print_failure, stderr
from evoselect_pipeline.commands.context import open_home
from evoselect_pipeline.commands.status import report
from evoselect_pipeline.config import LineConfig
from evoselect_pipeline.progress import working_on
from evoselect_pipeline.rounds.line import Line
from evoselect_pipeline.stores.home import Home, round_key

if TYPE_CHECKING:
    import dagster as dg


def run_rounds(line: Line, num_rounds: int, format: str) -> int:
    """Materialize the next rounds; return 0, or 1 if a round failed."""
    with live_progress():
        with working_on("reading rows and models"):
            refuse_bad_input(line, num_rounds)
        with working_on("opening the home"):
            home = open_home(line.home.root)
        with home.lease(line.name, _holder()):
            seconds = _each_round(line, home, num_rounds)
    if seconds is None:
        return 1
    report(line, format, seconds)
    return 0


def _each_round(line: Line, home: Home, num_rounds: int) -> dict[int, float] | None:
    """Run the rounds; return the seconds that each took, or None if one failed."""
    seconds: dict[int, float] = {}
    for number_done in range(num_rounds):
        round_number = line.next_round()
        stderr.print(f"[bold]Round {round_key(round_number)} of line {line.name}[/bold]")
        started = time.monotonic()
        if failure := _materialize(line.config, home, round_number):
            print_failure(f"round {round_key(round_number)} failed", failure)
            stderr.print("What was finished is kept; this goes on from there:")
            again = line.command(f"run --rounds {num_rounds - number_done}")
            stderr.print(f"  {again}", soft_wrap=True, markup=False, highlight=False)
            return None
        seconds[round_number] = time.monotonic() - started
    return seconds


def _materialize(config: LineConfig, home: Home, round_number: int) -> str | None:
    """Run one round; return what went wrong, if anything did."""
    os.environ["DAGSTER_HOME"] = str(home.dagster_dir)
    with working_on("starting Dagster"):
        import dagster as dg

        from evoselect_pipeline.components.automation import HOLDER_TAG, MAX_RUNTIME, run_tags
        from evoselect_pipeline.components.evolution_line import line_definitions
        from evoselect_pipeline.components.resources import HomeResource

        definitions = line_definitions(config)
    # Whoever waits for this command ends it; a daemon that looks on could only call it ended.
    tags = run_tags(config) | {HOLDER_TAG: _holder(), MAX_RUNTIME: "0"}
    key = round_key(round_number)
    _quiet_loggers()
    with dg.DagsterInstance.from_config(str(home.dagster_dir)) as instance:
        instance.add_dynamic_partitions(f"{config.line}_rounds", [key])
        result = dg.materialize(
            [*(definitions.assets or ()), *(definitions.asset_checks or ())],  # type: ignore[list-item]
            partition_key=key,
            instance=instance,
            resources={"home": HomeResource(root=str(home.root))},
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    return None if result.success else _failure(result)


def _holder() -> str:
    return f"evoselect run (process {os.getpid()})"


def _failure(result: dg.ExecuteInProcessResult) -> str:
    from evoselect_pipeline.components.alerts import failed_checks, why_it_failed

    failures = result.get_step_failure_events()
    if any(
        event.step_failure_data.error
        and "DagsterExecutionInterruptedError" in event.step_failure_data.error.to_string()
        for event in failures
    ):
        raise KeyboardInterrupt  # Dagster turned Ctrl-C into a failed step
    if stopped := failed_checks(result.get_asset_check_evaluations()):
        return "; ".join(stopped)
    for event in failures:
        data = event.step_failure_data
        if data.user_failure_data:
            return why_it_failed(event)
        return (
            f"{why_it_failed(event)}\nThe whole trace is in the run's log: evoselect ui, run"
            f" {result.run_id[:8]}"
        )
    return "the run ended without saying why; see its log in `evoselect ui`"


def _quiet_loggers() -> None:
    """Keep libraries' chatter out of the progress display; Dagster's event log has it all."""
    for name in ("alembic", "mlflow", "py.warnings", "transformers", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
