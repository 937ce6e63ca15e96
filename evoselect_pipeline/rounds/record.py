"""What each stage tells MLflow: said again on every run, and never twice in the record."""

from __future__ import annotations

import logging
from typing import Any

from evoselect_pipeline.errors import EvoselectError
from evoselect_pipeline.rounds.champion import register, say
from evoselect_pipeline.rounds.costs import seconds_spent
from evoselect_pipeline.rounds.data import SPLITS, split_rows
from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts, read_json
from evoselect_pipeline.rounds.report import FIGURES, REPORT, html_file, round_report
from evoselect_pipeline.stores.artifacts import Artifact
from evoselect_pipeline.stores.home import round_key
from evoselect_pipeline.stores.tracking import NOTE_TAG

# For a learning curve that reads without the pipeline's words.
METRIC_NAMES = {
    "base_test": "test/base",
    "before_test": "test/before",
    "after_test": "test/after",
    "gain_test": "test/gain",
    "gain_test_low": "test/gain_low",
    "gain_test_high": "test/gain_high",
    "before_validation": "validation/before",
    "after_validation": "validation/after",
    "gain_validation": "validation/gain",
    "gain_low": "validation/gain_low",
    "gain_high": "validation/gain_high",
}

_log = logging.getLogger("evoselect_pipeline")


def record(line: Line, round_number: int, stage: str) -> None:
    """Log a finished stage to the round's MLflow run."""
    if stage == "incoming_adapter" and round_number > 0:
        _mend(line, round_number - 1)
    _tell(line, round_number, stage)
    # Its report closes a round; a stage that is materialized again later must not leave it open.
    if line.has(round_number, REPORT):
        line.tracking.finish_round(line.name, round_number)


def _mend(line: Line, round_number: int) -> None:
    """Say what a kill left unsaid: a round is over with its promotion, told or not."""
    if line.tracking.status(line.name, round_number) == "FINISHED":
        return
    _tell(line, round_number, PROMOTED)
    try:
        round_report(line, round_number)
        _tell(line, round_number, REPORT)
    except EvoselectError as error:
        # A page that cannot be written is no reason to stop the line.
        _log.warning("round %s has no report: %s", round_key(round_number), error)
    line.tracking.finish_round(line.name, round_number)


def _tell(line: Line, round_number: int, stage: str) -> None:
    artifact = line.artifact(round_number, stage)
    facts = read_facts(artifact)
    params = line.config.model_dump(mode="json") if stage == "incoming_adapter" else None
    line.tracking.log_round(
        line.name,
        round_number,
        params=_flat(params) if params else None,
        metrics=_metrics(stage, facts),
        tags={f"evoselect.{stage}": artifact.digest},
    )
    if stage == "candidates":
        _log_trusted_rows(line, round_number)
    if stage == "selected_subset":
        _log_selected_rows(line, round_number, artifact)
    if stage == "lora_checkpoint":
        losses = read_json(artifact.path / "losses.json")
        line.tracking.log_curve(line.name, round_number, "train/loss", losses)
    if stage == PROMOTED:
        _register(line, round_number, facts)
    if stage == REPORT:
        _log_report(line, round_number, artifact)


def _metrics(stage: str, facts: dict[str, Any]) -> dict[str, float]:
    return {
        METRIC_NAMES.get(name, f"{stage}/{name}"): float(value)
        for name, value in facts.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _log_trusted_rows(line: Line, round_number: int) -> None:
    folder = line.home.line_dir(line.name) / "target_set"
    for split in SPLITS:
        ids = [sample.sample_id for sample in split_rows(line, split)]
        line.tracking.log_rows(
            line.name, round_number, f"{line.name}-{split}", ids, folder / f"{split}.jsonl", split
        )


def _log_selected_rows(line: Line, round_number: int, artifact: Artifact) -> None:
    picks = artifact.path / "picks.json"
    line.tracking.log_rows(
        line.name,
        round_number,
        f"{line.name}-{round_key(round_number)}-selected",
        [pick["sample_id"] for pick in read_json(picks)],
        picks,
        "training",
    )


def _register(line: Line, round_number: int, facts: dict[str, Any]) -> None:
    if facts["promoted"]:
        register(line, round_number, promoted=False)
    # Materializing an old round again must not put its adapter back into service.
    if line.next_round() == round_number + 1:
        say(line)


def _log_report(line: Line, round_number: int, artifact: Artifact) -> None:
    spent = seconds_spent(line, round_number)
    line.tracking.log_round(
        line.name,
        round_number,
        metrics={f"seconds/{stage}": seconds for stage, seconds in spent.items()},
        texts={"report.html": html_file(line, round_number).read_text(encoding="utf-8")},
        folders={FIGURES: artifact.path / FIGURES},
        tags={NOTE_TAG: read_facts(artifact)["headline"]},
    )


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names, as MLflow shows params."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
