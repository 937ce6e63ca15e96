"""`evoselect bench scale`: check the sizes, measure, report."""

from __future__ import annotations

from rich.markup import escape

from evoselect_pipeline.bench.scale import (
    ScaleRequest,
    check_request,
    run_scale,
    scale_notes,
    scale_table,
)
from evoselect_pipeline.commands.console import (
    live_progress,
    print_json,
    print_table,
    stderr,
    stdout,
)
from evoselect_pipeline.errors import EvoselectError


def bench_scale(request: ScaleRequest, format: str) -> int:
    """Measure transport as the pool grows; return 0, or 1 if a measurement failed."""
    check_request(request)
    try:
        with live_progress():
            report = run_scale(request)
    except EvoselectError as error:
        stderr.print(f"[red]the bench failed[/red]: {escape(str(error))}", soft_wrap=True)
        return 1
    if format == "json":
        print_json(report)
        return 0
    table = scale_table(report)
    print_table(table.title, table.columns, table.rows)
    for note in scale_notes(report):
        stdout.print(note, style="dim", highlight=False)
    return 0
