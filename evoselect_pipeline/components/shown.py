"""What a stage shows in Dagster beside its facts: rows, pictures, and where it came from."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from evoselect_pipeline.components.metadata import quantile_table, subset_table, table
from evoselect_pipeline.report.html import data_uri
from evoselect_pipeline.report.page import promotion_sentence
from evoselect_pipeline.report.plots import interval_svg
from evoselect_pipeline.report.reasons import in_words
from evoselect_pipeline.report.text import one_line
from evoselect_pipeline.rounds.candidates import HITS
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts, read_json
from evoselect_pipeline.rounds.report import (
    REPORT,
    html_file,
    page_of,
    promotion_of,
    rejected_rows,
)
from evoselect_pipeline.rounds.stages import Stage

SHORT_ID = 8
MOST_ROWS = 50
MOST_TRAINING_ROWS = 1_500  # they are one event in Dagster's log, of some hundred kilobytes
MOST_CHARS = 80
ROW_COUNTS = {
    "candidates": "num_candidates",
    "projected_gradients": "num_candidates",
    "selected_subset": "num_selected",
    "lora_checkpoint": "num_rows",
}


def shown(line: Line, round_number: int, stage: Stage) -> dict[str, Any]:
    """Metadata of a finished stage."""
    metadata: dict[str, Any] = {}
    if stage.name in ROW_COUNTS:
        facts = read_facts(line.artifact(round_number, stage.name))
        metadata["dagster/partition_row_count"] = facts[ROW_COUNTS[stage.name]]
    for name in stage.reads:
        metadata[f"from_{name}"] = dg.MetadataValue.asset(dg.AssetKey([line.name, name]))
    if stage.name in SHOWN:  # last, since the UI shows a table with all its rows
        metadata |= SHOWN[stage.name](line, round_number)
    return metadata


def _candidates(line: Line, round_number: int) -> dict[str, Any]:
    """Which evaluation rows candidates gave away, for a look whether they did."""
    hits = read_json(line.artifact(round_number, "candidates").path / HITS)
    if not hits:
        return {}
    rows = [
        (
            hit["evaluation_id"][:SHORT_ID],
            hit["split"],
            hit["num_candidates"],
            hit["sample_id"][:SHORT_ID],
            one_line(hit["evidence"], MOST_CHARS),
        )
        for hit in hits[:MOST_ROWS]
    ]
    types = dict.fromkeys(("row", "split", "candidates", "for example", "it holds"), "string")
    return {"evaluation_rows_hit": table(types | {"candidates": "int"}, rows)}


def _quality(line: Line, round_number: int) -> dict[str, Any]:
    facts = read_facts(line.artifact(round_number, "answer_quality"))
    return {"quantiles": quantile_table(facts["quantiles"])} if "quantiles" in facts else {}


def _subset(line: Line, round_number: int) -> dict[str, Any]:
    picks = read_json(line.artifact(round_number, "selected_subset").path / "picks.json")
    rejected = [
        (in_words(row["stage"]), row["sample_id"][:SHORT_ID], row["reason"])
        for row in rejected_rows(line, round_number, MOST_ROWS)
    ]
    columns = {"left out": "string", "sample_id": "string", "reason": "string"}
    return {"rows": subset_table(picks, MOST_ROWS), "rejected_rows": table(columns, rejected)}


def _checkpoint(line: Line, round_number: int) -> dict[str, Any]:
    """The rows that the adapter was trained on, who wrote them, and what they grew from."""
    picks = read_json(line.artifact(round_number, "selected_subset").path / "picks.json")
    samples = line.store.get_samples([pick["sample_id"] for pick in picks[:MOST_TRAINING_ROWS]])
    rows = [
        (
            sample.sample_id[:SHORT_ID],
            sample.source,
            sample.prompt_id,
            ", ".join(parent[:SHORT_ID] for parent in sample.parents),
            one_line(sample.prompt, MOST_CHARS),
            one_line(sample.completion, MOST_CHARS),
        )
        for sample in samples
    ]
    names = ("sample_id", "written by", "from prompt", "grown from", "prompt", "answer")
    columns: dict[str, str] = dict.fromkeys(names, "string")
    metadata: dict[str, Any] = {"training_rows": table(columns, rows)}
    if len(picks) > len(rows):
        command = f"evoselect lineage --line {line.name} --adapter {round_number} --format json"
        metadata["more_training_rows"] = f"{len(picks) - len(rows)} more: {command}"
    return metadata


def _promotion(line: Line, round_number: int) -> dict[str, Any]:
    promotion = promotion_of(line, round_number)
    picture = data_uri("interval.svg", interval_svg(promotion).encode())
    says = (
        "The interval of the change on the validation rows; the whole line is no change, the dashed"
        " one what is tolerated."
    )
    return {
        "promotion_test": dg.MetadataValue.md(f"![{says}]({picture})"),
        "verdict": promotion_sentence(promotion),
    }


def _report(line: Line, round_number: int) -> dict[str, Any]:
    page = line.tracking.run_page(line.name, round_number)
    url = page.startswith("http")
    return {
        "report": dg.MetadataValue.md(page_of(line, round_number)),
        "report_html": dg.MetadataValue.path(str(html_file(line, round_number))),
        # A path alone: where a browser finds MLflow is not known here.
        "mlflow_run": dg.MetadataValue.url(page) if url else page,
    }


SHOWN: dict[str, Callable[[Line, int], dict[str, Any]]] = {
    "candidates": _candidates,
    "answer_quality": _quality,
    "selected_subset": _subset,
    "lora_checkpoint": _checkpoint,
    PROMOTED: _promotion,
    REPORT: _report,
}
