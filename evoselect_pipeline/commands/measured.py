"""A bench that measures in one go: progress while it runs, then its report, or what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from evoselect_pipeline.bench.report import Table
from evoselect_pipeline.commands.console import (
    live_progress,
    print_failure,
    print_json,
    print_table,
    stdout,
)
from evoselect_pipeline.errors import EvoselectError

Report = dict[str, Any]


def measured(
    measure: Callable[[], Report],
    format: str,
    table_of: Callable[[Report], Table],
    notes_of: Callable[[Report], Sequence[str]],
) -> int:
    """Measure and print the report as JSON, or as a table with notes; 1 if it failed, else 0."""
    try:
        with live_progress():
            report = measure()
    except EvoselectError as error:
        print_failure("the bench failed", str(error))
        return 1
    if format == "json":
        print_json(report)
        return 0
    table = table_of(report)
    print_table(table.title, table.columns, table.rows)
    for note in notes_of(report):
        stdout.print(note, style="dim", highlight=False)
    return 0
