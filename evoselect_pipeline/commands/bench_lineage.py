"""`evoselect bench lineage`: measure the answers, report."""

from __future__ import annotations

from typing import Any

from evoselect_pipeline.bench.adaptation import machine
from evoselect_pipeline.bench.lineage import LineageRequest, lineage_table, measure_lineage
from evoselect_pipeline.bench.report import told
from evoselect_pipeline.commands.measured import measured


def bench_lineage(request: LineageRequest, format: str) -> int:
    """Measure how long lineage takes to answer; return 0, or 1 if a measurement failed."""
    return measured(
        lambda: measure_lineage(request) | {"versions": machine()}, format, lineage_table, _notes
    )


def _notes(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['num_rounds']} rounds, each trained on every fifth of its rows and building on"
        f" the one before; seed {report['seed']}. Within one process, imports aside.",
        f"Measured on {told(report['versions'])}.",
    ]
