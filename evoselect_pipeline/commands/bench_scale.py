"""`evoselect bench scale`: check the sizes, measure, report."""

from __future__ import annotations

from evoselect_pipeline.bench.scale import (
    ScaleRequest,
    check_request,
    run_scale,
    scale_notes,
    scale_table,
)
from evoselect_pipeline.commands.measured import measured


def bench_scale(request: ScaleRequest, format: str) -> int:
    """Measure transport as the pool grows; return 0, or 1 if a measurement failed."""
    check_request(request)
    return measured(lambda: run_scale(request), format, scale_table, scale_notes)
