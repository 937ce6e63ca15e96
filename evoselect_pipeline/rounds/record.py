"""What each stage tells MLflow: said again on every run, and never twice in the record."""

from __future__ import annotations

from evoselect_pipeline.rounds.line import PROMOTED, Line, read_facts, read_json

# For a learning curve that reads without the pipeline's words.
METRIC_NAMES = {
    "base_test": "test/base",
    "before_test": "test/before",
    "after_test": "test/after",
    "before_validation": "validation/before",
    "after_validation": "validation/after",
    "gain_validation": "validation/gain",
    "gain_low": "validation/gain_low",
    "gain_high": "validation/gain_high",
}


def record(line: Line, round_number: int, stage: str) -> None:
    """Log a finished stage to the round's MLflow run."""
    before = round_number - 1
    if (
        stage == "incoming_adapter"
        and before >= 0
        and not line.tracking.finished(line.name, before)
    ):
        # A round is done once its promotion is published: a kill right after left this unsaid.
        record(line, before, PROMOTED)
    artifact = line.artifact(round_number, stage)
    facts = read_facts(artifact)
    metrics = {
        METRIC_NAMES.get(name, f"{stage}/{name}"): float(value)
        for name, value in facts.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    params = line.config.model_dump(mode="json") if stage == "incoming_adapter" else None
    line.tracking.log_round(
        line.name,
        round_number,
        params=_flat(params) if params else None,
        metrics=metrics,
        tags={f"evoselect.{stage}": artifact.digest},
    )
    if stage == "selected_subset":
        picks = read_json(artifact.path / "picks.json")
        ids = [pick["sample_id"] for pick in picks]
        line.tracking.log_selection(line.name, round_number, ids, artifact.path / "picks.json")
    if stage == "lora_checkpoint":
        losses = read_json(artifact.path / "losses.json")
        line.tracking.log_curve(line.name, round_number, "train/loss", losses)
    if stage == PROMOTED:
        _finish(line, round_number, facts)


def _finish(line: Line, round_number: int, facts: dict) -> None:
    if facts["promoted"]:
        adapter = line.artifact(round_number, "lora_checkpoint")
        scores = read_facts(line.artifact(round_number, "evaluation"))
        line.tracking.register_adapter(
            line.name,
            round_number,
            adapter.path / "adapter",
            adapter.digest,
            {"test": scores["after_test"], "validation": scores["after_validation"]},
            # Materializing an old round again must not put its adapter back into service.
            promoted=line.next_round() == round_number + 1,
        )
    line.tracking.finish_round(line.name, round_number)


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names, as MLflow shows params."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
