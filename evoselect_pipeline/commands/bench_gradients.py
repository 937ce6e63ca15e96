"""`evoselect bench gradients`: measure every representation, report."""

from __future__ import annotations

from typing import Any

from evoselect_pipeline.bench.adaptation import machine
from evoselect_pipeline.bench.gradients import GradientsRequest, measure_gradients
from evoselect_pipeline.bench.report import Table, told, without_empty
from evoselect_pipeline.commands.measured import measured

COLUMNS = (
    "representation",
    "width",
    "rows/s",
    "x forward+backward",
    "of all repeats",
    "x batch 1",
    "x bergson",
    "peak MB",
    "Spearman to targets",
    "between rows",
)


def bench_gradients(request: GradientsRequest, format: str) -> int:
    """Measure cost and truth of gradient features; return 0, or 1 if a measurement failed."""
    return measured(
        lambda: measure_gradients(request) | {"versions": machine()},
        format,
        _table,
        lambda report: _notes(request, report),
    )


def _table(report: dict[str, Any]) -> Table:
    rows = [_cells(row) for row in report["results"]]
    return without_empty(Table("Gradient features, one thread", COLUMNS, rows))


def _cells(row: dict[str, Any]) -> list[Any]:
    low, high = row["ratio_range"]
    truth = (row["spearman"], row["spearman_rows"])
    return [
        row["representation"],
        "" if row["dim"] is None else str(row["dim"]),
        f"{row['samples_per_s']:.1f}",
        f"{row['ratio_to_forward_backward']:.2f}",
        f"{low:.2f}-{high:.2f}",
        f"{row['ratio_to_batch1']:.2f}",
        "" if row["ratio_to_bergson"] is None else f"{row['ratio_to_bergson']:.2f}",
        f"{row['peak_mb']:.0f}",
        *("" if value is None else f"{value:.3f}" for value in truth),
    ]


def _notes(request: GradientsRequest, report: dict[str, Any]) -> list[str]:
    return [
        f"Model {request.model}: {report['num_parameters']:,} parameters, of them"
        f" {report['gradient_size']:,} in the adapter. {report['num_rows']} timed rows of"
        f" {report['shortest']} to {report['longest']} tokens, {request.batch_tokens} padded tokens"
        f" in a batch; medians of {request.repeats} paired repeats. {request.num_fidelity} rows and"
        f" {request.num_targets} targets for the correlations. Prompt weight"
        f" {request.prompt_weight:g}, seed {request.seed}.",
        "forward + backward: a plain pass that trains all weights, over the same batches and, for"
        " bfloat16, in it. batch 1: row by row through the unmerged adapter, then a dense"
        " projection, as LESS does it. The adapter is fresh, as in a line's rounds by default, so"
        " that only factor B has a gradient, for peers as well; refreshed proxy: a trained one, as"
        " with `refresh_proxy`, both of whose factors have, beside peers with the same.",
        "Spearman: rank correlation of cosines with those of exact gradients of the whole adapter,"
        " between rows and targets, and between rows; of peers with those of the answer's loss"
        " alone, as they know no other. Peak: above the loaded model.",
        f"Measured on {told(report['versions'])}.",
    ]
